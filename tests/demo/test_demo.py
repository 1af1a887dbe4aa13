"""The demonstration without a browser: goals by hand, bounded settings, episodes, a page on this machine."""

from __future__ import annotations

import importlib.util
import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.demo.goals import PLACES, goal_at
from sparsewm.demo.session import Session, checked
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import shipped
from tests.cli.commands import call

QUICK = (0.5, "cem", 8, 2)
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="pip install 'sparsewm[demo]'"
)


@pytest.fixture(scope="module")
def wall() -> Session:
    return Session("wall", "embedded", 11)


def test_every_environment_with_a_world_model_can_be_chosen() -> None:
    assert set(PLACES) == set(shipped())


def changed_at(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The middle (across, down) of what the second picture shows and the first does not, from 0 to 1."""
    rows, cols = np.nonzero(np.abs(after.astype(int) - before).sum(-1) > 150)
    return np.array([cols.mean(), rows.mean()]) / len(before)


@pytest.mark.parametrize(
    ("name", "away", "click"),
    [
        ("wall", (0.3, 0.9), (0.8, 0.3)),
        ("pointmaze", (0.7, 0.2), (0.3, 0.2)),
        ("pusht", (0.8, 0.8), (0.3, 0.3)),
        ("granular", (0.7, 0.7), (0.35, 0.3)),
    ],
)
def test_a_goal_lies_where_it_was_clicked(
    name: str, away: tuple[float, float], click: tuple[float, float]
) -> None:
    env = envs.make_simulated(name)
    env.reset(seed=0)
    pictures = [env.render_state(goal_at(env, env.goal, *place, 0))["pixels"] for place in (away, click)]
    there = changed_at(*pictures)  # of both places: what is new lies at one, what is gone at the other
    np.testing.assert_allclose(there, (np.array(away) + click) / 2, atol=0.07)


def test_the_nearer_block_moves_and_a_rope_turns_as_one() -> None:
    env = envs.make_simulated("blockpush")
    env.reset(seed=0)
    red = env.goal[2:4] / 0.64
    moved = goal_at(env, env.goal, red[0] + 0.52, 0.5 - red[1], 45)
    assert np.abs(moved[2:4] - env.goal[2:4]).max() < 0.02 and moved[4] == pytest.approx(np.pi / 4)
    np.testing.assert_array_equal(moved[5:], env.goal[5:])
    env = envs.make_simulated("rope")
    env.reset(seed=0)
    points, turned = (state[:-2].reshape(-1, 2) for state in (env.goal, goal_at(env, env.goal, 0.5, 0.5, 90)))
    np.testing.assert_allclose(turned.mean(0), 0, atol=1e-9)
    along, now = points[-1] - points[0], turned[-1] - turned[0]
    np.testing.assert_allclose(now, [-along[1], along[0]], atol=1e-9)


def test_a_goal_inside_a_wall_is_refused(wall: Session) -> None:
    with pytest.raises(UserError, match="cannot be there"):
        wall.set_goal(0.5, 0.1, 0)


@pytest.mark.parametrize(
    "settings",
    [
        (0.95, "cem", 8, 2),
        (0.5, "os:system", 8, 2),
        (0.5, "cem", 10_000, 2),
        (0.5, "cem", 8, 99),
        (float("nan"), "cem", 8, 2),
        (0.5, "cem", None, 2),
        (None, "cem", 8, 2),
        (0.5, None, 8, 2),
    ],
)
def test_settings_have_bounds(settings: tuple[Any, ...]) -> None:
    with pytest.raises(UserError):
        checked(*settings)


@pytest.mark.parametrize(
    "choice",
    [("nowhere", "embedded", 0), ("wall", "random", 0), ("wall", "embedded", -1), ("wall", "embedded", None)],
)
def test_choices_have_bounds(choice: tuple[Any, ...]) -> None:
    with pytest.raises(UserError):
        Session(*choice)


def test_a_decision_is_watched_step_by_step(wall: Session) -> None:
    wall.restart()
    moments = list(wall.plan(*QUICK))
    first, last = moments[0], moments[-1]
    assert len(moments) == 26 and wall.steps == 25  # five model steps of five
    assert [len(costs) for costs in first.costs] == [8, 8]
    assert first.imagined is not None and first.imagined.shape == (5, 112, 112, 3)
    assert "32 of 64 tokens" in first.text and "ms a decision" in first.text and "step 25" in last.text
    assert (first.scene != last.scene).any() and (first.kept != first.scene).any()
    dark = (first.kept.sum(-1) < first.scene.sum(-1)).mean()
    assert 0.4 < dark < 0.6


@pytest.mark.parametrize("planner", ["icem", "mppi", "gd"])
def test_all_planners_can_be_chosen(wall: Session, planner: str) -> None:
    wall.restart()
    first = next(wall.plan(0.8, planner, 8, 2))
    assert first.costs and all(np.isfinite(costs).any() for costs in first.costs)


def test_a_goal_set_by_hand_is_reached_and_then_it_is_over(wall: Session) -> None:
    wall.set_goal(0.3, 0.55, 0)  # in the same room, near the start
    moment, plans = None, 0
    while plans < 4 and (moment is None or not moment.done):
        *_, moment = wall.plan(0.5, "cem", 32, 4)
        plans += 1
    assert moment is not None and moment.done and moment.text.startswith("reached")
    (after,) = wall.plan(*QUICK)
    assert "over" in after.text
    assert not wall.restart().done


def test_an_episode_that_begins_anew_ends_what_was_going_on(wall: Session) -> None:
    wall.restart()
    moments = wall.plan(*QUICK)
    assert "step 0" in next(moments).text and "step 1" in next(moments).text
    wall.restart()
    assert list(moments) == [] and wall.steps == 0
    moments = wall.plan(*QUICK)
    next(moments)
    wall.set_goal(0.3, 0.55, 0)
    assert list(moments) == [] and wall.steps == 0


def test_the_same_seed_shows_the_same(wall: Session) -> None:
    scenes = []
    for _ in range(2):
        wall.restart()
        scenes.append([moment.scene for moment in wall.plan(*QUICK)])
    np.testing.assert_array_equal(*scenes)


# The page -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Any, int]]:
    from sparsewm.demo.page import serve

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    page = serve("wall", port, block=False)
    yield page, port
    page.close()


@needs_gradio
def test_the_page_is_on_this_machine_alone_and_loads_nothing_from_elsewhere(
    served: tuple[Any, int],
) -> None:
    page, port = served
    assert page.server_name == "127.0.0.1" and page.share_url is None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert "Environment" in answer.read().decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:
        config = json.loads(answer.read())
    labels = {part["props"].get("label") for part in config["components"]}
    assert {"Encoder", "Planner", "Candidates", "Kept patches", "Costs of the candidates"} <= labels
    with pytest.raises(UserError, match="another one"):
        from sparsewm.demo.page import serve

        serve("wall", port, block=False)


@needs_gradio
def test_the_functions_of_the_page(served: tuple[Any, int]) -> None:
    page, _ = served
    acts = {block.fn.__name__: block.fn for block in page.fns.values() if block.fn is not None}
    session, goal, scene, *_ = acts["begin"]("wall", "embedded", 11)
    assert goal.shape == scene.shape == (336, 336, 3)
    moments = list(acts["decide"](session, *QUICK))
    *_, imagined, figure, text = moments[-1]
    assert imagined.shape == (336, 5 * 336, 3) and len(figure.axes[0].lines) == 2 and "step 25" in text
    with pytest.raises(Exception, match="lies between") as refused:
        list(acts["decide"](session, 0.5, "cem", 10_000, 2))
    assert type(refused.value).__name__ == "Error"  # Gradio's: shown to the visitor


@needs_gradio
def test_a_click_beside_the_picture_is_no_goal(served: tuple[Any, int]) -> None:
    import gradio

    page, _ = served
    acts = {block.fn.__name__: block.fn for block in page.fns.values() if block.fn is not None}
    session, *_ = acts["begin"]("wall", "embedded", 11)
    beside = gradio.SelectData(None, {"index": [None, None], "value": None})
    with pytest.raises(gradio.Error, match="click on the picture"):
        acts["click"](session, 0, beside)


def test_the_command_refuses_what_cannot_be() -> None:
    code, _, error = call("demo --port 80")
    assert code == 2 and "--port" in error
    code, _, error = call("demo --env nowhere")
    assert code == 2
