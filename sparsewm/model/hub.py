"""Where a checkpoint lies: in a folder, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsewm.errors import UserError, suggest

CHECKPOINT_FILES = ("model.safetensors", "config.yaml", "metadata.json")
CARD = "README.md"

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def checkpoint_folder(path: str | Path, token: str | None = None) -> tuple[Path, bool]:
    """The folder of a checkpoint, and whether it came from the hub.

    Args:
        path: a folder, or a run that holds one called ``checkpoint``; else ``user/name`` or
            ``user/name@revision`` on the hub. What exists on this machine is never looked for elsewhere;
            ``hub:user/name`` always means the hub.
        token: of the hub, for private repositories; None: the one this machine is logged in with.

    Raises:
        UserError: neither a folder nor a repository, or the hub cannot be asked.
    """
    text = str(path)
    if text.startswith("hub:"):
        name, revision = repository(text.removeprefix("hub:"))
        return download(name, revision, token), True
    folder = Path(path).expanduser()
    if folder.exists():
        return of_run(folder), False
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(
            f"{path} is no checkpoint folder (it does not exist): give the folder that `train` wrote, or "
            "user/name of a world model on the Hugging Face hub"
        )
    if folder.parent.is_dir():
        names = sorted(found.name for found in folder.parent.iterdir() if found.is_dir())
        raise UserError(
            f"there is no folder {path}, though {folder.parent}/ exists here.{suggest(folder.name, names)} "
            f"Correct the name, or give hub:{path} if you mean a repository on the Hugging Face hub"
        )
    return download(match["name"], match["revision"], token), True


def of_run(folder: Path) -> Path:
    """The checkpoint of a run's folder; the folder itself where it holds none of that name."""
    inner = folder / "checkpoint"
    own = any((folder / file).is_file() for file in CHECKPOINT_FILES)
    return inner if inner.is_dir() and not own else folder


def repository(text: str) -> tuple[str, str | None]:
    """Name and revision (or None) of ``user/name`` or ``user/name@revision``.

    Raises:
        UserError: the text has another form.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"'{text}' is no name on the Hugging Face hub: give user/name, or user/name@revision")
    return match["name"], match["revision"]


def download(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Folder in the hub's cache with a repository's checkpoint files; only what changed is fetched.

    Nothing is fetched but weights, YAML, JSON and the card: no code.

    Raises:
        UserError: no such repository, revision or permission, no network and nothing in the cache, or the
            repository holds no world model.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(name, revision):
        folder = Path(
            snapshot_download(
                name, revision=revision, token=token, allow_patterns=[*CHECKPOINT_FILES, CARD], max_workers=1
            )
        )
    missing = [file for file in CHECKPOINT_FILES if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{name} on the Hugging Face hub has no {missing[0]}, or it was never fetched whole: "
            "it is no world model of sparsewm, or try again with a network"
        )
    return folder


@contextmanager
def hub_errors(name: str, revision: str | None = None, reading: bool = True) -> Iterator[None]:
    """Turn what goes wrong with the hub, while a repository is read or written, into one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{name} on the Hugging Face hub"
    absent = f"there is no folder {name} here, and " if reading else ""
    login = "log in with `hf auth login`"
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{where} has conditions: accept them on its page, then {login}") from None
    except RevisionNotFoundError:
        raise UserError(f"{where} has no revision '{revision}': give one that its page lists") from None
    except (RepositoryNotFoundError, LocalTokenNotFoundError):
        raise UserError(
            f"{absent}no repository {where} is open to this machine: check the name, and {login} if it is "
            "private or yours"
        ) from None
    except HFValidationError as error:
        raise UserError(f"'{name}' is no name on the Hugging Face hub ({error}): give user/name") from None
    except Exception as error:
        library = type(error).__module__.split(".")[0]  # requests or httpx, by the hub's version
        if not isinstance(error, OSError | HfHubHTTPError) and not library.startswith(("requests", "httpx")):
            raise
        status = _status(error)
        if status is None:
            raise UserError(_unreachable(name, absent, error)) from None
        if status in (401, 403):
            raise UserError(f"this machine's token does not allow that on {where}: {login}") from None
        raise UserError(f"the Hugging Face hub answered {status} about {name}: try again later") from None


def _status(error: BaseException | None) -> int | None:
    """What the hub answered where that is at the bottom of an error; None: it did not answer."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def _unreachable(name: str, absent: str, error: Exception) -> str:
    cause = error.__cause__ or error
    offline = "HF_HUB_OFFLINE" in f"{error} {cause}"
    reason = "HF_HUB_OFFLINE is set" if offline else f"{type(cause).__name__}"
    return (
        f"{absent}the Hugging Face hub cannot be asked about {name} ({reason}): connect to the network, or "
        "copy the checkpoint's folder to this machine"
    )
