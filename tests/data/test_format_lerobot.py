"""LeRobotDatasets: ours and those recorded by LeRobot's own writer come back as written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from sparsewm.data import open_dataset
from sparsewm.data.lerobot import export_lerobot, segments
from sparsewm.errors import UserError
from tests.data.test_format_videos import levels
from tests.data.tiny import write_dataset

LENGTHS = (6, 9, 4)
JOINTS = ["shoulder", "elbow", "grip"]


def record(root: Path, videos: bool) -> dict[str, np.ndarray]:
    """Two cameras and an arm, frame by frame, as LeRobot's recording loop does it."""
    kind = "video" if videos else "image"
    names = ["height", "width", "channels"]
    features = {
        "observation.images.front": {"dtype": kind, "shape": (48, 64, 3), "names": names},
        "observation.images.wrist": {"dtype": kind, "shape": (32, 32, 3), "names": names},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": JOINTS},
        "observation.environment_state": {"dtype": "float32", "shape": (2,), "names": None},
        "action": {"dtype": "float32", "shape": (3,), "names": {"motors": JOINTS}},
    }
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    written = {
        "state": rng.normal(size=(rows, 3)).astype(np.float32),
        "environment": rng.normal(size=(rows, 2)).astype(np.float32),
        "action": rng.normal(size=(rows, 3)).astype(np.float32),
        "front": np.broadcast_to(levels(rows).astype(np.uint8)[:, None, None, None], (rows, 48, 64, 3)),
        "wrist": np.broadcast_to(levels(rows, 90).astype(np.uint8)[:, None, None, None], (rows, 32, 32, 3)),
    }
    dataset = LeRobotDataset.create(
        "someone/arm", 20, features, root=root, robot_type="arm", use_videos=videos, vcodec="h264"
    )
    row = 0
    for length in LENGTHS:
        for _ in range(length):
            dataset.add_frame(
                {
                    "observation.images.front": written["front"][row],
                    "observation.images.wrist": written["wrist"][row],
                    "observation.state": written["state"][row],
                    "observation.environment_state": written["environment"][row],
                    "action": written["action"][row],
                    "task": "reach",
                }
            )
            row += 1
        dataset.save_episode()
    dataset.finalize()
    return written


@pytest.fixture(scope="module", params=["images", "videos"])
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, bool]:
    root = tmp_path_factory.mktemp("arm") / "recorded"
    videos = request.param == "videos"
    return root, record(root, videos), videos


@pytest.mark.slow
def test_what_lerobot_recorded_comes_back(arm: tuple[Path, dict[str, np.ndarray], bool]) -> None:
    root, written, videos = arm
    dataset = open_dataset(root, cameras=("front", "wrist"))
    assert dataset.lengths.tolist() == list(LENGTHS) and dataset.fps == 20
    assert dataset.cameras == dataset.available_cameras == ("front", "wrist")
    assert dataset.action_names == dataset.proprio_names == tuple(JOINTS)
    assert dataset.attributes == {"format": "lerobot", "robot": "arm"}
    action = written["action"].copy()
    action[dataset.last_rows] = 0
    assert np.array_equal(dataset.action, action)
    assert np.array_equal(dataset.proprio, written["state"])
    assert np.array_equal(dataset.state, written["environment"])
    assert dataset.pixels.shape == (19, 48, 64 + 48, 3)
    one = open_dataset(root, cameras=("observation.images.wrist",))
    assert one.cameras == ("wrist",) and one.pixels.shape == (19, 32, 32, 3)
    off = 4 if videos else 0
    for rows in (np.arange(19), np.array([2, 5, 6, 18]), np.array([14])):
        assert np.abs(one.pixels[rows].astype(int) - written["wrist"][rows]).max() <= off
        assert (
            np.abs(dataset.pixels[rows][:, :, :60].astype(int) - written["front"][rows][:, :, :60]).max()
            <= off
        )
    assert open_dataset(f"{root}?proprio=action&state=observation.state", cameras=("wrist",)).state.shape == (
        19,
        3,
    )
    one.close()
    dataset.close()


def test_cameras_and_features_are_named(arm: tuple[Path, dict[str, np.ndarray], bool]) -> None:
    root = arm[0]
    with pytest.raises(
        UserError, match=r"has several cameras, name those to show with `cameras`: front, wrist"
    ):
        open_dataset(root)
    with pytest.raises(UserError, match=r"no camera 'side': it has front, wrist"):
        open_dataset(root, cameras=("side",))
    with pytest.raises(UserError, match=r"no numbers 'observation.speed': it has .*observation.state"):
        open_dataset(f"{root}?proprio=observation.speed", cameras=("front",))


def test_what_we_exported_comes_back(tmp_path: Path) -> None:
    ours = open_dataset(write_dataset(tmp_path / "wall.h5", (30, 5, 24)))
    chosen = segments(ours, 2, 6, 12)
    export_lerobot(ours, chosen, tmp_path / "exported", ("x", "y"), ["go"] * ours.episodes, 10)
    dataset = open_dataset(tmp_path / "exported", cameras=("camera",))
    rows = np.concatenate([np.arange(segment.first, segment.last + 1) for segment in chosen])
    action = ours.action[rows].copy()
    action[dataset.last_rows] = 0
    assert dataset.episodes == len(chosen) and dataset.fps == 10 and dataset.proprio_names == ("x", "y")
    assert np.array_equal(dataset.action, action) and np.array_equal(dataset.proprio, ours.proprio[rows])
    assert np.array_equal(dataset.pixels[:], ours.pixels[rows])
    goals = open_dataset(tmp_path / "exported", cameras=("goal",))
    lasts = np.repeat([s.last for s in chosen], [s.last - s.first + 1 for s in chosen])
    assert np.array_equal(goals.pixels[:], ours.pixels[lasts])


def version(root: Path, said: str) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": said}))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frames(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"total_frames": 25}))


VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "v2.1": (
        lambda r: version(r, "v2.1"),
        r"is a LeRobotDataset of v2.1, v3.0 is needed: convert it with python -m "
        r"lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=d --root=.* --push-to-hub=false",
    ),
    "later": (lambda r: version(r, "v4.0"), r"of v4.0, v3.0 is needed: install"),
    "info": (lambda r: (r / "meta/info.json").write_text("{"), r"meta/info.json is missing or damaged"),
    "tasks": (lambda r: (r / "meta/tasks.parquet").unlink(), r"lacks meta/tasks.parquet"),
    "episodes": (lambda r: shutil.rmtree(r / "meta/episodes"), r"lacks meta/episodes"),
    "table": (lambda r: (r / "data/chunk-000/file-000.parquet").unlink(), r"lacks data/"),
    "cut table": (
        lambda r: halve(r / "data/chunk-000/file-000.parquet"),
        r"LeRobot cannot open .*: copy it again",
    ),
    "frames": (frames, r"holds 19 frames, its description says 25"),
    "video": (lambda r: (r / VIDEO).unlink(), r"observation.images.wrist/.*file-000.mp4 is missing"),
    "cut video": (lambda r: halve(r / VIDEO), r"file-000.mp4 is cut off: copy it again"),
}


@pytest.mark.parametrize(
    ("arm", "kind"),
    [("videos", kind) for kind in BAD] + [("images", kind) for kind in BAD if "video" not in kind],
    indirect=["arm"],
)
def test_bad_folders_are_refused_in_one_sentence(
    arm: tuple[Path, dict[str, np.ndarray], bool], tmp_path: Path, kind: str
) -> None:
    root, _, _ = arm
    break_it, said = BAD[kind]
    shutil.copytree(root, tmp_path / "d")
    break_it(tmp_path / "d")
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path / "d", format="lerobot", cameras=("wrist",))


def test_names_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import lerobot.datasets.lerobot_dataset as module

    monkeypatch.setattr(module, "HF_LEROBOT_HOME", tmp_path)
    with pytest.raises(
        UserError, match=r"no LeRobotDataset at nowhere: give its folder, or lerobot:user/name"
    ):
        open_dataset("lerobot:nowhere")
    (tmp_path / "some/old/meta").mkdir(parents=True)
    (tmp_path / "some/old/meta/info.json").write_text('{"codebase_version": "v2.0"}')
    with pytest.raises(UserError, match=r"of v2.0, v3.0 is needed: .* --repo-id=some/old"):
        open_dataset("lerobot:some/old")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(module, "get_safe_version", offline)
    with pytest.raises(UserError, match=r"LeRobot cannot open some/new \(no network\): check its name"):
        open_dataset("lerobot:some/new")
    record(tmp_path / "some/arm", False)
    assert open_dataset("lerobot:some/arm", cameras=("wrist",)).rows == 19
