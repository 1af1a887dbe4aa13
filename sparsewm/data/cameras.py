"""What the project's own LeRobot datasets call their cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CAMERA, GOAL = "observation.images.camera", "observation.images.goal"
"""The present picture and the picture of the goal."""

BOTH = "observation.images.both"
"""Present and goal in one picture."""

ROWS = "observation.rows"
"""Row numbers (present, goal) of pictures that a policy has encoded already."""

LUMINANCE = (77, 150, 29)
"""Weights of red, green and blue in a grey picture, in 256ths: those of Rec. 601."""


def grey(pixels: Tensor, weights: Sequence[int] = LUMINANCE) -> Tensor:
    """Pictures uint8 (..., R, R, 3) in grey, uint8 (..., R, R), by weights that are 256 in all.

    Things of one luminance, as the blocks of Block Push, need others to be told apart.
    """
    channels = pixels.to(torch.int32)
    return ((channels * torch.tensor(weights, dtype=torch.int32, device=pixels.device)).sum(-1) >> 8).to(
        torch.uint8
    )


def overlay(present: Tensor, goal: Tensor) -> Tensor:
    """Grey pictures (..., R, R) as one (..., 3, R, R): the goal is red, the present green and blue."""
    return torch.stack([goal, present, present], -3)
