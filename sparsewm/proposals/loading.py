"""LeRobot's policies from a folder or the hub: found, whole, and normalised as they were trained."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sparsewm.errors import UserError
from sparsewm.files import parse_json
from sparsewm.proposals.version import lerobot_imports

with lerobot_imports():
    import huggingface_hub
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.types import FeatureType, NormalizationMode
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep
    from safetensors.torch import load_model

_forget_sessions: Callable[[], None] = (
    getattr(huggingface_hub.utils, "close_session", None) or huggingface_hub.utils.reset_sessions
)
"""They remember whether the network may be used. The first name is of version 1.0 and later."""

HUB = "hf:"
"""Before a name that is to be looked up on the hub even where a folder is called so."""

PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
FILES = ("config.json", "model.safetensors", *PROCESSORS)
"""What LeRobot's own `save_pretrained` of a policy and its processors write."""

FETCHED = ("*.json", "*.safetensors", "*.yaml", "*.txt", "*.model")
"""What is fetched of a policy on the hub: weights, settings, names and the backbone's tokenizer; no code."""

NEEDED = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
"""Statistics by how a feature is normalised."""

ANSWER = 10.0  # seconds the hub may take to say whether it knows a policy


def find_policy(path: str) -> tuple[Path, bool]:
    """Folder of a policy, and whether the hub may be asked for its backbone.

    Of a name on the hub that is a folder in the hub's cache, brought up to date where the hub can be reached.

    Args:
        path: folder, or `user/name` on the hub, with or without `HUB` before it.

    Raises:
        UserError: there is no such policy.
    """
    folder = Path(path)
    if not path.startswith(HUB) and folder.is_dir():
        return folder, False
    name = path.removeprefix(HUB)
    connected = _on_the_hub(name)
    try:
        with _network(connected):
            found = huggingface_hub.snapshot_download(
                name, allow_patterns=[*FETCHED], local_files_only=not connected
            )
    except Exception as error:  # of the hub's library, requests and httpx
        raise UserError(
            f"policy {name} is not to be had from the hub ({type(error).__name__}: {error}): give another "
            "folder or hub name"
        ) from None
    return Path(found), connected


def load_policy(folder: str | Path, device: torch.device, connected: bool = False) -> tuple[Any, Any, Any]:
    """A policy, its pre- and its post-processor.

    Nothing of a folder is looked for on the hub but the backbone that it names, if it may be: what is missing
    there would be taken from a stranger's repository of the same name.

    Args:
        folder: as `find_policy` has it. device: where it runs. connected: whether the hub may be asked.

    Raises:
        UserError: damaged, or its backbone is not there.
    """
    folder = Path(folder)
    _check_files(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), _network(connected):  # LeRobot tells what it loads
            return _load(folder, device, connected)
    except UserError:
        raise
    except Exception as error:  # whatever files from anywhere make LeRobot, transformers and draccus raise
        raise UserError(
            f"policy {folder} is damaged or of another version of LeRobot ({type(error).__name__}: {error}): "
            "give another folder or hub name"
        ) from None


def rename_statistics(path: str, before: Any, after: Any, names: Mapping[str, str]) -> None:
    """Give processors their statistics under the names of the policy's features.

    Args:
        path: of the policy, for messages. before, after: its processors.
        names: what statistics are kept under, by feature.

    Raises:
        UserError: none are kept under such a name.
    """
    for pipeline, kind in ((before, NormalizerProcessorStep), (after, UnnormalizerProcessorStep)):
        for step in (step for step in pipeline.steps if isinstance(step, kind)):
            state = dict(step.state_dict())
            known = sorted({name.rpartition(".")[0] for name in state})
            for feature, kept in names.items():
                if kept not in known:
                    raise UserError(
                        f"statistics {kept} are not in policy {path} (found {', '.join(known) or 'none'}): "
                        "correct its file of names"
                    )
                taken = {name: value for name, value in state.items() if name.rpartition(".")[0] == kept}
                state |= {feature + name.removeprefix(kept): value for name, value in taken.items()}
            step.load_state_dict(state)


def check_statistics(path: str, config: Any, before: Any, after: Any, cameras: Collection[str]) -> None:
    """Refuse processors that would leave as it is what the policy was trained on normalised.

    LeRobot passes on unchanged what it finds no statistics for.

    Args:
        path: of the policy, for messages. config, before, after: of the policy.
        cameras: those it is shown; others need no statistics.

    Raises:
        UserError: naming the feature.
    """
    seen = {
        name: feature
        for name, feature in config.input_features.items()
        if feature.type is not FeatureType.VISUAL or name in cameras
    }
    for features, pipeline, kind in (
        (seen, before, NormalizerProcessorStep),
        (config.output_features, after, UnnormalizerProcessorStep),
    ):
        steps = [step for step in pipeline.steps if isinstance(step, kind)]
        for name, feature in features.items():
            wanted = config.normalization_mapping.get(feature.type.value, NormalizationMode.IDENTITY)
            found = [_mode(step, name, feature) for step in steps]
            found = [mode for mode in found if mode is not NormalizationMode.IDENTITY]
            if found != [mode for mode in [wanted] if mode is not NormalizationMode.IDENTITY]:
                told = ", ".join(mode.value for mode in found) or NormalizationMode.IDENTITY.value
                raise UserError(
                    f"{name} of policy {path} is normalised by {wanted.value}, but by {told} in its "
                    "processors: save policy and processors together"
                )
            for step in steps if found else ():
                _check_feature(path, name, feature, step, wanted)


def _mode(step: Any, name: str, feature: Any) -> NormalizationMode:
    """How a step treats a feature."""
    known = step.normalize_observation_keys
    inputs = feature.type is not FeatureType.ACTION
    if inputs and (name not in step.features or (known is not None and name not in known)):
        return NormalizationMode.IDENTITY
    mode: NormalizationMode = step.norm_map.get(feature.type, NormalizationMode.IDENTITY)
    return mode


def _check_feature(path: str, name: str, feature: Any, step: Any, mode: NormalizationMode) -> None:
    stats, remedy = step.stats or {}, "save its processors with the statistics of its own data"
    if name not in stats:
        found = ", ".join(sorted(stats)) or "none"
        raise UserError(
            f"statistics of {name} are not in policy {path} (found {found}): {remedy}, or say which they are "
            "by `statistics` in a file of names"
        )
    for key in NEEDED[mode]:
        if key not in stats[name]:
            found = ", ".join(sorted(stats[name]))
            raise UserError(f"the {key} of {name} is not in policy {path} (found {found}): {remedy}")
        value, shape = torch.as_tensor(stats[name][key]), tuple(feature.shape)
        if not value.ndim:  # what LeRobot makes of a single number
            value = value.reshape(1 if len(shape) == 1 else (1, 1, 1))
        fits = tuple(value.shape) == shape
        if feature.type is FeatureType.VISUAL:  # a number for each channel
            fits = value.ndim == 3 and all(a in (1, b) for a, b in zip(value.shape, shape, strict=True))
        if not fits or not value.isfinite().all():
            what = f"shape {tuple(value.shape)}, not {shape}" if not fits else "numbers that are not finite"
            raise UserError(f"the {key} of {name} in policy {path} has {what}: {remedy}")


def _check_files(folder: Path) -> None:
    """Refuse a folder that lacks files, those that its processors name included."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    for name in PROCESSORS:
        if name in missing:
            continue
        try:
            steps = parse_json(folder / name)["steps"]
            named = [step["state_file"] for step in steps if step.get("state_file")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"policy {folder} is damaged or of another version of LeRobot ({name}: {error}): save policy "
                "and processors again"
            ) from None
        missing += [file for file in named if Path(str(file)).name != file or not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{folder} is no LeRobot policy, {', '.join(missing)} is missing: save policy and processors "
            "there"
        )


def _on_the_hub(name: str) -> bool:
    """Whether the hub can be reached; it knows the policy then. Without it, what is in the cache counts.

    Raises:
        UserError: there is no such policy.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.model_info(name, timeout=ANSWER)
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"policy {name} is not to be had from the hub, where nothing is called so: check the name, or "
            "give the folder of a policy"
        ) from None
    except OSError:  # of requests, too
        return False
    return True


@contextlib.contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Keep the hub's library off the network unless it is allowed, whatever asks for a file."""
    if allowed or constants.HF_HUB_OFFLINE:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    _forget_sessions()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        _forget_sessions()


def _load(folder: Path, device: torch.device, connected: bool) -> tuple[Any, Any, Any]:
    path = str(folder)
    config = PreTrainedConfig.from_pretrained(path, cli_overrides=[f"--device={device.type}"])
    before: dict[str, dict[str, str]] = {"device_processor": {"device": str(device)}}
    if name := getattr(config, "vlm_model_name", None):
        backbone = folder / name
        if backbone.is_dir():  # carried along
            config.vlm_model_name = str(backbone)
            before["tokenizer_processor"] = {"tokenizer_name": str(backbone)}
        elif not (
            connected or Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
        ):
            raise UserError(
                f"policy {path} needs the backbone {name}, which is neither in its folder nor in the hub's "
                f"cache: huggingface-cli download {name}"
            )
    for option, none in (("pretrained_backbone_weights", None), ("load_vlm_weights", False)):
        if hasattr(config, option):  # weights to start training from, which would only be overwritten
            setattr(config, option, none)
    policy = get_policy_class(config.type).from_pretrained(path, config=config)
    missing, _ = load_model(policy, folder / "model.safetensors", strict=False, device=device.type)
    if missing:
        raise ValueError(f"weights are missing: {', '.join(sorted(missing)[:3])}")
    processors = make_pre_post_processors(config, path, preprocessor_overrides=before)
    policy.to(device).eval().requires_grad_(False)
    return policy, *processors
