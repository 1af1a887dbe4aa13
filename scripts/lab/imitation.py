"""Training of a LeRobot policy on frames with goals from their future, by LeRobot's own parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.utils import cycle, dataset_to_policy_features
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import ACTION, CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR
from lerobot.utils.random_utils import set_seed
from lerobot.utils.train_utils import (
    get_step_checkpoint_dir,
    load_training_state,
    save_training_state,
    update_last_checkpoint,
)
from safetensors.torch import load_model

from scripts.lab.hindsight import HindsightFrames


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a training in this folder, None where there is none yet."""
    last = folder / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK
    return last if last.is_dir() else None


def make_policy(
    config: Any, frames: HindsightFrames, seed: int = 0, checkpoint: Path | None = None
) -> tuple[Any, Any, Any]:
    """A policy for the features of these frames, with pre- and post-processor.

    Args:
        config: LeRobot's configuration of a policy; its features are set.
        seed: of new weights, and of all that is drawn from then on.
        checkpoint: what weights and processors are read from; new ones without.
    """
    features = dataset_to_policy_features(frames.meta.features)
    config.output_features = {ACTION: features.pop(ACTION)}
    config.input_features = features
    set_seed(seed)
    policy = get_policy_class(config.type)(config).to(config.device)
    if checkpoint is None:
        return policy, *make_pre_post_processors(config, dataset_stats=frames.meta.stats)
    folder = checkpoint / PRETRAINED_MODEL_DIR
    load_model(policy, folder / "model.safetensors", device=config.device)
    override = {"device_processor": {"device": config.device}}
    return policy, *make_pre_post_processors(config, str(folder), preprocessor_overrides=override)


def train(
    policy: Any,
    processors: tuple[Any, Any],
    frames: HindsightFrames,
    folder: Path,
    steps: int,
    batch: int,
    save_every: int,
    workers: int = 0,
    bfloat16: bool = False,
    progress: Callable[..., None] | None = None,
) -> Path:
    """Train up to a step, from the last checkpoint in the folder where there is one.

    Args:
        policy, processors: as `make_policy` has them, of the last checkpoint. folder: of the checkpoints.
        steps: in all. batch: frames a step. workers: processes that load data.
        bfloat16: by autocast. progress: called with the step, all steps and a text.

    Returns:
        the last checkpoint.
    """
    config, device = policy.config, next(policy.parameters()).device
    schedule = config.get_scheduler_preset()
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    scheduler = schedule.build(optimizer, schedule.num_decay_steps)
    first, last = 0, last_checkpoint(folder)
    if last is not None:
        first, optimizer, scheduler = load_training_state(last, optimizer, scheduler)
    loader = torch.utils.data.DataLoader(
        frames, batch, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda"
    )
    batches = cycle(loader)
    policy.train()
    for step in range(first + 1, steps + 1):
        sample = processors[0](next(batches))
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss, _ = policy.forward(sample)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if progress is not None:
            progress(step, steps, f"loss {float(loss.detach()):.3f}")
        if step % save_every == 0 or step == steps:
            last = get_step_checkpoint_dir(folder, steps, step)
            for part in (policy, *processors):
                part.save_pretrained(last / PRETRAINED_MODEL_DIR)
            save_training_state(last, step, optimizer, scheduler)
            update_last_checkpoint(last)
    assert last is not None
    return last
