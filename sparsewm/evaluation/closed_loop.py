"""Closed-loop evaluation: plan, execute, look, plan again, until the goal or the end of the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.collect import explore
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.statistics import quartiles, wilson
from sparsewm.model.drop import kept_patches
from sparsewm.model.problem import LatentProblem
from sparsewm.model.world_model import Latent, WorldModel, random_patches
from sparsewm.planners import MPC, PlanningError, PlanningProblem, ProposalMode, ProposalSampler
from sparsewm.settings import environment_settings

Redraw = Literal["iteration", "plan", "never"]

HELD_OUT = 977_000_000
"""Seeds of held-out trajectories start here; collected data never reaches it."""

SPARE = 0.02
"""Share of a deadline that is kept for what nobody can foresee."""

_ATTEMPTS = 20  # trajectories, and places in each, in which a goal that is not reached already is looked for


@dataclass(frozen=True)
class Task:
    """Start and goal of one episode: states (D,), and the seed they come from."""

    start: np.ndarray
    goal: np.ndarray
    seed: int


def make_tasks(
    env: SimulatedGoalEnv, episodes: int, seed: int = 0, source: str | None = None, offset: int | None = None
) -> list[Task]:
    """Starts and goals of an evaluation; task i is a function of (seed + i).

    Args:
        source: "random": start and goal as `env.reset` draws them; "trajectory": two states `offset`
            environment steps apart in a scripted trajectory that no dataset contains, such that the first
            does not count as success already. None: as in the environment's settings.
    """
    if source is None or offset is None:
        settings = environment_settings(env.name).plan
        source, offset = source or settings.goal_source, settings.goal_offset if offset is None else offset
    if source not in ("random", "trajectory"):
        raise UserError(f"--goal-source must be random or trajectory, not '{source}'")
    if offset < 1:
        raise UserError(f"--goal-offset must be at least 1 environment step, got {offset}")
    tasks = []
    for i in range(seed, seed + episodes):
        if source == "random":
            env.reset(seed=i)
            tasks.append(Task(env.state, env.goal.copy(), i))
        else:
            tasks.append(_trajectory_task(env, i, offset))
    return tasks


def _trajectory_task(env: SimulatedGoalEnv, seed: int, offset: int) -> Task:
    for attempt in range(_ATTEMPTS):
        states, _ = explore(env, HELD_OUT + attempt, seed, max(100, offset))
        rng = np.random.default_rng([HELD_OUT + attempt, seed, 1])
        for _ in range(_ATTEMPTS):
            first = int(rng.integers(len(states) - offset))
            start, goal = states[first], states[first + offset]
            if not env.is_success(start, goal):
                return Task(start, goal, seed)
    raise UserError(
        f"{_ATTEMPTS} trajectories hold no goal {offset} steps ahead that is not reached already: raise "
        "--goal-offset"
    )


GOAL = -1
"""In place of an environment step: the goal."""


@dataclass
class Trace:
    """What happened in one episode.

    Attributes:
        states: every environment step, (steps + 1) x (D,). actions: those between, steps x (A,). success:
            whether the goal was reached.
        plans: per re-plan: the step it was made at, the patches kept in its last iteration (M,) or None, its
            cost, and the imagined frames uint8 (H, R, R, 3) or None.
        seconds_per_iteration, seconds_per_plan: one entry each, per episode of the batch.
        latents: what a world model has encoded and may ask for again, by environment step, or GOAL.
    """

    task: Task
    states: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    success: bool = False
    plans: list[dict[str, Any]] = field(default_factory=list)
    seconds_per_iteration: list[float] = field(default_factory=list)
    seconds_per_plan: list[float] = field(default_factory=list)
    latents: dict[int, Latent] = field(default_factory=dict, repr=False, compare=False)

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return len(self.states) - 1


class Policy(Protocol):
    """Acts for a batch of episodes."""

    def begin(self, traces: Sequence[Trace]) -> None:
        """New episodes; their tasks say start and goal."""

    def act(self, active: np.ndarray) -> Sequence[np.ndarray]:
        """Actions (n, A) of every active episode to execute now, by their numbers; may note plans."""


class Still:
    """Does nothing: zero actions."""

    def __init__(self, env: SimulatedGoalEnv) -> None:
        self.env = env

    def begin(self, traces: Sequence[Trace]) -> None:
        """Nothing to prepare."""

    def act(self, active: np.ndarray) -> Sequence[np.ndarray]:
        return [np.zeros((self.env.frameskip, self.env.action_dim)) for _ in active]


class RandomActions:
    """Uniformly random actions; each episode has its own seed."""

    def __init__(self, env: SimulatedGoalEnv) -> None:
        self.env = env

    def begin(self, traces: Sequence[Trace]) -> None:
        self._rngs = [np.random.default_rng([trace.task.seed, 7]) for trace in traces]

    def act(self, active: np.ndarray) -> Sequence[np.ndarray]:
        space, shape = self.env.action_space, (self.env.frameskip, self.env.action_dim)
        return [self._rngs[i].uniform(space.low, space.high, shape) for i in active]


class ExecutableProblem(PlanningProblem, Protocol):
    """A planning problem that knows what the environment executes for a planned action."""

    def executed(self, actions: Tensor) -> Tensor:
        """Planned actions (..., H, action_dim) as environment actions (..., H, frameskip * A)."""
        ...

    def steps(self, actions: Tensor) -> Tensor:
        """How many of the planned model steps (B, H, action_dim) lead to the frame that was scored: (B,)."""
        ...


@dataclass(frozen=True)
class Proposals:
    """Candidates of a sampler for what the camera sees.

    Attributes:
        sampler: it is shown `{"pixels": uint8 (B, R, R, 3), "proprio": float32 (B, P)}` of the present and of
            the goal, and asked for environment actions (B, samples, environment steps, A). One with an
            attribute `frames` above 1 is shown that many environment steps up to now: (B, frames, ...).
        samples: candidates per episode and decision, K.
        mode: what the planner does with them.
        instruction: text for samplers that read one.
    """

    sampler: ProposalSampler
    samples: int = 16
    mode: ProposalMode = "replace"
    instruction: str | None = None

    def propose(self, env: SimulatedGoalEnv, traces: Sequence[Trace], steps: int) -> Tensor:
        """Environment actions (B, K, steps, A) for the present states of B episodes.

        Raises:
            PlanningError: the sampler returned another shape, or NaN.
        """
        frames: int = getattr(self.sampler, "frames", 1)
        past = [trace.states[-frames:] for trace in traces]
        seen = np.stack([[states[0]] * (frames - len(states)) + states for states in past])  # (B, frames, D)
        present = observations(env, seen if frames > 1 else seen[:, 0])
        goal = observations(env, np.stack([trace.task.goal for trace in traces]))
        actions = self.sampler.propose(present, goal, self.instruction, self.samples, steps)
        shape = (len(traces), self.samples, steps, env.action_dim)
        if tuple(actions.shape) != shape:
            raise PlanningError(f"proposals must have shape {shape}, not {tuple(actions.shape)}")
        if not bool(actions.isfinite().all()):
            raise PlanningError("proposals contain NaN or infinite values")
        return actions


def observations(env: SimulatedGoalEnv, states: np.ndarray) -> dict[str, np.ndarray]:
    """`pixels` uint8 (..., R, R, 3) and `proprio` float32 (..., P) in states (..., D)."""
    flat = states.reshape(-1, states.shape[-1])
    pixels, proprio = env.render_states(flat), np.stack([env.proprio_of(state) for state in flat])
    batch = states.shape[:-1]
    return {
        "pixels": pixels.reshape(*batch, *pixels.shape[1:]),
        "proprio": proprio.reshape(*batch, *proprio.shape[1:]),
    }


def as_planned(actions: Tensor, problem: PlanningProblem) -> Tensor:
    """Environment actions (B, K, H * frameskip, A) as a problem plans them (B, K, H, action_dim).

    Where it plans one action per model step and holds it, that is their mean over the step.
    """
    steps = actions.unflatten(2, (problem.horizon, -1))  # (B, K, H, frameskip, A)
    return steps.mean(3) if problem.action_dim == actions.shape[-1] else steps.flatten(3)


class FirstProposal:
    """Executes the first candidate of a sampler: the policy alone, without a world model.

    Args:
        env: gives the action size. proposals: what to ask; one candidate is asked for.
        steps: environment steps executed before asking again.
    """

    def __init__(self, env: SimulatedGoalEnv, proposals: Proposals, steps: int) -> None:
        self.env, self.proposals, self.steps = env, replace(proposals, samples=1), steps

    def begin(self, traces: Sequence[Trace]) -> None:
        self.traces = traces

    def act(self, active: np.ndarray) -> Sequence[np.ndarray]:
        rows = [self.traces[i] for i in active]
        started = time.perf_counter()
        actions = self.proposals.propose(self.env, rows, self.steps)[:, 0].cpu().numpy()
        seconds = (time.perf_counter() - started) / len(rows)
        for trace in rows:
            trace.seconds_per_plan.append(seconds)
        return list(actions)


ProblemMaker = Callable[[Sequence[Trace], np.ndarray], ExecutableProblem]


class Planned:
    """Executes the first actions of plans, at most up to the imagined frame that was scored.

    Args:
        env: gives frameskip and action size. mpc: planner with its warm starts.
        make_problem: problem of the active episodes from their traces.
        imagine: keep what each plan imagines as pictures; after its time is taken.
        deadline: seconds from the observation to the actions; the search ends in time. One plan before the
            first is neither executed nor timed: it shows how fast this machine is.
        proposals: candidates from elsewhere, asked for before every plan; None: the planner's own alone.
    """

    def __init__(
        self,
        env: SimulatedGoalEnv,
        mpc: MPC,
        make_problem: ProblemMaker,
        imagine: bool = False,
        deadline: float | None = None,
        proposals: Proposals | None = None,
    ) -> None:
        self.env, self.mpc, self.make_problem, self.imagine = env, mpc, make_problem, imagine
        self.deadline, self.proposals = deadline, proposals
        self._mode: ProposalMode = "seed" if proposals is None else proposals.mode
        self._afterwards = 0.0  # seconds a plan takes after the search; the slowest lately
        self._tried = deadline is None

    def begin(self, traces: Sequence[Trace]) -> None:
        self.traces = traces
        self.mpc.reset()

    def act(self, active: np.ndarray) -> Sequence[np.ndarray]:
        if not self._tried:
            self._tried = True
            problem = self.make_problem(self.traces, active)
            candidates = self._candidates(problem, active)
            plan = self.mpc.planner.plan(problem, None, candidates, self.deadline, self._mode)
            problem.steps(plan.actions)
        started = time.perf_counter()
        problem = self.make_problem(self.traces, active)
        candidates = self._candidates(problem, active)
        mask = torch.zeros(len(self.traces), dtype=torch.bool)
        mask[torch.as_tensor(active)] = True
        left = None
        if self.deadline is not None:
            left = (1 - SPARE) * self.deadline - (time.perf_counter() - started) - self._afterwards
        plan = self.mpc.plan(problem, mask, candidates, left, self._mode)
        searched = time.perf_counter()
        executed = problem.steps(plan.actions).clamp(max=self.mpc.execute).tolist()
        self._afterwards = max(time.perf_counter() - searched, 0.9 * self._afterwards)
        seconds = (time.perf_counter() - started) / len(active)
        kept = getattr(problem, "patches", None)
        frames = None
        if self.imagine and isinstance(problem, LatentProblem):
            frames = problem.imagined(plan.actions).cpu().numpy()
        for row, episode in enumerate(active):
            trace = self.traces[episode]
            trace.seconds_per_plan.append(seconds)
            trace.seconds_per_iteration += [s / len(active) for s in plan.seconds_per_iteration]
            trace.plans.append(
                {
                    "step": trace.steps,
                    "kept": None if kept is None else kept[row].cpu().numpy(),
                    "cost": float(plan.cost[row]),
                    "imagined": None if frames is None else frames[row],
                }
            )
        actions = problem.executed(plan.actions).cpu().numpy()
        return [a[:n].reshape(-1, self.env.action_dim) for a, n in zip(actions, executed, strict=True)]

    def _candidates(self, problem: PlanningProblem, active: np.ndarray) -> Tensor | None:
        """Proposals (B, K, H, action_dim) for the active episodes, None without a sampler."""
        if self.proposals is None:
            return None
        steps = problem.horizon * self.env.frameskip
        actions = self.proposals.propose(self.env, [self.traces[i] for i in active], steps)
        return as_planned(actions, problem)


class ModelProblems:
    """Makes the world model's planning problems from what the camera has seen so far.

    Args:
        model: the world model. env: renders what the camera sees. seed: of the drop masks.
        redraw: "iteration", "plan" or "never": when new drop masks are drawn.
        options: keyword arguments of `LatentProblem`: horizon, drop, alpha, ...
    """

    def __init__(
        self,
        model: WorldModel,
        env: SimulatedGoalEnv,
        seed: int,
        redraw: Redraw = "iteration",
        **options: Any,
    ) -> None:
        self.model, self.env, self.redraw, self.options = model, env, redraw, options
        self.seed = seed
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.low, self.high = torch.as_tensor(env.action_space.low), torch.as_tensor(env.action_space.high)

    def observe(self, states: Sequence[np.ndarray]) -> Latent:
        """What the camera and the robot's sensors give in these states."""
        pixels = self.env.render_states(np.stack(list(states)))
        return self.model.encode(pixels, np.stack([self.env.proprio_of(state) for state in states]))

    def frames(self, rows: Sequence[Trace], steps: Sequence[int]) -> list[Latent]:
        """Frames of all episodes at each of `steps`, counted back from the present; or GOAL.

        What earlier plans have encoded is kept, the rest is encoded in one batch.
        """
        places = [[step if step == GOAL else trace.steps - step for trace in rows] for step in steps]
        pairs = [(trace, at) for column in places for trace, at in zip(rows, column, strict=True)]
        missing = [(trace, at) for trace, at in pairs if at not in trace.latents]
        if missing:
            seen = self.observe(
                [trace.task.goal if at == GOAL else trace.states[at] for trace, at in missing]
            )
            for i, (trace, at) in enumerate(missing):
                trace.latents[at] = seen[i : i + 1]
        oldest = (self.model.history - 1) * self.env.frameskip
        for trace in rows:
            kept = trace.latents.items()
            trace.latents = {at: x for at, x in kept if at == GOAL or at >= trace.steps - oldest}
        return [
            Latent.cat([trace.latents[at] for trace, at in zip(rows, column, strict=True)])
            for column in places
        ]

    def __call__(self, traces: Sequence[Trace], active: np.ndarray) -> LatentProblem:
        rows = [traces[i] for i in active]
        skip = self.env.frameskip
        depth = min(self.model.history - 1, min(trace.steps for trace in rows) // skip)
        back = [skip * i for i in range(depth, 0, -1)]  # oldest first
        *past, present, goal = self.frames(rows, [*back, 0, GOAL])
        history = []
        for frame, ago in zip(past, back, strict=True):
            done = np.stack([np.stack(trace.actions[trace.steps - ago :][:skip]) for trace in rows])
            history.append(
                (frame, torch.as_tensor(done, dtype=torch.float32).flatten(1).to(self.model.device))
            )
        return LatentProblem(
            self.model,
            present,
            goal,
            self.low,
            self.high,
            history=history,
            generator=self.generator,
            redraw=self.redraw == "iteration",
            patches=self.masks(rows) if self.redraw == "never" else None,
            **self.options,
        )

    def masks(self, rows: Sequence[Trace]) -> torch.Tensor:
        """Patches (B, M) of episodes, a function of the seed and the task."""
        kept = kept_patches(self.model.patches, self.options.get("drop", 0.0))
        masks = []
        for trace in rows:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trace.task.seed)
            masks.append(random_patches(1, self.model.patches, kept, generator))
        return torch.cat(masks)


def run_episodes(
    env: SimulatedGoalEnv,
    tasks: Sequence[Task],
    policy: Policy,
    budget: int,
    batch: int = 1,
    on_plan: Callable[[int, int, Trace], None] | None = None,
    on_episode: Callable[[int, Trace], None] | None = None,
) -> list[Trace]:
    """Run the tasks, `batch` at a time.

    Args:
        budget: environment steps an episode may take. An episode succeeds at the first state that counts as
            success, at every environment step.
        on_plan: called with (episode, re-plan, trace) after every decision; on_episode: with (episode, trace)
            at the end.
    """
    traces: list[Trace] = []
    for first in range(0, len(tasks), batch):
        group = [Trace(task, [task.start]) for task in tasks[first : first + batch]]
        for trace in group:
            trace.success = env.is_success(trace.task.start, trace.task.goal)
        policy.begin(group)
        decision = 0
        while True:
            active = np.array(
                [i for i, t in enumerate(group) if not t.success and t.steps < budget], dtype=int
            )
            if not len(active):
                break
            actions = policy.act(active)
            for i, sequence in zip(active, actions, strict=True):
                trace = group[i]
                for action in sequence[: budget - trace.steps]:
                    after = env.rollout_states(trace.states[-1], np.asarray(action)[None, None])[0, -1]
                    trace.states.append(after)
                    trace.actions.append(np.asarray(action))
                    if env.is_success(after, trace.task.goal):
                        trace.success = True
                        break
                if on_plan is not None:
                    on_plan(first + int(i), decision, trace)
            decision += 1
        for i, trace in enumerate(group):
            trace.latents.clear()
            if on_episode is not None:
                on_episode(first + i, trace)
        traces += group
    return traces


def summarize(env: SimulatedGoalEnv, traces: Sequence[Trace]) -> dict[str, Any]:
    """Success rate with its 95% Wilson interval, timings, and one entry per episode."""
    episodes = []
    for trace in traces:
        distances = env.distance(trace.states[-1], trace.task.goal)
        initial = env.distance(trace.task.start, trace.task.goal)
        entry: dict[str, Any] = {"success": trace.success, "steps": trace.steps, "seed": trace.task.seed}
        entry["distance"] = {name: round(float(value), 4) for name, value in distances.items()}
        entry["initial_distance"] = {name: round(float(value), 4) for name, value in initial.items()}
        episodes.append(entry)
    successes = sum(trace.success for trace in traces)
    result = {
        "success_rate": successes / len(traces),
        "success_ci95": list(wilson(successes, len(traces))),
        "seconds_per_iteration": quartiles([s for trace in traces for s in trace.seconds_per_iteration]),
        "seconds_per_plan": quartiles([s for trace in traces for s in trace.seconds_per_plan]),
        "seconds_per_episode": quartiles([sum(t.seconds_per_plan) for t in traces if t.seconds_per_plan]),
        "actions_per_second": actions_per_second(traces),
        "per_episode": episodes,
    }
    moved = [e["success"] for e in episodes if object_moves(env, e["initial_distance"])]
    if env.name == "pusht":
        result["moved"] = {
            "episodes": len(moved),
            "success_rate": sum(moved) / max(1, len(moved)),
            "success_ci95": list(wilson(sum(moved), len(moved))),
        }
    return result


def actions_per_second(traces: Sequence[Trace]) -> float | None:
    """Environment steps executed per second of planning: the control frequency that planning sustains."""
    spent = sum(sum(trace.seconds_per_plan) for trace in traces)
    return sum(trace.steps for trace in traces if trace.seconds_per_plan) / spent if spent else None


def deadline_report(traces: Sequence[Trace], deadline: float) -> dict[str, Any]:
    """How plans kept a deadline in seconds: share in time, and by how much the others were late."""
    times = [seconds for trace in traces for seconds in trace.seconds_per_plan]
    late = [1000 * (seconds - deadline) for seconds in times if seconds > deadline]
    return {
        "budget_ms": 1000 * deadline,
        "plans": len(times),
        "in_time": 1 - len(late) / max(1, len(times)),
        "overshoot_ms": {"median": float(np.median(late)), "max": max(late)} if late else None,
    }


def object_moves(env: SimulatedGoalEnv, distance: dict[str, float]) -> bool:
    """Whether a goal asks for more than moving the agent: on PushT, the T by over 20 px or 20 degrees."""
    return env.name == "pusht" and (distance["block"] > 20 or distance["angle"] > np.pi / 9)
