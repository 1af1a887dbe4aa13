"""Who acts in an episode: the agent, and the yardsticks beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sparsewm.agent import Agent, Decision
from sparsewm.config import PlanConfig
from sparsewm.evaluation.episodes import Episode
from sparsewm.evaluation.simulator import SimulatorProblem, StateCost, TrueDistance
from sparsewm.interfaces import interface_of_env as interface_of_env
from sparsewm.model.interface import Interface
from sparsewm.observations import Eyes, Memory, Observation, Seen, checked, unbatched
from sparsewm.planners import ProposalSampler
from sparsewm.planners.seeding import generator
from sparsewm.proposals.candidates import as_planned, propose
from sparsewm.receding import Receding
from sparsewm.settings import told

StateCostMaker = Callable[[Sequence[np.ndarray]], StateCost]
"""Makes the cost of simulator states from the goals (D,) of the episodes."""


def together(observations: Sequence[Observation]) -> dict[str, np.ndarray]:
    """Observations of episodes as one of a batch."""
    return {name: np.stack([one[name] for one in observations]) for name in observations[0]}


class AgentActor:
    """An agent, shown what the environments give."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def begin(self, episodes: Sequence[Episode]) -> None:
        said = self.agent.config.proposals.instruction
        texts = [told(said, episode.env) for episode in episodes]
        self.agent.reset(together([e.goal for e in episodes]), [e.task.seed for e in episodes], texts)

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        actions: list[np.ndarray] = self.agent.act(
            together([episodes[i].observation for i in active]), active
        )
        for i in active:
            decision = self.agent.decisions[i]
            assert decision is not None
            episodes[i].decisions.append(decision)
        return actions

    def looks(self, left: int) -> bool:
        """At what it sees again when it decides: frames a model step apart, all for a policy of several."""
        model = self.agent.model
        several = getattr(self.agent.sampler, "frames", 1) > 1
        return several or left == 0 or (model.history > 1 and left % model.frameskip == 0)

    def observe(self, number: int, episode: Episode) -> None:
        seen = episode.observation if episode.looked else None
        self.agent.observe(seen, episode.actions[-1], number)


class _Blind:
    """Needs to see nothing between its decisions."""

    def begin(self, episodes: Sequence[Episode]) -> None:
        """Nothing to prepare."""

    def looks(self, left: int) -> bool:
        return False

    def observe(self, number: int, episode: Episode) -> None:
        """Nothing to remember."""


class Nothing(_Blind):
    """Does nothing: the action of each environment that changes least."""

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        rows = [episodes[i].env for i in active]
        return [np.tile(env.idle_action(), (env.frameskip, 1)) for env in rows]


class RandomActions(_Blind):
    """Uniformly random actions; each episode has its own seed."""

    def begin(self, episodes: Sequence[Episode]) -> None:
        self._rngs = [np.random.default_rng([episode.task.seed, 7]) for episode in episodes]

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        env = episodes[0].env
        space = env.action_space
        shape = (env.frameskip, *space.low.shape)
        return [self._rngs[i].uniform(space.low, space.high, shape) for i in active]


class PolicyActor:
    """Executes the first candidate of a sampler: the policy alone, without a world model.

    Args:
        sampler: the policy. interface: sizes of actions and proprioception.
        instruction: what it is told; None: what each environment says of its task.
        steps: environment steps executed before asking again.
        eyes: of the world model whose tokens it reads, or whose data pictures are adapted to; None: pictures
            are shown as they are.
    """

    def __init__(
        self,
        sampler: ProposalSampler,
        interface: Interface,
        instruction: str | None,
        steps: int,
        eyes: Eyes | None = None,
    ) -> None:
        self.sampler, self.interface, self.instruction, self.steps = sampler, interface, instruction, steps
        self._eyes = eyes
        self._memories: list[Memory] = []
        self._draws: list[torch.Generator] = []

    def begin(self, episodes: Sequence[Episode]) -> None:
        depth = getattr(self.sampler, "frames", 1) - 1
        self._memories = []
        self._draws = [generator(episode.task.seed, "proposals") for episode in episodes]
        for episode in episodes:
            goal, now = (self._seen(one) for one in (episode.goal, episode.observation))
            memory = Memory(goal, depth, instruction=told(self.instruction, episode.env))
            memory.show(now)
            self._memories.append(memory)

    def _seen(self, observation: Observation) -> Seen:
        (one,), _ = unbatched(observation)
        return checked(one, self.interface.proprio_dim, None) if self._eyes is None else self._eyes(one)

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        started = time.perf_counter()
        chunks = self.offered(active, 1, self.steps)[:, 0].cpu().numpy()
        seconds = (time.perf_counter() - started) / len(active)
        for i, chunk in zip(active, chunks, strict=True):
            decision = Decision(episodes[i].steps, chunk, 0.0, None, chunk, None, seconds, [])
            episodes[i].decisions.append(decision)
        return list(chunks)

    def offered(self, active: np.ndarray, samples: int, steps: int) -> Tensor:
        """Candidates (n, samples, steps, A) for the active episodes."""
        memories, draws = ([every[i] for i in active] for every in (self._memories, self._draws))
        size = self.interface.action_dim
        return propose(self.sampler, memories, samples, steps, size, draws)

    def looks(self, left: int) -> bool:
        return left == 0 or getattr(self.sampler, "frames", 1) > 1

    def observe(self, number: int, episode: Episode) -> None:
        memory = self._memories[number]
        memory.take(episode.actions[-1])
        if episode.looked:
            memory.show(self._seen(episode.observation))


class Oracle:
    """Plans in the true simulator: what it misses, the planner misses.

    Args:
        config: how to plan. cost: of simulator states; the environment's own distance when left out.
        sampler, instruction, eyes: candidates of a policy instead of noise, what it is told, and how it sees.
    """

    def __init__(
        self,
        config: PlanConfig,
        cost: StateCostMaker | None = None,
        sampler: ProposalSampler | None = None,
        interface: Interface | None = None,
        instruction: str | None = None,
        eyes: Eyes | None = None,
    ) -> None:
        self.config, self.cost = config, cost
        self._receding = Receding(config)
        self._policy = None
        if sampler is not None:
            assert interface is not None
            self._policy = PolicyActor(sampler, interface, instruction, 1, eyes)

    def begin(self, episodes: Sequence[Episode]) -> None:
        self._receding.reset([episode.task.seed for episode in episodes])
        if self._policy is not None:
            self._policy.begin(episodes)

    def looks(self, left: int) -> bool:
        return self._policy is not None and self._policy.looks(left)

    def observe(self, number: int, episode: Episode) -> None:
        if self._policy is not None:
            self._policy.observe(number, episode)

    def _problem(self, rows: Sequence[Episode]) -> SimulatorProblem:
        env = rows[0].simulator
        make = partial(TrueDistance, env) if self.cost is None else self.cost
        goals = [np.asarray(episode.info["goal"]) for episode in rows]
        search = self.config.search
        return SimulatorProblem(
            env,
            [episode.states[-1] for episode in rows],
            make(goals),
            search.horizon,
            action_repeat=search.action_repeat,
            frame=self.config.cost.frame,
        )

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        rows = [episodes[i] for i in active]
        started = time.perf_counter()
        problem, proposals = self._problem(rows), None
        if self._policy is not None:
            steps = problem.horizon * rows[0].env.frameskip
            offered = self._policy.offered(active, self.config.proposals.samples, steps)
            proposals = as_planned(offered, problem)
        if self._receding.cold:
            self._receding.warm_up(self._problem(rows), proposals)
            started = time.perf_counter()
        taken = [_model_steps(episode) for episode in rows]
        plan, chosen = self._receding.plan(problem, active, len(episodes), proposals, started, taken)
        seconds = (time.perf_counter() - started) / len(rows)
        actions = []
        for row, episode in enumerate(rows):
            steps_taken = chosen[row].reshape(-1, *episode.env.action_space.low.shape)
            actions.append(steps_taken)
            spent = [s / len(rows) for s in plan.seconds_per_iteration]
            planned = plan.actions[row].numpy()
            cost = float(plan.cost[row])
            episode.decisions.append(
                Decision(episode.steps, steps_taken, cost, None, planned, None, seconds, spent)
            )
        return actions


def _model_steps(episode: Episode) -> int:
    """Executed since the last decision; 0 before the first."""
    if not episode.decisions:
        return 0
    return (episode.steps - episode.decisions[-1].step) // episode.env.frameskip
