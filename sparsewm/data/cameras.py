"""What the project's own LeRobot datasets call their cameras."""

from __future__ import annotations

import torch
from torch import Tensor

CAMERA, GOAL = "observation.images.camera", "observation.images.goal"
"""The present picture and the picture of the goal."""

BOTH = "observation.images.both"
"""Present and goal in one picture."""

ROWS = "observation.rows"
"""Row numbers (present, goal) of pictures that a policy has encoded already."""


def grey(pixels: Tensor) -> Tensor:
    """Luminance uint8 (..., R, R) of pictures uint8 (..., R, R, 3), by the weights of Rec. 601 in 256ths."""
    red, green, blue = pixels.to(torch.int32).unbind(-1)
    return ((77 * red + 150 * green + 29 * blue) >> 8).to(torch.uint8)


def overlay(present: Tensor, goal: Tensor) -> Tensor:
    """Grey pictures (..., R, R) as one (..., 3, R, R): the goal is red, the present green and blue."""
    return torch.stack([goal, present, present], -3)
