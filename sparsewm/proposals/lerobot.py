"""LeRobot's policies as proposal samplers: SmolVLA, ACT, Diffusion Policy, all that predict chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import sparsewm.proposals.modeling_grids  # noqa: F401 - makes LeRobot know a SmolVLA of few tokens too
from sparsewm.data.cameras import grey, overlay
from sparsewm.errors import UserError
from sparsewm.proposals import policy_path
from sparsewm.proposals.expert import Expert, shares_prefix
from sparsewm.proposals.interface import ActionInterface
from sparsewm.proposals.loading import check_statistics, find_policy, load_policy, rename_statistics
from sparsewm.proposals.names import Names, read_names
from sparsewm.proposals.version import lerobot_imports

with lerobot_imports():
    from lerobot.policies.smolvla.modeling_smolvla import make_att_2d_masks
    from lerobot.utils.constants import OBS_IMAGES, OBS_STATE


class LeRobotProposals:
    """Action chunks of a policy that LeRobot's own classes saved: `planners.ProposalSampler`.

    The chunks of an episode differ by the noise they start from (SmolVLA, Diffusion Policy) or by the latent
    they are decoded from (ACT). A chunk shorter than what is asked for goes on with its last action.

    Args:
        path: folder of the policy and its pre- and post-processors, or hub name.
        interface: names of proprioception, action size and bounds of what it is to act in.
        device: where the policy runs. seed: of its noise where episodes have no generators of their own.
        names: YAML file of `Names`; by default `names.yaml` beside the policy, where there is one.
        dtype: float32, or bfloat16 for the linear layers of a SmolVLA's action expert.

    Attributes:
        frames: environment steps the policy looks back, the present one included.

    Raises:
        UserError: no such policy, damaged, normalised by other statistics than it was trained with, or it
            does not fit the interface.
    """

    def __init__(
        self,
        path: str | Path,
        interface: ActionInterface,
        device: torch.device | str = "cpu",
        seed: int = 0,
        names: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.path, self.interface, self.device = str(path), interface, torch.device(device)
        self._low, self._high = (
            torch.as_tensor(bound, dtype=torch.float32).cpu()
            for bound in (interface.action_low, interface.action_high)
        )
        folder, connected = find_policy(self.path)
        self.policy, self._before, self._after = load_policy(folder, self.device, connected)
        self.config = self.policy.config
        self.frames = self.config.n_obs_steps
        self._seeds = torch.Generator().manual_seed(seed)
        beside = folder / "names.yaml"
        file = names or (beside if beside.is_file() else None)
        self.names = Names() if file is None else Names(**read_names(file))
        self._columns = self._check()
        if self.names.statistics:
            rename_statistics(self.path, self._before, self._after, self.names.statistics)
        shown = [camera for camera, seen in self.names.cameras.items() if seen is not None]
        check_statistics(self.path, self.config, self._before, self._after, shown)
        self._expert: Expert | None = None
        plain = self.config.type.startswith("smolvla") and not (
            self.config.adapt_to_pi_aloha or self.config.rtc_config
        )
        if plain and shares_prefix(self.policy):
            self._expert = Expert(self.policy, dtype)
            vision = self.policy.model.vlm_with_expert.get_vlm_model().vision_model
            _look_once(vision, len(self.config.image_features))
        if self.config.type == "diffusion":  # all it predicts from now on, not only what it would execute
            self.config.n_action_steps = self.config.horizon - self.config.n_obs_steps + 1
        elif self.config.type == "act":
            if not self.config.use_vae:
                raise UserError(
                    f"{path} is an ACT without a latent, all its chunks are one: train it with use_vae"
                )
            # in use ACT decodes the middle of its prior; different chunks come from different latents
            self.policy.model.encoder_latent_input_proj.register_forward_pre_hook(
                lambda module, inputs: torch.randn_like(inputs[0])
            )

    @torch.no_grad()
    def propose(
        self,
        observation: Mapping[str, np.ndarray],
        goal: Mapping[str, np.ndarray],
        instruction: str | Sequence[str] | None,
        samples: int,
        horizon: int,
        generators: Sequence[torch.Generator] = (),
    ) -> Tensor:
        """Environment actions (B, samples, horizon, A), inside the bounds.

        Args:
            observation, goal: `pixels` uint8 (B, R, R, 3) and `proprio` float32 (B, P); of the observation
                (B, frames, ...) where the policy looks back. B episodes.
            instruction: one for all episodes or one each.
            samples: chunks per episode. horizon: environment steps.
            generators: one for each episode; the seeds of its noise are drawn from it.

        Raises:
            UserError: the policy cannot be run on such observations.
        """
        episodes = len(goal["pixels"])
        texts = (
            [instruction or ""] * episodes
            if instruction is None or isinstance(instruction, str)
            else instruction
        )
        try:
            batch = self._batch(observation, goal, list(texts))
            seeds = [int(torch.randint(2**62, (), generator=one)) for one in generators or [self._seeds]]
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.inference_mode():
                chunks = self._chunks(batch, samples, seeds)  # (B * samples, chunk, A of the policy)
            actions = self._after(chunks.flatten(0, 1).float()).unflatten(0, chunks.shape[:2])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"policy {self.path} does not run on {self.interface.name} ({error})") from None
        actions = self.names.scale * actions[..., self._actions] + self.names.offset
        actions = actions.clamp(self._low, self._high)[:, :horizon].unflatten(0, (episodes, samples))
        rest = actions[:, :, -1:].expand(-1, -1, horizon - actions.shape[2], -1)
        return torch.cat([actions, rest], 2)

    def _batch(
        self, observation: Mapping[str, np.ndarray], goal: Mapping[str, np.ndarray], texts: list[str]
    ) -> dict[str, Any]:
        """Observations as the policy takes them: B rows, or (B, frames, ...) where it looks back."""
        proprio = torch.as_tensor(observation["proprio"])
        shape = proprio.shape[:-1]  # (B,) or (B, frames)
        rows = {OBS_STATE: self._state(proprio.reshape(-1, proprio.shape[-1]))}
        pixels = torch.as_tensor(observation["pixels"]).flatten(0, len(shape) - 1)
        wanted = torch.as_tensor(goal["pixels"]).repeat_interleave(shape.numel() // shape[0], 0)
        for camera, seen in self.names.cameras.items():
            if seen is not None:
                shown = pixels if seen == "pixels" else wanted
                if seen == "both":
                    shown = overlay(*(grey(part, self.names.grey) for part in (pixels, wanted))).movedim(
                        -3, -1
                    )
                rows[camera] = _picture(shown, self.config.input_features[camera].shape[1:])
        texts = [text for text in texts for _ in range(shape.numel() // shape[0])]
        ready = self._before(rows | {"task": texts})
        return {
            key: value.unflatten(0, shape)
            for key, value in ready.items()
            if isinstance(value, Tensor) and value.ndim and len(value) == shape.numel()
        }

    def _state(self, proprio: Tensor) -> Tensor:
        columns = [torch.zeros(len(proprio)) if i is None else proprio[:, i] for i in self._columns or [None]]
        return torch.stack(columns, -1)

    def _chunks(self, batch: dict[str, Any], samples: int, seeds: Sequence[int]) -> Tensor:
        """Chunks (B * samples, chunk, A) of the policy, normalised as it has them; a seed for each row, or
        one for all."""
        if self._expert is not None:
            return _smolvla_chunks(self.policy, self._expert, batch, samples, seeds)
        parts = []
        for row, seed in enumerate(seeds):  # LeRobot draws the noise of all that it is given at once
            torch.manual_seed(seed)
            some = {key: value.chunk(len(seeds))[row] for key, value in batch.items()}
            parts.append(self._plain_chunks(some, samples))
        return torch.cat(parts)

    def _plain_chunks(self, batch: dict[str, Any], samples: int) -> Tensor:
        batch = {key: value.repeat_interleave(samples, 0) for key, value in batch.items()}
        if self.config.type == "diffusion":
            cameras = list(self.config.image_features)
            if cameras:
                batch[OBS_IMAGES] = torch.stack([batch[camera] for camera in cameras], -4)
            if self.frames == 1:
                batch = {key: value[:, None] for key, value in batch.items()}
            return self.policy.diffusion.generate_actions(batch)
        return self.policy.predict_action_chunk(batch)

    def _check(self) -> list[int | None]:
        """Refuse names that do not fit; the column of proprioception behind each number of the state."""
        config, names, interface = self.config, self.names, self.interface
        remedy = "say what they are with a file of names (see docs/howto/policy.md)"
        if set(names.cameras) != set(config.image_features):
            cameras, known = ", ".join(config.image_features) or "none", ", ".join(names.cameras)
            raise UserError(f"the cameras of policy {self.path} are {cameras}, not {known}: {remedy}")
        features = {**config.input_features, **config.output_features}
        for one in names.statistics:
            if one not in features:
                known = ", ".join(features)
                raise UserError(f"policy {self.path} has no feature '{one}', but {known}: {remedy}")
        feature = config.robot_state_feature
        size = 0 if feature is None else feature.shape[0]
        state = list(interface.proprio_names) if names.state is None else names.state
        if size != len(state):
            raise UserError(
                f"the state of policy {self.path} has {size} numbers, that of {interface.name} "
                f"{len(state)}: {remedy}"
            )
        for name in state:
            if name is not None and name not in interface.proprio_names:
                known = ", ".join(interface.proprio_names) or "none"
                raise UserError(f"{interface.name} has no proprioception '{name}': known are {known}")
        size = config.action_feature.shape[0]
        self._actions = list(range(size)) if names.action is None else names.action
        if len(self._actions) != len(self._low) or max(self._actions) >= size:
            raise UserError(
                f"the actions of policy {self.path} have {size} numbers, those of {interface.name} "
                f"{len(self._low)}: {remedy}"
            )
        return [None if name is None else interface.proprio_names.index(name) for name in state]


def _picture(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures uint8 (N, R, R, 3) as LeRobot has them: float32 (N, 3, *size) in [0, 1]."""
    pictures = pixels.permute(0, 3, 1, 2).float() / 255
    if pictures.shape[-2:] != tuple(size):
        pictures = functional.interpolate(pictures, tuple(size), mode="bilinear", antialias=True)
    return pictures


def _look_once(vision: Any, cameras: int) -> None:
    """Have pictures that are as they were at the last decision, like those of goals, not encoded again."""
    encode, seen = vision.forward, deque[tuple[Tensor, Any]](maxlen=cameras)

    def forward(pixel_values: Tensor, **options: Any) -> Any:
        if torch.is_grad_enabled():
            return encode(pixel_values=pixel_values, **options)
        known = next((output for before, output in seen if torch.equal(before, pixel_values)), None)
        output = encode(pixel_values=pixel_values, **options) if known is None else known
        seen.append((pixel_values, output))
        return output

    vision.forward = forward


def _smolvla_chunks(
    policy: Any, expert: Expert, batch: dict[str, Any], samples: int, seeds: Sequence[int]
) -> Tensor:
    """Chunks (B * samples, chunk, A) of a SmolVLA, as its `sample_actions` has them.

    Pictures, instruction and state are read once per episode; only the noise is multiplied.
    """
    model = policy.model
    images, masks = policy.prepare_images(batch)
    state = policy.prepare_state(batch)
    tokens, token_mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    prefix, padding, attention = model.embed_prefix(images, masks, tokens, token_mask.bool(), state=state)
    cache = expert.read(prefix, make_att_2d_masks(padding, attention), padding)
    config = policy.config
    drawn, shape = [], (len(padding) // len(seeds) * samples, config.chunk_size, config.max_action_dim)
    for seed in seeds:
        torch.manual_seed(seed)
        drawn.append(model.sample_noise(shape, state.device))
    noise = torch.cat(drawn).unflatten(0, (len(padding), samples))
    return expert.denoise(cache, padding, noise).flatten(0, 1)[..., : config.action_feature.shape[0]]


def shipped_policy(interface: ActionInterface) -> LeRobotProposals:
    """The policy that is shipped for an environment, on the CPU.

    Raises:
        UserError: none is shipped for it.
    """
    return LeRobotProposals(policy_path("vla", interface.name), interface)
