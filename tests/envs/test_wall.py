"""Wall: only the door joins the rooms, goals are in the other room, the picture shows where the dot is."""

from __future__ import annotations

import numpy as np
import pytest

from sparsewm.envs.wall import HALF_DOOR, HALF_WALL, RADIUS, WallEnv


@pytest.fixture(params=[{}, {"wall_x": 20.0, "door_y": 50.0}], ids=["default", "other"])
def env(request: pytest.FixtureRequest) -> WallEnv:
    env = WallEnv(**request.param)
    env.reset(seed=0)
    return env


def test_free_motion_is_twice_the_action(env: WallEnv) -> None:
    env.set_state(np.array([10.0, 10.0]))
    env.step(np.array([0.5, -1.0]))
    np.testing.assert_array_equal(env.state, [11.0, 8.0])


def test_the_dot_never_touches_the_wall_and_crosses_at_the_door_only(env: WallEnv) -> None:
    rng = np.random.default_rng(0)
    drift = rng.uniform(-1, 1, (400, 1, 2))
    start = np.array([env.wall_x - 6.0, env.door_y])
    states = env.rollout_states(start, drift + rng.normal(0, 0.5, (400, 50, 2)))
    x, y = states[..., 0], states[..., 1]
    assert states.min() >= 1 + RADIUS and states.max() <= 63 - RADIUS
    beside = np.abs(x - env.wall_x) < HALF_WALL + RADIUS
    assert (np.abs(y - env.door_y)[beside] <= HALF_DOOR).all()
    right = x > env.wall_x
    assert 0.1 < right[:, -1].mean() < 0.9
    for state in states.reshape(-1, 2)[::50]:
        env.set_state(state)


def test_the_dot_slides_along_a_wall(env: WallEnv) -> None:
    away = env.door_y + (-12 if env.door_y > 40 else 12)
    env.set_state(np.array([env.wall_x - 6.0, away]))
    for _ in range(3):
        env.step(np.array([1.0, 0.1]))
    np.testing.assert_allclose(env.state, [env.wall_x - HALF_WALL - RADIUS, away + 0.6])


def test_goal_is_in_the_other_room(env: WallEnv) -> None:
    sides = []
    for seed in range(60):
        _, info = env.reset(seed=seed)
        start, goal = info["state"], info["goal"]
        assert (start[0] < env.wall_x) != (goal[0] < env.wall_x)
        assert not info["is_success"]
        sides.append(start[0] < env.wall_x)
    assert 0.1 < np.mean(sides) < 0.9


def test_success_is_within_four_and_a_half(env: WallEnv) -> None:
    goal = np.array([10.0, 10.0])
    assert env.is_success(np.array([14.4, 10.0]), goal) and not env.is_success(np.array([10.0, 14.5]), goal)
    assert env.distance(np.array([13.0, 14.0]), goal) == {"position": 5.0, "path": 5.0}


@pytest.mark.parametrize("state", [[32.0, 10.0], [32.0, 35.0], [1.0, 20.0], [20.0, 63.0]])
def test_states_in_walls_are_refused(state: list[float]) -> None:
    env = WallEnv()
    with pytest.raises(ValueError, match="free floor"):
        env.set_state(np.array(state))


@pytest.mark.parametrize("options", [{"wall_x": 10}, {"wall_x": float("nan")}, {"door_y": 60}])
def test_impossible_layouts_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WallEnv(**options)


def test_dot_wall_and_door_are_drawn_where_they_are(env: WallEnv) -> None:
    for resolution in (64, 112, 224):
        for _ in range(5):
            state = env.sample_state()
            picture = env.render_state(state, resolution)["pixels"].astype(float)
            x = y = (np.arange(resolution) + 0.5) * 64 / resolution
            dot = (picture[..., 0] - picture[..., 1]) / 180  # only the dot is coloured
            assert dot.max() == pytest.approx(1.0)
            centre = np.array([(dot * x).sum(), (dot * y[:, None]).sum()]) / dot.sum()
            np.testing.assert_allclose(centre, state, atol=0.05)
            column, row = picture[:, np.abs(x - env.wall_x).argmin()], picture[np.abs(y - 58).argmin()]
            is_wall = (column < 100).all(-1) & (y > 1) & (y < 63)
            assert np.abs(y[is_wall] - env.door_y).min() >= HALF_DOOR
            if np.abs(state[1] - 58) > 4 and np.abs(env.door_y - 58) > 9:
                wall = (row < 100).all(-1) & (x > 1) & (x < 63)
                assert np.abs(x[wall] - env.wall_x).max() <= HALF_WALL


def test_path_length_goes_through_the_door(env: WallEnv) -> None:
    left, right = env.wall_x - HALF_WALL - RADIUS, env.wall_x + HALF_WALL + RADIUS
    bottom = env.door_y - HALF_DOOR
    start, goal = np.array([left - 3.0, bottom - 4.0]), np.array([right + 4.0, bottom - 3.0])
    distance = env.distance(start, goal)
    assert distance["path"] == pytest.approx(5 + (right - left) + 5)
    assert distance["position"] == pytest.approx(np.hypot(right - left + 7, 1))
    through = np.array([right + 4.0, env.door_y])
    assert env.shortfall(np.array([[left, env.door_y], through]), through) * 4.5 == pytest.approx(
        [right - left + 4, 0]
    )


def test_every_place_a_dot_can_reach_has_a_path(env: WallEnv) -> None:
    rng = np.random.default_rng(1)
    walks = rng.choice([-1.0, 1.0], (40, 5, 2)).repeat(10, axis=1)
    start = np.array([env.wall_x - HALF_WALL - RADIUS, env.door_y - HALF_DOOR])  # touches the wall's corner
    states = env.rollout_states(start, walks).reshape(-1, 2)
    for goal in states[::400]:
        assert np.isfinite(env.shortfall(states, goal)).all()


def test_a_planner_that_shortens_the_path_goes_through_the_door(env: WallEnv) -> None:
    rng = np.random.default_rng(4)
    far = 4.5 if env.door_y > 40 else 59.5  # from the door
    state, goal = np.array([5.0, far]), np.array([58.0, far])
    for _ in range(12):
        sequences = rng.uniform(-1.5, 1.5, (200, 3, 2)).clip(-1, 1).repeat(5, axis=1)  # random shooting
        paths = env.rollout_states(state, sequences)
        state = paths[env.shortfall(paths[:, -1], goal).argmin(), 10]
    assert env.is_success(state, goal)
