"""The agent: what it sees, remembers and does; the same from Python as from the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm import Agent, PlanConfig, envs
from sparsewm.errors import UserError
from sparsewm.evaluation.actors import AgentActor
from sparsewm.evaluation.episodes import run_episodes
from sparsewm.model import LatentProblem, WorldModel
from sparsewm.planners import GaussianProposals
from sparsewm.tasks import Task
from tests.cli.commands import call
from tests.evaluation.walls import room_task
from tests.model.tiny import tiny_model

SMALL = {"candidates": 8, "elites": 2, "iterations": 2, "horizon": 2, "execute": 1}


def make_agent(model: WorldModel | None = None, **settings: Any) -> Agent:
    """An agent of a tiny model, which plans a little."""
    model = model or tiny_model(frameskip=5)
    settings = {"search": SMALL, "objective": "mse"} | settings
    return Agent(model, PlanConfig.of("wall").updated(**settings))


def seen(seed: int, batch: int | None = None, side: int = 56) -> dict[str, np.ndarray]:
    """A random observation."""
    rng, lead = np.random.default_rng(seed), () if batch is None else (batch,)
    pixels = rng.integers(0, 256, (*lead, side, side, 3), dtype=np.uint8)
    return {"pixels": pixels, "proprio": rng.uniform(0, 60, (*lead, 2)).astype(np.float32)}


def acted(agent: Agent, observation: Any, goal: Any) -> np.ndarray:
    """First actions of an episode."""
    agent.reset(goal)
    actions: np.ndarray = agent.act(observation)
    return actions


def test_actions_are_the_environments() -> None:
    actions = acted(make_agent(), seen(0), seen(1))
    assert actions.shape == (5, 2) and actions.dtype == np.float32 and (np.abs(actions) <= 1).all()
    assert np.array_equal(actions, np.repeat(actions[:1], 5, 0))  # one action, held
    free = acted(make_agent(action_repeat=False), seen(0), seen(1))
    assert free.shape == (5, 2) and len(np.unique(free, axis=0)) == 5
    further = acted(make_agent(search={**SMALL, "execute": 2}), seen(0), seen(1))
    assert further.shape == (10, 2)


def test_the_same_seed_gives_the_same_actions() -> None:
    first = acted(make_agent(), seen(0), seen(1))
    assert np.array_equal(acted(make_agent(), seen(0), seen(1)), first)
    agent = make_agent()
    acted(agent, seen(2), seen(3))
    assert np.array_equal(acted(agent, seen(0), seen(1)), first)  # an earlier episode leaves nothing behind
    assert not np.array_equal(acted(make_agent(seed=1), seen(0), seen(1)), first)


def test_observations_of_any_kind() -> None:
    expected, goal = acted(make_agent(), seen(0), seen(1)), seen(1)
    plain = seen(0)
    frozen = {name: value.copy() for name, value in plain.items()}
    frozen["pixels"].flags.writeable = False
    turned = plain["pixels"][..., ::-1].copy()[..., ::-1]  # a view with negative strides, as of BGR pictures
    tensors = {name: torch.as_tensor(value) for name, value in plain.items()}
    wide = {"pixels": plain["pixels"], "proprio": plain["proprio"].astype(np.float64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in (frozen, plain | {"pixels": turned}, tensors, wide, plain | {"other": "thing"}):
            assert np.array_equal(acted(make_agent(), one, goal), expected)


def test_pictures_of_any_size_but_not_of_any_shape() -> None:
    agent = make_agent()
    big = {"pixels": np.kron(seen(0)["pixels"], np.ones((2, 2, 1), np.uint8)), "proprio": seen(0)["proprio"]}
    close = acted(agent, big, seen(1)) - acted(agent, seen(0), seen(1))
    assert np.abs(close).max() < 0.5
    wide = {"pixels": np.zeros((48, 64, 3), np.uint8), "proprio": np.zeros(2, np.float32)}
    with pytest.raises(UserError, match=r"48 x 64 .*another aspect ratio than the 56 x 56.*`letterbox`"):
        acted(agent, wide, seen(1))
    with pytest.raises(UserError, match="another aspect ratio"):
        agent.reset(wide)
    boxed = acted(make_agent(letterbox=True), wide, seen(1))
    padded = {"pixels": np.zeros((64, 64, 3), np.uint8), "proprio": wide["proprio"]}
    assert np.array_equal(boxed, acted(make_agent(), padded, seen(1)))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({}, "an observation holds 'pixels'"),
        (None, "an observation holds 'pixels'"),
        (seen(0) | {"proprio": ["a", "b"]}, "'proprio' must be numbers"),
        ({"pixels": np.zeros((56, 56), np.uint8)}, r"'pixels' must be uint8 \(H, W, 3\)"),
        ({"pixels": np.zeros((56, 56, 3), np.float32)}, "'pixels' must be uint8 from 0 to 255, got float32"),
        ({"pixels": np.zeros((0, 56, 3), np.uint8)}, "'pixels' must be"),
        (seen(0) | {"proprio": np.zeros(3)}, r"'proprio' must have shape \(2,\), got \(3,\)"),
        (seen(0) | {"proprio": np.array([np.nan, 0])}, "'proprio' must be finite"),
        ({"pixels": seen(0)["pixels"]}, r"an observation holds 'proprio' \(x, y\)"),
        (seen(0, 2), "1 episodes need as many observations, got 2"),
    ],
)
def test_what_is_no_observation_is_one_sentence(observation: Any, message: str) -> None:
    agent = make_agent()
    agent.reset(seen(1))
    with pytest.raises(UserError, match=message):
        agent.act(observation)


def test_an_episode_is_begun_first() -> None:
    with pytest.raises(UserError, match="no episode has begun: call `reset`"):
        make_agent().act(seen(0))
    agent = make_agent()
    agent.reset(seen(1))
    with pytest.raises(UserError, match="no action of the last plan is left"):
        agent.observe(seen(0))
    with pytest.raises(UserError, match="nothing was seen yet: give the `observation`"):
        agent.problem()


@pytest.mark.parametrize("active", [[2], [-1, 0], [0, 0], [True, False], [0.5, 1], [[0, 1]], []])
def test_numbers_of_episodes_that_are_none(active: Any) -> None:
    agent = make_agent()
    agent.reset(seen(1, 2))
    with pytest.raises(UserError, match="episodes"):
        agent.act(seen(0, max(1, len(active))), active)
    assert len(agent.act(seen(0, 2))) == 2


@pytest.mark.parametrize(
    ("observation", "options", "message"),
    [
        (seen(0), {"action": [1, 2, 3]}, r"`action` must have shape \(2,\)"),
        (seen(0), {"action": [np.nan, 0]}, "`action` must be finite"),
        (seen(0), {"action": "left"}, "`action` must be numbers"),
        (seen(0), {"episode": 1}, "there are 1 episodes, numbered from 0"),
        (seen(0, 2), {}, "one observation, got 2"),
        ({"pixels": seen(0)["pixels"]}, {}, "an observation holds 'proprio'"),
    ],
)
def test_a_report_that_is_refused_changes_nothing(
    observation: Any, options: dict[str, Any], message: str
) -> None:
    agent, other = make_agent(), make_agent()
    for one in (agent, other):
        acted(one, seen(0), seen(1))
    with pytest.raises(UserError, match=message):
        agent.observe(observation, **options)
    for one in (agent, other):
        one.observe(seen(2))
    assert np.array_equal(agent.act(seen(3)), other.act(seen(3)))


@pytest.mark.parametrize("seeds", [3, [0, 1], [0.5], ["a"]])
def test_a_seed_for_every_episode(seeds: Any) -> None:
    with pytest.raises(UserError, match="`seeds` must be a whole number for each of 1 episodes"):
        make_agent().reset(seen(1), seeds)


def test_a_configuration_is_a_plan_config() -> None:
    with pytest.raises(UserError, match="`config` must be a PlanConfig"):
        Agent(tiny_model(), {"drop": 0.5})  # type: ignore[arg-type]


def test_pictures_that_torch_would_not_take() -> None:
    """Channels in reverse order, and arrays that cannot be written to, are pictures like others."""
    model, observation = tiny_model(frameskip=5), seen(0)
    reverse = {**observation, "pixels": observation["pixels"][..., ::-1]}
    fixed = {name: value.copy() for name, value in reverse.items()}
    for value in fixed.values():
        value.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actions = [acted(make_agent(model), one, seen(1)) for one in (reverse, fixed)]
        tokens = [model.encode(one["pixels"][None], one["proprio"][None]).tokens for one in (reverse, fixed)]
    assert np.array_equal(*actions) and tokens[0].equal(tokens[1])
    with pytest.raises(ValueError, match="2 pictures came with 1 rows of proprioception"):
        model.encode(seen(0, 2)["pixels"], observation["proprio"][None])


@pytest.mark.parametrize("objective", ["mse", "temporal"])
def test_a_goal_may_be_a_picture_alone(objective: str) -> None:
    agent, blind = make_agent(objective=objective), make_agent(objective=objective, proprio_weight=0.0)
    with pytest.warns(UserWarning, match="proprioception is left out of the cost"):
        agent.reset(seen(1)["pixels"])
    actions = agent.act(seen(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        agent.reset({"pixels": seen(1)["pixels"]})
    assert np.array_equal(actions, acted(blind, seen(0), seen(1)))
    assert not np.array_equal(actions, acted(agent, seen(0), seen(1)))  # a goal with both counts both again


def test_an_episode_does_not_depend_on_what_is_planned_beside_it() -> None:
    model = tiny_model(frameskip=5)
    together = make_agent(model)
    together.reset(seen(1, 4), seeds=[5, 6, 7, 8])
    actions = together.act(seen(0, 4))
    for i in range(4):
        alone = make_agent(model)
        alone.reset({name: value[i] for name, value in seen(1, 4).items()}, seeds=[5 + i])
        single = alone.act({name: value[i] for name, value in seen(0, 4).items()})
        np.testing.assert_allclose(single, actions[i], atol=1e-4)
        assert np.array_equal(alone.decisions[0].kept, together.decisions[i].kept)  # type: ignore[union-attr]


def test_the_model_sees_the_frames_and_actions_of_the_past() -> None:
    model = tiny_model(history=3, frameskip=2)
    agent = Agent(model, PlanConfig.of("wall").updated(search=SMALL, objective="mse"))
    agent.reset(seen(99))
    actions, shown = [], [seen(0)]
    for decision in range(4):
        chosen = agent.act(shown[-1])
        assert len(chosen) == 2
        for action in chosen:
            actions.append(action)
            shown.append(seen(len(shown)))
            agent.observe(shown[-1])
        problem = agent.problem()
        assert len(problem.history) == min(decision + 1, 2)
        for back, (frame, taken) in enumerate(reversed(problem.history), 1):
            then = shown[len(shown) - 1 - 2 * back]
            expected = model.encode(then["pixels"][None], then["proprio"][None])
            torch.testing.assert_close(frame.tokens, expected.tokens)
            torch.testing.assert_close(frame.proprio, expected.proprio)
            recent = actions[len(actions) - 2 * back :][:2]
            assert np.array_equal(taken.numpy(), np.concatenate(recent)[None])


def test_without_reports_actions_count_as_executed() -> None:
    model = tiny_model(history=3, frameskip=2)
    watched, blind = (Agent(model, PlanConfig.of("wall").updated(search=SMALL)) for _ in range(2))
    for agent in (watched, blind):
        agent.reset(seen(99))
        agent.act(seen(0))
    watched.observe(seen(7))
    watched.observe(seen(1))
    assert np.array_equal(watched.act(seen(1)), blind.act(seen(1)))
    assert len(blind.problem().history) == 1


def test_only_reported_actions_count_where_there_are_reports() -> None:
    model = tiny_model(history=3, frameskip=2)
    agent = Agent(model, PlanConfig.of("wall").updated(search={**SMALL, "execute": 2}))
    agent.reset(seen(99))
    chosen = agent.act(seen(0))
    assert len(chosen) == 4
    other = np.array([0.3, -0.2], np.float32)
    agent.observe(seen(1))
    agent.observe(seen(2), other)  # the robot did something else
    agent.act(seen(2))
    (_, taken), *_ = agent.problem().history
    assert np.array_equal(taken.numpy()[0], np.concatenate([chosen[0], other]))


def test_no_frame_is_encoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(history=3, frameskip=5)
    encoded: list[int] = []
    encode = model.encode

    def counted(pixels: Any, proprio: Any, attention: bool) -> Any:
        encoded.append(len(pixels))
        return encode(pixels, proprio, attention)

    monkeypatch.setattr(model, "encode", counted)
    walls = [envs.make("wall", resolution=56) for _ in range(2)]
    tasks = [room_task(44), Task(1, np.array([50.0, 50.0]), np.array([10.0, 10.0]))]
    run_episodes(walls, tasks, AgentActor(make_agent(model)), 20)
    assert encoded == [2, 2, 2, 2, 2]  # the goals, then what is new
    encoded.clear()
    run_episodes(walls[:1], tasks[:1], AgentActor(make_agent(model, search={**SMALL, "execute": 2})), 30)
    assert encoded == [1, 1, 2, 2]  # the goal, the present, then also the frame that went by unplanned


@pytest.mark.parametrize("resample", ["iteration", "plan", "episode"])
def test_patches_are_drawn_as_often_as_asked(resample: str) -> None:
    agent = make_agent(drop=0.5, resample=resample)
    agent.reset(seen(1, 2))
    agent.act(seen(0, 2))
    first, second = agent.problem(), agent.problem()
    before = first.patches
    first.resample(0)
    assert before.shape == (2, 8) and not before[0].equal(before[1])
    assert before.equal(first.patches) == (resample != "iteration")
    assert before.equal(second.patches) == (resample == "episode")


@pytest.mark.parametrize("choose", ["attention", "goal", "motion", "merge"])
@pytest.mark.parametrize("resample", ["iteration", "plan", "episode"])
def test_tokens_are_chosen_as_asked(choose: str, resample: str) -> None:
    model = tiny_model(frameskip=5)
    together, alone = (
        make_agent(model, tokens={"choose": choose, "resample": resample, "cost": "goal"}) for _ in range(2)
    )
    together.reset(seen(1, 3), seeds=[5, 6, 7])
    alone.reset({name: value[1] for name, value in seen(1, 3).items()}, seeds=[6])
    for moment in (0, 1):
        actions = together.act(seen(moment, 3))
        single = alone.act({name: value[1] for name, value in seen(moment, 3).items()})
        np.testing.assert_allclose(single, actions[1], atol=1e-4)
        assert together.decisions[1] is not None and together.decisions[1].kept is not None
        assert len(together.decisions[1].kept) == 8
    problem = together.problem()
    before = problem.patches
    problem.resample(0)
    assert torch.equal(problem.patches, before) == (resample != "iteration")
    whole = make_agent(model, drop=0.0, tokens={"choose": choose, "resample": resample})
    whole.reset(seen(1))
    assert whole.problem(seen(0)).patches.tolist() == [list(range(16))]


def test_a_choice_of_tokens_that_is_none() -> None:
    with pytest.raises(UserError, match=r"unknown choice of tokens .atention.\. Did you mean .attention."):
        make_agent(choose="atention")
    with pytest.raises(UserError, match="`cost_drop` must be at least 0 and below 1, got 1"):
        make_agent(cost_drop=1.0)
    with pytest.raises(UserError, match="`temperature` must be at least 0"):
        make_agent(temperature=-1.0)


def test_settings_are_given_by_name() -> None:
    agent = Agent.from_pretrained("wall", device="cpu", drop=0.25, search={"iterations": 2}, candidates=16)
    assert agent.config.tokens.drop == 0.25 and agent.config.search.iterations == 2
    assert agent.config.cost.objective == "temporal"  # the environment's own
    with pytest.raises(UserError, match=r"no setting `drap`\. Did you mean 'drop'"):
        Agent.from_pretrained("wall", device="cpu", drap=0.5)
    with pytest.raises(UserError, match="unknown objective 'tempral'"):
        Agent.from_pretrained("wall", device="cpu", objective="tempral")


def test_weights_that_change_are_planned_with() -> None:
    model = tiny_model(frameskip=5)
    agent = make_agent(model)
    before = acted(agent, seen(0), seen(1))
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.mul_(0.5)
    changed = acted(agent, seen(0), seen(1))
    assert np.array_equal(changed, acted(make_agent(model), seen(0), seen(1)))
    assert not np.array_equal(changed, before)


@pytest.mark.slow
def test_python_and_the_command_line_act_alike(tmp_path: Path) -> None:
    """The actions of `sparsewm plan`, seed 3, from README's Python example."""
    flags = "--episodes 2 --seed 3 --drop 0.5 --candidates 12 --iterations 2 --max-steps 20 --run.no-video"
    code, _, err = call("plan --env wall --device cpu", flags, "--output", tmp_path)
    assert code == 0, err
    found = json.loads((tmp_path / "results.json").read_text())["per_episode"]
    env = envs.make("wall")
    agent = Agent.from_pretrained("wall", device="cpu", seed=3, drop=0.5, candidates=12, iterations=2)
    for episode in found:
        observation, info = env.reset(seed=episode["seed"])
        agent.reset(env.goal_observation(), seeds=[episode["seed"]])
        steps = 0
        while not info["is_success"] and steps < 20:
            for action in agent.act(observation):
                observation, _, _, _, info = env.step(action)
                agent.observe(observation)
                steps += 1
                if info["is_success"] or steps == 20:
                    break
        assert steps == episode["steps"]
        assert info["distance"]["position"] == pytest.approx(episode["distance"]["position"], abs=1e-4)


def rows(observation: dict[str, np.ndarray], *numbers: int) -> dict[str, np.ndarray]:
    """Some episodes of a batch."""
    return {name: value[list(numbers)] for name, value in observation.items()}


def test_active_episodes_come_in_any_order() -> None:
    model, answers = tiny_model(frameskip=5), []
    for order in ([0, 2], [2, 0]):
        agent = make_agent(model)
        agent.reset(seen(1, 3))
        agent.act(seen(0, 3))
        actions = agent.act(rows(seen(2, 3), *order), active=order)
        answers.append(dict(zip(order, actions, strict=True)))
    assert all(np.array_equal(answers[0][i], answers[1][i]) for i in (0, 2))


def noise() -> GaussianProposals:
    return GaussianProposals(-torch.ones(2), torch.ones(2))


def test_an_episodes_seed_decides_its_proposals() -> None:
    """Whatever was proposed before, and whatever is proposed beside it."""
    model = tiny_model(frameskip=5)
    agent, other = (Agent(model, make_agent(model).config, sampler=noise()) for _ in range(2))

    def first(agent: Agent, seeds: list[int]) -> Any:
        agent.reset(seen(1, len(seeds)), seeds=seeds)
        return agent.act(seen(0, len(seeds)))

    alone = first(agent, [7])[0]
    assert np.array_equal(first(agent, [7])[0], alone)
    assert not np.array_equal(first(other, [8])[0], alone)
    batch = {name: np.repeat(value, 2, 0) for name, value in seen(0, 1).items()}
    wanted = {name: np.repeat(value, 2, 0) for name, value in seen(1, 1).items()}
    other.reset(wanted, seeds=[3, 7])
    np.testing.assert_allclose(other.act(batch)[1], alone, atol=1e-4)


def test_an_episode_keeps_its_past_whatever_its_neighbours_remember() -> None:
    model = tiny_model(history=3, frameskip=2)
    together, alone = (make_agent(model, frame="last") for _ in range(2))
    together.reset(seen(9, 2), seeds=[4, 5])
    alone.reset({name: value[1] for name, value in seen(9, 2).items()}, seeds=[5])
    together.act(seen(0, 2))
    alone.act({name: value[1] for name, value in seen(0, 2).items()})
    for moment in (1, 2):
        now = {name: value[1] for name, value in seen(moment, 2).items()}
        together.observe(now, episode=1)
        alone.observe(now)
    together.observe({name: value[0] for name, value in seen(1, 2).items()}, episode=0)  # one step of two
    actions = together.act(seen(2, 2))
    expected = alone.act({name: value[1] for name, value in seen(2, 2).items()})
    np.testing.assert_allclose(actions[1], expected, atol=1e-4)
    decided = together.decisions[1], alone.decisions[0]
    assert decided[0] is not None and decided[1] is not None
    assert decided[0].cost == pytest.approx(decided[1].cost, rel=1e-4)


class Tried:
    """A problem that remembers the first candidate of a search."""

    def __init__(self, problem: LatentProblem) -> None:
        self.problem, self.first = problem, torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)

    def cost(self, actions: torch.Tensor) -> torch.Tensor:
        if not len(self.first):
            self.first = actions[0, 0].clone()
        return self.problem.cost(actions)


def test_the_next_search_starts_where_the_last_plan_was_left() -> None:
    """After as many model steps as were taken: none, one of two, or all."""
    agent = make_agent(tiny_model(frameskip=2), search={**SMALL, "horizon": 4, "execute": 2})
    tried: list[Tried] = []

    def watch(problem: LatentProblem) -> Tried:
        tried.append(Tried(problem))
        return tried[-1]

    agent.watch = watch
    agent.reset(seen(1))
    agent.act(seen(0))
    for taken in (0, 1, 2):
        before = agent.decisions[0]
        assert before is not None
        agent.forget_pending() if taken == 0 else None
        for _ in range(2 * taken):
            agent.observe(seen(2))
        agent.act(seen(3))
        assert np.array_equal(tried[-1].first[: 4 - taken].numpy(), before.plan[taken:])


def test_a_problem_of_ones_own_counts_what_was_handed_out() -> None:
    agent = make_agent(tiny_model(history=2, frameskip=5))
    agent.reset(seen(1))
    chosen = agent.act(seen(0))
    ((frame, taken),) = agent.problem(seen(2)).history
    expected = agent.model.encode(*(value[None] for value in seen(0).values()))
    torch.testing.assert_close(frame.tokens, expected.tokens)
    assert np.array_equal(taken.numpy()[0], chosen.flatten())


def test_a_sampler_is_not_told_of_sensors_that_nobody_knows() -> None:
    shown: list[Any] = []

    class Looks(GaussianProposals):
        def propose(self, observation: Any, goal: Any, *others: Any, **more: Any) -> torch.Tensor:
            shown.append(goal)
            return super().propose(observation, goal, *others, **more)

    model = tiny_model(frameskip=5)
    agent = Agent(model, make_agent(model).config, sampler=Looks(-torch.ones(2), torch.ones(2)))
    with pytest.warns(UserWarning, match="the goal is a picture alone"):
        agent.reset(seen(1)["pixels"])
    agent.act(seen(0))
    assert list(shown[0]) == ["pixels"]


def test_a_sampler_is_told_each_episodes_instruction() -> None:
    told: list[Any] = []

    class Hears:
        def propose(self, observation: Any, _: Any, instruction: Any, samples: int, steps: int) -> Any:
            told.append(instruction)
            return torch.zeros(len(observation["pixels"]), samples, steps, 2)

    model = tiny_model(frameskip=5)
    agent = Agent(model, make_agent(model).config, sampler=Hears())
    agent.reset(seen(1, 2), instructions=["open it", "close it"])
    agent.act(seen(0, 2))
    agent.act(seen(0, 1), [1])
    assert told[0] == ["open it", "close it"] and told[-1] == "close it"
    with pytest.raises(UserError, match="1 `instructions` for 2 episodes"):
        agent.reset(seen(1, 2), instructions=["open it"])


def test_a_sampler_of_ones_own_is_used_as_the_settings_say() -> None:
    """`replace` executes a chunk as it was proposed: another action at each step."""
    model = tiny_model(frameskip=5)
    config = make_agent(model, proposals={"samples": 4}).config
    agent = Agent(model, config, sampler=noise())
    actions = acted(agent, seen(0), seen(1))
    assert len(np.unique(actions, axis=0)) == 5
    assert agent.decisions[0] is not None and len(agent.decisions[0].seconds_per_iteration) == 1
    seeded = Agent(model, config.updated(proposals={"mode": "seed"}), sampler=noise())
    assert len(np.unique(acted(seeded, seen(0), seen(1)), axis=0)) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((1, 32, 10, 2)), None),
        (np.zeros((1, 32, 10, 2), np.int64), None),
        (None, "proposals are no tensor but NoneType"),
        ([["a"]], "proposals are no tensor but list"),
        (torch.full((1, 32, 10, 2), torch.nan), "proposals contain NaN"),
        (torch.zeros(3), r"proposals must have shape \(1, 32, 10, 2\), not \(3,\)"),
    ],
)
def test_what_a_sampler_of_ones_own_may_answer(answer: Any, message: str | None) -> None:
    class Answers:
        def propose(self, *_: Any) -> Any:
            return answer

    model = tiny_model(frameskip=5)
    agent = Agent(model, make_agent(model, proposals={"samples": 32}).config, sampler=Answers())
    agent.reset(seen(1))
    if message is None:
        assert not agent.act(seen(0)).any()
        return
    with pytest.raises(UserError, match=message):
        agent.act(seen(0))


def test_a_deadline_is_for_one_episode_and_a_refused_reset_changes_nothing() -> None:
    agent = make_agent(search={**SMALL, "deadline_ms": 50.0})
    with pytest.raises(UserError, match="`deadline_ms` is for one episode at a time"):
        agent.reset(seen(1, 2))
    agent = make_agent()
    agent.reset(seen(1))
    before = agent.objective
    with pytest.raises(UserError, match="`seeds` must be a whole number for each of 1 episodes"):
        agent.reset(seen(1)["pixels"], seeds=[1, 2])
    assert agent.objective is before


def test_proprioception_of_any_precision_and_of_no_shape() -> None:
    agent = make_agent()
    agent.reset(seen(1))
    half = {"pixels": seen(0)["pixels"], "proprio": torch.tensor([3.0, 4.0], dtype=torch.bfloat16)}
    assert agent.act(half).shape == (5, 2)
    with pytest.raises(UserError, match="2 pictures came with no rows of proprioception"):
        agent.reset(seen(1, 2) | {"proprio": np.float32(1.0)})
