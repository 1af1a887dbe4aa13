"""Policies that read a world model's tokens: kept beside it, and proposing to its planner."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError
from sparsewm.files import read_json, sha256_file, write_json, write_tensors
from sparsewm.model.checkpoint import PRETRAINED
from sparsewm.model.latent import Latent
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals.flow import PolicySizes
from sparsewm.proposals.interface import ActionInterface
from sparsewm.proposals.inverse import InverseConfig, InverseDynamics
from sparsewm.proposals.wam import WamConfig, WorldActionModel

KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "inverse": (InverseDynamics, InverseConfig),
    "wam": (WorldActionModel, WamConfig),
}
"""Network and sizes of each kind of policy."""

WEIGHTS, ABOUT = "policy.safetensors", "policy.json"
"""What a policy's folder holds."""


class LatentPolicy(Protocol):
    """A network that makes chunks of actions from frames in a world model's space."""

    kind: str
    sizes: PolicySizes

    def propose(
        self,
        present: Latent,
        goal: Latent,
        samples: int,
        generators: Sequence[torch.Generator],
        how: ProposalConfig,
    ) -> Tensor: ...


def token_space_hash(model: WorldModel) -> str:
    """SHA-256 (hex) of what a policy reads of a world model: its encoder and its standardisation.

    The predictor is not in it: a world model may learn on, and its policies go on fitting.
    """
    encoder = model.encoder
    seen = f"{encoder.hash} {tuple(encoder.resolution)} {encoder.letterbox} {model.space}"
    digest = hashlib.sha256(seen.encode())
    for name, value in sorted(model.standardizer.state_dict().items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def kept_beside(kind: str, environment: str, checkpoint: str | Path | None) -> Path:
    """Folder of a kind of policy beside a run's checkpoint; of a shipped world model, or one of the hub, in
    `runs`."""
    place = Path("runs") / environment if checkpoint is None else Path(checkpoint)
    if PRETRAINED in place.parents:
        return Path("runs") / place.relative_to(PRETRAINED) / kind
    if place.name == "checkpoint":
        return place.parent / kind
    if (place / "checkpoint").is_dir():
        return place / kind
    return Path("runs") / environment / kind


def policy_folder(name: str, environment: str, checkpoint: str | Path | None = None) -> Path | None:
    """Folder of the policy that is meant; None: another kind of proposals is.

    Of one that came with a world model and one that was trained beside it (`kept_beside`) the second is
    meant, if it reads the same tokens; a warning says so.

    Args:
        name: a kind ("inverse"), which is looked for beside the world model, or a folder of one.
        checkpoint: folder of the world model, as far as one is known.

    Raises:
        UserError: there is none of that kind.
    """
    if name not in KINDS:
        return Path(name) if (Path(name) / ABOUT).is_file() else None
    places = [kept_beside(name, environment, checkpoint)]
    if checkpoint is not None:
        places.append(Path(checkpoint) / name)
    found = [place for place in dict.fromkeys(places) if (place / ABOUT).is_file()]
    if len(found) == 2:
        own, carried = (check_policy(place)["token_space"] for place in found)
        found = found if own == carried else found[::-1]
        why = "" if own == carried else ", which reads the tokens of another world model"
        warnings.warn(
            f"policy '{name}' is {found[0]}, not {found[1]}{why}: give the folder of the one you mean",
            stacklevel=2,
        )
    if found:
        return found[0]
    raise UserError(
        f"there is no policy '{name}' of {environment} in {' or '.join(map(str, places))}: train one with "
        f"sparsewm train-policy --kind {name} --env {environment}, or give its folder"
    )


def save_policy(policy: nn.Module, model: WorldModel, folder: Path, training: dict[str, Any]) -> None:
    """Write a policy's folder, weights in bfloat16; each file is whole at any time.

    Args:
        model: whose tokens it reads. training: how it was made, for the record.

    Raises:
        UserError: the disk is full, the folder cannot be written, or the policy holds NaN or infinity.
    """
    tensors = {name: value.bfloat16().cpu().contiguous() for name, value in policy.state_dict().items()}
    if bad := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise UserError(f"{bad[0]} of this policy is not finite: {folder} is not written, train it anew")
    about = {
        "kind": policy.kind,
        "environment": model.environment,
        "frameskip": model.frameskip,
        "encoder": model.encoder.identity,
        "token_space": token_space_hash(model),
        "sizes": asdict(policy.sizes),  # type: ignore[call-overload]
        "config": asdict(policy.config),  # type: ignore[call-overload]
        "training": training,
    }
    write_tensors(folder / WEIGHTS, tensors, {"policy": str(policy.kind)})
    about["weights"] = sha256_file(folder / WEIGHTS)
    write_json(folder / ABOUT, about)


def load_policy(folder: Path, model: WorldModel, dtype: torch.dtype = torch.float32) -> Any:
    """A policy on the device of the world model whose tokens it reads.

    Raises:
        UserError: no policy, damaged, or one that reads the tokens of another world model.
    """
    about = read_json(folder / ABOUT)
    try:
        kind, space, recorded = about["kind"], about["token_space"], about["weights"]
        frameskip, encoder = int(about["frameskip"]), about["encoder"]
        lists = {name: tuple(about["sizes"].get(name, ())) for name in ("grid", "shown", "free", "felt")}
        sizes = PolicySizes(**about["sizes"] | lists)
        network, config = KINDS[kind]
        made: nn.Module = network(sizes, config(**about["config"]))
        if sha256_file(folder / WEIGHTS) != recorded:
            raise ValueError(f"{WEIGHTS} is not the file that {ABOUT} was written for")
        tensors = load_file(folder / WEIGHTS)
        made.load_state_dict({name: value.float() for name, value in tensors.items()})
        if not all(value.isfinite().all() for value in tensors.values()):
            raise ValueError("its weights are not finite")
    except (UserError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"policy {folder} is damaged ({reason}): copy it again or train anew") from None
    if encoder.get("hash") != model.encoder.hash:
        theirs = f"{encoder.get('name')} ({str(encoder.get('hash'))[:12]})"
        ours = f"{model.encoder.name} ({model.encoder.hash[:12]})"
        raise UserError(
            f"policy {folder} reads tokens of encoder {theirs}, this world model has {ours}: train it for "
            "this one"
        )
    if space != token_space_hash(model) or frameskip != model.frameskip:
        raise UserError(
            f"policy {folder} was trained beside another world model of {about['environment']}, whose tokens "
            "are standardised otherwise: train it for this one"
        )
    made.eval().requires_grad_(False)
    return made.to(model.device, dtype)


def check_policy(folder: Path) -> dict[str, Any]:
    """What the candidates of a policy depend on, for the record; nothing is loaded.

    Raises:
        UserError: its description cannot be read.
    """
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict):
        raise UserError(f"policy {folder} is damaged ({ABOUT}): copy it again or train anew")
    return {name: about.get(name) for name in ("kind", "weights", "token_space")}


class LatentProposals:
    """A policy as a sampler.

    Args:
        policy: its network, on the model's device. model: whose tokens it reads.
        interface: bounds of actions. how: noise becomes actions.
        seed: of the noise of episodes that have no generators of their own.

    Attributes:
        reads_frames: it is glad of `frame`, the `Latent` of what is seen, where somebody has encoded it.

    Raises:
        UserError: the policy imagines no future, and one is asked for; or none is to be imagined, and it is
            to rank.
    """

    reads_frames = True

    def __init__(
        self,
        policy: LatentPolicy,
        model: WorldModel,
        interface: ActionInterface,
        how: ProposalConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.model, self.how = policy, model, how or ProposalConfig()
        low, high = (
            torch.as_tensor(bound, dtype=torch.float32)
            for bound in (interface.action_low, interface.action_high)
        )
        self._low, self._high = low.cpu(), high.cpu()
        self._generator = torch.Generator().manual_seed(seed)
        self._goal: tuple[np.ndarray, Latent] | None = None  # the last one, encoded
        imagines = getattr(policy, "imagines", False)
        if not imagines and (self.how.future_steps or self.how.ranked > 1):
            raise UserError(
                f"this policy ({policy.kind}) imagines no future: leave `future_steps` and `ranked` out"
            )
        if self.how.ranked > 1 and self.how.future_steps == 0:
            raise UserError("`ranked` candidates need an imagined future: raise `future_steps`")

    @torch.no_grad()
    def propose(
        self,
        observation: Mapping[str, Any],
        goal: Mapping[str, Any],
        instruction: str | Sequence[str] | None,
        samples: int,
        horizon: int,
        generators: Sequence[torch.Generator] = (),
    ) -> Tensor:
        """Environment actions (B, samples, horizon, A), inside the bounds.

        Args:
            observation, goal: `pixels` uint8 (B, R, R, 3), `proprio` float32 (B, P), and `frame`, a `Latent`
                of B rows, where it is known. instruction: not read.
            samples: chunks per episode. horizon: environment steps; a chunk that is shorter goes on with its
                last action.
            generators: of the noise, one for each episode.
        """
        sources = generators or [self._generator]
        chunk = self.policy.propose(
            self._present(observation), self._wanted(goal), samples, sources, self.how
        )
        actions = self.model.standardizer.raw_actions(chunk).cpu()
        actions = actions.unflatten(3, (self.model.frameskip, -1)).flatten(2, 3)[:, :, :horizon]
        actions = actions.clamp(self._low, self._high)
        rest = actions[:, :, -1:].expand(-1, -1, horizon - actions.shape[2], -1)
        return torch.cat([actions, rest], 2)

    def _present(self, observation: Mapping[str, Any]) -> Latent:
        frame = observation.get("frame")
        return self._encode(observation) if frame is None else frame

    def _wanted(self, goal: Mapping[str, Any]) -> Latent:
        if goal.get("frame") is not None:
            frame: Latent = goal["frame"]
            return frame
        if self._goal is None or not np.array_equal(self._goal[0], goal["pixels"]):
            self._goal = np.array(goal["pixels"]), self._encode(goal)
        return self._goal[1]

    def _encode(self, seen: Mapping[str, Any]) -> Latent:
        return self.model.encode(seen["pixels"], seen["proprio"])
