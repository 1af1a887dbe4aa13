"""How a policy is trained that proposes candidates to the planner: one tree of settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sparsewm.config import environment_file
from sparsewm.data.cameras import LUMINANCE
from sparsewm.data.token_file import CACHES, Cache
from sparsewm.envs import canonical
from sparsewm.errors import UserError
from sparsewm.proposals.inverse import STATE, InverseConfig
from sparsewm.proposals.latent import KINDS
from sparsewm.proposals.names import check_weights
from sparsewm.proposals.wam import WamConfig
from sparsewm.trees import at_least, differences, merged, one_of, plain, read_yaml

SMOLVLA = "smolvla"

_USUAL: dict[str, dict[str, Any]] = {SMOLVLA: {"steps": 5000, "lr": 8e-4}}
"""Of a kind, where it differs from the tree."""

_CHANGEABLE = {"steps", "resume", "output", "device", "save_every"}
"""By a run that is resumed."""

_OF_OTHERS = ("checkpoint", "encoder", "episodes", "chunk", "still", "cache")
"""Settings that a SmolVLA has no use for."""

_OF_STATES = ("reader_data", "reader_steps", "turned", "free", "noise")
"""Settings of inverse dynamics that reads the state."""


@dataclass(frozen=True)
class SmolVLATrainConfig:
    """What a SmolVLA sees, and how it learns to."""

    look: int = 1000
    """Steps of 64 pictures in which vision first learns to tell the recorded state, before it is frozen; 0:
    it stays as it is, as from a start. Without the goal, also the state at the episode's end, of which marks
    of targets tell."""
    goal: bool = True
    """Show the picture of the goal. Without it the instruction alone says what to do, and only ends of
    episodes are goals: where demonstrations are of tasks that a sentence names."""
    together: bool = False
    """Show present and goal in one picture, the goal in red: vision sees how one lies to the other."""
    grey: tuple[int, int, int] = LUMINANCE
    """Weights of red, green and blue in that picture, 256 in all; what matters must differ in this grey."""
    early_tokens: int = 4
    """Random tokens of a picture that the policy sees at first, which is cheap."""
    image_tokens: int = 16
    """Tokens of a picture that it sees in the end, at places that it learns."""
    places: float = 0.1
    """Share of the steps, the last ones, in which it learns these places, at half of the learning rate; 1
    from a start. 0: it goes on with the random ones."""

    def __post_init__(self) -> None:
        at_least(0, look=self.look)
        at_least(1, early_tokens=self.early_tokens, image_tokens=self.image_tokens)
        check_weights(self.grey, "`grey`")
        if not 0 <= self.places <= 1:
            raise UserError(f"`places` must be between 0 and 1, got {self.places:g}")
        if self.together and not self.goal:
            raise UserError("`together` shows the goal: let it be false, or `goal` be true")


@dataclass(frozen=True)
class PolicyTrainConfig:
    """Train a policy that proposes actions to the planner, on recorded transitions.

    Any stretch of an episode shows how to get from its first frame to its last one, so a goal is drawn from
    what came later. inverse and wam read the tokens of a world model, and lie beside it; smolvla reads
    pictures, and its folder goes anywhere. Usual: --kind, --env, --dataset FILE, --steps N, --output FOLDER.

    Example: sparsewm train-policy --kind inverse --env wall --dataset data/wall.h5

    Example: sparsewm train-policy --kind wam --env wall --wam.tokens 16

    Example: sparsewm train-policy --kind smolvla --env pusht --dataset data/pusht-expert.h5
    """

    kind: str = "inverse"
    """inverse: actions alone. wam: actions and the future's tokens, denoised together. smolvla: LeRobot's
    class, small and from scratch (extra vla)."""
    env: str | None = None
    """Environment; its shipped world model is used unless a checkpoint is given."""
    dataset: str | None = None
    """Recorded episodes, as sparsewm train takes them; data/ENV.h5 when left out. smolvla: demonstrations, by
    sparsewm collect --policy expert; data/ENV-expert.h5."""
    start: Path | None = None
    """Policy to go on from, on a new schedule (smolvla)."""
    checkpoint: str | None = None
    """Folder of the world model, or user/name on the hub; the shipped one when left out."""
    encoder: str | None = None
    """Encoder of the world model; without a checkpoint, the shipped one on it."""
    episodes: int = 0
    """Episodes trained on, drawn at random; 0: all."""
    chunk: int | None = None
    """Model steps of a proposal; the environment's planning horizon when left out, or 5. smolvla: 25
    environment steps."""
    longest: int | None = None
    """Environment steps to the goal, at most; to the end of the episode when left out."""
    still: bool = True
    """Behind the goal actions are zero. Otherwise nothing is learned of them: where zero is no standstill."""
    steps: int = 3000
    """Optimiser steps. smolvla: 5000, or the environment's own."""
    batch: int = 128
    """Stretches of episodes a step."""
    lr: float = 1e-3
    """Peak learning rate; a cosine follows. smolvla: 0.0008."""
    save_every: int = 500
    """Steps between checkpoints, each with a validation (inverse, wam)."""
    cache: Cache = "float16"
    """How encoded frames are kept: float16, int8, or none."""
    inverse: InverseConfig = field(default_factory=InverseConfig)
    wam: WamConfig = field(default_factory=WamConfig)
    smolvla: SmolVLATrainConfig = field(default_factory=SmolVLATrainConfig)
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
    left out, or runs/ENV/KIND where that one is shipped. smolvla: the policy is in its folder policy."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, [*KINDS, SMOLVLA])
        one_of("cache", self.cache, CACHES)
        at_least(0, episodes=self.episodes, seed=self.seed)
        at_least(1, chunk=self.chunk, longest=self.longest, steps=self.steps, save_every=self.save_every)
        at_least(2, batch=self.batch)
        if not 0 < self.lr < 1:
            raise UserError(f"`lr` must be above 0 and below 1, got {self.lr:g}")
        if self.kind == SMOLVLA:
            for name in _OF_OTHERS:
                if getattr(self, name) != getattr(PolicyTrainConfig, name):
                    raise UserError(
                        f"`{name}` is of policies that read a world model's tokens: leave it out for smolvla"
                    )
            if self.longest is not None and not self.smolvla.goal:
                raise UserError("`longest` is of goals that are shown: leave it out, or let `goal` be true")
        elif self.start is not None:
            raise UserError(f"`start` is of kind smolvla: leave it out for {self.kind}")
        if self.kind == "inverse" and self.inverse.reads != STATE:
            usual = _of_environment(self.kind, self.env).get(self.kind, {})
            for name, value in differences(self.inverse, InverseConfig()):
                if name in _OF_STATES and plain(value) != usual.get(name):
                    raise UserError(f"`{name}` is of inverse dynamics that `reads` state: leave it out")

    @classmethod
    def of(
        cls, kind: str = "inverse", env: str | None = None, start: Path | None = None
    ) -> PolicyTrainConfig:
        """The tree's defaults under the kind's, and an environment's for it (`configs/environments`).

        Args:
            kind, env, start: as in the tree.

        Raises:
            UserError: unknown kind, or damaged file.
        """
        tree = merged(cls(), {"kind": kind, "env": env} | _USUAL.get(kind, {}), kind)
        tree = merged(tree, _of_environment(kind, env), f"{kind} of {env}")
        if start is not None:  # its vision sees, and its tokens know the scene
            tree = merged(tree, {"start": start, SMOLVLA: {"look": 0, "places": 1.0}}, kind)
        return tree


def recorded(config: PolicyTrainConfig) -> dict[str, Any]:
    """Settings as a run records them."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return found


def changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Names of settings that a run which is resumed had otherwise, and must not.

    Args:
        now, before: as recorded; a setting that was none yet when the run began has its default there.
    """
    usual = recorded(PolicyTrainConfig())

    def known(name: str) -> Any:
        value = before.get(name, usual.get(name))
        return usual[name] | value if isinstance(value, dict) else value

    return [name for name, value in now.items() if value != known(name) and name not in _CHANGEABLE]


def _of_environment(kind: str, env: str | None) -> dict[str, Any]:
    """What an environment's file says of a kind: settings of the tree, and those of the kind by its name."""
    path = environment_file(canonical(env)) if env else None
    found = read_yaml(path).get(kind, {}) if path is not None and path.is_file() else {}
    sections: dict[str, Any] = {name: config for name, (_, config) in KINDS.items()}
    known = {part.name for part in fields(sections.get(kind, SmolVLATrainConfig))}
    own = {name: value for name, value in found.items() if name in known}
    return {name: value for name, value in found.items() if name not in known} | ({kind: own} if own else {})
