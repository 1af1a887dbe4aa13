"""The state reader: what it should tell of a state, in any precision."""

from __future__ import annotations

import math

import pytest
import torch

from sparsewm.bodies import shown
from sparsewm.proposals.state_reader import StateReader

NAMES = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")


def make(symmetry: int = 1) -> StateReader:
    torch.manual_seed(0)
    reader = StateReader(8, 16, NAMES, symmetry, hidden=24)
    reader.fit(100 * torch.randn(50, 5, dtype=torch.float64) + 256)
    with torch.no_grad():
        for weight in reader.parameters():
            weight.copy_((weight + 0.1 * torch.randn_like(weight)).bfloat16())
    return reader.eval().requires_grad_(False)


def test_velocities_do_not_show() -> None:
    assert shown((*NAMES, "agent_vx", "agent_vy")) == NAMES and shown(("vx",)) == ()


@pytest.mark.parametrize("symmetry", [1, 4])
def test_what_is_told_of_a_state_is_that_state(symmetry: int) -> None:
    reader = make(symmetry)
    states = torch.rand(20, 3, 5, dtype=torch.float64) * 500
    states[..., 4] = (torch.rand(20, 3) - 0.5) * 2 * math.pi
    told = reader.state(reader.targets(states))
    assert torch.allclose(told[..., :4], states[..., :4].float(), atol=1e-3)
    away = symmetry * (told[..., 4] - states[..., 4].float())
    assert torch.allclose(away.cos(), torch.ones(20, 3), atol=1e-5)
    assert told[..., 4].abs().max() <= math.pi / symmetry + 1e-5
    turned = states + 2 * math.pi / symmetry * torch.eye(5, dtype=torch.float64)[4]
    assert torch.allclose(reader.targets(turned), reader.targets(states), atol=1e-5), "looks the same"


def test_weights_in_bfloat16_tell_the_same() -> None:
    reader, tokens = make(), torch.randn(3, 16, 8)
    told = reader(tokens)
    assert told.shape == (3, 5, 2)
    assert torch.equal(told, make().bfloat16()(tokens))
    assert not torch.allclose(told, reader(tokens.flip(1)), atol=1e-3), "where a patch lies matters"
