"""The planner on the true simulator: a yardstick, and an expert worth imitating where none is scripted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsewm.config import PlanConfig, environment_file
from sparsewm.data.collect import Demonstrator, demonstrate, explore, follow_expert
from sparsewm.envs import SimulatedGoalEnv, max_episode_steps
from sparsewm.envs.experts import expert_policy
from sparsewm.evaluation.actors import Oracle, StateCostMaker
from sparsewm.evaluation.episodes import Episode, run_episodes
from sparsewm.tasks import HELD_OUT, Task
from sparsewm.trees import read_yaml

_WAYS = HELD_OUT - 1_000_000  # seeds of trajectories whose ends are goals: neither data nor held out
_ATTEMPTS = 4


def run_oracle(
    env: SimulatedGoalEnv,
    tasks: Sequence[Task],
    config: PlanConfig,
    max_steps: int,
    cost: StateCostMaker | None = None,
) -> list[Episode]:
    """Episodes of CEM on an environment's true dynamics, by its true distance or another cost."""
    return run_episodes([env], tasks, Oracle(config.checked(), cost), max_steps)


def demonstration_steps(env: SimulatedGoalEnv) -> int:
    """Environment steps a demonstration may take, where nobody says."""
    return 150 if env.name == "pusht" else 2 * max_episode_steps(env.name)


def plan_demonstration(
    env: SimulatedGoalEnv, seed: int, episode: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """States (T + 1, D) and actions (T, A) of the oracle on its way to a goal; T is `steps` at most.

    Goals are random where the environment plans to such, else the ends of scripted trajectories, far from
    their starts. A way that does not get there is tried again with another goal, a few times. A pure function
    of (seed, episode, steps).
    """
    config = PlanConfig.of(env.name)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, episode, 2, attempt])
        number = int(rng.integers(2**31))
        if config.goal.source == "random":
            env.reset(seed=number)
            start, goal = env.state, env.goal.copy()
        else:
            start, goal = _far_apart(env, seed, number, rng)
        [trace] = run_oracle(env, [Task(number, start, goal)], config, steps)
        if trace.success and trace.actions:
            break
    actions = np.asarray(trace.actions, np.float32).reshape(-1, env.action_dim)
    return np.stack(trace.states), actions


def demonstrate_far(
    env: SimulatedGoalEnv, seed: int, episode: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same of the scripted expert, to the ends of scripted trajectories."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, episode, 3, attempt])
        start, goal = _far_apart(env, seed, int(rng.integers(2**31)), rng)
        states, actions = follow_expert(env, start, goal, rng, steps)
        if env.is_success(states[-1], goal):
            break
    return states, actions


def demonstrate_in_turns(
    env: SimulatedGoalEnv, seed: int, episode: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same to the environment's own random goals, in every other episode to those ends."""
    show = demonstrate if episode % 2 else demonstrate_far
    return show(env, seed, episode, steps)


def _far_apart(
    env: SimulatedGoalEnv, seed: int, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A state early in a scripted trajectory, and its end."""
    steps = read_yaml(environment_file(env.name))["collect"]["steps"]
    states, _ = explore(env, _WAYS + seed, number, steps)
    return states[int(rng.integers(len(states) // 4))], states[-1]


def demonstrator(env: SimulatedGoalEnv) -> Demonstrator:
    """Who shows short ways to goals such as the environment plans to: a scripted expert, or the oracle."""
    try:
        expert_policy(env, env.goal, np.random.default_rng(0))
    except ValueError:
        return plan_demonstration
    if PlanConfig.of(env.name).goal.source == "random":
        return demonstrate
    return demonstrate_far if env.name == "pusht" else demonstrate_in_turns  # has it goals of its own?
