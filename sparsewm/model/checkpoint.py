"""Checkpoints: `model.safetensors`, `config.yaml`, `metadata.json`, written atomically and never pickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sparsewm.encoders import PatchEncoder, base_name, is_class, load_encoder, names_code
from sparsewm.errors import UserError, suggest
from sparsewm.files import (
    disk_errors,
    parse_json,
    parse_yaml,
    recover_folder,
    replace_folder,
    slug,
    stays_inside,
    temporary_folder,
    umask,
)
from sparsewm.model.decoder import DecoderConfig
from sparsewm.model.distance import DistanceConfig
from sparsewm.model.hub import CHECKPOINT_FILES as FILES
from sparsewm.model.hub import checkpoint_folder
from sparsewm.model.latent import TokenSpace
from sparsewm.model.predictor import PredictorConfig
from sparsewm.model.world_model import WorldModel
from sparsewm.precision import choose_device, choose_dtype

PRETRAINED = Path(__file__).parents[1] / "pretrained"

LARGEST_SIDE = 1 << 14
"""Pixels of a picture that an encoder sees, at most."""

SPARE = 1 << 24
"""Numbers that a world model may have beside its weights, such as those that follow from its grid."""

_DAMAGE = (ValueError, KeyError, TypeError, IndexError, ArithmeticError, AttributeError)


def save(model: WorldModel, path: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint folder; the previous one stays until the new one is complete.

    Weights are stored in bfloat16, statistics in float32.

    Raises:
        UserError: the disk is full, the folder cannot be written, or the model holds NaN or infinity.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        with temporary_folder(path) as place:
            temporary = place / path.name
            temporary.mkdir()
            networks = {"predictor": model.predictor, "distance": model.distance, "decoder": model.decoder}
            tensors = {
                f"{name}.{key}": value.bfloat16().contiguous()
                for name, network in networks.items()
                if network is not None
                for key, value in network.state_dict().items()
            }
            tensors |= {f"standardizer.{k}": v.float() for k, v in model.standardizer.state_dict().items()}
            if bad := [key for key, value in tensors.items() if not torch.isfinite(value).all()]:
                raise UserError(
                    f"{bad[0]} of this world model is not finite, nobody could load it: {path} is not written"
                )
            save_file({k: v.cpu() for k, v in tensors.items()}, temporary / FILES[0])
            config = dataclasses.asdict(model.config) | {"grid": list(model.config.grid)}
            if model.distance is not None:
                config["distance"] = dataclasses.asdict(model.distance.config)
            if model.decoder is not None:
                config["decoder"] = dataclasses.asdict(model.decoder.config)
            if model.space is not None:
                config["space"] = dataclasses.asdict(model.space)
            (temporary / FILES[1]).write_text(yaml.safe_dump(config, sort_keys=False))
            information = model.metadata | {
                "environment": model.environment,
                "frameskip": model.frameskip,
                "encoder": model.encoder.identity,
            }
            information |= metadata or {}
            (temporary / FILES[2]).write_text(json.dumps(information, indent=2) + "\n")
            (temporary / FILES[0]).chmod(0o666 & ~umask())  # what safetensors makes is for the owner alone
            replace_folder(temporary, path)
    return path


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    environment: str | None = None,
    encoder: PatchEncoder | None = None,
    encoder_name: str | None = None,
    encoder_weights: str | Path | None = None,
    hub_repo: str | Path | None = None,
    token: str | None = None,
) -> WorldModel:
    """Read a checkpoint.

    Args:
        path: folder written by `save`, or that of a run; or ``user/name[@revision]`` on the Hugging Face hub.
        device, dtype: where and in what precision the predictor computes, as torch names them, or auto.
        environment: name the checkpoint must be for, if given.
        encoder: a loaded encoder to use instead of loading the recorded one.
        encoder_name: of the network that the checkpoint's encoder must be, if given.
        encoder_weights, hub_repo: local files for the encoder (see `load_encoder`).
        token: of the hub, for private repositories; None: the one this machine is logged in with.

    Raises:
        UserError: not a checkpoint, damaged, of another environment or encoder, or not to be had.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device, planning=True)
    folder, downloaded = checkpoint_folder(path, token)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{path} is no checkpoint folder ({missing[0]} is missing): give the folder that `train` wrote"
        )
    try:
        config = parse_yaml(folder / FILES[1])
        metadata = parse_json(folder / FILES[2])
        tensors = load_file(folder / FILES[0])
        config["grid"] = tuple(config["grid"])
        distance, decoder = config.pop("distance", None), config.pop("decoder", None)
        distance_config = None if distance is None else DistanceConfig(**distance)
        decoder_config = None if decoder is None else DecoderConfig(**decoder)
        space = None if (kept := config.pop("space", None)) is None else TokenSpace(**kept)
        predictor_config = PredictorConfig(**config)
        layers = predictor_config.depth, 0 if decoder_config is None else decoder_config.layers
        if max(layers) > len(tensors):
            raise ValueError(f"its settings have {max(layers)} layers, its weights have not")
        recorded = {key: str(metadata["encoder"][key]) for key in ("name", "hash")}
        seen = {key: metadata["encoder"].get(key) for key in ("resolution", "letterbox")}
        resolution = None
        if seen["resolution"]:
            height, width = seen["resolution"]
            resolution = int(height), int(width)
            if not 1 <= min(resolution) <= max(resolution) <= LARGEST_SIDE:
                raise ValueError(f"its encoder sees pictures of {height} x {width}")
        name, frameskip = metadata["environment"], int(metadata["frameskip"])
        if not isinstance(name, str) or not stays_inside(name) or frameskip < 1:
            raise ValueError(f"environment {name!r}, frameskip {frameskip}")
    except (*_DAMAGE, OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
    if environment is not None and name != environment:
        raise UserError(
            f"checkpoint {path} was trained for {name}, not {environment}: give `env` {name} or another one"
        )
    if encoder_name is not None and base_name(recorded["name"]) != base_name(encoder_name):
        raise UserError(
            f"checkpoint {path} was trained on encoder {recorded['name']}, not {encoder_name}: leave "
            f"`encoder` out, or train with {encoder_name}"
        )
    if encoder is None:
        if downloaded and encoder_name is None and names_code(recorded["name"]):
            raise UserError(
                f"the encoder of {path} is {recorded['name']}, code that nothing from the hub may choose: "
                "name the encoder yourself if you trust it"
            )
        if encoder_name is None and names_code(recorded["name"]) and not is_class(recorded["name"]):
            raise UserError(
                f"the encoder of checkpoint {path} is {recorded['name']}, which is no PatchEncoder class: "
                "name the encoder yourself if you trust it"
            )
        try:
            encoder = load_encoder(
                recorded["name"],
                encoder_weights,
                hub_repo,
                expected_hash=recorded["hash"],
                resolution=resolution,
                letterbox=bool(seen["letterbox"]),
            )
        except UserError as error:
            raise UserError(str(error).replace("`weights`", "`encoder_weights`")) from None
    elif encoder.hash != recorded["hash"]:
        raise UserError(
            f"checkpoint {path} was trained on other weights of encoder {recorded['name']} "
            f"({recorded['hash'][:12]}, not {encoder.hash[:12]}): give the original file as `weights`"
        )
    elif encoder.resolution != (resolution or encoder.resolution):
        raise UserError(
            f"checkpoint {path} was trained on pictures of {resolution} pixels, not of "
            f"{encoder.resolution}: load the encoder with that `resolution`"
        )
    parts = encoder, predictor_config, name, frameskip, metadata, distance_config, decoder_config, space
    try:
        with torch.device("meta"):  # how large it is, before it is made
            drawn = WorldModel(*parts)
        sizes = [sum(t.numel() for t in some) for some in (tensors.values(), _tensors(drawn))]
        if sizes[1] > 2 * sizes[0] + SPARE:
            raise ValueError(f"its settings describe {sizes[1]:.3g} numbers, its weights are {sizes[0]:.3g}")
        model = WorldModel(*parts)
    except (*_DAMAGE, RuntimeError) as error:
        raise _damaged(path, error) from None
    try:
        model.load_state_dict({key: value.float() for key, value in tensors.items()})
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit its own config.yaml ({str(error)[:80]}...): train anew"
        ) from None
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise UserError(f"checkpoint {path} holds numbers that are not finite: train anew")
    model.folder = folder
    model.eval().requires_grad_(False)
    return model.place(device, dtype)


def _tensors(model: WorldModel) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _damaged(path: str | Path, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:300]
    return UserError(f"checkpoint {path} is damaged ({said}): copy it again or train anew")


def checkpoint_hash(path: str | Path) -> str:
    """SHA-256 (hex) of what a checkpoint, found as `load` finds it, computes: its weights, sizes and encoder.

    Raises:
        UserError: not a checkpoint, damaged, or not to be had.
    """
    folder, _ = checkpoint_folder(path)
    try:
        encoder = parse_json(folder / FILES[2])["encoder"]["hash"]
        content = b"".join((folder / name).read_bytes() for name in FILES[:2])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint ({error}): give the folder that `train` wrote") from None
    return hashlib.sha256(content + str(encoder).encode()).hexdigest()


def encoder_folder(encoder: str | None = None) -> Path:
    """Where world models on an encoder lie among shipped ones, and in folders of runs: in one that it names.

    Those on the embedded encoder (None) lie in none of their own.
    """
    name = "embedded" if encoder is None else base_name(encoder).removesuffix(":cls")
    return Path() if name == "embedded" else Path(slug(name))


def shipped(encoder: str | None = None) -> list[str]:
    """Environments that a world model on an encoder, the embedded one when left out, is shipped for.

    Those of benchmarks (`is_shipped`) need packages that may not be here, and are not among them.
    """
    folder = PRETRAINED / encoder_folder(encoder)
    return sorted(path.name for path in folder.glob("*") if (path / FILES[2]).is_file())


def is_shipped(environment: str, encoder: str | None = None) -> bool:
    """Whether a world model of an environment, or of a benchmark's such as swm/tworoom, is shipped."""
    named = re.fullmatch(r"[\w-]+(/[\w-]+)?", environment) is not None  # not a path
    return named and (PRETRAINED / encoder_folder(encoder) / environment / FILES[2]).is_file()


def pretrained_path(environment: str, encoder: str | None = None) -> Path:
    """Folder of the shipped world model of an environment.

    Args:
        encoder: on which it was trained; the embedded one when left out. DINOv2 is one, by either name.

    Raises:
        UserError: none is shipped.
    """
    if is_shipped(environment, encoder):
        return PRETRAINED / encoder_folder(encoder) / environment
    train, on = f"sparsewm train --env {environment}", ""
    if encoder_folder(encoder) != Path():
        train, on = f"{train} --encoder {encoder}", f" on encoder '{encoder}'"
        if known := shipped(encoder):
            on += f" (there are those for {', '.join(known)})"
    raise UserError(
        f"no world model{on} is shipped for '{environment}'.{suggest(environment, shipped(encoder))} "
        f"Train one: {train}, then give its folder"
    )


def load_pretrained(
    environment: str,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    encoder: str | None = None,
) -> WorldModel:
    """The shipped world model of an environment, e.g. ``load_pretrained("pusht")``.

    Args:
        dtype: precision it computes in; auto: bfloat16 where the device is fast in it, else float32.
        encoder: on which it was trained, e.g. ``"dinov2_vits14"``; the embedded one when left out.
    """
    return load(pretrained_path(environment, encoder), device, dtype, environment=environment)
