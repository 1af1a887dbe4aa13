"""Make a small SmolVLA for an environment: LeRobot's class and training code, from scratch, offline.

Records an expert's demonstrations where no dataset is given, builds a small vision-language backbone with
its own tokenizer, trains on frames with goals from their future, and writes a folder that `--proposals`
takes. Whatever is there already is not made again, and an interrupted training goes on from its last
checkpoint.

    python scripts/train_vla.py --env pusht --dataset data/pusht-expert.h5 --steps 20000
    cp -r runs/vla/pusht/policy sparsewm/pretrained/vla/pusht

Cheapest first: few random tokens of every picture, which is seen once, then the places that are learned.

    python scripts/train_vla.py --env pointmaze-large --longest 400 --freeze-vision --batch 128 --lr 8e-4 \\
        --image-tokens 4 --choice random --steps 4000 --output runs/few
    python scripts/train_vla.py --env pointmaze-large --longest 400 --freeze-vision --batch 128 --lr 4e-4 \\
        --image-tokens 16 --steps 300 --dataset runs/few/pointmaze-large/pointmaze-large-expert.h5 \\
        --start runs/few/pointmaze-large/policy --look 0

Where what to do depends on how things lie to one another, show present and goal in one picture (--together),
and have vision look long (--look 12000).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import tyro
import yaml
from accelerate import Accelerator
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.scripts import lerobot_train
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor

from sparsewm.cli.common import exit_code, progress_bar
from sparsewm.data import collect, open_dataset
from sparsewm.data.cameras import BOTH, LUMINANCE
from sparsewm.data.hindsight import HindsightFrames, read_pictures
from sparsewm.errors import UserError
from sparsewm.evaluation.oracle import demonstration_steps, demonstrator
from sparsewm.files import read_json, umask
from sparsewm.proposals.backbone import BackboneSizes, place_once, smolvla_options, write_backbone
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.names import check_weights
from sparsewm.proposals.vision import begin_anew, remember_vision, single, teach_vision, visible, with_goals
from sparsewm.settings import at_least, choose_dtype, environment_settings, make_env

LOOKED_AT = 100_000  # pictures of which a vision encoder learns to see, at most


@dataclass
class Arguments:
    """Train a small SmolVLA."""

    env: str
    """Environment."""
    dataset: Path | None = None
    """Recorded HDF5 file; left out, an expert's ways are recorded, as by sparsewm collect --policy expert."""
    episodes: int = 2000
    """Episodes to record."""
    start: Path | None = None
    """Policy of the same sizes to go on from, by this script; it may see other tokens of a picture."""
    look: int = 1000
    """Steps of 64 pictures in which a new vision encoder first learns to tell the recorded state; 0: it stays
    as it is, as with --start from a policy that sees."""
    freeze_vision: bool = False
    """Leave the vision encoder as it is then; every picture is encoded once, before training, unless present
    and goal are seen --together."""
    together: bool = False
    """Show present and goal in one picture, the goal in red, for vision to see how one lies to the other."""
    grey: tuple[int, int, int] = LUMINANCE
    """Weights of red, green and blue in it, in 256ths. All that matters must differ in this grey."""
    longest: int = 100
    """Environment steps to the goal, at most."""
    ends: float = 0.5
    """Share of goals that are an episode's last frame; the others are drawn evenly from the frames ahead."""
    chunk: int = 25
    """Actions of a chunk."""
    denoise: int = 2
    """Denoising steps of a chunk."""
    steps: int = 20000
    """Training steps. A finished run goes on when there are more, at the end of its first schedule."""
    batch: int = 64
    """Frames a step."""
    lr: float = 5e-4
    """Peak of the learning rate, which then falls to a fiftieth."""
    save_every: int = 500
    """Steps between checkpoints."""
    workers: int = 1
    """Processes that load data; 0: none."""
    device: str = "cpu"
    """cpu or cuda."""
    from_noise: float = 0.5
    """Share of samples at pure noise, from which a chunk follows by what is seen alone; the others are at
    SmolVLA's own times."""
    dtype: str = "auto"
    """auto, bfloat16 (where autocast uses it) or float32."""
    compile: bool = False
    """Compile the policy, for a GPU; takes minutes at first."""
    image_tokens: int = 0
    """Tokens of a picture the transformer sees, chosen as the next three say (GridS); 0: all."""
    choice: str = "grids"
    """grids: learned places; random; or topk: the largest features."""
    bilinear: bool = True
    """Sample between patches, not the nearest one."""
    coordinates: bool = True
    """Add an encoding of a token's place."""
    sizes: BackboneSizes = field(default_factory=BackboneSizes)
    """Of the backbone."""
    seed: int = 0
    """Seed of demonstrations, weights and batches."""
    output: Path = Path("runs/vla")
    """Folder; everything goes to ENV in there."""


def demonstrations(arguments: Arguments, folder: Path) -> tuple[HindsightFrames, Path]:
    """What to train on, recorded where it is missing, and its file."""
    env, path = make_env(arguments.env), arguments.dataset
    if path is None:
        path = folder / f"{env.name}-expert.h5"
        with progress_bar(f"recording {env.name}") as progress:
            steps = demonstration_steps(env)
            seed, workers = arguments.seed, os.cpu_count() or 1
            expert = demonstrator(env)
            collect(env.name, arguments.episodes, path, steps, workers, seed, 112, progress, expert=expert)
    text = environment_settings(env.name).instruction
    with progress_bar(f"reading {env.name}") as progress:
        frames = HindsightFrames(
            open_dataset(path, env.name),
            env.proprio_names,
            text,
            arguments.chunk,
            arguments.longest,
            arguments.ends,
            arguments.batch,
            arguments.freeze_vision and not arguments.together,
            arguments.together,
            arguments.grey,
            progress,
        )
    return frames, path


def configuration(arguments: Arguments, data: Path, folder: Path) -> TrainPipelineConfig:
    """What LeRobot's trainer is told."""
    sizes, text = arguments.sizes, environment_settings(arguments.env).instruction
    backbone = folder / "backbone"
    if not backbone.is_dir():
        write_backbone(backbone, [text], sizes)
    kind, few = SmolVLAConfig, {}
    if arguments.image_tokens:
        names = ("image_tokens", "choice", "bilinear", "coordinates")
        kind, few = SmolVLAGridsConfig, {name: getattr(arguments, name) for name in names}
    policy = kind(
        **few,
        **smolvla_options(backbone.resolve(), sizes, arguments.chunk, arguments.denoise),
        device=arguments.device,
        load_vlm_weights=False,
        freeze_vision_encoder=arguments.freeze_vision,
        train_expert_only=False,
        optimizer_lr=arguments.lr,
        optimizer_weight_decay=1e-4,
        optimizer_grad_clip_norm=1.0,
        scheduler_warmup_steps=min(500, arguments.steps // 10),
        scheduler_decay_steps=arguments.steps,
        scheduler_decay_lr=arguments.lr / 50,
    )
    return TrainPipelineConfig(
        dataset=DatasetConfig(f"sparsewm/{arguments.env}", str(data), use_imagenet_stats=False),
        policy=policy,
        output_dir=folder / "training",
        seed=arguments.seed,
        num_workers=arguments.workers,
        batch_size=arguments.batch,
        steps=arguments.steps,
        eval_freq=0,
        log_freq=50,
        save_freq=arguments.save_every,
    )


def prepare(
    policy: PreTrainedPolicy, anew: bool, arguments: Arguments, data: Path, frames: HindsightFrames
) -> None:
    """What LeRobot's trainer does not know of: how a new policy begins, which times it is asked at, and to
    look at every picture once where vision learns no more."""
    if arguments.device == "cpu":  # where fused attention is half as fast, backward above all
        policy.model.vlm_with_expert.get_vlm_model().vision_model.set_attn_implementation("eager")
    if anew:
        begin(policy, arguments, data, frames)
    usual = policy.model.sample_time

    def sample_time(size: int, device: torch.device) -> Tensor:
        times: Tensor = usual(size, device)
        return torch.where(torch.rand(size, device=device) < arguments.from_noise, 1.0, times)

    policy.model.sample_time = sample_time
    if frames.remembered:
        with progress_bar("looking at all pictures") as progress:
            remember_vision(policy, open_dataset(data).pixels, progress)


def begin(policy: PreTrainedPolicy, arguments: Arguments, data: Path, frames: HindsightFrames) -> None:
    """What a new policy knows before it is trained: the weights to go on from, and to see."""
    if arguments.start is None:
        torch.manual_seed(arguments.seed)
        begin_anew(policy.model)
    else:
        try:
            found = load_model(policy, arguments.start / "model.safetensors", strict=False)
        except RuntimeError as error:
            raise UserError(f"--start {arguments.start} is a policy of other sizes ({error})") from None
        other = [name for names in found for name in names if not name.startswith("grids.")]
        if other:
            raise UserError(
                f"--start {arguments.start} is another kind of policy ({', '.join(other[:3])} ...)"
            )
    if arguments.look:
        dataset, env = open_dataset(data), make_env(arguments.env)
        if frames.together:
            draw = with_goals(frames, dataset.state[:], env.state_names, env.angle_symmetry, arguments.seed)
        else:
            rows = min(LOOKED_AT, dataset.rows)
            with progress_bar("reading pictures") as progress:
                pixels = read_pictures(dataset, rows, progress=progress)
            draw = single(pixels, visible(dataset.state[:rows], env.state_names))
        with progress_bar("learning to see") as progress:
            dtype = choose_dtype(arguments.dtype, torch.device(arguments.device))
            error = teach_vision(
                policy,
                draw,
                arguments.look,
                seed=arguments.seed,
                bfloat16=dtype == torch.bfloat16,
                progress=progress,
            )
        print(f"the recorded state is read from pictures with an error of {error:.3f} of its variance")


def run_training(
    config: TrainPipelineConfig,
    frames: HindsightFrames,
    bfloat16: bool,
    compiled: bool,
    prepared: Callable[[PreTrainedPolicy, bool], None],
) -> Path:
    """Train up to `config.steps`, from the last checkpoint where there is one; the folder of the last one."""
    assert config.output_dir is not None
    last = config.output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK
    if last.is_dir():
        if read_json(last / "training_state" / "training_step.json")["step"] >= config.steps:
            return last
        file = last.resolve() / PRETRAINED_MODEL_DIR / "train_config.json"
        before, config = config, TrainPipelineConfig.from_pretrained(file)
        config.resume, config.steps, config.save_freq = True, before.steps, before.save_freq
        sys.argv = [sys.argv[0], f"--config_path={file}"]  # where LeRobot looks for what to go on from
    elif config.output_dir.is_dir():
        shutil.rmtree(config.output_dir)  # interrupted before its first checkpoint
    assert config.policy is not None
    place_once()
    lerobot_train.make_dataset = lambda config: frames
    make_policy = lerobot_train.make_policy

    def make_prepared(*args: Any, **kwargs: Any) -> PreTrainedPolicy:
        policy = make_policy(*args, **kwargs)
        prepared(policy, not config.resume)
        if compiled:
            policy.model.forward = torch.compile(policy.model.forward)
        return policy

    lerobot_train.make_policy = make_prepared
    accelerator = Accelerator(
        mixed_precision="bf16" if bfloat16 else "no",
        cpu=config.policy.device == "cpu",
        step_scheduler_with_optimizer=False,
    )
    lerobot_train.train(config, accelerator)
    return last


def ship(
    checkpoint: Path, backbone: Path, folder: Path, card: str, names: dict[str, Any] | None = None
) -> None:
    """Copy a checkpoint so that it can be carried anywhere: weights in bfloat16, the backbone beside them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        policy = place / "policy"
        shutil.copytree(checkpoint / PRETRAINED_MODEL_DIR, policy)
        (policy / "train_config.json").unlink()
        shutil.copytree(backbone, policy / "backbone")
        weights = load_file(policy / "model.safetensors")
        save_file(
            {
                name: value.bfloat16() if value.is_floating_point() else value
                for name, value in weights.items()
            },
            policy / "model.safetensors",
        )
        for name in ("config.json", "policy_preprocessor.json"):  # no path of this machine
            content = json.loads((policy / name).read_text().replace(str(backbone.resolve()), "backbone"))
            content.pop("pretrained_path", None)
            (policy / name).write_text(json.dumps(content, indent=4) + "\n")
        (policy / "README.md").write_text(card)
        if names is not None:
            (policy / "names.yaml").write_text(yaml.safe_dump(names, default_flow_style=None))
        for file in policy.rglob("*.safetensors"):
            file.chmod(0o666 & ~umask())
        shutil.rmtree(folder, ignore_errors=True)
        policy.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    arguments = tyro.cli(Arguments)
    command = shlex.join(["python", *sys.argv])
    at_least(0, look=arguments.look)
    check_weights(arguments.grey, "--grey")
    if not 0 <= arguments.from_noise <= 1:
        raise UserError(f"--from-noise must be from 0 to 1, got {arguments.from_noise:g}")
    at_least(1, steps=arguments.steps, batch=arguments.batch, chunk=arguments.chunk)
    if arguments.start is not None and not (arguments.start / "model.safetensors").is_file():
        raise UserError(f"--start {arguments.start} holds no policy: give a folder this script wrote")
    arguments.env = make_env(arguments.env).name
    folder = arguments.output / arguments.env
    frames, data = demonstrations(arguments, folder)
    config = configuration(arguments, data, folder)
    dtype = choose_dtype(arguments.dtype, torch.device(arguments.device))
    prepared = partial(prepare, arguments=arguments, data=data, frames=frames)
    checkpoint = run_training(config, frames, dtype == torch.bfloat16, arguments.compile, prepared)
    size = (checkpoint / PRETRAINED_MODEL_DIR / "model.safetensors").stat().st_size
    card = CARD.format(
        env=arguments.env,
        parameters=size / 4e6,
        sizes=", ".join(f"{name} {value}" for name, value in asdict(arguments.sizes).items()),
        episodes=frames.num_episodes,
        frames=frames.num_frames,
        source=open_dataset(data).attributes.get("policy", "unknown policy"),
        text=environment_settings(arguments.env).instruction,
        **{name: getattr(arguments, name) for name in ("longest", "ends", "chunk", "steps", "batch")},
        seed=arguments.seed,
        command=command,
        pictures="one picture of present and goal (the goal in red)"
        if arguments.together
        else "the present picture, the picture of the goal",
    )
    names = {"cameras": {BOTH: "both"}, "grey": list(arguments.grey)} if arguments.together else None
    ship(checkpoint, folder / "backbone", folder / "policy", card, names)
    print(
        f"{arguments.steps} steps done: sparsewm plan --env {arguments.env} --proposals {folder / 'policy'}"
    )


CARD = """# SmolVLA: {env}

A small SmolVLA (LeRobot's class and training code), {parameters:.1f} million parameters in bfloat16, trained
from scratch: chunks of {chunk} environment actions from {pictures},
proprioception and an instruction.

- Backbone: {sizes}; its tokenizer is made of the instruction "{text}" and reads other texts byte by byte.
- Data: {episodes} episodes ({source}), {frames} frames; goals at most {longest} steps ahead, {ends:.0%} of
  them an episode's end.
- Training: {steps} steps of {batch} frames, seed {seed}.
- Made by: `{command}`.
"""

if __name__ == "__main__":
    sys.exit(exit_code(main))
