"""`sparsewm bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

import sparsewm
from sparsewm.cli.bench_tables import encode_table, plan_table, profile_table, size_table, train_table
from sparsewm.cli.common import command_line, output_folder, progress_bar
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.actors import interface_of_env
from sparsewm.evaluation.bench import (
    bench_encoder,
    bench_model,
    measure_encoding,
    measure_planning,
    measure_plans,
    measure_training,
    random_model,
    real_frames,
)
from sparsewm.files import write_json
from sparsewm.model import WorldModel, kept_patches
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.report.plots import plot_bench, plot_rates
from sparsewm.settings import make_env
from sparsewm.tasks import check_seed
from sparsewm.training.config import TrainConfig, preset
from sparsewm.trees import at_least, not_empty

FRAMES = 32
"""Pictures of the environment that are encoded, and over which precisions are compared."""


@dataclass
class Bench:
    """Time planning, encoding or training, and beside each what plain torch takes, in one run.

    plan: a planner iteration at several drop ratios. Beside our rollout stands DINO-WM's on the same weights:
    a three-frame window computed anew at every step, masked attention with its score matrix in memory; in
    float32 as published, and in bfloat16. That it also encodes the start image once per candidate is timed
    apart. Both imagine from the first frame of an episode, without past ones; --plans times whole re-plans,
    with the frames seen before.

    encode: pictures to tokens, beside the encoder's own network in torch.

    train: a whole training step, beside the published recipe in plain torch: three frames, all tokens, one
    step ahead, dense masked attention, 32 windows, AdamW. Windows are random numbers.

    Example: sparsewm bench --env pusht --drops 0 0.3 0.5 0.8

    Example: sparsewm bench --what encode --encoder dinov2_vits14 --resolution 196

    Example: sparsewm bench --what train --preset paper --repeats 5
    """

    what: tuple[Literal["plan", "encode", "train"], ...] = ("plan",)
    """plan, encode, train; several are timed one after the other."""
    env: str = "pusht"
    """Environment whose shipped model is timed, or whose sizes and pictures are taken."""
    drops: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.8)
    """Drop ratios (plan)."""
    preset: str = "default"
    """Sizes. default: in plans those of the shipped model, with its weights; paper and others: of
    configs/presets, with random weights."""
    checkpoint: Path | None = None
    """Checkpoint folder to time instead (plan)."""
    encoder: str | None = None
    """Encoder to time (encode): embedded, dinov2_vits14, timm:NAME, ...; the preset's if left out."""
    resolution: tuple[int, ...] = ()
    """Height and width it sees in pixels, or one number."""
    encoder_weights: Path | None = None
    """Local weights file of the encoder."""
    hub_repo: Path | None = None
    """Local clone of the encoder's torch.hub repository."""
    random_weights: bool = False
    """Time random weights of the encoder; without network that is done anyhow, and said."""
    batches: tuple[int, ...] = (1, 32)
    """Pictures encoded at once (encode)."""
    candidates: int = 100
    """Candidates per iteration (plan)."""
    horizon: int = 5
    """Model steps imagined (plan)."""
    repeats: int = 15
    """Timed repeats of ours; all are interleaved, so that drifts of the machine cancel."""
    baseline: int = 3
    """Timed repeats of what ours is compared with; 0 leaves it out."""
    plans: int = 0
    """Also time so many whole re-plans per drop ratio in a closed loop, encoding included; 0: none."""
    iterations: int = 10
    """Iterations of such a plan."""
    profile: bool = False
    """Also print where a planner iteration's time goes, and save traces (trace_drop0.5.json) for chrome://tracing
    or Perfetto."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision: auto (bfloat16 or float32, whichever is faster), bfloat16, float32, or in plans int8
    (products of the rollout's layers, where the processor has them)."""
    seed: int = 0
    """Seed of weights, observations and masks."""
    output: Path = Path("runs/bench")
    """Folder for bench.json and bench.png of plans, encode.json, train.json, ..., and the traces."""

    def run(self) -> int:
        env = make_env(self.env)
        preset(self.preset)
        not_empty(what=self.what, drops=self.drops, batches=self.batches)
        at_least(0, baseline=self.baseline, plans=self.plans)
        at_least(1, iterations=self.iterations, batches=min(self.batches))
        at_least(1, candidates=self.candidates, horizon=self.horizon, repeats=self.repeats)
        check_seed(self.seed)
        if len(self.resolution) > 2 or min(self.resolution, default=1) < 1:
            raise UserError(f"`resolution` is a height and a width in pixels, or one, not {self.resolution}")
        for drop in self.drops:
            kept_patches(1, drop)
        device = choose_device(self.device)
        choose_dtype(self.dtype, device, planning=set(self.what) <= {"plan"})
        folder = output_folder(self.output)
        for what in dict.fromkeys(self.what):
            {"plan": self._plan, "encode": self._encode, "train": self._train}[what](env, device, folder)
        print(f"results in {folder}/")
        return 0

    def _model(self, env: GoalEnv, device: torch.device) -> WorldModel:
        """The world model whose plans are timed."""
        dtype = choose_dtype(self.dtype, device, planning=True)
        if self.preset != "default" and self.checkpoint is None:
            return random_model(env, self.preset, device, dtype, self.seed)
        files = {"encoder_weights": self.encoder_weights, "hub_repo": self.hub_repo}
        return bench_model(env, self.checkpoint, device, dtype, **files)

    def _about(self, env: GoalEnv) -> dict[str, Any]:
        """What every file of results says."""
        about = {"environment": env.name, "preset": self.preset, "seed": self.seed}
        return about | {"version": sparsewm.__version__, "command": command_line()}

    def _plan(self, env: GoalEnv, device: torch.device, folder: Path) -> None:
        model = self._model(env, device)
        for old in folder.glob("trace_drop*.json"):  # of an earlier run
            old.unlink()
        with progress_bar("timing plans") as progress:
            report = measure_planning(
                model,
                env,
                self.drops,
                self.candidates,
                self.horizon,
                self.repeats,
                self.seed,
                self.baseline,
                progress,
                folder if self.profile else None,
            )
        if self.plans:
            with progress_bar("planning") as progress:
                sizes = (self.candidates, self.horizon, self.iterations, self.plans)
                report["plans"] = measure_plans(model, env, self.drops, *sizes, self.seed, progress)
        write_json(folder / "bench.json", report | self._about(env))
        title = f"{self.candidates} candidates, horizon {self.horizon}, {model.patches} tokens"
        plot_bench(folder / "bench.png", report["rows"], title)
        Console().print(plan_table(report["rows"]), size_table(report["sizes"]))
        if encoding := report["rows"][-1].get("encoding_seconds_per_iteration"):
            print(
                f"DINO-WM also encodes the start image per candidate: {encoding['median']:.2f} s an iteration"
            )
        for row in report.get("plans", []):
            print(
                f"a plan at drop {row['drop']:g}, encoding included: "
                f"{1e3 * row['seconds_per_plan']['median']:.0f} ms, {row['plans_per_second']:.2g} a second; "
                f"{row['actions_per_second']:.0f} actions planned a second"
            )
        if self.profile:
            Console().print(profile_table(report["profile"]))

    def _encode(self, env: GoalEnv, device: torch.device, folder: Path) -> None:
        sides = self.resolution
        tree = preset(self.preset)
        encoder, random = bench_encoder(
            self.encoder or tree.encoder.name or "embedded",
            self.seed,
            self.encoder_weights,
            self.random_weights,
            hub_repo=self.hub_repo,
            device=device,
            resolution=None if not sides else sides[0] if len(sides) == 1 else (sides[0], sides[1]),
            picture=interface_of_env(env).picture,
        )
        frames = real_frames(env, FRAMES, self.seed)
        with progress_bar("timing encoders") as progress:
            report = measure_encoding(
                encoder,
                frames,
                self.batches,
                self.repeats,
                self.baseline,
                tree.optim.whitening,
                progress,
            )
        report["encoder"]["weights"] = "random" if random else "its own"
        write_json(folder / "encode.json", report | self._about(env))
        found = report["encoder"]
        height, width = found["resolution"]
        name = found["name"] + (" with random weights" if random else "")
        title = f"{name}, {height} x {width}: {found['tokens']} tokens"
        bars = [(f"{r['encoder']} {r['dtype']}, {r['batch']} at once", r) for r in report["rows"]]
        plot_rates(folder / "encode.png", bars, "pictures_per_second", "pictures a second", title)
        Console().print(encode_table(report["rows"]))
        print(
            f"{title}; {found['parameters'] / 1e6:.2f} million parameters, "
            f"{found['operations_per_picture'] / 1e9:.3g} GFLOP a picture"
        )
        if random:
            print("of random weights the error says nothing about the real ones'")

    def _train(self, env: GoalEnv, device: torch.device, folder: Path) -> None:
        config = TrainConfig.of(env.name, self.preset).optim
        model = random_model(env, self.preset, device, torch.float32, self.seed)
        dtype = choose_dtype(self.dtype, device)
        with progress_bar("timing steps") as progress:
            report = measure_training(model, config, dtype, self.repeats, self.seed, self.baseline, progress)
        write_json(folder / "train.json", report | self._about(env))
        title = f"{model.patches} tokens of {model.config.token_dim}, width {model.config.width}"
        bars = [(f"{r['recipe']} {r['dtype']}, {r['kind']}", r) for r in report["rows"]]
        plot_rates(folder / "train.png", bars, "windows_per_second", "windows a second", title)
        Console().print(train_table(report["rows"]))
        sizes = report["sizes"]
        print(
            f"{sizes['parameters'] / 1e6:.2f} million parameters, the plain recipe's network "
            f"{sizes['plain_parameters'] / 1e6:.2f}; loading a batch takes "
            f"{1e3 * report['loading_seconds']['median']:.3g} ms more"
        )
