"""DINO and DINOv2 through torch.hub, at pinned commits.

The hub repository gives the network's code, the weights are read here: downloaded once to
``$TORCH_HOME/hub/checkpoints`` or taken from a local file, and never unpickled. A full commit hash fixes
the code, so torch.hub's look-up of branch names (and GitHub's rate limit on it) is skipped.

Sources: Caron et al. 2021 (DINO, arXiv 2104.14294), Oquab et al. 2023 (DINOv2, arXiv 2304.07193), Darcet et
al. 2023 (registers, arXiv 2309.16588).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import importlib.util
import sys
import urllib.error
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.encoders.base import PatchEncoder, PatchFeatures, weights_hash, whole_patches
from sparsewm.encoders.dino import TimmDino, cls_attention, dino_hash, recorded_qkv
from sparsewm.encoders.fast import Fast
from sparsewm.encoders.weights import difference, read_weights
from sparsewm.errors import UserError, suggest

WEIGHTS_SERVER = "https://dl.fbaipublicfiles.com"
HUB_OPTIONS = {"trust_repo": True, "skip_validation": True, "verbose": False}  # the commit is what is trusted
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class HubSpec:
    """Where a hub encoder comes from.

    Attributes:
        repository: ``owner/name`` on GitHub.
        commit: full hash of the pinned commit.
        patch: side of a patch in pixels.
        url: address of the official weights.
    """

    repository: str
    commit: str
    patch: int
    url: str

    @property
    def code(self) -> Path:
        """Folder where torch.hub keeps the repository (below ``$TORCH_HOME``)."""
        return Path(torch.hub.get_dir()) / f"{self.repository.replace('/', '_')}_{self.commit}"

    @property
    def weights(self) -> Path:
        """File where the downloaded weights are kept (below ``$TORCH_HOME``)."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[1]


def _dinov2(size: str, registers: bool) -> HubSpec:
    model = f"dinov2_vit{size}14"
    suffix = "_reg4" if registers else ""
    return HubSpec(
        "facebookresearch/dinov2",
        "b8931f7bf91576930313be2c6d6af376033b35f0",
        14,
        f"{WEIGHTS_SERVER}/dinov2/{model}/{model}{suffix}_pretrain.pth",
    )


def _dino(patch: int, model: str) -> HubSpec:
    return HubSpec(
        "facebookresearch/dino",
        "7c446df5b9f45747937fb0d72314eb9f7b66930a",
        patch,
        f"{WEIGHTS_SERVER}/dino/{model}_pretrain/{model}_pretrain.pth",
    )


HUB_ENCODERS: dict[str, HubSpec] = {
    **{f"dinov2_vit{size}14": _dinov2(size, registers=False) for size in "sblg"},
    **{f"dinov2_vit{size}14_reg": _dinov2(size, registers=True) for size in "sblg"},
    "dino_vits16": _dino(16, "dino_deitsmall16"),
    "dino_vits8": _dino(8, "dino_deitsmall8"),
    "dino_vitb16": _dino(16, "dino_vitbase16"),
    "dino_vitb8": _dino(8, "dino_vitbase8"),
}


class HubEncoder(PatchEncoder):
    """A DINO or DINOv2 network behind the patch encoder contract.

    Args:
        name: one of `HUB_ENCODERS`.
        network: the network that the hub repository builds, weights loaded.
        state: those weights under their official names.
        resolution: (height, width) of the picture the network sees, in pixels, multiples of the patch.
    """

    network: Any  # the hub's classes carry no types

    def __init__(
        self, name: str, network: nn.Module, state: dict[str, Tensor], resolution: tuple[int, int]
    ) -> None:
        super().__init__()
        self.name, self.patch, self.network = name, HUB_ENCODERS[name].patch, network
        self.dim = int(self.network.embed_dim)
        self.hash, self.earlier_hash = dino_hash(state), weights_hash(state)
        self.fast = Fast()
        self.resize(resolution)

    def resize(self, resolution: tuple[int, int]) -> None:
        """See pictures of another (height, width), rounded to whole patches; positions are interpolated."""
        self.resolution = whole_patches(resolution, self.patch, self.name)
        if isinstance(self.network, TimmDino):
            self.network.resize(self.resolution)

    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        return self.in_parts(self._encode, pixels, attention)

    def _encode(self, pixels: Tensor | np.ndarray, attention: bool) -> PatchFeatures:
        images = self.preprocess(pixels).to(next(self.parameters()))
        inner = self.network.network if isinstance(self.network, TimmDino) else self.network
        tokens = None if attention else self.fast(inner, images)
        if tokens is not None:
            return PatchFeatures(tokens[:, -self.tokens :], tokens[:, 0], self.grid)
        with recorded_qkv(self.network, attention) as recorded:
            if self.name.startswith("dinov2_") or isinstance(self.network, TimmDino):
                features = self.network.forward_features(images)
                patches, cls = features["x_norm_patchtokens"], features["x_norm_clstoken"]
            else:
                tokens = self.network.get_intermediate_layers(images, n=1)[0]  # (B, 1 + N, D)
                patches, cls = tokens[:, 1:], tokens[:, 0]
        weights = None
        if attention:
            every = cls_attention(recorded[0], self.network.blocks[-1].attn.num_heads)
            weights = every[:, -self.tokens :]  # CLS and registers stand before the patches
        return PatchFeatures(patches, cls, self.grid, weights)


def load_hub_encoder(
    name: str,
    weights: str | Path | None = None,
    hub_repo: str | Path | None = None,
    resolution: int | tuple[int, int] = 224,
) -> HubEncoder:
    """A frozen DINO or DINOv2 encoder, on the CPU.

    Args:
        name: one of `HUB_ENCODERS`.
        weights: local ``.pth`` or ``.safetensors`` file in place of the download.
        hub_repo: local clone of the hub repository in place of the download. Where its code cannot be
            downloaded, timm builds the same network.
        resolution: (height, width) of the picture the network sees, in pixels, or the side of a square,
            rounded to a multiple of the patch (DINOv2: 224 gives 16 x 16 = 256 tokens, 196 gives 14 x 14 as
            in DINO-WM).

    Raises:
        UserError: unknown name, impossible resolution, no network and nothing cached, a hub repository
            that is none, or weights that are missing, unreadable or of another network.
    """
    if name not in HUB_ENCODERS:
        raise UserError(
            f"unknown hub encoder '{name}'.{suggest(name, HUB_ENCODERS)} Known: {', '.join(HUB_ENCODERS)}"
        )
    spec = HUB_ENCODERS[name]
    whole_patches(resolution, spec.patch, name)  # refused before anything is downloaded
    network = build(name, spec, hub_repo)
    path = Path(weights).expanduser() if weights is not None else _download_weights(name, spec)
    network = TimmDino(name) if network is None else network
    return filled(name, network, _read(name, spec, network, path), resolution)


def filled(
    name: str, network: nn.Module, state: dict[str, Tensor], resolution: int | tuple[int, int] = 224
) -> HubEncoder:
    """A network with the weights of a state that has the names and shapes of `wanted`, as an encoder."""
    if isinstance(network, TimmDino):
        network.load_official(state)
    else:
        network.load_state_dict(state)
    encoder = HubEncoder(name, network, state, whole_patches(resolution, HUB_ENCODERS[name].patch, name))
    encoder.freeze()
    return encoder


def wanted(network: nn.Module) -> dict[str, Tensor]:
    """What a state for a network must hold: official names, and tensors of the right shapes."""
    return network.official if isinstance(network, TimmDino) else network.state_dict()


def build(name: str, spec: HubSpec, hub_repo: str | Path | None) -> nn.Module | None:
    """The network without weights, by the hub repository's code; None where only timm can build it."""
    place, source = f"{spec.repository}:{spec.commit}", "github"
    if hub_repo is not None:
        folder, source = Path(hub_repo).expanduser(), "local"
        if not (folder / "hubconf.py").is_file():
            raise UserError(f"{folder} holds no hubconf.py: give `hub_repo` {_clone(spec)}")
        place = str(folder)
    try:
        with _quiet_hub():
            network: nn.Module = torch.hub.load(place, name, source=source, pretrained=False, **HUB_OPTIONS)
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
        if hub_repo is not None or importlib.util.find_spec("timm") is None:
            raise unreachable(name, spec, error) from None
        return None
    except (ImportError, RuntimeError, AttributeError, TypeError, SyntaxError) as error:
        where = place if hub_repo is not None else spec.code
        raise UserError(f"{where} does not build {name} ({error}): give `hub_repo` {_clone(spec)}") from None
    return network


def _download_weights(name: str, spec: HubSpec) -> Path:
    """Path of the official weights, downloaded on first use."""
    if not spec.weights.is_file():
        try:
            spec.weights.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(spec.url, str(spec.weights))
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(name, spec, error) from None
    return spec.weights


def _read(name: str, spec: HubSpec, network: nn.Module, path: Path) -> dict[str, Tensor]:
    """What a file holds, after checking that it is this network's."""
    if not path.is_file():
        raise UserError(f"no encoder weights at {path}: give `weights` the file from {spec.url}")
    again = f"fetch {spec.url} again and give it as `weights`"
    if path == spec.weights:
        again = f"delete {path} to download it again"
    try:
        state: dict[str, Tensor] = read_weights(path)
    except UserError:
        raise UserError(f"{path} is not a readable weights file: {again}") from None
    wrong = difference(state, wanted(network))
    if wrong:
        raise UserError(f"{path} holds no weights of {name} ({wrong}): {again}")
    return state


def _clone(spec: HubSpec) -> str:
    return f"a clone of https://github.com/{spec.repository} at commit {spec.commit[:7]}"


class Unreachable(UserError):
    """Something that cannot be downloaded."""


def unreachable(name: str, spec: HubSpec, error: Exception) -> UserError:
    """The error for a failed download, naming the ways out."""
    if getattr(error, "errno", None) in DISK_ERRORS:
        return UserError(
            f"cannot write {name} below {torch.hub.get_dir()} ({error}): make room there or set TORCH_HOME "
            "to a folder that can be written"
        )
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return Unreachable(
        f"cannot download {name} ({reason}): connect this machine to the network; or give `hub_repo` "
        f"{_clone(spec)} and `weights` the file from {spec.url} (with timm installed the file is enough); or "
        "set TORCH_HOME to a folder where another machine has downloaded them; or use the encoder "
        "that is shipped, 'embedded'"
    )


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """torch.hub without its habits: notes on standard output, warnings about optional kernels, and DINO's
    top-level modules ``utils`` and ``vision_transformer`` colliding with a program's own."""
    names = ("utils", "vision_transformer")
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.filterwarnings("ignore", message="xFormers")
            yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)
