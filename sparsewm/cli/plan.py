"""`sparsewm plan`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

import sparsewm
from sparsewm.cli.common import check_seed, command_line, output_folder, progress_bar
from sparsewm.cli.devices import run_on
from sparsewm.encoders import ENCODERS
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.closed_loop import (
    FirstProposal,
    ModelProblems,
    Planned,
    Policy,
    Proposals,
    RandomActions,
    Redraw,
    Still,
    Task,
    Trace,
    deadline_report,
    make_tasks,
    run_episodes,
    summarize,
)
from sparsewm.evaluation.oracle import simulator_problems
from sparsewm.evaluation.simulator import TokenDistance, TrueDistance
from sparsewm.evaluation.statistics import peak_memory
from sparsewm.evaluation.table import seconds
from sparsewm.files import write_json
from sparsewm.model import AutoDrop, WorldModel, kept_patches, load
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.model.problem import Measure, Scored
from sparsewm.planners import MPC, PLANNERS, PlanningError, ProposalMode
from sparsewm.precision import fastest_dtype
from sparsewm.proposals import GAUSSIAN, check_proposals, load_sampler
from sparsewm.report.plots import plot_plan
from sparsewm.report.video import episode_frames, write_video
from sparsewm.settings import (
    PlanSettings,
    at_least,
    choose_device,
    choose_dtype,
    environment_settings,
    make_env,
    one_of,
)

SELECTIONS = ("random", "proprio", "oracle", "encoder_oracle", "none", "random_actions", "policy")
WITHOUT_MODEL = ("oracle", "none", "random_actions", "policy")
"""Selections that need no world model."""


@dataclass
class Prepared:
    """A checked `Plan`: nothing is left to refuse."""

    env: GoalEnv
    settings: PlanSettings
    device: torch.device
    dtype: torch.dtype
    model: WorldModel | None
    tasks: list[Task]
    proposals: Proposals | None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (8, 8) if self.model is None else self.model.config.grid


@dataclass
class Plan:
    """Reach goals by model-predictive control in the world model.

    Writes results.json, a video per episode (real scene, goal, kept patches) and plan.png.

    Example: sparsewm plan --env pusht --drop 0.5 --episodes 3
    """

    env: str
    """Environment: pusht, wall, pointmaze, pointmaze-large, rope, granular or blockpush."""
    drop: float | Literal["auto"] = 0.5
    """Fraction of the patch tokens dropped, at least 0 and below 1, drawn anew at every iteration. auto: as
    many as the scene allows, judged in every plan by whether more tokens would order candidates otherwise."""
    drop_highest: float = 0.8
    """What --drop auto may drop at most."""
    drop_last: float | None = None
    """Fraction dropped in the last iteration; from --drop it goes there in equal steps. Coarse first and fine
    later, where it is below --drop."""
    planner: str = "cem"
    """Planner: cem, icem, mppi or gd."""
    proposals: str = "gaussian"
    """Where candidate action sequences come from: gaussian (the planner's own), vla (the shipped policy),
    or the folder or hub name of a LeRobot policy."""
    proposal_mode: ProposalMode | None = None
    """replace: score the proposals and take the best; seed: mix them into the search's first iteration;
    prior: search from a Gaussian fitted to them."""
    candidates: int | None = None
    """Proposals per decision."""
    instruction: str | None = None
    """What a language-conditioned policy is told; the environment's own text when left out."""
    names: Path | None = None
    """YAML file: what a policy's cameras, states and actions are in an environment (docs/proposals.md)."""
    selection: str = "random"
    """random: tokens drawn at random. Yardsticks: proprio (no token error), oracle (true simulator and
    distance), encoder_oracle (true simulator, token distance), none (does nothing), random_actions, policy
    (executes the first proposal)."""
    episodes: int = 1
    """Episodes."""
    checkpoint: Path | None = None
    """Checkpoint folder of a world model; the shipped one when left out."""
    encoder: str | None = None
    """Encoder the checkpoint must have been trained on."""
    encoder_weights: Path | None = None
    """Local weights file of the encoder."""
    hub_repo: Path | None = None
    """Local clone of the encoder's torch.hub repository."""
    samples: int | None = None
    """Candidates per iteration."""
    elites: int | None = None
    """Candidates the distribution is refitted to (cem, icem)."""
    iterations: int | None = None
    """Planner iterations per plan."""
    race: int | None = None
    """Candidates drawn for every one that is scored: a quarter of the kept tokens says which are worth it."""
    settled: float | None = None
    """A search ends early once its elites differ by less than this, in deviations of the first candidates; 0:
    never."""
    horizon: int | None = None
    """Model steps imagined."""
    execute: int | None = None
    """Model steps executed before planning again."""
    budget: int | None = None
    """Environment steps an episode may take."""
    goal_source: str | None = None
    """random, or trajectory: the state some steps ahead in a held-out trajectory."""
    goal_offset: int | None = None
    """Environment steps between start and goal of a trajectory goal."""
    cost: str | None = None
    """mse: squared error of tokens and proprioception. temporal: learned number of steps to the goal."""
    alpha: float | None = None
    """Weight of the proprioception error in the cost; 0 plans by vision alone."""
    scored: str | None = None
    """Which imagined frame is compared with the goal: last, or best, the nearest, where execution stops."""
    hold: bool | None = None
    """Plan one action per model step and hold it for its environment steps."""
    spread: float | None = None
    """Deviation of the first candidates, in deviations of the recorded actions."""
    redraw: Redraw = "iteration"
    """When a new subset of patches is drawn: at every iteration, every plan, or never."""
    budget_ms: float | None = None
    """Milliseconds from observation to actions: the search ends in time, with fewer iterations or
    candidates where it has to. Plans then depend on the machine."""
    batch: int = 1
    """Episodes planned at once."""
    chunk: int = 0
    """Candidates rolled out at once; 0: all."""
    video: bool = True
    """Write a video per episode."""
    imagine: bool = True
    """Show imagined frames in video and picture, where the world model has a decoder."""
    device: str = "auto"
    """auto, cpu, cuda, ...; several, as cuda:0,cuda:1, share the episodes."""
    dtype: str = "auto"
    """Precision of the predictor: auto, int8 (products of the rollout's layers, where the processor has
    them), bfloat16 or float32."""
    seed: int = 0
    """Seed of tasks, candidates and drop masks."""
    output: Path = Path("runs/plan")
    """Folder for results.json, plan.png and the videos."""

    def run(self) -> int:
        ready = self.prepare()
        folder = output_folder(self.output)
        successes: list[bool] = []
        with progress_bar("planning") as progress:

            def score() -> str:
                return f"success {sum(successes)}/{len(successes)}"

            def on_plan(episode: int, decision: int, share: float) -> None:
                text = f"episode {episode + 1}, re-plan {decision + 1}, {score()}"
                progress(len(successes) + 0.99 * share, self.episodes, text)

            def on_episode(episode: int, trace: Trace) -> None:
                successes.append(trace.success)
                if self.video:
                    frames = episode_frames(ready.env, trace, ready.grid)
                    write_video(folder / f"episode-{episode:03d}.mp4", frames)
                progress(len(successes), self.episodes, score())

            traces, results = self.evaluate(ready, on_plan, on_episode)
        results["command"] = command_line()
        write_json(folder / "results.json", results)
        low, high = results["success_ci95"]
        goal, tokens = results["goal"], results["tokens"]
        goals = f"{goal['source']} goals" + (
            f" {goal['offset']} steps ahead" if goal["source"] == "trajectory" else ""
        )
        summary = (
            f"{ready.env.name}, {goals}, budget {goal['budget']} steps, seed {self.seed}: success "
            f"{sum(successes)}/{len(traces)} ({100 * low:.0f}-{100 * high:.0f}%, 95% Wilson); "
            f"{tokens['kept']} of {tokens['total']} tokens, {seconds(results['seconds_per_iteration'])} an "
            f"iteration, {seconds(results['seconds_per_plan'])} a plan"
        )
        if ready.proposals is not None:
            mode = "first" if self.selection == "policy" else ready.proposals.mode
            summary += f"; candidates from {self.proposals} ({mode})"
        if rate := results["actions_per_second"]:
            summary += f"; planning sustains {rate:.1f} actions a second"
        if kept := results["deadline"]:
            summary += f"; {100 * kept['in_time']:.1f}% of {kept['plans']} plans within {self.budget_ms:g} ms"
            if late := kept["overshoot_ms"]:
                summary += f", others up to {late['max']:.0f} ms late"
        plot_plan(folder / "plan.png", ready.env, traces, ready.grid, summary)
        print(f"{summary}\nresults in {folder}/")
        return 0

    def prepare(self) -> Prepared:
        """Everything that can be refused, before anything is written or run."""
        env = make_env(self.env)
        settings = self.settings(env)
        device, *_ = [choose_device(name) for name in self.devices]
        dtype = choose_dtype(self.dtype, device, planning=True)
        model = self.load_model(env, settings, device, dtype)
        tasks = make_tasks(env, self.episodes, self.seed, settings.goal_source, settings.goal_offset)
        proposals = self.load_proposals(env, settings, device, dtype)
        return Prepared(env, settings, device, dtype, model, tasks, proposals)

    def evaluate(
        self,
        ready: Prepared,
        on_plan: Callable[[int, int, float], None] | None = None,
        on_episode: Callable[[int, Trace], None] | None = None,
    ) -> tuple[list[Trace], dict[str, Any]]:
        """Run the episodes; writes nothing.

        Args:
            on_plan: called with (episode, re-plan, share of the budget spent). on_episode: called with
                (episode, trace) at the end of each.

        Returns:
            the traces, and what goes into results.json besides the command.
        """
        env, settings, model = ready.env, ready.settings, ready.model
        if len(self.devices) > 1:
            traces = run_on(self.devices, self, on_episode)
        else:
            traces = self.traces(ready, on_plan, on_episode)
        total = 64 if model is None else model.patches
        drop = self.start_drop
        kept = [len(plan["kept"]) for trace in traces for plan in trace.plans if plan["kept"] is not None]
        if self.drop == "auto" and kept:  # what came of it
            drop = 1 - float(np.mean(kept)) / total
        results = {
            "environment": env.name,
            "drop": drop,
            "tokens": {"kept": kept_patches(total, drop), "total": total},
            "planner": self.planner,
            "proposals": self.proposals,
            "instruction": None if ready.proposals is None else ready.proposals.instruction,
            "selection": self.selection,
            "encoder": None if model is None else {"name": model.encoder.name, "hash": model.encoder.hash},
            "checkpoint": None if model is None else str(self.checkpoint or f"pretrained/{env.name}"),
            "device": str(ready.device) if len(self.devices) == 1 else self.device,
            "dtype": str(ready.dtype).removeprefix("torch."),
            "seed": self.seed,
            "episodes": len(traces),
            "goal": {
                "source": settings.goal_source,
                "offset": settings.goal_offset,
                "budget": settings.budget,
            },
            "settings": asdict(settings)
            | {"batch": self.batch, "redraw": self.redraw, "drop_auto": self.drop == "auto"},
            **summarize(env, traces),
            "deadline": None if self.budget_ms is None else deadline_report(traces, self.budget_ms / 1000),
            "peak_memory_bytes": peak_memory(ready.device),
            "version": sparsewm.__version__,
        }
        return traces, results

    def traces(
        self,
        ready: Prepared,
        on_plan: Callable[[int, int, float], None] | None = None,
        on_episode: Callable[[int, Trace], None] | None = None,
    ) -> list[Trace]:
        """Run the episodes of `ready` on its device; arguments as of `evaluate`."""
        env, settings = ready.env, ready.settings

        def planned(episode: int, decision: int, trace: Trace) -> None:
            if on_plan is not None:
                on_plan(episode, decision, min(1.0, trace.steps / settings.budget))

        try:
            policy = self.policy(env, ready.model, settings, ready.proposals)
            return run_episodes(env, ready.tasks, policy, settings.budget, self.batch, planned, on_episode)
        except PlanningError as error:
            raise UserError(str(error)) from None

    @property
    def devices(self) -> list[str]:
        """Names of the devices that share the episodes."""
        return self.device.split(",")

    def settings(self, env: GoalEnv) -> PlanSettings:
        """The environment's settings under this command's flags, checked."""
        kept_patches(1, self.start_drop)
        AutoDrop(self.drop_highest)
        if self.drop == "auto":
            if self.selection != "random":
                raise UserError(f"--drop auto is not for --selection {self.selection}: give a fraction")
            for flag, wrong in (
                ("drop-last", self.drop_last is not None),
                ("redraw", self.redraw == "never"),
            ):
                if wrong:
                    raise UserError(f"--drop auto chooses the tokens itself: leave --{flag} out")
        if self.drop_last is not None:
            if not 0 <= self.drop_last < 1:
                raise UserError(f"--drop-last must be at least 0 and below 1, got {self.drop_last:g}")
            if self.redraw != "iteration":
                raise UserError("--drop-last draws other tokens at every iteration: leave --redraw out")
        one_of("planner", self.planner, PLANNERS)
        one_of("selection", self.selection, SELECTIONS)
        if self.cost is not None:
            one_of("cost", self.cost, get_args(Measure))
        if self.scored is not None:
            one_of("scored", self.scored, get_args(Scored))
        if self.encoder is not None:
            one_of("encoder", self.encoder, ENCODERS)
        if self.planner == "gd" and "oracle" in self.selection:
            raise UserError(
                "gradient descent cannot see through the simulator: choose --planner cem, icem or mppi"
            )
        check_seed(self.seed)
        self.check_proposals(env)
        names = [field.name for field in fields(PlanSettings)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        settings = replace(environment_settings(env.name).plan, **given)
        if self.planner == "gd" and (settings.race > 1 or settings.settled):
            raise UserError("--race and --settled are for --planner cem, icem or mppi: leave them out")
        if self.selection in ("oracle", "encoder_oracle") and settings.race > 1:
            raise UserError(f"--selection {self.selection} has no rough cost to race by: leave --race out")
        at_least(1, race=self.race)
        at_least(0, settled=self.settled)
        at_least(1 if self.planner == "gd" else 2, samples=self.samples)
        at_least(2, elites=self.elites)
        at_least(
            1, iterations=self.iterations, horizon=self.horizon, execute=self.execute, budget=self.budget
        )
        at_least(1, goal_offset=self.goal_offset, episodes=self.episodes, batch=self.batch)
        at_least(1, candidates=self.candidates)
        at_least(0, alpha=self.alpha, chunk=self.chunk)
        at_least(1, budget_ms=self.budget_ms)
        if self.budget_ms is not None and self.batch > 1:
            raise UserError("--budget-ms is for one episode at a time: leave --batch out")
        if self.budget_ms is not None and self.selection in ("none", "random_actions", "policy"):
            raise UserError(f"--selection {self.selection} plans nothing: leave --budget-ms out")
        at_least(1e-3, spread=self.spread)
        if self.proposals != GAUSSIAN and settings.proposal_mode == "replace" and self.hold is None:
            settings = replace(
                settings, hold=False
            )  # nothing is searched: the proposals are scored as they are
        if self.selection == "proprio":
            if self.cost == "temporal":
                raise UserError("--cost temporal reads tokens: give --cost mse with --selection proprio")
            settings = replace(settings, cost="mse")
        if self.elites is None:
            settings = replace(settings, elites=min(settings.elites, max(2, settings.samples // 2)))
        elif self.elites > settings.samples:
            raise UserError(f"--elites {self.elites} is more than --samples {settings.samples}: lower it")
        if self.execute is None:
            settings = replace(settings, execute=min(settings.execute, settings.horizon))
        elif self.execute > settings.horizon:
            raise UserError(f"--execute {self.execute} is more than --horizon {settings.horizon}: lower it")
        if settings.goal_source == "trajectory" and settings.goal_offset > settings.budget:
            raise UserError(
                f"--goal-offset {settings.goal_offset} is more than the {settings.budget} steps of --budget: "
                "lower it"
            )
        return settings

    @property
    def start_drop(self) -> float:
        """The drop ratio a first plan is made with."""
        return AutoDrop(self.drop_highest).drop if self.drop == "auto" else self.drop

    def check_proposals(self, env: GoalEnv) -> None:
        """Refuse proposals that do not exist, and flags that would have no effect."""
        if self.proposals != GAUSSIAN:
            if self.selection in ("none", "random_actions"):
                raise UserError(f"--selection {self.selection} asks for no proposals: leave --proposals out")
            check_proposals(self.proposals, env.name, names=self.names)
            return
        if self.selection == "policy":
            raise UserError(
                "--selection policy executes proposals: say with --proposals where they come from"
            )
        for name in ("proposal_mode", "candidates", "instruction", "names"):
            if getattr(self, name) is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is for proposals: say with --proposals where they come from")

    def load_proposals(
        self, env: GoalEnv, settings: PlanSettings, device: torch.device, dtype: torch.dtype
    ) -> Proposals | None:
        """The sampler and what is asked of it, None for the planner's own candidates."""
        if self.proposals == GAUSSIAN:
            return None
        dtype = dtype if dtype.is_floating_point else fastest_dtype(device)
        sampler = load_sampler(self.proposals, env, device, self.seed, self.names, dtype)
        text = environment_settings(env.name).instruction if self.instruction is None else self.instruction
        return Proposals(sampler, settings.candidates, settings.proposal_mode, text)

    def load_model(
        self, env: GoalEnv, settings: PlanSettings, device: torch.device, dtype: torch.dtype
    ) -> WorldModel | None:
        """The world model, None for yardsticks that need none."""
        if self.selection in WITHOUT_MODEL:
            return None
        path = self.checkpoint or pretrained_path(env.name)
        model = load(
            path,
            device,
            dtype,
            environment=env.name,
            encoder_name=self.encoder,
            encoder_weights=self.encoder_weights,
            hub_repo=self.hub_repo,
        )
        if settings.cost == "temporal" and model.distance is None:
            raise UserError(
                f"checkpoint {path} has no temporal distance: plan with --cost mse, or add one with "
                f"sparsewm train --env {env.name} --extend {path} --distance-steps 400 --output FOLDER"
            )
        return model

    def policy(
        self,
        env: GoalEnv,
        model: WorldModel | None,
        settings: PlanSettings,
        proposals: Proposals | None = None,
    ) -> Policy:
        """What acts in the environment."""
        if self.selection == "none":
            return Still(env)
        if self.selection == "random_actions":
            return RandomActions(env)
        if self.selection == "policy":
            assert proposals is not None
            return FirstProposal(env, proposals, settings.execute * env.frameskip)
        options: dict[str, Any] = {
            name: getattr(settings, name) for name in ("samples", "iterations", "elites", "race", "settled")
        }
        wanted = inspect.signature(PLANNERS[self.planner]).parameters
        options = {name: value for name, value in options.items() if name in wanted} | {"seed": self.seed}
        mpc = MPC(PLANNERS[self.planner](**options), settings.execute)
        deadline = None if self.budget_ms is None else self.budget_ms / 1000
        generator = torch.Generator().manual_seed(self.seed)
        if self.selection == "oracle":
            problems = simulator_problems(env, settings, partial(TrueDistance, env))
            return Planned(env, mpc, problems, deadline=deadline, proposals=proposals)
        assert model is not None
        if self.selection == "encoder_oracle":

            def token_distance(goals: Sequence[np.ndarray]) -> TokenDistance:
                encoder, standardizer, alpha = model.encoder, model.standardizer, settings.alpha
                return TokenDistance(env, encoder, standardizer, goals, self.start_drop, alpha, generator)

            problems = simulator_problems(env, settings, token_distance)
            return Planned(env, mpc, problems, deadline=deadline, proposals=proposals)
        return Planned(
            env,
            mpc,
            ModelProblems(
                model,
                env,
                self.seed,
                self.redraw,
                horizon=settings.horizon,
                drop=AutoDrop(self.drop_highest) if self.drop == "auto" else self.drop,
                later_drops=later_drops(self.start_drop, settings.drop_last, settings.iterations),
                alpha=settings.alpha,
                selection="proprio" if self.selection == "proprio" else "random",
                measure=settings.cost,
                chunk=self.chunk,
                hold=settings.hold,
                spread=settings.spread,
                scored=settings.scored,
            ),
            self.imagine and model.decoder is not None,
            deadline,
            proposals,
        )


def later_drops(first: float, last: float | None, iterations: int) -> tuple[float, ...]:
    """Drop ratios of the second to the last iteration, in equal steps from `first`; none without a `last`."""
    if last is None:
        return ()
    return tuple(first + (last - first) * i / (iterations - 1) for i in range(1, iterations))
