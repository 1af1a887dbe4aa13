"""Several tasks of a benchmark as one environment, for one model and one policy of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsewm.envs.experts import expert_policy
from sparsewm.envs.policies import ExplorationPolicy, exploration_policy
from sparsewm.envs.simulated import SimulatedGoalEnv

_ALIKE = ("action_low", "action_high", "proprio_names", "frameskip")  # of all tasks
_FAR = 1000.0  # success thresholds to a goal of another task


class SeveralTasks(SimulatedGoalEnv):
    """Simulators with the same actions and proprioception; every episode is of one of them.

    ## State
    Which task it is, then that task's state, and zeros where others' are longer.

    ## Start and goal
    As the task has them. The task is the goal's where one is given, else the remainder of the seed that
    `reset` is given, so as many seeds in a row have as many episodes of each; without a seed it is drawn.

    Args:
        name: of all together. tasks: their names. make: makes one of them.

    Raises:
        ValueError: their actions, proprioception or frameskip differ.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[str],
        make: Callable[[str], SimulatedGoalEnv],
        resolution: int,
        render_mode: str,
    ) -> None:
        self.name, self.tasks = name, tuple(tasks)
        self._envs = [make(task) for task in self.tasks]
        first = self._envs[0]
        for task, env in zip(self.tasks, self._envs, strict=True):
            for part in _ALIKE:
                if getattr(env, part) != getattr(first, part):
                    raise ValueError(
                        f"{task} has another {part} than {self.tasks[0]}: they are not one environment."
                    )
        self.frameskip = first.frameskip
        self.action_low, self.action_high = first.action_low, first.action_high
        self.proprio_names, self.proprio_dim = first.proprio_names, first.proprio_dim
        self.proprio_low, self.proprio_high = first.proprio_low, first.proprio_high
        self.metadata = first.metadata
        longest = max(env.state_dim for env in self._envs)
        self.state_names = ("task", *(f"state_{i}" for i in range(longest)))
        self.state_dim = len(self.state_names)
        self._at, self._next = 0, 0
        super().__init__(resolution, render_mode)

    def task_of(self, state: np.ndarray) -> str:
        """The name of the task that a state (D,) is of."""
        return self.tasks[int(state[0])]

    @property
    def instruction(self) -> str | None:  # type: ignore[override]
        """What the present task says."""
        return self._envs[self._at].instruction

    def instruction_of(self, state: np.ndarray) -> str | None:
        env, own = self._own(state)
        return env.instruction_of(own)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        count, goal = len(self.tasks), (options or {}).get("goal")
        if goal is not None:
            self._next = int(self._valid_state(goal)[0])
        else:
            self._next = int(self.np_random.integers(count)) if seed is None else seed % count
        return super().reset(seed=seed, options=options)

    def idle_action(self) -> np.ndarray:
        return self._envs[self._at].idle_action()

    # State ------------------------------------------------------------------------------------------------

    def _own(self, state: np.ndarray) -> tuple[SimulatedGoalEnv, np.ndarray]:
        """The simulator that a state (..., D) is of, and its part of it.

        Raises:
            ValueError: there is no such task.
        """
        number = state.flat[0]
        if number not in range(len(self.tasks)):
            raise ValueError(f"{self.name} has tasks 0 to {len(self.tasks) - 1}, not {number:g}.")
        env = self._envs[int(number)]
        return env, state[..., 1 : 1 + env.state_dim]

    def _whole(self, task: int, state: np.ndarray) -> np.ndarray:
        whole = np.zeros(self.state_dim)
        whole[0], whole[1 : 1 + len(state)] = task, state
        return whole

    def _check_state(self, state: np.ndarray) -> None:
        env, own = self._own(state)
        env._check_state(own)

    def _read_state(self) -> np.ndarray:
        return self._whole(self._at, self._envs[self._at]._read_state())

    def _write_state(self, state: np.ndarray) -> None:
        env, own = self._own(state)
        self._at = int(state[0])
        env._write_state(own)

    def _advance(self, action: np.ndarray) -> None:
        self._envs[self._at]._advance(action)

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        env, own = self._own(state)
        return env.proprio_of(own)

    def shown_state(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """What the tasks' pictures show; 0 where a task has no such thing."""
        blank = (env.shown_state(np.zeros((1, env.state_dim))) for env in self._envs)
        found = {name: np.zeros(len(states)) for names in blank for name in names}
        for task in np.unique(states[:, 0]):
            rows = states[:, 0] == task
            env, own = self._own(states[rows])
            for name, values in env.shown_state(own).items():
                found[name][rows] = values
        return found

    # Pictures ---------------------------------------------------------------------------------------------

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        env, own = self._own(state)
        env._look = self._look[int(state[0])]
        return env._draw(own, resolution)

    def _default_look(self) -> list[Any]:
        return [env._default_look() for env in self._envs]

    def _same_geometry(self, look: list[Any], shown: list[Any]) -> list[Any]:
        both = zip(self._envs, look, shown, strict=True)
        return [env._same_geometry(new, old) for env, new, old in both]

    def _random_look(self, rng: np.random.Generator) -> list[Any]:
        return [env._random_look(rng) for env in self._envs]

    def close(self) -> None:
        for env in self._envs:
            env.close()

    # Goals ------------------------------------------------------------------------------------------------

    def sample_state(self) -> np.ndarray:
        env = self._envs[self._next]
        env.np_random = self.np_random
        return self._whole(self._next, env.sample_state())

    def sample_goal(self) -> np.ndarray:
        env = self._envs[self._at]
        env.np_random = self.np_random
        return self._whole(self._at, env.sample_goal())

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """As the goal's task has it; nothing to a goal of another task."""
        if state[0] != goal[0]:
            return {}
        env, own = self._own(goal)
        return env.distance(self._own(state)[1], own)

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        found, same = np.full(len(states), _FAR), states[:, 0] == goal[0]
        env, own = self._own(goal)
        if same.any():
            found[same] = env.shortfall(states[same, 1 : 1 + env.state_dim], own)
        return found

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        env, own = self._own(goal)
        return bool(state[0] == goal[0]) and env.is_success(self._own(state)[1], own)

    def is_strict_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        env, own = self._own(goal)
        return bool(state[0] == goal[0]) and env.is_strict_success(self._own(state)[1], own)

    # Scripted data ----------------------------------------------------------------------------------------

    def scripted(self, rng: np.random.Generator) -> TaskPolicy:
        """The exploration of each task."""
        return TaskPolicy(self, {i: exploration_policy(env, rng) for i, env in enumerate(self._envs)})

    def expert(self, goal: np.ndarray, rng: np.random.Generator) -> TaskPolicy:
        """The expert of the goal's task."""
        env, own = self._own(goal)
        return TaskPolicy(self, {int(goal[0]): expert_policy(env, own, rng)})


class TaskPolicy:
    """The policy of the task at hand."""

    def __init__(self, env: SeveralTasks, policies: Mapping[int, ExplorationPolicy]) -> None:
        self._env, self._policies = env, policies

    def reset(self, state: np.ndarray) -> None:
        self._policies[int(state[0])].reset(self._env._own(state)[1])

    def act(self, state: np.ndarray) -> np.ndarray:
        return self._policies[int(state[0])].act(self._env._own(state)[1])
