"""Another look: what changes, by how much, and that nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.data import open_dataset
from sparsewm.data.collect import collect, record_episode
from sparsewm.envs.looks import KINDS, Look
from sparsewm.errors import UserError

NAMES = ("wall", "pusht", "pointmaze", "rope", "granular", "blockpush")
SOME = {
    "background": 0.5,
    "object": 0.5,
    "size": 0.4,
    "light": -0.2,
    "shift": 3,
    "distractor": 0.2,
    "blur": 1.5,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_look_changes_pictures_and_nothing_else(name: str) -> None:
    env = envs.make_simulated(name, resolution=56)
    usual, info = env.reset(seed=4)
    following = env.rollout_states(info["state"], np.ones((1, 2, env.action_dim)))
    for kind in KINDS:
        env.dress([Look(kind, SOME[kind])], seed=4)
        seen, changed = env.reset(seed=4)
        assert (seen["pixels"] != usual["pixels"]).any(), kind
        assert np.array_equal(changed["state"], info["state"]) and np.array_equal(
            seen["proprio"], usual["proprio"]
        )
        assert np.array_equal(env.rollout_states(info["state"], np.ones((1, 2, env.action_dim))), following)
        assert np.array_equal(env.reset(seed=4)[0]["pixels"], seen["pixels"]), kind
        env.dress([Look(kind, 0)], seed=4)
        assert np.array_equal(env.reset(seed=4)[0]["pixels"], usual["pixels"]), kind
    env.dress([])
    assert np.array_equal(env.reset(seed=4)[0]["pixels"], usual["pixels"])


def test_an_episode_has_one_look_and_the_next_another() -> None:
    env = envs.make_simulated("rope", resolution=32)
    env.dress([Look("background", 1)])
    corners = []
    for seed in (1, 2):
        start, _ = env.reset(seed=seed)
        corners.append(start["pixels"][4, 4])
        assert np.array_equal(env.goal_observation()["pixels"][4, 4], corners[-1])
    assert (corners[0] != corners[1]).any()


@pytest.mark.parametrize("seed", range(8))
def test_a_distractor_has_one_colour_whatever_the_frame_shows(seed: int) -> None:
    look = Look("distractor", 0.3)
    dark, bright = (np.full((32, 32, 3), level, np.uint8) for level in (60, 200))
    discs = []
    for frame in (dark, bright):
        shown = look.shoot(frame, np.random.default_rng(seed), (250, 250, 250))
        y, x = np.argwhere((shown != frame).any(-1)).mean(0).round().astype(int)
        discs.append((y, x, *shown[y, x]))
    assert discs[0] == discs[1]


def test_a_distractor_differs_from_its_background() -> None:
    env = envs.make_simulated("pusht", resolution=32)
    for seed in range(40):
        env.dress([Look("distractor", 0.3), Look("background", 1)], seed=seed)
        shown = env.render().astype(int)
        env.dress([Look("background", 1)], seed=seed)
        assert np.abs(shown - env.render()).sum(-1).max() >= 120


def test_degrees_are_what_they_say() -> None:
    env = envs.make_simulated("wall", resolution=112)
    usual = env.reset(seed=0)[0]["pixels"].astype(int)
    env.dress([Look("light", -0.5)])
    assert np.abs(env.render().astype(int) - usual / 2).max() <= 1
    env.dress([Look("shift", 2)])
    assert np.array_equal(env.render()[2:, 2:], usual[:-2, :-2])
    env.dress(Look.parse("light:-0.5, shift:2"))
    assert np.abs(env.render()[2:, 2:].astype(int) - usual[:-2, :-2] / 2).max() <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("ligth:1", "light"), ("light", "KIND:DEGREE"), ("blur:x", "KIND:DEGREE"), ("blur:1,blur:2", "twice")],
)
def test_what_is_no_look_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Look.parse(text)
    with pytest.raises(UserError, match="from 0 to 1"):
        Look("object", 1.5)


@pytest.mark.slow
def test_recordings_with_looks_vary_by_episode_and_repeat(tmp_path: pytest.TempPathFactory) -> None:
    path = collect("wall", 3, f"{tmp_path}/wall.h5", 4, 1, resolution=32, looks=True)
    dataset = open_dataset(path, "wall")
    firsts = [np.asarray(dataset.pixels[offset]) for offset in dataset.offsets]
    corners = {tuple(first[8, 8]) for first in firsts}
    assert len(corners) == 3
    env = envs.make_simulated("wall", resolution=32)
    rows = record_episode(env, 0, 1, 4, looks=True)
    assert np.array_equal(rows["pixels"][0], firsts[1])
    plain = record_episode(envs.make_simulated("wall", resolution=32), 0, 1, 4)
    assert np.array_equal(plain["state"], rows["state"]) and (plain["pixels"] != rows["pixels"]).any()
    with pytest.raises(UserError, match="other settings"):
        collect("wall", 3, path, 4, 1, resolution=32)
