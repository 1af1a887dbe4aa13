"""Draw the pictures of the documentation: episodes, a plan, groups, choices of tokens, success against time.

Example (a few minutes):

    python -m scripts.pictures
    python -m scripts.pictures --what plan groups
    python -m scripts.pictures --what episodes --environments dmc/reacher swm/tworoom

An episode shows the real scene, the goal, the kept patches and the plan's imagination, and moves. The plan is
one search, iteration by iteration; the groups are those of training, four draws. The choices
are all shown one frame, in the middle of an episode of PushT, and keep three tenths of its tokens. Success
against time is drawn from results/decisions/decisions.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from scripts.common import launch
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.demo.session import Watched
from sparsewm.evaluation.run import prepare, run
from sparsewm.model import LatentProblem
from sparsewm.model.checkpoint import shipped
from sparsewm.model.choices import CHOICES
from sparsewm.model.latent import random_groups
from sparsewm.planners import CEM
from sparsewm.report.plots import COLOURS, save_figure, styled
from sparsewm.report.video import dim_dropped, episode_frames, write_video
from sparsewm.training.config import OptimConfig

SIDE = 168  # pixels of a panel
FRAMES = 40  # of a moving picture, at most
DECISIONS = Path("results/decisions/decisions.json")
SEEDS = {"wall": 3, "pusht": 3, "rope": 2, "swm/cube": 1}
"""Of the episodes that are shown, where it is not the first: in these more happens."""
EPISODES = {"metaworld/mt10": 3}
"""Of which the last is shown: tasks follow each other there, and the third is picking and placing."""
PROPOSED = ("swm/cube", "metaworld/mt10")
"""Environments whose candidates are proposals, as their page measures them."""

What = Literal["episodes", "plan", "groups", "tokens", "decisions"]


@dataclass
class Arguments:
    """Pictures of the documentation."""

    what: tuple[What, ...] = get_args(What)
    """Which of them."""
    environments: tuple[str, ...] = tuple(shipped())
    """Environments whose episodes are drawn."""
    drop: float = 0.5
    """Fraction of the tokens that episodes are planned without."""
    output: Path = Path("docs/images")
    """Folder of the pictures."""


def draw_episode(name: str, drop: float, path: Path) -> None:
    """One closed-loop episode as a moving picture."""
    seed = SEEDS.get(name, 0)
    config = PlanConfig.of(name).updated(drop=drop, seed=seed, episodes=EPISODES.get(name, 1), dtype="auto")
    if name in PROPOSED:
        config = config.updated(proposals={"source": "inverse", "samples": 32})
    ready = prepare(config)
    ready = replace(ready, tasks=ready.tasks[-1:])
    (episode,) = run(ready, frames=1)
    frames = episode_frames(episode, ready.grid, ready.envs[0].frameskip, SIDE)
    shown = np.unique(np.linspace(0, len(frames) - 1, FRAMES).astype(int))
    fps = min(8, max(2, len(shown) // 5))
    write_video(path, [frames[i] for i in shown], fps=fps, hold=2 * fps)
    print(f"{path}: {episode.steps} steps, {'reached' if episode.success else 'missed'}", flush=True)


Seen = dict[str, np.ndarray]


def start(name: str, drop: float) -> tuple[Agent, Any, tuple[int, int], Seen, Seen]:
    """An agent at the start of an episode, the environment, the grid of patches, what is seen, the goal."""
    config = PlanConfig.of(name).updated(drop=drop, seed=SEEDS.get(name, 0))
    ready = prepare(config)
    assert ready.model is not None and ready.grid is not None
    env, task = ready.envs[0], ready.tasks[0]
    observation, _ = env.reset(seed=task.seed, options=task.options)
    agent, goal = Agent(ready.model, config), env.goal_observation()
    agent.reset(goal)
    return agent, env, ready.grid, observation, goal


def moment(
    name: str, choices: Sequence[str], drop: float
) -> tuple[np.ndarray, np.ndarray, list[LatentProblem]]:
    """A frame in the middle of an episode, its goal, and what each choice of tokens plans with there.

    Returns:
        pictures uint8 (H, W, 3) of the scene and the goal; problems after a search, as its last iteration
        left them.
    """
    first, env, _, observation, goal = start(name, drop)
    agents = [Agent(first.model, first.config.updated(choose=choice)) for choice in choices]
    for agent in agents:
        agent.reset(goal)
    for _ in range(2):
        for action in agents[0].act(observation):
            observation, *_ = env.step(action)
            for agent in agents:
                agent.observe(observation, action)
        agents[0].forget_pending()
    problems = [agent.problem(observation) for agent in agents]
    for problem in problems:
        CEM(32, 4, 3).plan(problem)  # motion and mixture look at what it imagines
    return observation["pixels"], goal["pixels"], problems


def show(axis: Any, scene: np.ndarray, tokens: Tensor, grid: tuple[int, int]) -> str:
    """Draw what is kept: patches bright, merged ones inside one line, continuous places as dots.

    Args:
        tokens: (M,) indices or (M, N + 2) blended.

    Returns:
        what they are, in words.
    """
    if not tokens.is_floating_point():
        axis.imshow(dim_dropped(scene, tokens.numpy(), grid))
        return f"{len(tokens)} patches"
    weights, places = tokens[:, :-2], tokens[:, -2:]
    member = weights.gt(0).float()
    if member.sum(0).max() > 1:  # a patch is part of several: places between the patches
        axis.imshow(dim_dropped(scene, np.empty(0, int), grid))
        axis.scatter(
            places[:, 1] * scene.shape[1], places[:, 0] * scene.shape[0], s=26, c="white", edgecolors="k"
        )
        return f"{len(tokens)} places"
    axis.imshow(dim_dropped(scene, weights.sum(0).nonzero()[:, 0].numpy(), grid))
    owner = torch.where(member.sum(0) > 0, member.argmax(0), -1).view(grid)
    high, wide = scene.shape[0] / grid[0], scene.shape[1] / grid[1]
    for row, column in np.ndindex(*grid):
        x, y = (column + 1) * wide - 0.5, (row + 1) * high - 0.5
        if column + 1 < grid[1] and owner[row, column] != owner[row, column + 1]:
            axis.plot([x, x], [y - high, y], color=COLOURS[1], linewidth=1.4)
        if row + 1 < grid[0] and owner[row, column] != owner[row + 1, column]:
            axis.plot([x - wide, x], [y, y], color=COLOURS[1], linewidth=1.4)
    return f"{int(member.sum())} patches in {len(tokens)}"


@styled
def draw_tokens(path: Path, name: str = "pusht", drop: float = 0.7) -> None:
    """What every choice keeps of one frame."""
    choices = CHOICES.names()
    scene, goal, problems = moment(name, choices, drop)
    columns = 4
    lines = -(-(len(choices) + 2) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.3 * columns, 2.55 * lines), layout="constrained")
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, picture, title in zip(axes.ravel(), (scene, goal), ("now", "goal"), strict=False):
        titled(axis, picture, title)
    for axis, choice, problem in zip(axes.ravel()[2:], choices, problems, strict=True):
        words = show(axis, scene, problem.patches[0].cpu(), problem.model.config.grid)
        axis.set_title(f"{choice}: {words}", fontsize=9)
    save_figure(figure, path)


class Iterations(Watched):
    """A planning problem that remembers of every iteration what was kept, and its best candidate."""

    def __init__(self, problem: LatentProblem) -> None:
        super().__init__(problem)
        self.kept: list[np.ndarray] = []
        self.best: list[Tensor] = []

    def cost(self, actions: Tensor) -> Tensor:
        costs = super().cost(actions)
        self.kept.append(self.problem.patches[0].cpu().numpy())
        self.best.append(actions[:, costs[0].argmin()])
        return costs


def with_lines(picture: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A picture with lines between its patches."""
    cut = picture.copy()
    rows, columns = (np.arange(1, n) * side // n for n, side in zip(grid, picture.shape, strict=False))
    cut[rows], cut[:, columns] = 128, 128
    return cut


def titled(axis: Any, picture: np.ndarray, title: str) -> None:
    """Show a picture under its name."""
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)


@styled
def draw_plan(path: Path, name: str = "wall", drop: float = 0.5) -> None:
    """One search: what each iteration keeps, and where its best candidate is imagined to end."""
    agent, _, grid, observation, goal = start(name, drop)
    watched, search = Iterations(agent.problem(observation)), agent.config.search
    CEM(search.candidates, search.elites, search.iterations).plan(watched)  # type: ignore[arg-type]
    now, wanted = (
        agent.model.encode(one["pixels"][None], one["proprio"][None]) for one in (observation, goal)
    )
    error = (now.tokens - wanted.tokens).float().square().mean(-1).reshape(grid)
    scene, columns = observation["pixels"], len(watched.kept)
    figure, axes = plt.subplots(3, columns, figsize=(1.9 * columns, 6.3), layout="constrained")
    for axis in axes.ravel():
        axis.set_axis_off()
    above = {"now": scene, "goal": goal["pixels"], f"{grid[0]} x {grid[1]} patches": with_lines(scene, grid)}
    above["how much tokens differ"] = error.cpu().numpy()
    for axis, (title, picture) in zip(axes[0], above.items(), strict=False):
        titled(axis, picture, title)
    for i, (kept, best) in enumerate(zip(watched.kept, watched.best, strict=True)):
        titled(axes[1, i], dim_dropped(scene, kept, grid), f"iteration {i + 1}: {len(kept)} kept")
        titled(axes[2, i], watched.imagined(best).cpu().numpy()[0, -1], "its best candidate's end")
    save_figure(figure, path)


@styled
def draw_groups(path: Path, name: str = "wall", draws: int = 4) -> None:
    """Patches of a frame in random groups, as a training step splits them, in several draws."""
    _, _, grid, observation, _ = start(name, 0.0)
    scene, optim = observation["pixels"], OptimConfig()
    figure, axes = plt.subplots(1, draws + 1, figsize=(1.9 * (draws + 1), 2.2), layout="constrained")
    titled(axes[0], with_lines(scene, grid), "a frame")
    for i, axis in enumerate(axes[1:]):
        patches = grid[0] * grid[1]
        groups = random_groups(
            1, patches, optim.groups, optim.smallest_group, torch.Generator().manual_seed(i)
        )
        colours = np.empty((patches, 3))
        for group, colour in zip(groups, COLOURS, strict=False):
            colours[group[0].numpy()] = to_rgb(colour)
        places = [np.arange(side) * n // side for n, side in zip(grid, scene.shape, strict=False)]
        over = 255 * colours.reshape(*grid, 3)[np.ix_(*places)]
        sizes = ", ".join(str(group.shape[1]) for group in groups)
        titled(axis, with_lines((0.45 * scene + 0.55 * over).astype(np.uint8), grid), f"groups of {sizes}")
    for axis in axes:
        axis.set_axis_off()
    save_figure(figure, path)


@styled
def draw_decisions(path: Path, source: Path = DECISIONS) -> None:
    """Success of ours against the time of a decision, and the time that DINO-WM's rollout takes."""
    report = json.loads(source.read_text(encoding="utf-8"))
    ours = [row for row in report["rows"] if row["rollout"] == "sparsewm"]
    seconds = [row["processor_seconds_per_decision"]["median"] for row in ours]
    rate = 100 * np.array([row["success_rate"] for row in ours])
    spread = np.abs(100 * np.array([row["success_ci95"] for row in ours]).T - rate)
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    label = f"sparsewm, {ours[0]['dtype']}, by the share of tokens kept"
    axis.errorbar(seconds, rate, yerr=spread, marker="o", capsize=3, color=COLOURS[0], label=label)
    for row, x, y in zip(ours, seconds, rate, strict=True):
        axis.annotate(f"{100 * (1 - row['drop']):.0f}%", (x, y), (5, 6), textcoords="offset points")
    others = [row for row in report["rows"] if row["rollout"] != "sparsewm"]
    for row, colour in zip(others, COLOURS[1:], strict=False):
        time = row["processor_seconds_per_decision"]["median"]
        axis.axvline(time, linestyle="--", color=colour)
        words = f"DINO-WM's rollout,\n{row['dtype']}, all tokens"
        axis.text(0.96 * time, 4, words, rotation=90, ha="right", va="bottom", color=colour)
    axis.set(xscale="log", xlim=(0.2, 30), ylim=(0, 103), ylabel="success, %")
    axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.set(xlabel="processor seconds per decision, one thread", title="PushT: success against time")
    axis.legend(loc="lower left")
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    if "episodes" in arguments.what:
        for name in arguments.environments:
            draw_episode(name, arguments.drop, arguments.output / f"{name.rpartition('/')[2]}.webp")
    if "plan" in arguments.what:
        draw_plan(arguments.output / "one-plan.png")
    if "groups" in arguments.what:
        draw_groups(arguments.output / "groups.png")
    if "tokens" in arguments.what:
        draw_tokens(arguments.output / "choices.png")
    if "decisions" in arguments.what:
        draw_decisions(arguments.output / "success-by-time.png")


if __name__ == "__main__":
    launch(main, Arguments)
