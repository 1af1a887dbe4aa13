"""The agent: it sees observations and acts, by planning in a world model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.adaptation import SceneAdaptation
from sparsewm.config import EPISODES_PER_SEED, NO_PROPOSALS, OWN_SAMPLER, PlanConfig
from sparsewm.envs import canonical
from sparsewm.errors import UserError
from sparsewm.interfaces import interface_of as interface_of
from sparsewm.kernels import flushed
from sparsewm.model.checkpoint import is_shipped, load, pretrained_path
from sparsewm.model.choices import CHOICES, Scene, compared_by
from sparsewm.model.choices.uniform import RandomPatches
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import Latent, nearest_patches
from sparsewm.model.objectives import Objective, objective_of
from sparsewm.model.problem import LatentProblem
from sparsewm.model.world_model import WorldModel
from sparsewm.observations import (
    Eyes,
    Memory,
    Observation,
    Seen,
    active_episodes,
    checked_action,
    checked_seeds,
    stacked,
    unbatched,
)
from sparsewm.planners import PlanningError, ProposalSampler
from sparsewm.planners.seeding import generator
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.proposals import load_sampler
from sparsewm.proposals.candidates import as_planned, propose
from sparsewm.receding import Receding


@dataclass
class Decision:
    """How an agent came to its actions.

    Attributes:
        step: environment step of the episode it was made at.
        actions: environment actions (n, A) to execute.
        cost: of the plan, as its last iteration scored it.
        kept: patches (M,) of the last iteration; where tokens are blended, the nearest to each.
        plan: planned actions (H, action_dim) before any is executed.
        imagined: pictures uint8 (H, R, R, 3) of what the plan leads to; None: not asked for.
        seconds, seconds_per_iteration: of this decision, per episode of the batch.
    """

    step: int
    actions: np.ndarray
    cost: float
    kept: np.ndarray | None
    plan: np.ndarray
    imagined: np.ndarray | None
    seconds: float
    seconds_per_iteration: list[float]


class Agent:
    """Sees observations and acts: model-predictive control in a world model, for one episode or a batch.

    It keeps the past frames that its world model attends to, what it has encoded, and the plan it goes on
    from. The same seed gives the same actions on the same machine.

    >>> agent = Agent.from_pretrained("pusht", drop=0.5)
    >>> agent.reset(goal)                         # {"pixels", "proprio"}, or a picture alone
    >>> actions = agent.act(observation)          # (n, A): execute them one after the other
    >>> agent.observe(observation)                # optional: what was seen after each of them

    Where an episode is watched by `observe`, the world model sees all of its past frames; without, those at
    which `act` was called.

    Args:
        model: the world model.
        config: how to plan; the environment's own settings when left out. Of `run` it uses seed, letterbox,
            adapt, memory_gb and imagine.
        sampler: proposes candidates, which are used as `config.proposals` says; loaded from its `source` when
            left out.

    Attributes:
        watch: wraps the problem of every decision, to see what a search tries; None: nobody wants to.

    Raises:
        UserError: a setting is out of range, the model has no such objective or choice of tokens, or it does
            not say what its actions are.
    """

    def __init__(
        self, model: WorldModel, config: PlanConfig | None = None, *, sampler: ProposalSampler | None = None
    ) -> None:
        config = PlanConfig.of(model.environment) if config is None else config
        if not isinstance(config, PlanConfig):
            raise UserError("`config` must be a PlanConfig: PlanConfig.of(environment).updated(drop=0.5)")
        if sampler is not None and config.proposals.source == NO_PROPOSALS:
            config = replace(config, proposals=replace(config.proposals, source=OWN_SAMPLER))
        config = config.checked()
        self.model, self.config = model, config
        self.interface = interface_of(model)
        self.objective = self._objective(config.cost.proprio_weight)
        self._blind: Objective | None = None  # the same without proprioception
        tokens = config.tokens
        self.choice = CHOICES.get(tokens.choose)(model, tokens.temperature)
        self.comparison = compared_by(model, tokens.cost, tokens.temperature)
        adaptation = SceneAdaptation.of(model) if config.run.adapt else None
        self._eyes = Eyes(self.interface, config.run.letterbox, adaptation)
        self._attends = self.choice.attention or (self.comparison is not None and self.comparison.attention)
        self._receding = Receding(config)
        source = config.proposals.source
        if sampler is None and source != NO_PROPOSALS:
            dtype = choose_dtype("auto", model.device)
            names, seed = config.proposals.names, config.run.seed
            sampler = load_sampler(
                source, self.interface, model.device, seed, names, dtype, model, config.proposals
            )
        self.sampler = sampler
        self.watch: Callable[[LatentProblem], Any] | None = None
        self._low = torch.as_tensor(self.interface.action_low, dtype=torch.float32)
        self._high = torch.as_tensor(self.interface.action_high, dtype=torch.float32)
        self._episodes: list[Memory] = []
        self._single = True
        self.decisions: list[Decision | None] = []

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        encoder: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **settings: Any,
    ) -> Agent:
        """An agent with a shipped world model, a checkpoint folder, or one of the hub.

        Args:
            name: environment with a shipped model, folder, or user/name.
            encoder: of the model, e.g. ``"dinov2_vits14"``; of shipped ones the embedded when left out.
            settings: of `PlanConfig`, by leaf (``drop=0.5``) or section (``search={"iterations": 8}``).

        Raises:
            UserError: no such model, or setting.
        """
        place = choose_device(device)
        own = canonical(str(name))
        known = is_shipped(own) or is_shipped(own, encoder)
        path = pretrained_path(own, encoder) if known else name
        model = load(path, place, choose_dtype(dtype, place, planning=True), encoder_name=encoder)
        config = PlanConfig.of(model.environment).updated(**settings)
        return cls(model, config)

    @flushed()
    def reset(
        self,
        goal: Observation | Any,
        seeds: Sequence[int] | None = None,
        instructions: str | Sequence[str | None] | None = None,
    ) -> None:
        """Begin an episode, or a batch of them.

        Args:
            goal: the goal's observation, or its picture alone: proprioception is then left out of the cost.
                Of a batch (B, ...).
            seeds: of the candidates and dropped tokens of each episode; the configuration's seed and the
                episode's number when left out.
            instructions: the task in words, one or one for each episode, for a policy that reads a sentence;
                the configuration's `proposals.instruction` when left out.

        Raises:
            UserError: an observation that the model does not take, another number of instructions, or a
                batch where a deadline is to be kept.
        """
        goals, single = unbatched(goal)
        if self.config.search.deadline_ms is not None and len(goals) > 1:
            raise UserError("`deadline_ms` is for one episode at a time")
        seen = [self._eyes(one) for one in goals]
        without = sum(one.proprio is None for one in seen)
        if 0 < without < len(seen):
            raise UserError("some goals have 'proprio' and some have not: give it for all or for none")
        if seeds is None:
            seeds = [self.config.run.seed * EPISODES_PER_SEED + i for i in range(len(seen))]
        seeds = checked_seeds(seeds, len(seen))
        if instructions is None or isinstance(instructions, str):
            instructions = [instructions] * len(seen)
        if len(instructions) != len(seen):
            raise UserError(
                f"there are {len(instructions)} `instructions` for {len(seen)} episodes: give one for each"
            )
        said = self.config.proposals.instruction
        texts = [said if text is None else text for text in instructions]
        if not without:
            objective = self._objective(self.config.cost.proprio_weight)
        else:
            objective = self._without_proprio()
            if self.objective is not objective:
                text = "the goal is a picture alone: proprioception is left out of the cost"
                warnings.warn(text, stacklevel=2)
        blank = np.zeros(max(1, self.interface.proprio_dim), np.float32)
        whole = [one if one.proprio is not None else Seen(one.pixels, blank) for one in seen]
        frames = self._encode(whole)
        frameskip = self.model.frameskip
        depth = max((self.model.history - 1) * frameskip, getattr(self.sampler, "frames", 1) - 1)
        self.objective, self._single = objective, single
        self._episodes = [
            Memory(one, depth, frame, text) for one, frame, text in zip(seen, frames, texts, strict=True)
        ]
        self._masks = [generator(seed, "tokens") for seed in seeds]
        self._draws = [generator(seed, "proposals") for seed in seeds]
        self._patches: list[Tensor | None] = [None] * len(seen)
        self.decisions = [None] * len(seen)
        self._receding.reset(seeds)

    @flushed()
    def act(self, observation: Observation, active: Sequence[int] | np.ndarray | None = None) -> Any:
        """Decide what to do now.

        Actions handed out before count as executed, unless `observe` reported some of them: then only these.

        Args:
            observation: of the episode, or of a batch (B, ...).
            active: numbers of the episodes that the rows of a batch belong to; all when left out.

        Returns:
            environment actions float32 (n, A), to be executed one after the other; of a batch a list of them.

        Raises:
            UserError: no episode was begun, the model does not take such an observation, or no plan can be
                made.
        """
        started = time.perf_counter()
        rows = self._rows(observation, active)
        for memory, _ in rows:
            memory.finish_pending()
        for memory, seen in rows:
            memory.show(seen)
        actions: dict[int, np.ndarray] = {}
        numbers = self._numbers(active).tolist()
        try:
            for group in self._alike(numbers):
                actions |= self._decide(group, started)
                started = time.perf_counter()
        except PlanningError as error:
            raise UserError(str(error)) from None
        return actions[numbers[0]] if self._single else [actions[i] for i in numbers]

    def observe(self, observation: Observation | None, action: Any = None, episode: int = 0) -> None:
        """Report what is seen after one environment step.

        Args:
            observation: None where nobody looked; the step is remembered without a picture.
            action: what was executed (A,); the next one of those `act` returned when left out.
            episode: its number in the batch.

        Raises:
            UserError: no action is left that could have been executed, or the model does not take such an
                observation or action.
        """
        memory = self._episodes[self._numbers([episode])[0]]
        if action is None and not memory.pending:
            raise UserError(
                "no action of the last plan is left: call `act`, or say which `action` was executed"
            )
        taken = None if action is None else checked_action(action, self.interface.action_dim)
        seen = None
        if observation is not None:
            parts, _ = unbatched(observation)
            if len(parts) != 1:
                raise UserError(f"what one episode shows is one observation, got {len(parts)}")
            seen = self._known(parts[0])
        following = memory.pending.popleft() if memory.pending else None
        memory.take(following if taken is None else taken)
        memory.watched = True
        if seen is not None:
            memory.show(seen)

    def forget_pending(self) -> None:
        """What was handed out last is not executed: the next `act` decides for the same moment again."""
        for memory in self._episodes:
            memory.pending.clear()

    def problem(
        self, observation: Observation | None = None, active: Sequence[int] | np.ndarray | None = None
    ) -> LatentProblem:
        """What the next plan of the active episodes minimises, for any planner of `sparsewm.planners`.

        It takes the place of `act`: it draws tokens as a plan does, and actions handed out before count as
        executed where an observation is given. Past frames are those that all of the episodes remember.

        Args:
            observation: what is seen now, as for `act`; what was seen last when left out.
        """
        numbers = self._numbers(active).tolist()
        if observation is not None:
            for memory, seen in self._rows(observation, active):
                memory.finish_pending()
                memory.show(seen)
        elif not all(self._episodes[i].seen for i in numbers):
            raise UserError("nothing was seen yet: give the `observation`")
        return self._problem(numbers, [self._episodes[i] for i in numbers], [self._masks[i] for i in numbers])

    # How it is done ---------------------------------------------------------------------------------------

    def _objective(self, weight: float) -> Objective:
        tokens = self.config.tokens.selection != "none"
        return objective_of(self.model, self.config.cost.objective, weight, tokens)

    def _without_proprio(self) -> Objective:
        if self.config.cost.proprio_weight == 0:
            return self.objective
        if self._blind is None:
            self._blind = self._objective(0.0)
        return self._blind

    def _known(self, one: dict[str, np.ndarray]) -> Seen:
        seen = self._eyes(one)
        if seen.proprio is None:
            names = ", ".join(self.interface.proprio_names)
            raise UserError(f"an observation holds 'proprio' ({names}) beside its picture")
        return seen

    def _numbers(self, active: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Numbers of the active episodes; all of them where none are given."""
        if not self._episodes:
            raise UserError("no episode has begun: call `reset` with a goal first")
        return active_episodes(active, len(self._episodes))

    def _rows(self, observation: Observation, active: Any) -> list[tuple[Memory, Seen]]:
        numbers = self._numbers(active)
        parts, _ = unbatched(observation)
        if len(parts) != len(numbers):
            raise UserError(f"{len(numbers)} episodes need as many observations, got {len(parts)}")
        return [(self._episodes[i], self._known(one)) for i, one in zip(numbers, parts, strict=True)]

    def _encode(self, seen: Sequence[Seen]) -> list[Latent]:
        """Frames of observations, in one batch where they are of one size."""
        sizes = {one.pixels.shape for one in seen}
        if len(sizes) > 1:
            return [frame for one in seen for frame in self._encode([one])]
        frames = self.model.encode(*stacked(seen, self.model.device), attention=self._attends)
        return [frames[i : i + 1] for i in range(len(seen))]

    def _frames(self, memories: Sequence[Memory], ago: Sequence[int]) -> list[Latent]:
        """Frames of all episodes at each of so many environment steps ago; encoded once."""
        pairs = [(memory, memory.step - back) for back in ago for memory in memories]
        missing = [(memory, step) for memory, step in pairs if step not in memory.latents]
        if missing:
            encoded = self._encode([memory.seen[step] for memory, step in missing])
            for (memory, step), frame in zip(missing, encoded, strict=True):
                memory.latents[step] = frame
        columns = [[memory.latents[memory.step - back] for memory in memories] for back in ago]
        return [column[0] if len(column) == 1 else Latent.cat(column) for column in columns]

    def _alike(self, numbers: Sequence[int]) -> list[list[int]]:
        """Episodes by how many past frames they remember, so that none forgets for another; rising."""
        depths: dict[int, list[int]] = {}
        for i in sorted(numbers):
            depth = self._episodes[i].frames_back(self.model.frameskip, self.model.history - 1)
            depths.setdefault(depth, []).append(i)
        return [depths[depth] for depth in sorted(depths)]

    def _problem(
        self, numbers: Sequence[int], memories: Sequence[Memory], masks: Sequence[torch.Generator]
    ) -> LatentProblem:
        config, model = self.config, self.model
        frameskip = model.frameskip
        depth = min(memory.frames_back(frameskip, model.history - 1) for memory in memories)
        back = [frameskip * i for i in range(depth, 0, -1)]  # oldest first
        *past, present = self._frames(memories, [*back, 0])
        history = []
        for frame, ago in zip(past, back, strict=True):
            taken = [list(memory.taken)[len(memory.taken) - ago :][:frameskip] for memory in memories]
            actions = torch.as_tensor(np.asarray(taken, np.float32)).flatten(1).to(model.device)
            history.append((frame, actions))
        goal = Latent.cat([memory.goal for memory in memories if memory.goal is not None])
        resample = config.tokens.resample
        return LatentProblem(
            model,
            present,
            goal,
            self._low,
            self._high,
            objective=self.objective,
            horizon=config.search.horizon,
            drop=config.tokens.drop,
            frame=config.cost.frame,
            action_repeat=config.search.action_repeat,
            init_std=config.search.init_std,
            generators=masks,
            choice=self.choice,
            comparison=self.comparison,
            cost_drop=config.tokens.cost_drop,
            history=history,
            redraw=resample == "iteration",
            patches=self._kept(numbers, Scene(present, goal, history)) if resample == "episode" else None,
            memory=None if config.run.memory_gb is None else config.run.memory_gb * 1e9,
        )

    def _kept(self, numbers: Sequence[int], scene: Scene) -> Tensor:
        """The patches (B, M) that episodes keep to their ends."""
        count = kept_patches(self.model.patches, self.config.tokens.drop)
        choice = self.choice if count < self.model.patches else RandomPatches(self.model)
        for row, i in enumerate(numbers):
            if self._patches[i] is None:
                self._patches[i] = choice.choose(scene[row : row + 1], count, [self._masks[i]])
        return torch.cat([patches for i in numbers if (patches := self._patches[i]) is not None])

    def _decide(self, numbers: Sequence[int], started: float) -> dict[int, np.ndarray]:
        """Actions of the episodes of these numbers, which rise."""
        memories = [self._episodes[i] for i in numbers]
        if self._receding.cold:
            masks, draws = (
                [generator(i, f"warm-up {name}") for i in numbers] for name in ("tokens", "proposals")
            )
            spare = self._problem(numbers, memories, masks)
            self._receding.warm_up(spare, self._proposals(spare, memories, draws))
            started = time.perf_counter()
        problem = self._problem(numbers, memories, [self._masks[i] for i in numbers])
        proposals = self._proposals(problem, memories, [self._draws[i] for i in numbers])
        plan, chosen = self._receding.plan(
            problem if self.watch is None else self.watch(problem),
            np.asarray(numbers),
            len(self._episodes),
            proposals,
            started,
            [memory.model_steps(self.model.frameskip) for memory in memories],
        )
        seconds = (time.perf_counter() - started) / len(memories)
        imagined = None
        if self.config.run.imagine and self.model.decoder is not None:
            imagined = problem.imagined(plan.actions).cpu().numpy()
        actions = {}
        for row, (number, memory) in enumerate(zip(numbers, memories, strict=True)):
            steps = chosen[row].reshape(-1, self.interface.action_dim).astype(np.float32)
            memory.pending.extend(steps)
            memory.planned = memory.step
            actions[number] = steps
            self.decisions[number] = Decision(
                memory.step,
                steps,
                float(plan.cost[row]),
                nearest_patches(problem.patches[row]).cpu().numpy(),
                plan.actions[row].cpu().numpy(),
                None if imagined is None else imagined[row],
                seconds,
                [spent / len(memories) for spent in plan.seconds_per_iteration],
            )
        return actions

    def _proposals(
        self, problem: LatentProblem, memories: Sequence[Memory], draws: Sequence[torch.Generator]
    ) -> Tensor | None:
        """Candidates (B, K, H, action_dim) of the sampler, None without one."""
        if self.sampler is None:
            return None
        steps = problem.horizon * self.model.frameskip
        samples = self.config.proposals.samples
        size = self.interface.action_dim
        actions = propose(self.sampler, memories, samples, steps, size, draws)
        return as_planned(actions, problem)
