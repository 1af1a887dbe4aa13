"""What grid sampling saves: work and time of SmolVLA by the number of picture tokens; what tokens retain.

    python -m scripts.experiments.measure_grids --output results/grids
    python -m scripts.experiments.measure_grids --policy runs/vla-16/pusht/policy --env pusht

Work and time depend on sizes alone and are measured with random weights. With a trained `--policy` of few
tokens, the information-retention map is drawn too: of each patch, the best cosine similarity to a kept token.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scripts.common import launch
from scripts.lab.states import make_simulator, observations
from sparsewm.files import write_json
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.lerobot import LeRobotProposals
from sparsewm.proposals.modeling_grids import SmolVLAGridsPolicy
from sparsewm.report.plots import save_figure
from sparsewm.training.smolvla.backbone import BackboneSizes, smolvla_options, write_backbone


@dataclass
class Arguments:
    """Measure grid sampling."""

    output: Path = Path("runs/grids")
    """Folder for grids.json and retention.png."""
    tokens: tuple[int, ...] = (1, 4, 16, 64)
    """Tokens of a picture; the largest number stands for all."""
    batches: tuple[int, ...] = (1, 128)
    """Observations at once."""
    chunk: int = 25
    """Actions of a chunk."""
    denoise: int = 2
    """Denoising steps of a chunk."""
    repeats: int = 5
    """Timed runs."""
    sizes: BackboneSizes = field(default_factory=BackboneSizes)
    """Of the backbone."""
    policy: Path | None = None
    """Trained policy of few tokens, for the retention map."""
    env: str = "pusht"
    """Its environment."""


def random_policy(arguments: Arguments, backbone: Path, tokens: int) -> SmolVLAGridsPolicy:
    """A SmolVLA with random weights that keeps `tokens` of each picture."""
    picture = PolicyFeature(FeatureType.VISUAL, (3, arguments.sizes.image, arguments.sizes.image))
    config = SmolVLAGridsConfig(
        image_tokens=tokens,
        **smolvla_options(backbone, arguments.sizes, arguments.chunk, arguments.denoise),
        device="cpu",
        input_features={
            "observation.images.camera": picture,
            "observation.images.goal": picture,
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    )
    return SmolVLAGridsPolicy(config).eval()


@torch.no_grad()
def measure(policy: SmolVLAGridsPolicy, batch: int, repeats: int) -> dict[str, float]:
    """Work of the transformer and of the vision encoder per chunk, and seconds of a batch (median)."""
    side = policy.config.input_features["observation.images.camera"].shape[1]
    rows = {
        "observation.images.camera": torch.rand(batch, 3, side, side),
        "observation.images.goal": torch.rand(batch, 3, side, side),
        "observation.state": torch.rand(batch, 4),
        "observation.language.tokens": torch.ones(batch, 8, dtype=torch.long),
        "observation.language.attention_mask": torch.ones(batch, 8, dtype=torch.bool),
    }
    with FlopCounterMode(display=False) as counter:
        policy.predict_action_chunk(dict(rows))
    total = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        for camera in ("camera", "goal"):
            policy.model.vlm_with_expert.embed_image(rows[f"observation.images.{camera}"])
    vision = counter.get_total_flops()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        policy.predict_action_chunk(dict(rows))
        seconds.append(time.perf_counter() - started)
    return {
        "transformer_flops": (total - vision) / batch,
        "vision_flops": vision / batch,
        "seconds": float(np.median(seconds)),
    }


def retention(dense: Tensor, kept: Tensor) -> Tensor:
    """How much of each dense token (B, N, D) the kept ones (B, K, D) hold: best cosine similarity, (B, N)."""
    return (functional.normalize(dense, dim=-1) @ functional.normalize(kept, dim=-1).mT).amax(-1)


def retention_map(sampler: LeRobotProposals, env: Any, path: Path, count: int = 4) -> float:
    """Draw scenes with how much of each patch is retained, and where is looked; the mean over all patches."""
    policy = sampler.policy
    env.reset(seed=0)
    states = np.stack([env.sample_state() for _ in range(count)])
    batch = sampler._batch(observations(env, states), observations(env, states), [""] * count)
    images, _ = policy.prepare_images(batch)
    seen: list[torch.Tensor] = []
    hook = policy.grids.register_forward_hook(lambda module, inputs, output: seen.extend(inputs))
    with torch.no_grad():
        policy.model.vlm_with_expert.embed_image(images[0])
        hook.remove()
        (dense,) = seen
        side = int(np.sqrt(dense.shape[1]))
        places = policy.grids.coordinates(dense, side)
        found = retention(dense, policy.grids.sample(dense, places)).view(count, side, side)
    figure, axes = plt.subplots(2, count, figsize=(2.4 * count, 5), squeeze=False)
    for i in range(count):
        axes[0, i].imshow(env.render_states(states[i : i + 1])[0], extent=(-1, 1, 1, -1))
        axes[0, i].plot(*places[i].T, "o", markersize=4, color="#e53e3e")
        axes[1, i].imshow(found[i], vmin=0, vmax=1, cmap="viridis")
        for axis in axes[:, i]:
            axis.set_axis_off()
    figure.suptitle(f"{env.name}: {policy.config.image_tokens} tokens retain {found.mean():.2f} of {side**2}")
    save_figure(figure, path)
    return float(found.mean())


def main(arguments: Arguments) -> None:
    rows, report = [], {}
    with tempfile.TemporaryDirectory() as folder:
        backbone = write_backbone(Path(folder) / "backbone", ["go"], arguments.sizes)
        for tokens in arguments.tokens:
            policy = random_policy(arguments, backbone, tokens)
            for batch in arguments.batches:
                row = {"tokens": tokens, "batch": batch, **measure(policy, batch, arguments.repeats)}
                print({name: float(f"{value:.4g}") for name, value in row.items()})
                rows.append(row)
    if arguments.policy is not None:
        env = make_simulator(arguments.env)
        sampler = LeRobotProposals(arguments.policy, env)
        report["retention"] = retention_map(sampler, env, arguments.output / "retention.png")
    write_json(arguments.output / "grids.json", {"rows": rows, "threads": torch.get_num_threads(), **report})


if __name__ == "__main__":
    launch(main, Arguments)
