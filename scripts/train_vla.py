"""Make a small SmolVLA for an environment: LeRobot's class and parts of its training, from scratch, offline.

Builds a small vision-language backbone with its own tokenizer, has vision learn to see, trains on frames with
goals from their future, and writes a folder that `--proposals` takes. Whatever is there already is not made
again, and an interrupted training goes on from its last checkpoint. Cheapest first: few random tokens of
every picture, then the places that are learned (GridS).

    sparsewm collect --env pointmaze-large --policy expert --episodes 1000
    python -m scripts.train_vla --env pointmaze-large --dataset data/pointmaze-large-expert.h5 \\
        --longest 400 --batch 128 --image-tokens 4 --choice random --steps 4000 --lr 8e-4 --output runs/few
    python -m scripts.train_vla --env pointmaze-large --dataset data/pointmaze-large-expert.h5 \\
        --longest 400 --batch 128 --steps 300 --lr 4e-4 --start runs/few/pointmaze-large/policy --look 0
    cp -r runs/vla/pointmaze-large/policy sparsewm/pretrained/vla/pointmaze-large

Where what to do depends on how things lie to one another, show present and goal in one picture (--together),
and have vision look long (--look 12000).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor

from scripts.common import launch, typed_command
from scripts.lab.backbone import BackboneSizes, place_once, smolvla_options, write_backbone
from scripts.lab.hindsight import HindsightFrames, read_pictures
from scripts.lab.imitation import last_checkpoint, make_policy, train
from scripts.lab.states import instruction, make_simulator
from scripts.lab.vision import begin_anew, remember_vision, single, teach_vision, visible, with_goals
from sparsewm.cli.common import progress_bar
from sparsewm.data import open_dataset
from sparsewm.data.cameras import BOTH, LUMINANCE
from sparsewm.errors import UserError
from sparsewm.files import umask
from sparsewm.precision import choose_dtype
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.names import check_weights
from sparsewm.trees import at_least

SIZES = BackboneSizes()
CHUNK = 25  # actions
DENOISE = 2  # steps
ENDS = 0.5  # share of goals that are an episode's last frame
FROM_NOISE = 0.5  # share of samples at pure noise, from which a chunk follows by what is seen alone
SAVE_EVERY = 500  # steps
LOOKED_AT = 100_000  # pictures of which a vision encoder learns to see, at most


@dataclass
class Arguments:
    """Train a small SmolVLA."""

    env: str
    """Environment."""
    dataset: Path
    """Demonstrations, by sparsewm collect --policy expert."""
    start: Path | None = None
    """Policy by this script to go on from; it may see other tokens of a picture."""
    look: int = 1000
    """Steps of 64 pictures in which a new vision encoder first learns to tell the recorded state; then it is
    frozen. 0: it stays as it is, as with --start from a policy that sees."""
    together: bool = False
    """Show present and goal in one picture, the goal in red, for vision to see how one lies to the other."""
    grey: tuple[int, int, int] = LUMINANCE
    """Weights of red, green and blue in it, in 256ths. All that matters must differ in this grey."""
    longest: int = 100
    """Environment steps to the goal, at most."""
    image_tokens: int = 16
    """Tokens of a picture that the transformer sees."""
    choice: Literal["grids", "random"] = "grids"
    """Which: learned places, or random ones."""
    steps: int = 20000
    """Training steps. A finished run goes on when there are more, at the end of its first schedule."""
    batch: int = 64
    """Frames a step."""
    lr: float = 5e-4
    """Peak of the learning rate, which then falls to a fiftieth."""
    workers: int = 1
    """Processes that load data; 0: none."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights and batches."""
    output: Path = Path("runs/vla")
    """Folder; everything goes to ENV in there."""


def read_frames(arguments: Arguments) -> HindsightFrames:
    """What to train on; vision looks once at pictures that are shown whole."""
    env, dataset = make_simulator(arguments.env), open_dataset(arguments.dataset, arguments.env)
    with progress_bar(f"reading {env.name}") as progress:
        return HindsightFrames(
            dataset,
            env.proprio_names,
            instruction(env),
            CHUNK,
            arguments.longest,
            ENDS,
            arguments.batch,
            remembered=not arguments.together,
            together=arguments.together,
            weights=arguments.grey,
            progress=progress,
        )


def configuration(arguments: Arguments, backbone: Path) -> SmolVLAGridsConfig:
    """Of a new policy."""
    return SmolVLAGridsConfig(
        image_tokens=arguments.image_tokens,
        choice=arguments.choice,
        **smolvla_options(backbone.resolve(), SIZES, CHUNK, DENOISE),
        device=arguments.device,
        load_vlm_weights=False,
        freeze_vision_encoder=True,
        train_expert_only=False,
        optimizer_lr=arguments.lr,
        optimizer_weight_decay=1e-4,
        optimizer_grad_clip_norm=1.0,
        scheduler_warmup_steps=min(500, arguments.steps // 10),
        scheduler_decay_steps=arguments.steps,
        scheduler_decay_lr=arguments.lr / 50,
    )


def begin(policy: PreTrainedPolicy, arguments: Arguments, frames: HindsightFrames) -> None:
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
        dataset, env = open_dataset(arguments.dataset), make_simulator(arguments.env)
        assert dataset.state is not None
        if frames.together:
            draw = with_goals(frames, dataset.state[:], env.state_names, env.angle_symmetry, arguments.seed)
        else:
            rows = min(LOOKED_AT, dataset.rows)
            with progress_bar("reading pictures") as progress:
                pixels = read_pictures(dataset, rows, progress=progress)
            draw = single(pixels, visible(dataset.state[:rows], env.state_names))
        with progress_bar("learning to see") as progress:
            left = teach_vision(
                policy,
                draw,
                arguments.look,
                seed=arguments.seed,
                bfloat16=in_bfloat16(arguments),
                progress=progress,
            )
        print(f"the recorded state is read from pictures with an error of {left:.3f} of its variance")


def ship(
    checkpoint: Path, backbone: Path, folder: Path, card: str, names: dict[str, Any] | None = None
) -> None:
    """Copy a checkpoint so that it can be carried anywhere: weights in bfloat16, the backbone beside them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        policy = place / "policy"
        shutil.copytree(checkpoint / PRETRAINED_MODEL_DIR, policy)
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


def in_bfloat16(arguments: Arguments) -> bool:
    """Whether the device is fast in it."""
    return choose_dtype("auto", torch.device(arguments.device)) == torch.bfloat16


def prepare(policy: PreTrainedPolicy, arguments: Arguments, frames: HindsightFrames) -> None:
    """How this policy is trained: fast vision, half of the samples at pure noise, every picture seen once."""
    place_once(policy)
    if arguments.device == "cpu":  # where fused attention is half as fast, backward above all
        policy.model.vlm_with_expert.get_vlm_model().vision_model.set_attn_implementation("eager")
    usual = policy.model.sample_time

    def sample_time(size: int, device: torch.device) -> Tensor:
        times: Tensor = usual(size, device)
        return torch.where(torch.rand(size, device=device) < FROM_NOISE, 1.0, times)

    policy.model.sample_time = sample_time


def main(arguments: Arguments) -> None:
    at_least(0, look=arguments.look)
    check_weights(arguments.grey, "--grey")
    at_least(1, steps=arguments.steps, batch=arguments.batch, image_tokens=arguments.image_tokens)
    if arguments.start is not None and not (arguments.start / "model.safetensors").is_file():
        raise UserError(f"--start {arguments.start} holds no policy: give a folder this script wrote")
    env = make_simulator(arguments.env)
    arguments.env = env.name
    folder, text = arguments.output / env.name, instruction(env)
    frames = read_frames(arguments)
    if not (folder / "backbone").is_dir():
        write_backbone(folder / "backbone", [text], SIZES)
    config: Any = configuration(arguments, folder / "backbone")
    last = last_checkpoint(folder / "training")
    if last is not None:
        config = PreTrainedConfig.from_pretrained(last / PRETRAINED_MODEL_DIR)
        config.device = arguments.device
    policy, *processors = make_policy(config, frames, arguments.seed, last)
    prepare(policy, arguments, frames)
    if last is None:
        begin(policy, arguments, frames)
    if frames.remembered:
        with progress_bar("looking at all pictures") as progress:
            remember_vision(policy, open_dataset(arguments.dataset).pixels, progress)
    with progress_bar("training") as progress:
        checkpoint = train(
            policy,
            (processors[0], processors[1]),
            frames,
            folder / "training",
            arguments.steps,
            arguments.batch,
            SAVE_EVERY,
            arguments.workers,
            in_bfloat16(arguments),
            progress,
        )
    size = (checkpoint / PRETRAINED_MODEL_DIR / "model.safetensors").stat().st_size
    card = CARD.format(
        env=arguments.env,
        parameters=size / 4e6,
        sizes=", ".join(f"{name} {value}" for name, value in asdict(SIZES).items()),
        episodes=frames.num_episodes,
        frames=frames.num_frames,
        source=open_dataset(arguments.dataset).attributes.get("policy", "unknown policy"),
        text=text,
        **{name: getattr(arguments, name) for name in ("longest", "steps", "batch", "seed")},
        ends=ENDS,
        chunk=CHUNK,
        command=typed_command(),
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
    launch(main, Arguments)
