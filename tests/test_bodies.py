"""Present and goal as bodies on the table see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm import envs
from sparsewm.bodies import FROM_BODIES, ON_THE_TABLE, bodies
from sparsewm.bodies import seen_from_bodies as all_seen
from sparsewm.errors import UserError


def seen_from_bodies(
    states: np.ndarray, goals: np.ndarray, names: tuple[str, ...], symmetry: int = 1
) -> Tensor:
    """What is not the same whatever the state."""
    seen = all_seen(states, goals, names, symmetry)
    return seen[:, seen.std(0) > 0]


def test_what_a_body_sees_turns_and_moves_with_it() -> None:
    """Of a scene that is turned and shifted as a whole, only places on the table and directions change."""
    rng, names = np.random.default_rng(0), ("agent_x", "agent_y", "block_x", "block_y", "block_angle", "vx")
    states, goals = rng.normal(size=(2, 500, 6))
    turn = 0.7
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def moved(part: np.ndarray) -> np.ndarray:
        turned = [part[:, i : i + 2] @ rotation.T for i in (0, 2)]
        return np.concatenate([*turned, part[:, 4:5] + turn, part[:, 5:]], 1)

    before, after = (
        seen_from_bodies(states, goals, names),
        seen_from_bodies(moved(states), moved(goals), names),
    )
    same = torch.isclose(before, after, atol=0.05).all(0)  # the unit of length is measured
    finely, coarsely = (1 + 2 * len(waves) for waves in (FROM_BODIES, ON_THE_TABLE))
    relative = 3 * 2 * finely + 3 * 2  # places seen from the T (its own is left out), and turns to the goal
    assert before.shape == after.shape and int(same.sum()) == relative
    assert seen_from_bodies(states[:, :2], goals[:, :2], ("x", "y")).shape == (
        500,
        2 * 2 * coarsely + 2 * finely,
    )


def test_what_lies_about_a_body_that_looks_alike_turned_is_seen_along_the_table() -> None:
    """A picture does not show how a square is turned, but for a fourth of a circle."""
    rng, names = np.random.default_rng(0), ("x", "y", "red_x", "red_y", "red_angle")
    states, goals = rng.normal(size=(2, 500, 5))
    seen = seen_from_bodies(states, goals, names, 4)
    turned = [part + np.pi / 2 * np.eye(5)[4] * rng.integers(4, size=(500, 1)) for part in (states, goals)]
    assert torch.allclose(seen, seen_from_bodies(*turned, names, 4), atol=1e-5)
    assert not torch.allclose(seen, seen_from_bodies(states + 0.3 * np.eye(5)[4], goals, names, 4))
    offset = torch.from_numpy((states[:, :2] - states[:, 2:4]).astype(np.float32))
    correlation = torch.corrcoef(torch.cat([offset, seen], 1).T)[:2, 2:].abs().amax(1)
    assert correlation.min() > 0.9999


def test_every_number_that_a_picture_shows_is_read() -> None:
    assert bodies(("agent_x", "agent_y", "block_x", "block_y", "block_angle", "agent_vx", "agent_vy")) == [
        (0, 1, None, None),
        (2, 3, 4, None),
    ]
    assert bodies(("x0", "y0", "angle0", "y1", "x1", "vx0", "vy0")) == [(0, 1, 2, None), (4, 3, None, None)]
    assert bodies(("hand_x", "hand_y", "hand_z", "cube_z", "cube_x", "cube_y", "hand_vz")) == [
        (0, 1, None, 2),
        (4, 5, None, 3),
    ]
    for name in ("rope", "granular"):
        env = envs.make(name).unwrapped
        states = np.random.default_rng(0).normal(size=(40, env.state_dim))
        before = seen_from_bodies(states, states, env.state_names)
        assert len(bodies(env.state_names)) == env.state_dim // 2
        states[:, 0] = states[::-1, 0].copy()
        assert not torch.allclose(before, seen_from_bodies(states, states, env.state_names))


def test_a_height_is_seen_and_does_not_turn() -> None:
    names = ("hand_x", "hand_y", "hand_z", "cube_x", "cube_y", "cube_z", "cube_angle")
    rng = np.random.default_rng(0)
    states, goals = rng.normal(size=(2, 30, 7))
    scale = np.zeros(3), 1.0
    seen = all_seen(states, goals, names, 1, scale)
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # a quarter of a turn about the vertical
    turned = []
    for part in (states, goals):
        part = part.copy()
        part[:, [0, 1]], part[:, [3, 4]] = part[:, [0, 1]] @ turn, part[:, [3, 4]] @ turn
        part[:, 6] += np.pi / 2
        turned.append(part)
    again = all_seen(*turned, names, 1, scale)
    own = torch.isclose(seen, again, atol=1e-5).all(0)
    lifted = states.copy()
    lifted[:, 5] += 0.2
    above = ~torch.isclose(seen, all_seen(lifted, goals, names, 1, scale), atol=1e-5).all(0)
    assert (own & above).sum() >= 3 * 5, "how high all is beside the cube, in the cube's own frame"
    assert not own.all()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("hand_x", "hand_y", "cart_x"), "names cart_x would be left out"),
        (("x", "y", "gripper_flex"), "names gripper_flex would be left out"),
        (("x", "y", "hinge_angle"), "names hinge_angle would be left out: do that"),
        (("x", "y", *(f"qpos_{i}" for i in range(9))), "qpos_0, qpos_1, qpos_2, qpos_3, ... would be"),
        (("x", "cart_y"), r"needs places \(x and y\) in it, and `env` names x, cart_y: do that"),
        (("vx", "vy"), "names nothing"),
        (("x", "y", "z", "cart_x", "cart_y"), r"some places have a height \(z\) and others none: do that"),
    ],
)
def test_what_is_no_part_of_a_body_is_said(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        bodies(names, "do that")
