"""World models published on the Hugging Face hub, with a card that says what they are."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from sparsewm.errors import UserError
from sparsewm.model.checkpoint import checkpoint_hash, save
from sparsewm.model.hub import CARD, CHECKPOINT_FILES, hub_errors, of_run, repository
from sparsewm.model.world_model import WorldModel


def push_to_hub(
    model: WorldModel | str | Path,
    name: str,
    private: bool = False,
    token: str | None = None,
    license: str | None = None,
) -> str:
    """Publish a world model as ``user/name``, in one commit; the repository is made when there is none.

    The frozen encoder is not part of it, only its name and hash.

    Args:
        model: a model, or the folder of a checkpoint. A ``README.md`` in the folder goes along as it is;
            otherwise a card is written from the metadata.
        name: ``user/name`` or ``organisation/name``.
        private: whether a new repository is shown to its owner alone.
        token: of the hub, with permission to write; None: the one this machine is logged in with.
        license: identifier the card shall carry, e.g. "apache-2.0"; None: the card names none.

    Returns:
        Address of the repository.

    Raises:
        UserError: not a checkpoint, no permission, or no network.
    """
    from huggingface_hub import HfApi

    name, revision = repository(name)
    if revision is not None:
        raise UserError(f"world models are published on the main branch: give {name} without @{revision}")
    with tempfile.TemporaryDirectory(prefix="sparsewm-") as temporary:
        folder = Path(temporary) / "checkpoint"
        if isinstance(model, str | Path):
            source = of_run(Path(model).expanduser())
            if not source.is_dir():
                raise UserError(f"there is no folder {model}: give the one that `train` wrote")
            checkpoint_hash(source)  # refuses what is no checkpoint
            folder.mkdir()
            for file in (*CHECKPOINT_FILES, CARD):
                if (source / file).is_file():
                    shutil.copyfile(source / file, folder / file)
        else:
            save(model, folder)
        if not (folder / CARD).exists():
            (folder / CARD).write_text(model_card(folder, name, license), encoding="utf-8")
        with hub_errors(name, reading=False):
            api = HfApi(token=token)
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message="A world model of sparsewm",
                allow_patterns=[*CHECKPOINT_FILES, CARD],
            )
    return str(address)


def model_card(folder: str | Path, name: str, license: str | None = None) -> str:
    """The card of a checkpoint folder in Markdown, from what its metadata says.

    Args:
        folder: a checkpoint.
        name: ``user/name``, for the lines that load it.
        license: identifier for the card's head; None: none is named.
    """
    metadata = json.loads((Path(folder) / "metadata.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    head = {
        "library_name": "sparsewm",
        "pipeline_tag": "robotics",
        "tags": ["world-model", "model-predictive-control", "robotics", "sparsewm"],
    }
    if license is not None:
        head = {"license": license} | head
    rows, columns = config["grid"]
    encoder, environment = metadata["encoder"], metadata.get("environment")
    facts = {
        "Environment": environment,
        "Environment steps per model step": metadata.get("frameskip"),
        "Encoder": f"`{encoder['name']}`, frozen, not in this repository; weights {encoder['hash'][:12]}",
        "Tokens of a frame": f"{rows} x {columns} patches of {config['token_dim']} features",
        "Proprioception": f"{config['proprio_dim']} numbers",
        "Action": f"{config['action_dim']} numbers a model step",
        "Predictor": f"width {config['width']}, {config['depth']} layers, {config['heads']} heads"
        f"{' of {}'.format(config['head_dim']) if config.get('head_dim') else ''}, "
        f"{config['history']} frames of history",
        "Heads": ", ".join(part for part in ("distance", "decoder") if part in config) or "none",
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name.split('/')[-1]}\n\nA world model for planning from pixels with `sparsewm`: it predicts the "
        "tokens of a frozen encoder from actions, on any subset of a picture's patches.",
        _listed("Model", facts),
        _listed("Interface", metadata.get("interface")),
        _listed("Data", metadata.get("dataset")),
        _listed("Training", {"Settings": metadata.get("training")}),
        _errors(metadata.get("validation")),
        f'## Use\n\n```python\nimport sparsewm\n\nmodel = sparsewm.load("{name}")\n```',
        f"```bash\nsparsewm plan --env {environment} --checkpoint {name}\n```" if environment else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _listed(title: str, facts: Any) -> str:
    """A section with one line for each fact; empty where nothing is known."""
    if not isinstance(facts, dict):
        return ""
    lines = [f"- {_words(name)}: {_value(value)}" for name, value in facts.items() if value is not None]
    return f"## {title}\n\n" + "\n".join(lines) if lines else ""


def _words(name: str) -> str:
    return name.replace("_", " ").strip().capitalize() if name.islower() else name


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    return " ".join(str(value).split())


def _errors(validation: Any) -> str:
    """Table of the rollout's errors on held-out data, as a share of those of copying the frame."""
    rows = [
        f"| {name.removeprefix('drop_')} | {', '.join(f'{share:.2f}' for share in errors['tokens_ratio'])} |"
        for name, errors in (validation.items() if isinstance(validation, dict) else ())
        if isinstance(errors, dict) and "tokens_ratio" in errors
    ]
    if not rows:
        return ""
    table = "\n".join(["| drop | tokens |", "|---|---|", *rows])
    return (
        "## Errors\n\nOf imagined frames on held-out data, as a share of copying the first frame, at "
        f"horizons 1, 2, ...:\n\n{table}"
    )
