"""`sparsewm evaluate`."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

import sparsewm
from sparsewm.cli.common import command_line, output_folder, progress_bar
from sparsewm.cli.inspect import reading
from sparsewm.config import Frame, PlanConfig, TokenSelection
from sparsewm.data import Dataset, open_dataset
from sparsewm.evaluation.hindsight import Cases, warnings
from sparsewm.evaluation.machine import machine
from sparsewm.evaluation.offline import OfflineJudge, Scores, report
from sparsewm.evaluation.ranking import rank_scores
from sparsewm.files import only_one, write_json
from sparsewm.model.checkpoint import checkpoint_hash, is_shipped, load, pretrained_path
from sparsewm.model.hub import checkpoint_folder
from sparsewm.model.world_model import WorldModel
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.report.plots import plot_cases, plot_errors
from sparsewm.tasks import check_seed
from sparsewm.trees import plain

SHOWN = 3  # best and worst cases in a picture


@dataclass
class Evaluate:
    """Judge a world model by recorded data alone, without an environment.

    Imagined frames are compared with recorded ones, and with copying the present frame. Hindsight ranking
    stands in for planning: the frame that recorded actions led to is the goal, and the world model scores
    them among actions of other episodes, as a planner would. Writes evaluate.json, errors.png and cases.png.

    Example: sparsewm evaluate --dataset my_robot.h5 --checkpoint runs/robot/checkpoint
    """

    dataset: str
    """Recorded episodes: a file or folder of any known format, lerobot:user/name, minari:NAME."""
    checkpoint: str
    """Folder of a world model, user/name on the hub, or an environment with a shipped one."""
    format: str | None = None
    """Format of the dataset, or module:class of your own reader; found out when left out."""
    cameras: tuple[str, ...] = ()
    """Cameras to show, side by side; those the model was trained on when left out."""
    episodes: Literal["held_out", "all"] = "held_out"
    """held_out: those that training on this dataset keeps for validation. all: for data not trained on."""
    drops: tuple[float, ...] = (0.0, 0.5)
    """Fractions of the patch tokens dropped."""
    horizon: int = 5
    """Model steps imagined."""
    ranked: int | None = None
    """Model steps to the frame that actions are ranked by; the horizon when left out."""
    candidates: int = 32
    """Action sequences ranked, the recorded one included."""
    windows: int = 256
    """Recorded moments to imagine from."""
    objective: Annotated[str, arg(aliases=("--cost.objective",))] = "mse"
    """Cost that ranks, as in plan: mse, temporal (where the model has it), or module:Class."""
    proprio_weight: Annotated[float | None, arg(aliases=("--cost.proprio-weight",))] = None
    """Weight of the proprioception error; as usual in the model's environment when left out, or else 1."""
    frame: Annotated[Frame | None, arg(aliases=("--cost.frame",))] = None
    """Imagined frame compared with the goal, last or min; likewise, or else last."""
    selection: Annotated[TokenSelection, arg(aliases=("--tokens.selection",))] = "random"
    """random, or none: proprioception alone ranks (a yardstick)."""
    encoder_weights: Path | None = None
    """Local weights file of the encoder."""
    hub_repo: Path | None = None
    """Local clone of the encoder's torch.hub repository."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision of the predictor: auto (bfloat16 or float32, whichever is faster), bfloat16, float32, or
    int8 (rounded further, where the processor has it)."""
    seed: int = 0
    """Seed of moments, other actions and dropped tokens."""
    output: Path = Path("runs/evaluate")
    """Folder of the results."""

    def run(self) -> int:
        check_seed(self.seed)
        device = choose_device(self.device)
        dtype = choose_dtype(self.dtype, device, planning=True)
        name = pretrained_path(self.checkpoint) if is_shipped(self.checkpoint) else self.checkpoint
        path, _ = checkpoint_folder(name)
        model = load(name, device, dtype, encoder_weights=self.encoder_weights, hub_repo=self.hub_repo)
        with ExitStack() as held:
            dataset = held.enter_context(closing(self.open(model)))
            config = self.config(model)
            judge = OfflineJudge(model, dataset, config, self.drops, self.horizon, self.ranked)
            episodes = np.arange(dataset.episodes) if self.episodes == "all" else None
            cases = judge.cases(episodes, self.windows, self.candidates, self.seed)
            odd = warnings(dataset, judge.interface)
            for sentence in odd:
                print(f"warning: {sentence}", file=sys.stderr)
            folder = output_folder(self.output)
            held.enter_context(only_one(folder))
            with progress_bar("imagining") as progress:
                scores = judge.score(cases, self.seed, progress)
            found = report(cases, scores, model, self.seed)
            trained_on = model.metadata.get("dataset", {}).get("hash")
            about = {
                "environment": model.environment,
                "dataset": str(dataset.path),
                "dataset_hash": dataset.hash,
                "trained_on_it": None
                if trained_on is None
                else trained_on in (dataset.hash, dataset.earlier_hash),
                "evaluated": self.episodes,
                "weights": checkpoint_hash(path),
                "frameskip": model.frameskip,
                "horizon": judge.horizon,
                "ranked": judge.ranked,
                "cost": plain(vars(config.cost)),
                "selection": config.tokens.selection,
                "dtype": str(dtype).removeprefix("torch."),
                "seed": self.seed,
                "warnings": odd,
            }
            found = about | found | {"cases": case_rows(cases, scores)}
            found |= {"command": command_line("evaluate"), "version": sparsewm.__version__}
            write_json(folder / "evaluate.json", found | {"machine": machine(device)})
            plot_errors(folder / "errors.png", found["errors"], f"{dataset.path.name}, {model.environment}")
            plot_cases(folder / "cases.png", panels(judge, cases, scores, self.seed))
        show(found, Console())
        print(f"results in {folder}/")
        return 0

    def open(self, model: WorldModel) -> Dataset:
        """The dataset, with the cameras that the model was trained on unless others are named."""
        known = model.interface.cameras if model.interface is not None else ()
        cameras = self.cameras or (known if len(known) > 1 else ())
        with reading() as progress:
            return open_dataset(self.dataset, cameras=cameras, format=self.format, progress=progress)

    def config(self, model: WorldModel) -> PlanConfig:
        """How the model is planned with, by the squared error unless another objective is named."""
        given = {"proprio_weight": self.proprio_weight, "frame": self.frame}
        cost = {"objective": self.objective} | {k: v for k, v in given.items() if v is not None}
        return PlanConfig.of(model.environment, cost=cost, tokens={"selection": self.selection})


def case_rows(cases: Cases, scores: Scores) -> list[dict[str, Any]]:
    """Where each case lies, how much moves in it, and the rank of its actions per drop ratio."""
    ranks = [rank_scores(costs)["rank"] for costs in scores.costs]
    moving = scores.moving
    return [
        {
            "row": int(cases.rows[i]),
            "episode": int(cases.episodes[i]),
            "change": float(scores.change[i]),
            "moving": bool(moving[i]),
            "rank": {
                f"drop_{drop:g}": float(rank[i]) for drop, rank in zip(scores.drops, ranks, strict=True)
            },
        }
        for i in range(len(cases.rows))
    ]


def panels(judge: OfflineJudge, cases: Cases, scores: Scores, seed: int) -> list[Any]:
    """Pictures of the best and the worst ranked cases at the first drop ratio, of those where much moves."""
    rank, drop = rank_scores(scores.costs[0])["rank"], scores.drops[0]
    numbers = np.flatnonzero(scores.moving)
    numbers = np.arange(len(rank)) if not len(numbers) else numbers
    order = numbers[np.lexsort((-scores.change[numbers], rank[numbers]))]
    best, count = order[:SHOWN], scores.costs.shape[2]
    worst = order[SHOWN:][np.lexsort((-scores.change[order[SHOWN:]], -rank[order[SHOWN:]]))][:SHOWN]
    ahead, pixels = judge.ranked * judge.model.frameskip, judge.dataset.pixels
    shown = []
    for i in [*best, *worst]:
        rival = int(scores.costs[0, i, 1:].argmin()) + 1
        row, other = int(cases.rows[i]), int(cases.others[i, rival - 1])
        pictures = [(pixels[row], "start"), (pixels[row + ahead], "recorded future")]
        if judge.model.decoder is not None:
            pictures.append((judge.imagined(cases, i, drop, 0, seed), "imagined: recorded actions"))
            pictures.append((judge.imagined(cases, i, drop, rival, seed), "imagined: the best others"))
        pictures += [(pixels[other], "the others' start"), (pixels[other + ahead], "the others' end")]
        episode = int(cases.episodes[i])
        step = row - int(judge.dataset.offsets[episode])
        name = (
            f"{'best' if i in best else 'worst'}: rank {rank[i]:g} of {count}; episode {episode}, step {step}"
        )
        shown.append((name, pictures))
    return shown


def show(found: dict[str, Any], console: Console) -> None:
    """Print errors and ranking."""
    table = Table("drop", "tokens kept", "error / copying, by model steps ahead", "proprioception likewise")
    for drop, part in found["errors"].items():
        ratios = [
            "  ".join("-" if x is None else f"{x:.2f}" for x in part[f"{name}_ratio"])
            for name in ("tokens", "proprio")
        ]
        table.add_row(drop.removeprefix("drop_"), str(part["kept"]), *ratios)
    console.print(table)
    chance = found["chance"]
    table = Table(
        "drop", "windows", *(f"{label} (chance {chance[key]:.2f})" for key, label in MEASURES.items())
    )
    for drop, parts in found["ranking"].items():
        for name, part in parts.items():
            if part["windows"]:
                values = [text(part[key]) for key in MEASURES]
                table.add_row(drop.removeprefix("drop_"), f"{name} {part['windows']}", *values)
    console.print(table)


MEASURES = {"mean_reciprocal_rank": "reciprocal rank", "top1": "first", "percentile": "beats others"}
"""Of a ranking, and what they are called on the screen."""


def text(measure: dict[str, Any]) -> str:
    """A mean and its interval."""
    interval = measure["ci95"]
    return f"{measure['value']:.2f}" + ("" if interval is None else " ({:.2f}-{:.2f})".format(*interval))
