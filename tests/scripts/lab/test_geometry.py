"""Geometry of the cost: figures by which an encoder is accepted or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.lab.geometry import cost_geometry, movable_parts, token_sensitivity
from sparsewm import envs
from sparsewm.encoders.base import PatchFeatures
from tests.model.tiny import tiny_encoder


def averages(pixels: np.ndarray) -> PatchFeatures:
    """Mean colours of 4 x 4 patches as tokens."""
    b, side, _, colours = pixels.shape
    means = pixels.reshape(b, 4, side // 4, 4, side // 4, colours).mean((2, 4)).reshape(b, 16, colours)
    tokens = torch.from_numpy(means).float()
    return PatchFeatures(tokens, tokens.mean(1), (4, 4))


@pytest.mark.parametrize("name", envs.names())
def test_every_object_and_angle_is_moved_and_no_velocity(name: str) -> None:
    env = envs.make(name)
    parts = movable_parts(env)
    named = [env.state_names[column] for columns in parts.values() for column in columns]
    assert len(named) == len(set(named))
    assert not any(column.split("_")[-1].startswith("v") for column in named)
    assert {"pusht": 3, "blockpush": 5}.get(name, 1) == len(parts)


def test_sensitivity_counts_what_the_tokens_show() -> None:
    """An encoder that sees the T alone: the disc makes no error, the T more the further it moves."""
    env, encoder = envs.make("pusht", resolution=56), tiny_encoder()

    def sees_the_block(pixels: np.ndarray, attention: bool = False) -> PatchFeatures:
        return averages((abs(pixels.astype(np.float32) - [119, 136, 153]).max(-1) < 40)[..., None])

    encoder.encode = sees_the_block  # type: ignore[method-assign]
    found = token_sensitivity(env, encoder, states=24)
    assert max(found["agent"]["error"]) < 0.05 * max(found["block"]["error"])
    assert np.all(np.diff(found["block"]["error"]) > 0) and found["block_angle"]["error"][-1] > 0.01
    turns = [np.pi / 3**0.5 * share for share in (0.05, 0.1, 0.2, 0.4)]
    assert found["block_angle"]["moved"] == pytest.approx(turns, abs=1e-3)


def test_geometry_of_pixels_ranks_near_states_by_distance() -> None:
    encoder = tiny_encoder()
    encoder.encode = lambda pixels, attention=False: averages(pixels)  # type: ignore[method-assign]
    found = cost_geometry(envs.make("granular", resolution=56), encoder, (0.0,), states=24)
    assert found["drop_0"]["all"] > 0.7


def test_cost_geometry_is_reproducible_and_between_minus_one_and_one() -> None:
    env = envs.make("wall", resolution=56)
    encoder = tiny_encoder()
    first = cost_geometry(env, encoder, drops=(0.0, 0.5), states=40, seed=1)
    assert first == cost_geometry(env, encoder, drops=(0.0, 0.5), states=40, seed=1)
    assert first.keys() == {"drop_0", "drop_0.5"}
    for values in first.values():
        assert values.keys() == {"all", "near", "far"} and all(-1 <= value <= 1 for value in values.values())


class Readout:
    """An encoder whose only token is the place of Wall's red dot: token error is distance."""

    tokens = 1

    def encode(self, pixels: np.ndarray) -> object:
        red = (pixels[..., 0].astype(float) - pixels[..., 2]).clip(0)
        weights = red / red.sum((1, 2), keepdims=True)
        axis = np.arange(pixels.shape[1])
        places = np.stack([weights.sum(1) @ axis, weights.sum(2) @ axis], -1)

        class Features:
            patches = torch.as_tensor(places, dtype=torch.float32)[:, None]

        return Features


def test_cost_geometry_of_an_encoder_that_sees_the_state() -> None:
    env = envs.make("wall", resolution=56)

    def straight(states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        away: np.ndarray = np.linalg.norm(states - goal, axis=1)
        return away

    env.shortfall = straight  # type: ignore[method-assign]  # its own goes through the door
    values = cost_geometry(env, Readout(), drops=(0.0,), states=60)["drop_0"]  # type: ignore[arg-type]
    assert min(values.values()) > 0.97
