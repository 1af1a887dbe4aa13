"""`sparsewm plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import get_args

import torch

import sparsewm
from envs import GoalEnv
from planners import MPC, PLANNERS, PlanningError
from sparsewm.cli.common import check_seed, command_line, output_folder, progress_bar, seconds
from sparsewm.encoders import ENCODERS
from sparsewm.errors import UserError
from sparsewm.evaluation.closed_loop import (
    ModelProblems,
    Planned,
    Policy,
    RandomActions,
    Still,
    Trace,
    make_tasks,
    run_episodes,
    summarize,
)
from sparsewm.evaluation.simulator import SimulatorProblem, TokenDistance, TrueDistance
from sparsewm.evaluation.statistics import peak_memory
from sparsewm.files import write_json
from sparsewm.model import WorldModel, kept_patches, load
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.model.problem import Measure
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

PROPOSALS = ("gaussian",)
SELECTIONS = ("random", "proprio", "oracle", "encoder_oracle", "none", "random_actions")


@dataclass
class Plan:
    """Reach goals by model-predictive control in the world model.

    Writes results.json, a video per episode (real scene, goal, kept patches) and plan.png.

    Example: sparsewm plan --env pusht --drop 0.5 --episodes 3
    """

    env: str
    """Environment: pusht, wall or pointmaze."""
    drop: float = 0.5
    """Fraction of the patch tokens dropped, at least 0 and below 1, drawn anew at every iteration."""
    planner: str = "cem"
    """Planner: cem, icem, mppi or gd."""
    proposals: str = "gaussian"
    """Where candidate action sequences come from: gaussian."""
    selection: str = "random"
    """random: tokens drawn at random. Yardsticks: proprio (no token error), oracle (true simulator and
    distance), encoder_oracle (true simulator, token distance), none (does nothing), random_actions."""
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
    hold: bool | None = None
    """Plan one action per model step and hold it for its environment steps."""
    spread: float | None = None
    """Deviation of the first candidates, in deviations of the recorded actions."""
    batch: int = 1
    """Episodes planned at once."""
    chunk: int = 0
    """Candidates rolled out at once; 0: all."""
    video: bool = True
    """Write a video per episode."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision of the predictor: auto, bfloat16 or float32."""
    seed: int = 0
    """Seed of tasks, candidates and drop masks."""
    output: Path = Path("runs/plan")
    """Folder for results.json, plan.png and the videos."""

    def run(self) -> int:
        env = make_env(self.env)
        settings = self.settings(env)
        device = choose_device(self.device)
        dtype = choose_dtype(self.dtype, device)
        model = self.load_model(env, settings, device, dtype)
        tasks = make_tasks(env, self.episodes, self.seed, settings.goal_source, settings.goal_offset)
        policy = self.policy(env, model, settings)
        folder = output_folder(self.output)
        grid = (8, 8) if model is None else model.config.grid
        successes: list[bool] = []
        with progress_bar("planning") as progress:
            progress(0, len(tasks))

            def score() -> str:
                return f"success {sum(successes)}/{len(successes)}"

            def on_plan(episode: int, decision: int, trace: Trace) -> None:
                share = min(1.0, trace.steps / settings.budget)
                text = f"episode {episode + 1}, re-plan {decision + 1}, {score()}"
                progress(len(successes) + 0.99 * share, len(tasks), text)

            def on_episode(episode: int, trace: Trace) -> None:
                successes.append(trace.success)
                if self.video:
                    write_video(folder / f"episode-{episode:03d}.mp4", episode_frames(env, trace, grid))
                progress(len(successes), len(tasks), score())

            try:
                traces = run_episodes(env, tasks, policy, settings.budget, self.batch, on_plan, on_episode)
            except PlanningError as error:
                raise UserError(str(error)) from None
        total = 64 if model is None else model.patches
        kept = kept_patches(total, self.drop)
        results = {
            "environment": env.name,
            "drop": self.drop,
            "tokens": {"kept": kept, "total": total},
            "planner": self.planner,
            "proposals": self.proposals,
            "selection": self.selection,
            "encoder": None if model is None else {"name": model.encoder.name, "hash": model.encoder.hash},
            "checkpoint": None if model is None else str(self.checkpoint or f"pretrained/{env.name}"),
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "seed": self.seed,
            "episodes": len(traces),
            "goal": {
                "source": settings.goal_source,
                "offset": settings.goal_offset,
                "budget": settings.budget,
            },
            "settings": asdict(settings) | {"batch": self.batch},
            **summarize(env, traces),
            "peak_memory_bytes": peak_memory(device),
            "version": sparsewm.__version__,
            "command": command_line(),
        }
        write_json(folder / "results.json", results)
        low, high = results["success_ci95"]
        goals = f"{settings.goal_source} goals" + (
            f" {settings.goal_offset} steps ahead" if settings.goal_source == "trajectory" else ""
        )
        summary = (
            f"{env.name}, {goals}, budget {settings.budget} steps, seed {self.seed}: success "
            f"{sum(successes)}/{len(traces)} ({100 * low:.0f}-{100 * high:.0f}%, 95% Wilson); {kept} of "
            f"{total} tokens, {seconds(results['seconds_per_iteration'])} an iteration, "
            f"{seconds(results['seconds_per_plan'])} a plan"
        )
        plot_plan(folder / "plan.png", env, traces, grid, summary)
        print(f"{summary}\nresults in {folder}/")
        return 0

    def settings(self, env: GoalEnv) -> PlanSettings:
        """The environment's settings under this command's flags, checked."""
        kept_patches(1, self.drop)
        one_of("planner", self.planner, PLANNERS)
        one_of("proposals", self.proposals, PROPOSALS)
        one_of("selection", self.selection, SELECTIONS)
        if self.cost is not None:
            one_of("cost", self.cost, get_args(Measure))
        if self.encoder is not None:
            one_of("encoder", self.encoder, ENCODERS)
        if self.planner == "gd" and "oracle" in self.selection:
            raise UserError(
                "gradient descent cannot see through the simulator: choose --planner cem, icem or mppi"
            )
        check_seed(self.seed)
        names = [field.name for field in fields(PlanSettings)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        settings = replace(environment_settings(env.name).plan, **given)
        at_least(1 if self.planner == "gd" else 2, samples=self.samples)
        at_least(2, elites=self.elites)
        at_least(
            1, iterations=self.iterations, horizon=self.horizon, execute=self.execute, budget=self.budget
        )
        at_least(1, goal_offset=self.goal_offset, episodes=self.episodes, batch=self.batch)
        at_least(0, alpha=self.alpha, chunk=self.chunk)
        at_least(1e-3, spread=self.spread)
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

    def load_model(
        self, env: GoalEnv, settings: PlanSettings, device: torch.device, dtype: torch.dtype
    ) -> WorldModel | None:
        """The world model, None for yardsticks that need none."""
        if self.selection in ("oracle", "none", "random_actions"):
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
                f"sparsewm train --env {env.name} --distance-for {path} --output FOLDER"
            )
        return model

    def policy(self, env: GoalEnv, model: WorldModel | None, settings: PlanSettings) -> Policy:
        """What acts in the environment."""
        if self.selection == "none":
            return Still(env)
        if self.selection == "random_actions":
            return RandomActions(env)
        options = {"samples": settings.samples, "iterations": settings.iterations, "seed": self.seed}
        if self.planner in ("cem", "icem"):
            options["elites"] = settings.elites
        mpc = MPC(PLANNERS[self.planner](**options), settings.execute)
        generator = torch.Generator().manual_seed(self.seed)
        if self.selection == "oracle":
            return Planned(
                env,
                mpc,
                lambda traces, active: SimulatorProblem(
                    env,
                    [traces[i].states[-1] for i in active],
                    TrueDistance(env, [traces[i].task.goal for i in active]),
                    settings.horizon,
                    hold=settings.hold,
                ),
            )
        assert model is not None
        if self.selection == "encoder_oracle":
            return Planned(
                env,
                mpc,
                lambda traces, active: SimulatorProblem(
                    env,
                    [traces[i].states[-1] for i in active],
                    TokenDistance(
                        env,
                        model.encoder,
                        model.standardizer,
                        [traces[i].task.goal for i in active],
                        self.drop,
                        settings.alpha,
                        generator,
                    ),
                    settings.horizon,
                    hold=settings.hold,
                ),
            )
        return Planned(
            env,
            mpc,
            ModelProblems(
                model,
                env,
                self.seed,
                horizon=settings.horizon,
                drop=self.drop,
                alpha=settings.alpha,
                selection="proprio" if self.selection == "proprio" else "random",
                measure=settings.cost,
                chunk=self.chunk,
                hold=settings.hold,
                spread=settings.spread,
            ),
        )
