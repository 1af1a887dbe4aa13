"""What a sampler proposes, as a planner takes it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.model.latent import Latent
from sparsewm.observations import Memory
from sparsewm.planners import PlanningError, PlanningProblem, ProposalSampler


def propose(
    sampler: ProposalSampler,
    memories: Sequence[Memory],
    samples: int,
    steps: int,
    action_dim: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Environment actions float32 (B, samples, steps, A) that a sampler proposes for what is seen now.

    A sampler with an attribute `frames` above 1 is shown that many environment steps up to now. One with
    `reads_frames` also gets what a world model has encoded of them, as `frame`. One whose `propose` takes
    `generators` gets those of the episodes. The goal has no `proprio` where its picture alone was given.
    It is told what the memories say: one text where all say the same, else one for each episode.

    Raises:
        PlanningError: the sampler returned no such numbers, or NaN.
    """
    frames: int = getattr(sampler, "frames", 1)
    seen = [memory.last(frames) for memory in memories]
    present: dict[str, Any] = {
        "pixels": np.stack([[one.pixels for one in row] for row in seen]),
        "proprio": np.stack([[one.proprio for one in row] for row in seen]),  # type: ignore[misc]
    }
    if frames == 1:
        present = {name: value[:, 0] for name, value in present.items()}
    goals = [memory.goal_seen for memory in memories]
    goal: dict[str, Any] = {"pixels": np.stack([one.pixels for one in goals])}
    if all(one.proprio is not None for one in goals):
        goal["proprio"] = np.stack([one.proprio for one in goals])  # type: ignore[misc]
    if getattr(sampler, "reads_frames", False):
        _add_frames(present, goal, memories)
    own = {"generators": list(generators)} if _takes_generators(sampler) else {}
    texts = [memory.instruction for memory in memories]
    told = texts[0] if len(set(texts)) == 1 else [text or "" for text in texts]
    offered: Any = sampler.propose(present, goal, told, samples, steps, **own)
    try:
        actions = torch.as_tensor(offered).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanningError(f"proposals are no tensor but {type(offered).__name__} ({error})") from None
    shape = (len(memories), samples, steps, action_dim)
    if tuple(actions.shape) != shape:
        raise PlanningError(f"proposals must have shape {shape}, not {tuple(actions.shape)}")
    if not bool(actions.isfinite().all()):
        raise PlanningError("proposals contain NaN or infinite values")
    return actions


def _takes_generators(sampler: ProposalSampler) -> bool:
    try:
        return "generators" in inspect.signature(sampler.propose).parameters
    except ValueError:  # not written in Python
        return False


def _add_frames(present: dict[str, Any], goal: dict[str, Any], memories: Sequence[Memory]) -> None:
    """Add the frames that are encoded already."""
    now = [memory.latents.get(memory.step) for memory in memories]
    for seen, frames in ((present, now), (goal, [memory.goal for memory in memories])):
        known = [frame for frame in frames if frame is not None]
        if len(known) == len(frames):
            seen["frame"] = Latent.cat(known)


def as_planned(actions: Tensor, problem: PlanningProblem) -> Tensor:
    """Environment actions (B, K, H * frameskip, A) as a problem plans them (B, K, H, action_dim).

    Where it plans one action per model step and holds it, that is their mean over the step.
    """
    steps = actions.unflatten(2, (problem.horizon, -1))  # (B, K, H, frameskip, A)
    return steps.mean(3) if problem.action_dim == actions.shape[-1] else steps.flatten(3)
