"""Inverse dynamics: from what is seen and what is wanted to the actions between, an amortised planner.

Learned from recorded transitions whose goals are later frames of the same episode (hindsight). Between two
frames there is often more than one way, and the mean of two ways is none; so the head is a flow: from
different noise come different chunks, without a number of modes to choose, and in few steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.bodies import bodies, seen_from_bodies
from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError
from sparsewm.model.latent import Latent, Standardizer
from sparsewm.planners.seeding import unit_noise
from sparsewm.positions import sincos_positions
from sparsewm.proposals.flow import FlowBlock, PolicySizes, level_code, noised, random_levels
from sparsewm.proposals.state_reader import StateReader
from sparsewm.trees import at_least, one_of

STATE = "state"
"""What `reads` calls the recorded state."""

_PARTS = 3  # of 8 bits each, as many as float32 has
_DEVIATION = 1.4826  # of a Gaussian whose median error is 1


@dataclass(frozen=True)
class InverseConfig:
    """Sizes of the inverse dynamics."""

    width: int = 256
    """Features of all layers, a multiple of 4."""
    heads: int = 8
    """Pooled summaries of the patches."""
    depth: int = 3
    """Layers of the head that makes chunks."""
    reads: str = "tokens"
    """tokens of present and goal; or state: where everything is and how it lies to one another, which the
    policy first learns to tell from tokens. What to do there it learns from recorded states alone."""
    reader_data: tuple[str, ...] = ()
    """Other recordings, in equal shares, whose frames it learns to tell the state from: exploration shows
    what demonstrations do not (reads state)."""
    reader_steps: int = 3000
    """Steps of 256 frames in which it learns to tell the state (reads state)."""
    turned: bool = False
    """Actions are displacements (x, y) on the table: make them along the axes of the first body that turns
    (reads state)."""
    free: tuple[str, ...] = ()
    """Names of the state's numbers that may be anything at the goal, such as where a pusher stands in the end
    (reads state). They are not told of the goal."""
    noise: float = 1.0
    """Error of the states that it learns from, in errors of what is told (reads state)."""

    def __post_init__(self) -> None:
        one_of("reads", self.reads, ("tokens", STATE))
        at_least(0, noise=self.noise)
        at_least(1, reader_steps=self.reader_steps)
        if self.width % 4 or min(self.width, self.heads, self.depth) < 1:
            raise UserError("of inverse dynamics, width must be a multiple of 4, heads and depth at least 1")


class InverseDynamics(nn.Module):
    """Chunks of actions that lead from a frame to a goal.

    Every patch of the present is read together with the same patch of the goal; attention pools the patches.
    Or a state is read that is told of both. Proprioception of the goal is not read: a goal may be a picture
    alone.

    Args:
        sizes: of what it reads and writes. config: of the network.
    """

    kind: ClassVar[str] = "inverse"

    def __init__(self, sizes: PolicySizes, config: InverseConfig) -> None:
        super().__init__()
        self.sizes, self.config = sizes, config
        width, numbers = config.width, sizes.chunk * sizes.action_dim
        if config.reads == STATE:
            self.bodies = Bodies(sizes)
            self.bodies_in = self.bodies.layers(width)
        else:
            self.pair_in = nn.Linear(2 * sizes.token_dim, width)
            self.position_in = nn.Linear(width, width)
            self.pair_up = nn.Linear(width, width)
            self.score = nn.Linear(width, config.heads)
            self.value = nn.Linear(width, width)
        summaries = 2 if config.reads == STATE else config.heads + 1
        self.proprio_in = nn.Linear(sizes.proprio_dim, width)
        self.joint = nn.Sequential(
            nn.Linear(summaries * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.chunk_in = nn.Linear(numbers, width)
        self.level_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(config.depth))
        self.out = nn.Linear(width, numbers)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("positions", sincos_positions(*sizes.grid, width), persistent=False)

    positions: Tensor

    @property
    def reads_states(self) -> bool:
        """Whether it learns from recorded states."""
        return self.config.reads == STATE

    @property
    def reads_tokens(self) -> bool:
        """Whether it learns from tokens."""
        return not self.reads_states

    @property
    def learned(self) -> list[nn.Module]:
        """Parts that have learned before the rest does."""
        return [self.bodies.reader] if self.reads_states else []

    def read(self, present: Tensor, proprio: Tensor, goal: Tensor) -> Tensor:
        """What is known (B, W): standardised tokens (B, N, D) now and at the goal, proprioception (B, P)."""
        dtype = self.proprio_in.weight.dtype
        x = self.pair_in(torch.cat([present, goal], -1).to(dtype)) + self.position_in(
            self.positions.to(dtype)
        )
        x = F.relu(self.pair_up(F.relu(x)))
        weights = self.score(x).float().softmax(1).to(dtype)  # (B, N, heads)
        return self._known((weights.mT @ self.value(x)).flatten(1), proprio)

    def read_states(self, state: Tensor, goal: Tensor, proprio: Tensor) -> Tensor:
        """What is known (B, W): states (B, V) now and at the goal, proprioception (B, P)."""
        dtype = self.proprio_in.weight.dtype
        return self._known(F.relu(self.bodies_in(self.bodies(state, goal).to(dtype))), proprio)

    def _known(self, read: Tensor, proprio: Tensor) -> Tensor:
        return self.joint(torch.cat([read, F.relu(self.proprio_in(proprio.to(read.dtype)))], -1))

    def velocity(self, chunk: Tensor, levels: Tensor, known: Tensor) -> Tensor:
        """Slope, float32, at a noisy chunk (B, ..., H * C) of noise levels (B, ...), for what is known."""
        dtype = known.dtype
        code = level_code(levels, self.config.width).to(dtype)
        condition = F.silu(known.view(len(known), *[1] * (levels.ndim - 1), -1) + self.level_in(code))
        x = self.chunk_in(chunk.to(dtype))
        for block in self.blocks:
            x = block(x, condition)
        return self.out(F.layer_norm(x, x.shape[-1:])).float()

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Error of the slope.

        Args:
            batch: standardised `present` and `goal` (B, N, D), or `state` and `wanted` (B, V), `proprio`
                (B, P), `action` (B, H, C), and `weight` (B, H, C), 0 where nobody knows what to do.
            generator: of noise and levels, on a CPU.
        """
        if self.reads_states:
            now = self.bodies.blurred(batch["state"], self.config.noise, generator, felt=True)
            wanted = self.bodies.blurred(batch["wanted"], self.config.noise, generator)
            known = self.read_states(now, wanted, batch["proprio"])
            batch = batch | {"action": self.bodies.turned(batch["action"], now, -1)}
        else:
            known = self.read(batch["present"], batch["proprio"], batch["goal"])
        clean, weight = batch["action"].flatten(1), batch["weight"].flatten(1)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        levels = random_levels(len(clean), generator).to(clean.device)
        slope = self.velocity(noised(clean, noise, levels), levels, known)
        error = (weight * (slope - (noise - clean)).square()).sum() / weight.sum().clamp(min=1)
        return {"loss": error}

    @torch.no_grad()
    def propose(
        self,
        present: Latent,
        goal: Latent,
        samples: int,
        generators: Sequence[torch.Generator],
        how: ProposalConfig,
    ) -> Tensor:
        """Standardised chunks (B, samples, H, C), float32; of each row's own generator, or of one."""
        state = None
        if self.reads_states:
            state, wanted = self.bodies.told(present, felt=True), self.bodies.told(goal)
            known = self.read_states(state, wanted, present.proprio)
        else:
            known = self.read(present.tokens, present.proprio, goal.tokens)
        sizes = self.sizes
        shape = (len(known), samples, sizes.chunk * sizes.action_dim)
        chunk = unit_noise(generators, *shape).to(known.device)
        for step in range(how.action_steps):
            levels = torch.full(shape[:2], 1 - step / how.action_steps, device=known.device)
            chunk = chunk - self.velocity(chunk, levels, known) / how.action_steps
        chunk = chunk.unflatten(2, (sizes.chunk, sizes.action_dim))
        return chunk if state is None else self.bodies.turned(chunk, state[:, None], 1)


class Bodies(nn.Module):
    """Present and goal as the bodies see them that are there, told by a reader of frames.

    Raises:
        UserError: the state names no place or what is of none, no body turns, or there is no such name.
    """

    middle: Tensor
    unit: Tensor
    error: Tensor
    felt_scale: Tensor

    def __init__(self, sizes: PolicySizes) -> None:
        super().__init__()
        names, turned, free = sizes.shown, sizes.turned, sizes.free
        dim, given = sizes.given_dim or sizes.token_dim, bool(sizes.given_dim)
        self.reader = StateReader(dim, sizes.patches, names, sizes.symmetry, given=given)
        there = bodies(names, "give `reads` tokens")
        self._places = [list(axis) for axis in zip(*(body.place for body in there), strict=True)]
        angles = [body.angle for body in there if body.angle is not None]
        if turned and (not angles or sizes.symmetry > 1 or sizes.action_dim % 2):
            raise UserError("`turned` actions (x, y) need a body whose angle shows: leave it out")
        for name in free:
            one_of("free", name, names)
        self.turns, self.free = angles[0] if turned else None, [names.index(name) for name in free]
        self.register_buffer("middle", torch.zeros(len(self._places)))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("error", torch.zeros(len(names)))
        self.felt = {i: column for i, column in enumerate(sizes.felt) if column >= 0}
        if self.felt:  # mean and deviation, each in parts that bfloat16 holds
            self.register_buffer("felt_scale", torch.zeros(2, _PARTS, len(self.felt)))
        self.features = self(torch.zeros(1, len(names)), torch.zeros(1, len(names))).shape[1]

    def fit(self, errors: Mapping[str, float], standardizer: Standardizer) -> None:
        """Take scale and errors from the reader, and what is felt, rounded so that any precision keeps them.

        Args:
            errors: its median errors by name. standardizer: of proprioception.
        """
        reader = self.reader
        self.middle.copy_(torch.stack([reader.mean[of].mean() for of in self._places]).bfloat16())
        self.unit.copy_(torch.cat([reader.std[of] for of in self._places]).mean().bfloat16())
        known = [_DEVIATION * errors[name] for name in reader.names]
        self.error.copy_(torch.tensor(known).bfloat16())
        if self.felt:
            scales = torch.stack([standardizer.proprio_mean, standardizer.proprio_std])
            left = scales[:, list(self.felt.values())].to(self.felt_scale)
            for part in self.felt_scale.unbind(1):
                part.copy_(left.bfloat16())
                left = left - part

    def layers(self, width: int) -> nn.Sequential:
        """Layers that make `width` numbers of the features."""
        return nn.Sequential(nn.Linear(self.features, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def told(self, frame: Latent, felt: bool = False) -> Tensor:
        """The state (B, V) that a frame shows; `felt`: with what its proprioception says of it."""
        tokens = frame.given if self.reader.given else frame.tokens
        assert tokens is not None
        state = self.reader.state(self.reader(self.reader.scaled(tokens)))
        if felt and self.felt:
            mean, deviation = self.felt_scale.float().sum(1)
            state[:, list(self.felt)] = frame.proprio.float()[:, list(self.felt.values())] * deviation + mean
        return state

    def blurred(self, states: Tensor, noise: float, generator: torch.Generator, felt: bool = False) -> Tensor:
        """States (B, V) with errors such as the reader makes; `felt`: none where proprioception says it."""
        drawn = torch.randn(states.shape, generator=generator).to(states.device)
        if felt:
            drawn[:, list(self.felt)] = 0
        return states + noise * self.error.to(states) * drawn

    def turned(self, actions: Tensor, state: Tensor, way: int) -> Tensor:
        """Actions (B, ..., H, C) from the table's axes to those of the body in states (B, ..., V), for way
        -1, or back, for way 1."""
        if self.turns is None:
            return actions
        angle = way * state[..., self.turns].to(actions)[..., None, None]
        x, y = actions.unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = angle.cos(), angle.sin()
        return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1).flatten(-2)

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """Features (B, T) of states (B, V)."""
        scale = self.middle.double().cpu().numpy(), float(self.unit)
        now, wanted = (part.double().cpu().numpy() for part in (state, goal))
        if self.free:
            wanted = wanted.copy()  # a CPU's tensor shares its numbers
            wanted[:, self.free] = now[:, self.free]
        return seen_from_bodies(now, wanted, self.reader.names, self.reader.symmetry, scale).to(state.device)
