"""`sparsewm plan`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sparsewm.cli.common import command_line, output_folder, parse_plan, progress_bar, stopped_code
from sparsewm.config import NO_PROPOSALS, PlanConfig
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.episodes import Episode
from sparsewm.evaluation.landscape import make_landscape
from sparsewm.evaluation.run import Prepared, devices_of, prepare, results, run
from sparsewm.evaluation.table import seconds
from sparsewm.files import only_one, write_json
from sparsewm.memory import PeakMemory
from sparsewm.report.plots import SHOWN, plot_landscape, plot_plan
from sparsewm.report.video import episode_frames, write_video
from sparsewm.trees import differences


class Plan:
    """Reach goals by model-predictive control in a world model: results.json, videos, plan.png."""

    tree = PlanConfig

    @classmethod
    def parse(cls, arguments: list[str]) -> Plan:
        return cls(parse_plan(arguments, "sparsewm plan"))

    def __init__(self, config: PlanConfig) -> None:
        self.config = config

    def run(self) -> int:
        _check_proposals(self.config)
        ready = prepare(self.config)
        with only_one(output_folder(ready.config.run.output)):
            return self.run_here(ready, ready.config.run.output)

    def run_here(self, ready: Prepared, folder: Path) -> int:
        """Run the episodes and write what came out."""
        written = ("results.json", "plan.png", "landscape.json", "landscape.png")
        for old in (*folder.glob("episode-*.mp4"), *(folder / name for name in written)):
            old.unlink(missing_ok=True)  # of an earlier run: nothing of it is to stand beside this one's
        finished: dict[int, Episode] = {}
        memory = PeakMemory(ready.device)
        try:
            with progress_bar("planning") as progress:
                self.watch(ready, folder, finished, progress)
        except KeyboardInterrupt as stop:
            if not finished:
                raise
            self.report(ready, folder, memory, [finished[i] for i in sorted(finished)])
            print(f"interrupted: these are the {len(finished)} finished of {len(ready.tasks)} episodes")
            return stopped_code(stop)
        self.report(ready, folder, memory, [finished[i] for i in range(len(ready.tasks))])
        if ready.config.run.landscape:
            draw_landscape(ready, folder)
        return 0

    def watch(self, ready: Prepared, folder: Path, finished: dict[int, Episode], progress: Any) -> None:
        """Run the episodes; what is finished is written down as it comes."""
        total, limit = len(ready.tasks), ready.config.goal.max_steps

        def score() -> str:
            return f"success {sum(one.success for one in finished.values())}/{len(finished)}"

        def on_plan(episode: int, decision: int, one: Episode) -> None:
            text = f"episode {episode + 1}, re-plan {decision + 1}, {score()}"
            progress(len(finished) + 0.99 * min(1.0, one.steps / limit), total, text)

        def on_episode(episode: int, one: Episode) -> None:
            finished[episode] = one
            if ready.config.run.video:
                frames = episode_frames(one, ready.grid, ready.envs[0].frameskip)
                write_video(folder / f"episode-{episode:03d}.mp4", frames)
            if episode >= SHOWN:  # those that the picture shows no longer need theirs
                one.frames.clear()
            progress(len(finished), total, score())

        run(ready, on_plan, on_episode, frames=math.inf if ready.config.run.video else SHOWN)

    def report(self, ready: Prepared, folder: Path, memory: PeakMemory, episodes: list[Episode]) -> None:
        """Write results.json and plan.png, and say what came out."""
        config = ready.config
        found = results(ready, episodes)
        alone = len(devices_of(config)) == 1
        found["peak_memory_bytes"] = memory.read() if alone else None
        found["command"] = command_line("plan")
        write_json(folder / "results.json", found)
        summary = summary_line(config, found)
        shown = [one for one in episodes if one.frames]
        if shown:
            plot_plan(folder / "plan.png", shown, ready.grid, summary)
        print(f"{summary}\n{by_task_line(found)}results in {folder}/")


def _check_proposals(config: PlanConfig) -> None:
    """Refuse settings of proposals where there are none."""
    if config.proposals.source == NO_PROPOSALS:
        for name, _ in differences(config.proposals, PlanConfig.of(config.env).proposals):
            if name != "source":
                raise UserError(
                    f"`{name}` is of a policy's proposals: say with `proposals` where they come from"
                )


def draw_landscape(ready: Prepared, folder: Path) -> None:
    """Write landscape.png and landscape.json of the first episode's start."""
    env = ready.envs[0]
    assert ready.model is not None and isinstance(env, SimulatedGoalEnv)
    found = make_landscape(ready.model, ready.config, env, ready.tasks[0])
    write_json(folder / "landscape.json", found.content())
    how = "held for the whole horizon" if found.held else "of the first action, the others as planned"
    plot_landscape(folder / "landscape.png", found, f"{env.name}: cost of two numbers {how}")


def summary_line(config: PlanConfig, found: dict[str, Any]) -> str:
    """What came out, in a line."""
    low, high = found["success_ci95"]
    goal, tokens = found["goal"], found["tokens"]
    ahead = f" {goal['offset']} steps ahead" if goal["offset"] else ""
    frozen = "" if goal["tasks"] == "drawn" else f" of the {goal['tasks']} set"
    successes, strict = (sum(entry[name] for entry in found["per_episode"]) for name in ("success", "strict"))
    line = (
        f"{found['environment']}, {goal['source']} goals{ahead}{frozen}, at most {goal['budget']} steps, "
        f"seed {found['seed']}: success {successes}/{found['episodes']} "
        f"({100 * low:.0f}-{100 * high:.0f}%, 95% Wilson), {strict} strictly"
    )
    if tokens is None:
        line += f"; acts: {config.run.actor}"
    else:
        line += (
            f"; {tokens['kept']} of {tokens['total']} tokens, {seconds(found['seconds_per_iteration'])} an "
            f"iteration, {seconds(found['seconds_per_plan'])} a plan"
        )
        if config.run.batch > 1:
            line += f" (its share of {config.run.batch} episodes planned at once)"
    if config.proposals.source != NO_PROPOSALS:
        mode = "the first" if config.run.actor == "policy" else config.proposals.mode
        line += f"; candidates from {config.proposals.source} ({mode})"
    if rate := found["actions_per_second"]:
        line += f"; planning sustains {rate:.1f} actions a second"
    if kept := found["deadline"]:
        line += f"; {100 * kept['in_time']:.1f}% of {kept['plans']} plans within {kept['deadline_ms']:g} ms"
        if late := kept["overshoot_ms"]:
            line += f", others up to {late['max']:.0f} ms late"
    return line


def by_task_line(found: dict[str, Any]) -> str:
    """Success of each task in a line, where there are several; else nothing."""
    tasks = found.get("by_task", {}).items()
    counts = [
        f"{name} {round(one['success_rate'] * one['episodes'])}/{one['episodes']}" for name, one in tasks
    ]
    return f"by task: {', '.join(counts)}\n" if counts else ""
