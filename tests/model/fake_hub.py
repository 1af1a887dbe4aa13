"""A hub on this machine: the few routes that publishing and fetching a repository ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub.file_download
import huggingface_hub.utils._http
import pytest
from huggingface_hub import constants


class FakeHub(ThreadingHTTPServer):
    """Repositories by name, each commit {file: bytes}; `asked` lists what was requested."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Routes)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.closed: dict[str, str] = {}  # repositories nobody may see, with the hub's error code
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """A new commit; its hash."""
        self.commits.setdefault(name, []).append(files)
        return revision_of(files)


def revision_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in files.items())).hexdigest()


class _Routes(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def found(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Files of a revision; answers the error where there are none."""
        if name in self.server.closed:
            self.answer(403, X_Error_Code=self.server.closed[name], X_Error_Message="no")
            return None
        commits = self.server.commits.get(name)
        if commits is None:
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return None
        for files in commits[::-1]:
            if revision in ("main", revision_of(files)):
                return files
        self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        return None

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(path)
        if path.startswith("/api/models/"):
            name, kind, revision = re.split(r"/(revision|tree)/|$", path.removeprefix("/api/models/"))[:3]
            files = self.found(name, revision or "main")
            if files is not None and kind == "tree":
                entries = [
                    {"type": "file", "path": file, "size": len(content), "oid": file}
                    for file, content in files.items()
                ]
                self.answer(200, json.dumps(entries).encode())
            elif files is not None:
                information = {"id": name, "sha": revision_of(files), "tags": [], "private": False}
                siblings = [{"rfilename": file} for file in files]
                self.answer(200, json.dumps(information | {"siblings": siblings}).encode())
            return
        name, _, place = path.strip("/").partition("/resolve/")
        revision, _, file = place.partition("/")
        files = self.found(name, revision)
        if files is not None:
            tag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            self.answer(200, files[file], ETag=tag, X_Repo_Commit=revision_of(files))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "Authorization" not in self.headers:
            self.answer(401, X_Error_Message="log in")
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.server.commits else 200
            if status == 200:
                self.server.commits[name] = [{".gitattributes": b""}]  # as a new repository has it
                self.server.private[name] = asked.get("private", asked.get("visibility") == "private")
            self.answer(status, json.dumps({"url": f"{self.server.address}/{name}"}).encode())
        elif self.path == "/api/validate-yaml":
            self.answer(200, b'{"errors": [], "warnings": []}')
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            entries = [json.loads(line) for line in body.splitlines()]
            files = {
                entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
                for entry in entries
                if entry["key"] == "file"
            }
            revision = self.server.add(name, files)
            url = f"{self.server.address}/{name}/commit/{revision}"
            self.answer(200, json.dumps({"commitUrl": url, "commitOid": revision}).encode())
        else:
            self.answer(404)


@pytest.fixture(name="hub")
def hub_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub, on this machine and empty, with an empty cache; somebody is logged in."""
    server = FakeHub()
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_somebody")
    monkeypatch.chdir(tmp_path)
    reset()
    yield server
    server.shutdown()
    server.server_close()
    reset()


def reset() -> None:
    """Sessions remember whether the machine was offline."""
    for name in ("reset_sessions", "close_session"):
        found = getattr(huggingface_hub.utils._http, name, None)
        if found is not None:
            found()
