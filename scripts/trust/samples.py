"""Small sound inputs of every kind that is read, to be damaged."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import sparsewm
from sparsewm.data import DatasetWriter
from sparsewm.encoders import load_encoder
from sparsewm.envs import make_simulated
from sparsewm.evaluation.actors import interface_of_env
from sparsewm.model import PredictorConfig, WorldModel
from sparsewm.model.distance import DistanceConfig

LENGTHS = (30, 24, 30, 26)
SIDE = 28
TRAIN = (
    "train --env wall --dataset wall.h5 --encoder random --steps {steps} --batch 2 --horizon 1 "
    "--distance-steps 0 --decoder-steps 0 --checkpoint-every 2 --validate-every 4 --output run"
)
"""A training of seconds."""


def episode(length: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of an episode: a square that goes where the actions push it."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    state = np.clip(np.cumsum(np.concatenate([[[0.5, 0.5]], 0.1 * action[:-1]]), 0), 0, 1)
    pixels = np.full((length, SIDE, SIDE, 3), 30, np.uint8)
    for picture, (x, y) in zip(pixels, (state * (SIDE - 8)).astype(int), strict=True):
        picture[y : y + 8, x : x + 8] = 220
    return {"pixels": pixels, "action": action, "proprio": (60 * state).astype(np.float32), "state": state}


def hdf5(folder: Path) -> None:
    """A dataset of ours, `wall.h5`."""
    with DatasetWriter(folder / "wall.h5", {"environment": "wall", "frameskip": 2, "fps": 10.0}) as writer:
        for seed, length in enumerate(LENGTHS):
            writer.append(episode(length, seed))


def checkpoint(folder: Path) -> None:
    """An untrained world model for Wall on the random encoder, `model/`."""
    encoder, env = load_encoder("random"), make_simulated("wall")
    torch.manual_seed(0)
    sizes = {"width": 24, "depth": 1, "heads": 2, "mlp": 48}
    config = PredictorConfig(
        encoder.dim, encoder.grid, env.proprio_dim, env.action_dim * env.frameskip, **sizes
    )
    metadata = {"interface": interface_of_env(env).to_dict()}
    heads = DistanceConfig(width=24, heads=2, features=8)
    model = WorldModel(encoder, config, "wall", env.frameskip, metadata, distance=heads)
    sparsewm.save(model, folder / "model")


def lerobot(folder: Path, videos: bool = False) -> None:
    """A LeRobotDataset of two episodes, `arm/`."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    features = {
        "observation.images.front": {
            "dtype": "video" if videos else "image",
            "shape": (48, 64, 3),
            "names": names,
        },
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        options = {"root": folder / "arm", "use_videos": videos, **({"vcodec": "h264"} if videos else {})}
        written = LeRobotDataset.create("someone/arm", 20, features, **options)
        rng = np.random.default_rng(0)
        for length in (7, 5):
            for row in range(length):
                frame: dict[str, Any] = {name: rng.normal(size=2).astype(np.float32) for name in features}
                frame["observation.images.front"] = np.full((48, 64, 3), 20 * row, np.uint8)
                written.add_frame(frame | {"task": "reach"})
            written.save_episode()
        written.finalize()


def lerobot_videos(folder: Path) -> None:
    """The same with videos."""
    lerobot(folder, True)


def zarr(folder: Path, place: str = "demos.zarr", packed: bool = False) -> None:
    """A replay buffer of Diffusion Policy, `demos.zarr`."""
    import zarr
    from zarr.storage import ZipStore

    rows, ends = 23, np.array([9, 23])
    rng = np.random.default_rng(0)
    store: Any = ZipStore(folder / place, mode="w") if packed else str(folder / place)
    group = zarr.open_group(store, mode="w", zarr_format=2)
    columns: dict[str, np.ndarray] = {
        "img": rng.integers(0, 256, (rows, 24, 24, 3), dtype=np.uint8),
        "action": rng.normal(size=(rows, 2)).astype(np.float32),
        "agent_pos": rng.normal(size=(rows, 2)).astype(np.float32),
    }
    for name, values in columns.items():
        array = group.create_array(
            f"data/{name}", shape=values.shape, dtype=values.dtype, chunks=(4, *values.shape[1:])
        )
        array[:] = values
    group.create_array("meta/episode_ends", shape=ends.shape, dtype=ends.dtype)[:] = ends
    if packed:
        store.close()


def zarr_zip(folder: Path) -> None:
    """The same in one file, `demos.zarr.zip`."""
    zarr(folder, "demos.zarr.zip", packed=True)


def minari(folder: Path) -> None:
    """A dataset of Minari, `point/`."""
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer

    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    rng = np.random.default_rng(0)
    space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Box(0, 255, (32, 40, 3), np.uint8),
            "proprio": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        }
    )
    buffers = [
        EpisodeBuffer(
            observations={
                "pixels": rng.integers(0, 256, (length + 1, 32, 40, 3), dtype=np.uint8),
                "proprio": rng.normal(size=(length + 1, 2)).astype(np.float32),
            },
            actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rewards=[0.0] * length,
            terminations=[False] * length,
            truncations=[False] * (length - 1) + [True],
        )
        for length in (5, 8)
    ]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            minari.create_dataset_from_buffers(
                "point-v0",
                buffers,
                observation_space=space,
                action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
                jpeg_encoding=False,
            )
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def write_video(path: Path, frames: int, side: int = 32) -> None:
    """A video of grey pictures."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"g": "4"})
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        for i in range(frames):
            picture = np.full((side, side, 3), 7 * i % 240, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def videos(folder: Path, table: str = "actions.csv") -> None:
    """A folder of two videos with a table, `demos/`."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    lengths = (9, 6)
    for i, length in enumerate(lengths, 1):
        write_video(folder / "demos" / f"run_{i}.mp4", length)
    rng = np.random.default_rng(0)
    columns = {
        "file": [f"run_{i}.mp4" for i, length in enumerate(lengths, 1) for _ in range(length)],
        "frame": [t for length in lengths for t in range(length)],
        **{name: rng.uniform(-1, 1, sum(lengths)) for name in ("a0", "a1", "p0")},
    }
    write = pyarrow.csv.write_csv if table.endswith(".csv") else pyarrow.parquet.write_table
    write(pyarrow.table(columns), folder / "demos" / table)


def videos_parquet(folder: Path) -> None:
    """The same with a table in Parquet."""
    videos(folder, "actions.parquet")


def dino_wm(folder: Path, tensors: bool = False) -> None:
    """A folder of DINO-WM, `train/`, its pictures as videos or as tensors."""
    place = folder / "train"
    (place / "obses").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    lengths = [7, 11]
    for name, size in (("states", 4), ("actions", 2)):
        torch.save(torch.randn(2, 11, size, generator=generator), place / f"{name}.pth")
    torch.save(torch.tensor(lengths), place / "seq_lengths.pth")
    for i, length in enumerate(lengths):
        file = place / "obses" / f"episode_{i:03d}"
        if tensors:
            torch.save(torch.randint(0, 256, (length, 24, 24, 3), generator=generator), f"{file}.pth")
        else:
            write_video(Path(f"{file}.mp4"), length)


def dino_wm_tensors(folder: Path) -> None:
    """The same with pictures as tensors."""
    dino_wm(folder, True)


def dino_wm_pickle(folder: Path) -> None:
    """The same with lengths in a pickle, as PushT has them."""
    import pickle

    dino_wm(folder, True)
    (folder / "train" / "seq_lengths.pth").unlink()
    (folder / "train" / "seq_lengths.pkl").write_bytes(pickle.dumps([7, 11]))


def policy(folder: Path) -> None:
    """An ACT policy of LeRobot's for Wall, `policy/`, and a world model to plan in."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    checkpoint(folder)
    camera = "observation.images.camera"
    config = ACTConfig(
        device="cpu",
        push_to_hub=False,
        input_features={
            camera: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        chunk_size=16,
        n_action_steps=16,
        dim_model=16,
        n_heads=2,
        dim_feedforward=32,
        latent_dim=4,
        n_encoder_layers=1,
        n_decoder_layers=1,
        n_vae_encoder_layers=1,
        pretrained_backbone_weights=None,
    )
    two = {"mean": torch.zeros(2), "std": torch.ones(2), "min": -torch.ones(2), "max": torch.ones(2)}
    stats = {"observation.state": two, "action": two}
    stats[camera] = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    torch.manual_seed(0)
    parts = get_policy_class("act")(config), *make_pre_post_processors(config, dataset_stats=stats)
    for part in parts:
        part.save_pretrained(folder / "policy")
    (folder / "policy" / "names.yaml").write_text("cameras: {observation.images.camera: pixels}\n")


def weights(folder: Path) -> None:
    """Weights of an encoder as safetensors, and some in a pickled file, `weights.pth`."""
    from safetensors.torch import save_file

    state = load_encoder("random").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    torch.save(dict(list(state.items())[:4]), folder / "weights.pth")


def plan_yaml(folder: Path) -> None:
    """Settings of a plan, `plan.yaml`."""
    (folder / "plan.yaml").write_text(
        yaml.safe_dump({"env": "wall", "goal": {"max_steps": 5}, "run": {"actor": "nothing", "video": False}})
    )


def train_yaml(folder: Path) -> None:
    """Settings of a training, `train.yaml`, and its dataset."""
    hdf5(folder)
    (folder / "train.yaml").write_text(
        yaml.safe_dump({"optim": {"steps": 1, "batch": 2, "horizon": 1}, "encoder": {"name": "random"}})
    )


def tasks(folder: Path) -> None:
    """Frozen tasks, `tasks/wall-random.json`."""
    from sparsewm.config import config_folder

    (folder / "tasks").mkdir()
    source = config_folder() / "tasks" / "wall-random.json"
    (folder / "tasks" / source.name).write_bytes(source.read_bytes())


def state(folder: Path, run: Callable[[str, Path], int]) -> None:
    """A training after two of four steps, `run/`."""
    hdf5(folder)
    assert run(TRAIN.format(steps=2), folder) == 0
    from sparsewm.training.state import read_state, write_state

    found = read_state(folder / "run")
    assert found is not None
    about, tensors = found
    write_state(folder / "run", tensors, about | {"config": about["config"] | {"steps": 4}})


EVAL = (
    "eval --envs wall --drops 0.5 --yardsticks nothing --no-mse --no-vision-only --timed 0 --episodes 1 "
    "--candidates 4 --iterations 1 --max-steps 5 --checkpoints models --output table"
)
"""An evaluation of two cells of seconds."""


def cells(folder: Path, run: Callable[[str, Path], int]) -> None:
    """A finished evaluation, `table/cells/`."""
    (folder / "models").mkdir()
    checkpoint(folder)
    os.rename(folder / "model", folder / "models" / "wall")
    assert run(EVAL, folder) == 0
