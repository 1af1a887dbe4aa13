"""Scripted exploratory data, recorded by parallel processes.

Episodes are recorded in parts of a few dozen, each a small complete dataset of its own in `E.h5.parts/`; when
all are there they are joined into `E.h5`. An interruption at any moment costs at most the parts in progress,
and the same command continues. Episode i depends on (seed, i) alone, whatever the number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from sparsewm import envs
from sparsewm.data.formats.hdf5 import attributes_of
from sparsewm.data.writer import COLUMNS, DatasetWriter
from sparsewm.envs import GoalEnv, SimulatedGoalEnv
from sparsewm.envs.experts import expert_policy
from sparsewm.envs.looks import random_looks
from sparsewm.envs.policies import HeldActions, exploration_policy
from sparsewm.errors import UserError
from sparsewm.files import disk_errors, only_one, require_space
from sparsewm.processes import NoSharedMemory, processes

PART = 25  # episodes recorded and kept together
STAY = 10  # environment steps an expert stays at the goal
_RECORDING: tuple[str, ...] = ("environment", "frameskip", "seed", "steps", "resolution", "policy", "version")
_RECORDING += ("looks", "pictures")
"""Attributes in which one recording differs from another."""

Demonstrator = Callable[[SimulatedGoalEnv, int, int, int], tuple[np.ndarray, np.ndarray]]
"""Shows a way to a goal: (environment, seed, episode, steps) -> states (T + 1, D) and actions (T, A), T at
most `steps`. A function at the top of a module, for worker processes."""


def explore(
    env: SimulatedGoalEnv, seed: int, episode: int, steps: int, held: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """States (steps + 1, D) and actions (steps, A) of an episode, a pure function of (seed, episode, held).

    `held` is the share of steps with a planner's random actions instead (`envs.policies.HeldActions`).
    """
    rng = np.random.default_rng([seed, episode])
    env.reset(seed=int(rng.integers(2**31)))
    policy = exploration_policy(env, rng)
    if held:
        policy = HeldActions(policy, rng, env.frameskip, env.action_dim, held)
    states, actions = [env.state], []
    policy.reset(states[0])
    for _ in range(steps):
        action = np.asarray(policy.act(states[-1]), np.float32)
        states.append(env.rollout_states(states[-1], action[None, None])[0, -1])
        actions.append(action)
    return np.stack(states), np.stack(actions)


def demonstrate(env: SimulatedGoalEnv, seed: int, episode: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States (T + 1, D) and actions (T, A) of an expert on its way to a random goal; T is `steps` at most.

    It ends a few steps after the goal is reached. A pure function of (seed, episode).
    """
    rng = np.random.default_rng([seed, episode, 1])
    env.reset(seed=int(rng.integers(2**31)))
    return follow_expert(env, env.state, env.goal.copy(), rng, steps)


def follow_expert(
    env: SimulatedGoalEnv, start: np.ndarray, goal: np.ndarray, rng: np.random.Generator, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """States (T + 1, D) and actions (T, A) of the scripted expert from `start` to `goal` (D,)."""
    policy = expert_policy(env, goal, rng)
    policy.reset(start)
    states, reached = [start], 0
    actions: list[np.ndarray] = []
    while len(actions) < steps and reached < STAY:
        actions.append(np.asarray(policy.act(states[-1]), np.float32))
        states.append(env.rollout_states(states[-1], actions[-1][None, None])[0, -1])
        reached += env.is_success(states[-1], goal)
    return np.stack(states), np.stack(actions)


def watch(env: GoalEnv, seed: int, episode: int, steps: int) -> dict[str, np.ndarray]:
    """The rows of an episode under `env.exploration`, only by `reset` and `step`; the same columns.

    It ends with the environment's own episode, or after `steps`; without `info["state"]` it has no state. A
    pure function of (seed, episode) if the environment's episode is one of the seed of `reset`.
    """
    rng = np.random.default_rng([seed, episode])
    observation, info = env.reset(seed=int(rng.integers(2**31)))
    policy = env.exploration(rng)
    seen, infos = [observation], [info]
    actions: list[np.ndarray] = []
    over = False
    while len(actions) < steps and not over:
        actions.append(np.array(policy(seen[-1]), np.float32))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        seen.append(observation)
        infos.append(info)
        over = terminated or truncated
    rows = {
        "pixels": np.stack([observation["pixels"] for observation in seen]),
        "action": np.stack([*actions, np.zeros_like(actions[0])]),
        "proprio": np.stack([observation["proprio"] for observation in seen]).astype(np.float32),
    }
    if "state" in info:
        rows["state"] = np.stack([np.ravel(info["state"]) for info in infos]).astype(np.float64)
    return rows


def record_episode(
    env: GoalEnv,
    seed: int,
    episode: int,
    steps: int,
    held: float = 0.0,
    expert: Demonstrator | None = None,
    looks: bool = False,
    pictures: bool = True,
) -> dict[str, np.ndarray]:
    """The rows of one exploratory or expert episode, columns as in `sparsewm.data.formats.hdf5`.

    With `looks`, of a simulator, it looks otherwise than others (`envs.looks.random_looks`). Without
    `pictures`, of a simulator, nothing is drawn.
    """
    if not isinstance(env, SimulatedGoalEnv):
        return watch(env, seed, episode, steps)
    if expert is not None:
        states, actions = expert(env, seed, episode, steps)
    else:
        states, actions = explore(env, seed, episode, steps, held)
    if looks:
        rng = np.random.default_rng([seed, episode, 2])
        env.dress(random_looks(rng, env.looks), int(rng.integers(2**31)))
    drawn = {"pixels": env.render_states(states)} if pictures else {}
    return drawn | {
        "action": np.concatenate([actions, np.zeros_like(actions[:1])]).astype(np.float32),
        "proprio": np.stack([env.proprio_of(state) for state in states]).astype(np.float32),
        "state": states.astype(np.float64),
    }


Job = tuple[str, int, int, int, int, str, dict[str, Any], int | None, float, Demonstrator | None, bool, bool]


def _options(resolution: int | None) -> dict[str, int]:
    return {} if resolution is None else {"resolution": resolution}


def _record_part(job: Job) -> int:
    name, first, stop, seed, steps, path, attributes, resolution, held, expert, looks, pictures = job
    env = envs.make(name, **_options(resolution))
    try:
        with DatasetWriter(path, attributes) as writer:
            for episode in range(first, stop):
                writer.append(record_episode(env, seed, episode, steps, held, expert, looks, pictures))
    finally:
        env.close()
    return stop - first


def collect(
    environment: str,
    episodes: int,
    path: str | Path,
    steps: int,
    workers: int = 2,
    seed: int = 0,
    resolution: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    held: float = 0.0,
    expert: Demonstrator | None = None,
    looks: bool = False,
    pictures: bool = True,
) -> Path:
    """Record exploratory or expert episodes into one HDF5 file.

    Args:
        environment: as `sparsewm.envs.make` knows it; what is no simulator is recorded by `reset` and
            `step` under its own `exploration`. episodes: how many. path: the `.h5` file; an existing
            complete file is kept.
        steps: environment steps of an episode. workers: processes. seed: of everything.
        resolution: of the pictures in pixels, None for the environment's own (ours: 112).
        progress: called with the episodes done and wanted. held: share of steps with held random actions.
        expert: records ways to goals, each `steps` long at most, instead: `demonstrate`, the scripted ones,
            or another.
        looks: every episode of a simulator looks otherwise: background, objects, light, the camera's place.
        pictures: otherwise nothing is drawn: states and actions alone, of a simulator.

    Raises:
        UserError: an argument is out of range, the environment has no expert, the disk is full, a worker
            died, or the file has other settings.
    """
    path, environment = Path(path), envs.canonical(environment)
    for name, value in (("episodes", episodes), ("workers", workers), ("steps", steps)):
        if value < 1:
            raise UserError(f"`{name}` must be at least 1, got {value}")
    if not 0 <= held < 1:
        raise UserError(f"`held` must be at least 0 and below 1, got {held:g}")
    if seed < 0:
        raise UserError(f"`seed` must be at least 0, got {seed}")
    if expert is not None and held:
        raise UserError("held actions interrupt exploration: leave them out with an expert")
    spec = envs.make(environment, **_options(resolution))
    if not isinstance(spec, SimulatedGoalEnv) and (held or expert is not None or looks or not pictures):
        raise UserError(
            f"{environment} is no simulator, its own exploration is recorded, with pictures: leave `held`, "
            "`expert`, `looks` and `pictures` out"
        )
    if looks and not pictures:
        raise UserError("without `pictures` nothing looks otherwise: leave `looks` out")
    policy = "exploration" + (f", {held:g} held actions" if held else "")
    if expert is not None:
        policy = "expert" if expert is demonstrate else f"expert, {expert.__name__}"
    picture = spec.observation_space["pixels"].shape  # type: ignore[index]
    attributes: dict[str, Any] = {
        "environment": environment,
        "frameskip": spec.frameskip,
        "seed": seed,
        "steps": steps,
        "resolution": min(picture[:2]),
        "policy": policy,
        "version": 1,
        "action_low": spec.action_space.low,
        "action_high": spec.action_space.high,
        "proprio_names": list(spec.proprio_names),
        "fps": float(spec.metadata["render_fps"]),
    }
    if looks:
        attributes["looks"] = "random"
    if not pictures:
        attributes["pictures"] = "none"
    if expert is demonstrate and isinstance(spec, SimulatedGoalEnv):
        try:
            expert_policy(spec, spec.goal, np.random.default_rng(0))
        except ValueError as error:
            raise UserError(
                f"{error} Record exploration instead: its segments are demonstrations too"
            ) from None
    spec.close()
    parts = path.with_name(path.name + ".parts")
    if path.is_file():
        if _same_recording(path, attributes, episodes, picture):
            shutil.rmtree(parts, ignore_errors=True)  # of one who was killed when all was done
            return path
        raise UserError(
            f"{path} exists and was recorded with other settings: delete it or give another `output`"
        )
    with disk_errors(path):
        parts.mkdir(parents=True, exist_ok=True)
    with only_one(parts, "wait for it, or give another `output`"):
        jobs: list[Path] = []
        waiting: list[Job] = []
        for first in range(0, episodes, PART):
            stop = min(first + PART, episodes)
            part = parts / f"{first:06d}-{stop:06d}.h5"
            jobs.append(part)
            if not (part.is_file() and _same_recording(part, attributes, stop - first, picture)):
                place, asked = str(part), (resolution, held, expert, looks, pictures)
                waiting.append((environment, first, stop, seed, steps, place, attributes, *asked))
        _record(waiting, workers, episodes, progress)
        _join(jobs, path, attributes)
        shutil.rmtree(parts)
    return path


def _record(
    waiting: list[Job],
    workers: int,
    episodes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Record the parts that are missing, in worker processes."""
    done = episodes - sum(job[2] - job[1] for job in waiting)
    if progress is not None:
        progress(done, episodes)
    if not waiting:
        return
    try:
        with processes(min(workers, len(waiting)), cv2.setNumThreads, 1) as submit:
            for part_done in as_completed([submit(_record_part, job) for job in waiting]):
                done += part_done.result()
                if progress is not None:
                    progress(done, episodes)
    except NoSharedMemory as error:
        if workers > 1:
            raise UserError(f"several `workers` need shared memory ({error}): give 1") from None
        for job in waiting:
            done += _record_part(job)
            if progress is not None:
                progress(done, episodes)
    except BrokenProcessPool:
        raise UserError(
            "a recording process died, perhaps for lack of memory: run it again, with fewer workers if "
            "need be, and it continues (a script of yours needs `if __name__ == '__main__':` around it)"
        ) from None


def _join(parts: list[Path], path: Path, attributes: dict[str, Any]) -> None:
    """One file out of many; it appears only when complete."""
    require_space(path, sum(part.stat().st_size for part in parts))
    with DatasetWriter(path, attributes, parts[0].with_name("joined.h5")) as writer:
        for part in parts:
            with h5py.File(part, "r") as file:
                columns = {name: file[name][:] for name in COLUMNS if name in file}
                for offset, length in zip(file["ep_offset"][:], file["ep_len"][:], strict=True):
                    writer.append(
                        {name: values[offset : offset + length] for name, values in columns.items()}
                    )


def _same_recording(path: Path, attributes: dict[str, Any], episodes: int, picture: tuple[int, ...]) -> bool:
    """Whether a complete file holds these episodes, in pictures of this shape (H, W, 3)."""
    try:
        with h5py.File(path, "r") as file:
            said = attributes_of(file)
            same = all(said.get(key) == attributes.get(key) for key in _RECORDING)
            same = same and len(file["ep_len"]) == episodes
            return same and (said.get("pictures") == "none" or file["pixels"].shape[1:] == picture)
    except (OSError, KeyError):
        return False
