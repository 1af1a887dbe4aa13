"""How a policy is trained that proposes candidates beside a world model: one tree of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sparsewm.data.token_file import CACHES, Cache
from sparsewm.errors import UserError
from sparsewm.proposals.inverse import InverseConfig
from sparsewm.proposals.latent import KINDS
from sparsewm.proposals.wam import WamConfig
from sparsewm.trees import at_least, one_of


@dataclass(frozen=True)
class PolicyTrainConfig:
    """Train a policy that proposes actions to the planner, on recorded transitions.

    Any stretch of an episode shows how to get from its first frame to its last one, so a goal is drawn from
    what came later. The policy reads the tokens of a world model, and lies beside it.

    Example: sparsewm train-policy --kind inverse --env wall --dataset data/wall.h5
    """

    kind: str = "inverse"
    """inverse: actions alone. wam: actions and the future's tokens, denoised together."""
    env: str | None = None
    """Environment; its shipped world model is used unless a checkpoint is given."""
    dataset: str | None = None
    """Recorded episodes, as sparsewm train takes them; data/ENV.h5 when left out."""
    checkpoint: str | None = None
    """Folder of the world model, or user/name on the hub; the shipped one when left out."""
    encoder: str | None = None
    """Encoder of the world model; without a checkpoint, the shipped one on it."""
    episodes: int = 0
    """Episodes trained on, drawn at random; 0: all."""
    chunk: int | None = None
    """Model steps of a proposal; the environment's planning horizon when left out, or 5."""
    longest: int | None = None
    """Environment steps to the goal, at most; to the end of the episode when left out."""
    still: bool = True
    """Behind the goal actions are zero. Otherwise nothing is learned of them: where zero is no standstill."""
    steps: int = 3000
    """Optimiser steps."""
    batch: int = 128
    """Stretches a step."""
    lr: float = 1e-3
    """Peak learning rate; a cosine follows."""
    save_every: int = 500
    """Steps between validations, each with a checkpoint."""
    cache: Cache = "float16"
    """How encoded frames are kept: float16, int8, or none."""
    inverse: InverseConfig = field(default_factory=InverseConfig)
    wam: WamConfig = field(default_factory=WamConfig)
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision of weights and activations: auto, bfloat16 or float32."""
    seed: int = 0
    """Seed of weights, stretches and noise."""
    resume: bool = False
    """Continue the run in the output folder bit for bit from its last checkpoint."""
    output: Path | None = None
    """Folder of the policy, metrics.json and training.png; KIND beside the world model's checkpoint when
    left out, or runs/ENV/KIND where that one is shipped."""

    def __post_init__(self) -> None:
        if self.kind == "smolvla":
            raise UserError(
                "a SmolVLA is trained in this package's repository by python -m scripts.train_vla, or by "
                "LeRobot's own lerobot-train on segments that sparsewm convert writes: here `kind` is "
                f"{' or '.join(KINDS)}"
            )
        one_of("kind", self.kind, KINDS)
        one_of("cache", self.cache, CACHES)
        at_least(0, episodes=self.episodes, seed=self.seed)
        at_least(1, chunk=self.chunk, longest=self.longest, steps=self.steps, save_every=self.save_every)
        at_least(2, batch=self.batch)
        if not 0 < self.lr < 1:
            raise UserError(f"`lr` must be above 0 and below 1, got {self.lr:g}")
