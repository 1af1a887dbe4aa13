"""Experts reach their goals, and what they do follows from the state."""

from __future__ import annotations

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.envs.blockpush import BLOCK
from sparsewm.envs.experts import BlockPushExpert, expert_policy
from sparsewm.envs.policies import ExplorationPolicy, exploration_policy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wall", "pointmaze", "pointmaze-large", "blockpush"])
def test_experts_reach_every_goal_and_stay(name: str) -> None:
    env = envs.make(name, resolution=32)
    lengths = []
    for seed in range(8):
        env.reset(seed=seed)
        goal, start = env.goal.copy(), env.state
        policy = expert_policy(env, goal, np.random.default_rng(seed))
        policy.reset(start)
        states = [start]
        for _ in range(2 * envs.max_episode_steps(env.name)):
            action = policy.act(states[-1])
            assert env.action_space.contains(action)
            states.append(env.rollout_states(states[-1], action[None, None])[0, -1])
        reached = [env.is_success(state, goal) for state in states]
        lengths.append(reached.index(True))
        assert all(reached[lengths[-1] + 20 :])
    assert np.median(lengths) < 0.7 * envs.max_episode_steps(env.name)


@pytest.mark.slow
def test_the_expert_of_pusht_brings_t_and_disc_to_their_places() -> None:
    """Of ten goals 75 steps ahead in exploration all but one at most, in twice the steps."""
    env, reached = envs.make("pusht", resolution=32), []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        policy: ExplorationPolicy = exploration_policy(env, rng)
        env.reset(seed=seed)
        way = [env.state]
        policy.reset(way[0])
        for _ in range(75):
            way.append(env.rollout_states(way[-1], policy.act(way[-1])[None, None])[0, -1])
        state, goal = way[0], way[-1]
        policy = expert_policy(env, goal, rng)
        policy.reset(state)
        for _ in range(150):
            action = policy.act(state)
            assert env.action_space.contains(action)
            state = env.rollout_states(state, action[None, None])[0, -1]
            if env.is_success(state, goal):
                break
        reached.append(env.is_success(state, goal))
    assert sum(reached) >= 9


def test_the_expert_of_blockpush_throws_no_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its noise: who imitates it sees states alone."""
    monkeypatch.setattr(BlockPushExpert, "NOISE", 0.0)
    env = envs.make("blockpush", resolution=32)
    env.reset(seed=0)
    state, ways = env.state, []
    for seed in range(2):
        policy, way = expert_policy(env, env.goal, np.random.default_rng(seed)), [state]
        for _ in range(40):
            way.append(env.rollout_states(way[-1], policy.act(way[-1])[None, None])[0, -1])
        ways.append(way)
    assert np.array_equal(*ways)


def test_the_expert_of_blockpush_first_moves_a_block_out_of_the_way() -> None:
    """Red's way up is barred by blue, which has to go to the side."""
    state = np.array([0.0, -0.25, 0.0, -0.15, 0.0, 0.0, -0.02, 0.0])
    goal = np.array([0.2, -0.2, 0.0, 0.15, 0.0, 0.17, -0.02, 0.0])
    env = envs.make("blockpush", resolution=32)
    policy, moved = expert_policy(env, goal, np.random.default_rng(0)), []
    for _ in range(envs.max_episode_steps(env.name)):
        after = env.rollout_states(state, policy.act(state)[None, None])[0, -1]
        moved += [
            name for name, i in (("red", 2), ("blue", 5)) if (after[i : i + 2] != state[i : i + 2]).any()
        ]
        state = after
    assert moved[0] == "blue" and "red" in moved and env.is_success(state, goal)


def test_the_expert_of_blockpush_goes_round_blocks() -> None:
    """From above a block to behind it without a touch, and on to its goal above."""
    state = np.array([0.0, 0.05, 0.0, -0.05, 0.3, 0.2, 0.14, 0.0])
    goal = np.array([0.0, -0.25, 0.0, 0.14, 0.0, 0.2, 0.14, 0.0])
    env = envs.make("blockpush", resolution=32)
    policy, first = expert_policy(env, goal, np.random.default_rng(0)), None
    for _ in range(envs.max_episode_steps(env.name)):
        after = env.rollout_states(state, policy.act(state)[None, None])[0, -1]
        if first is None and (after[2:5] != state[2:5]).any():
            first = state
        state = after
    assert first is not None and first[1] < -0.05 - BLOCK and env.is_success(state, goal)


def test_an_environment_without_an_expert_says_so() -> None:
    env = envs.make("rope", resolution=32)
    with pytest.raises(ValueError, match="no expert for environment 'rope'; known: wall"):
        expert_policy(env, env.goal, np.random.default_rng(0))
