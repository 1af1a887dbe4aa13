"""What a sampler proposes, as a planner takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sparsewm.observations import Memory
from sparsewm.planners import PlanningError, PlanningProblem, ProposalSampler


def propose(
    sampler: ProposalSampler,
    memories: Sequence[Memory],
    instruction: str | None,
    samples: int,
    steps: int,
    action_dim: int,
) -> Tensor:
    """Environment actions (B, samples, steps, A) that a sampler proposes for what is seen now.

    A sampler with an attribute `frames` above 1 is shown that many environment steps up to now.

    Raises:
        PlanningError: the sampler returned another shape, or NaN.
    """
    frames: int = getattr(sampler, "frames", 1)
    seen = [memory.last(frames) for memory in memories]
    present: dict[str, np.ndarray] = {
        "pixels": np.stack([[one.pixels for one in row] for row in seen]),
        "proprio": np.stack([[one.proprio for one in row] for row in seen]),  # type: ignore[misc]
    }
    if frames == 1:
        present = {name: value[:, 0] for name, value in present.items()}
    goals = [memory.goal_seen for memory in memories]
    goal = {
        "pixels": np.stack([one.pixels for one in goals]),
        "proprio": np.stack([one.proprio for one in goals if one.proprio is not None]),
    }
    actions = sampler.propose(present, goal, instruction, samples, steps)
    shape = (len(memories), samples, steps, action_dim)
    if tuple(actions.shape) != shape:
        raise PlanningError(f"proposals must have shape {shape}, not {tuple(actions.shape)}")
    if not bool(actions.isfinite().all()):
        raise PlanningError("proposals contain NaN or infinite values")
    return actions


def as_planned(actions: Tensor, problem: PlanningProblem) -> Tensor:
    """Environment actions (B, K, H * frameskip, A) as a problem plans them (B, K, H, action_dim).

    Where it plans one action per model step and holds it, that is their mean over the step.
    """
    steps = actions.unflatten(2, (problem.horizon, -1))  # (B, K, H, frameskip, A)
    return steps.mean(3) if problem.action_dim == actions.shape[-1] else steps.flatten(3)
