"""One training of a small SmolVLA, and the folder that it leaves.

A backbone of a few million parameters is built with a tokenizer of its own, and its vision learns to see.
Then the policy learns on frames with goals from their future: first with few random tokens of every picture,
which is cheap, at last with tokens at places that it learns (GridS).
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sparsewm.bodies import bodies
from sparsewm.data import Dataset, open_dataset
from sparsewm.data.cameras import BOTH, CAMERA
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.files import only_one, output_folder, slug, write_json
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.version import lerobot_imports
from sparsewm.settings import instructions, make_env
from sparsewm.training.draws import generators
from sparsewm.training.policy import TrainedPolicy
from sparsewm.training.policy_config import PolicyTrainConfig, changed, recorded
from sparsewm.training.report import Progress, Say, quiet, silent
from sparsewm.training.smolvla.backbone import BackboneSizes, smolvla_options, write_backbone
from sparsewm.training.smolvla.checkpoint import WEIGHTS, Checkpoint, new_policy, ship, take_weights
from sparsewm.training.smolvla.frames import ENDS, HindsightFrames, read_pictures
from sparsewm.training.smolvla.learner import Learner
from sparsewm.training.smolvla.vision import (
    begin_anew,
    single,
    teach_vision,
    visible,
    with_goals,
)
from sparsewm.trees import differences

with lerobot_imports("training policies of LeRobot"):
    from accelerate import Accelerator
    from lerobot.scripts.lerobot_train import update_policy

SIZES = BackboneSizes()
CHUNK = 25  # actions
DENOISE = 2  # steps
LOOKED_AT = 100_000  # pictures of which vision learns to see, at most


def train_smolvla(config: PolicyTrainConfig, progress: Progress = quiet, say: Say = silent) -> TrainedPolicy:
    """Train a small SmolVLA from scratch, or from another one on.

    Args:
        config: the settings. progress: makes a bar of a label. say: takes what is worth knowing.

    Raises:
        UserError: settings or data that cannot be trained with; training diverges; the disk is full.
    """
    with ExitStack() as held:
        device = choose_device(config.device)
        _check_tokens(config)
        start = None if config.start is None else _policy_in(config.start)
        env = _environment(config)
        data = held.enter_context(closing(_dataset(config, env)))
        folder = config.output or Path("runs") / env.name / "smolvla"
        if (folder / "training").exists() and not config.resume:
            raise UserError(f"{folder} holds a run already: `resume` it, or give another `output`")
        held.enter_context(only_one(output_folder(folder)))
        run = _Run(config, env, data, folder, device, progress, say)
        if config.resume:
            run.resume()
        run.train(start)
        run.ship()
    return TrainedPolicy(folder / "policy", env.name, run.record, run.record["step"], run.record["seconds"])


@dataclass(frozen=True)
class Phase:
    """Steps from `first` to `last` in which a policy sees so many tokens of a picture."""

    first: int
    last: int
    tokens: int
    choice: str
    lr: float


def phases(config: PolicyTrainConfig, early: int) -> Iterator[Phase]:
    """What a training consists of: `early` steps of few random tokens, then learned places."""
    ours, first = config.smolvla, min(early, config.steps)
    if first:
        yield Phase(0, first, ours.early_tokens, "random", config.lr)
    if first < config.steps:
        yield Phase(first, config.steps, ours.image_tokens, "grids", config.lr / 2)


class _Run:
    """A training in its folder, from where it is."""

    def __init__(
        self,
        config: PolicyTrainConfig,
        env: SimulatedGoalEnv,
        data: Dataset,
        folder: Path,
        device: torch.device,
        progress: Progress,
        say: Say,
    ) -> None:
        self.config, self.env, self.data, self.folder = config, env, data, folder
        self.device, self.progress, self.say = device, progress, say
        self.bfloat16 = choose_dtype(config.dtype, device) == torch.bfloat16
        try:
            self.instructions = instructions(env, data)
        except UserError as error:
            raise UserError(f"{error}: give another `dataset`") from None
        self.checkpoint = Checkpoint(folder / "training", folder / "backbone")
        places = math.ceil(config.smolvla.places * config.steps)
        self.record: dict[str, Any] = {
            "settings": recorded(config),
            "identity": {"dataset": data.hash, "bfloat16": self.bfloat16},
            "early": config.steps - places,
            "step": 0,
            "seconds": 0.0,
            "look": None,
            "metrics": [],
        }

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one.

        Raises:
            UserError: it is damaged, or of a run with other settings.
        """
        if not self.checkpoint:
            self.say(f"no run in {self.folder}: starting one")
            return
        found, now = self.checkpoint.record(), self.record
        other = changed(now["settings"], found["settings"])
        other += [name for name, value in now["identity"].items() if found["identity"].get(name) != value]
        if other:
            raise UserError(
                f"{self.folder} holds a run with another {', '.join(other)}: give the same to resume it, or "
                "another `output`"
            )
        early = found["early"] if self.config.smolvla.places else now["early"]
        self.record = found | {"settings": now["settings"], "early": early}
        self.say(f"continuing at step {found['step']}")

    def train(self, start: Path | None) -> None:
        """Train to the last step, saving on the way; `start` holds the policy to go on from."""
        config, ours = self.config, self.config.smolvla
        reads = self.progress if ours.together else quiet  # all pictures now, or nothing that takes long
        with reads(f"reading {self.env.name}") as bar:
            frames = HindsightFrames(
                self.data,
                self.env.proprio_names,
                self.instructions,
                CHUNK,
                config.longest,
                goal=ours.goal,
                together=ours.together,
                weights=ours.grey,
                progress=bar,
            )
        if not self.checkpoint.backbone.is_dir():
            write_backbone(self.checkpoint.backbone, sorted(set(self.instructions)), SIZES)
        encoded = None  # by vision, which stays as it is from the first step on
        for phase in phases(config, self.record["early"]):
            if self.record["step"] >= phase.last:
                continue
            if self.record["step"] > phase.first:
                policy, processors = self.checkpoint.load(self.bfloat16, self.device)
            else:
                torch.manual_seed(config.seed)
                policy, processors = self._begin(phase, frames, start)
            if not ours.together:
                if encoded is None:
                    with self.progress("looking at all pictures") as bar:
                        policy.remember(self.data.pixels, bar)
                    encoded = policy.encoded
                policy.encoded = encoded
            self._train(policy, processors, frames, phase)

    def _begin(self, phase: Phase, frames: HindsightFrames, start: Path | None) -> tuple[Learner, Any]:
        """A policy at the first step of a phase."""
        new = new_policy(
            configuration(phase, self.checkpoint.backbone, self.device), frames, self.bfloat16, self.device
        )
        policy, processors = new
        if self.checkpoint:
            take_weights(policy, self.checkpoint.policy)
            return new
        if start is None:
            begin_anew(policy.model)
        else:
            take_weights(policy, start)
        if self.config.smolvla.look:
            self._teach(policy, frames)
        self.checkpoint.save(policy, processors, 0, self.record)
        return new

    def _teach(self, policy: Learner, frames: HindsightFrames) -> None:
        """Have vision learn to see."""
        config, env, states = self.config, self.env, self.data.state
        assert states is not None
        try:
            seen = env.shown_state(states[:])
        except ValueError as error:  # behind an episode's first row
            raise UserError(
                f"states of {self.data.path} are of no task ({error}): give another `dataset`"
            ) from None
        if frames.together:
            numbers = np.stack([*seen.values()], 1)
            draw = with_goals(frames, numbers, tuple(seen), env.angle_symmetry, config.seed)
        else:
            rows = min(LOOKED_AT, self.data.rows)
            with self.progress("reading pictures") as bar:
                pixels = read_pictures(self.data, rows, progress=bar)
            targets = visible({name: column[:rows] for name, column in seen.items()})
            if not config.smolvla.goal:  # of which markers tell, as far as there are any
                ends = frames.farthest[:rows].numpy() + np.arange(rows)
                targets = torch.cat([targets, visible(seen)[ends]], 1)
            draw = single(pixels, targets)
        with self.progress("learning to see") as bar:
            left = teach_vision(
                policy, draw, config.smolvla.look, seed=config.seed, bfloat16=self.bfloat16, progress=bar
            )
        self.record["look"] = left
        what = "the recorded state is" if config.smolvla.goal else "this state and the episode's last are"
        self.say(f"{what} read from pictures with an error of {left:.3f} of the variance")

    def _train(self, policy: Learner, processors: Any, frames: HindsightFrames, phase: Phase) -> None:
        """Train to the end of a phase.

        Raises:
            UserError: training diverges, or the disk is full.
        """
        config, record = self.config, self.record
        schedule = policy.config.get_scheduler_preset()
        optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        scheduler = schedule.build(optimizer, schedule.num_decay_steps)
        if record["step"] > phase.first:
            optimizer, scheduler = self.checkpoint.load_state(optimizer, scheduler)
        accelerator, told, losses = Accelerator(), SimpleNamespace(), []
        with self.progress("training") as bar:
            for step in range(record["step"], phase.last):
                started = time.perf_counter()
                # LeRobot draws noise, times and random tokens from the global generator
                torch.manual_seed(int(generators(config.seed, 7, step)[0].integers(2**62)))
                batch = processors[0](frames.batch(config.seed, step, config.batch))
                clip = policy.config.optimizer_grad_clip_norm
                update_policy(told, policy, batch, optimizer, clip, accelerator, scheduler)
                if not math.isfinite(told.loss):
                    raise UserError(
                        f"training diverged at step {step} (loss {told.loss:g}): train anew with a lower "
                        "`lr` and another `output`"
                    )
                losses.append(told.loss)
                record["step"] = step + 1
                record["seconds"] += time.perf_counter() - started
                if (step + 1) % config.save_every == 0 or step + 1 == phase.last:
                    entry = {"step": step + 1, "loss": sum(losses) / len(losses), "steps": len(losses)}
                    record["metrics"].append(entry | {"image_tokens": phase.tokens, "choice": phase.choice})
                    self.checkpoint.save(policy, processors, step + 1, record, optimizer, scheduler)
                    write_json(self.folder / "metrics.json", record)
                    losses = []
                bar(step + 1, config.steps, f"loss {told.loss:.3f}")

    def ship(self) -> None:
        """Write the policy to carry away."""
        config, ours = self.config, self.config.smolvla
        size = (self.checkpoint.policy / WEIGHTS).stat().st_size
        _, last = [None, *phases(self.config, self.record["early"])][-2:]
        assert last is not None
        look, seen = self.record["look"], "was taken over and"
        if look is not None:
            what = "" if ours.goal else "where things are and where they end, "
            seen = f"learned to see ({what}error {look:.1%} of the variance) and"
        card = CARD.format(
            env=self.env.name,
            parameters=size / 4e6,
            chunk=CHUNK,
            pictures=_pictures(config),
            tokens=f"{last.tokens} {'learned places' if last.choice == 'grids' else 'random tokens'}",
            sizes=", ".join(f"{name} {value}" for name, value in asdict(SIZES).items()),
            text='", "'.join(sorted(set(self.instructions))),
            episodes=self.data.episodes,
            frames=self.data.rows,
            source=self.data.attributes.get("policy", "unknown policy"),
            goals=_goals(config),
            look=seen,
            steps=self.record["step"],
            batch=self.config.batch,
            seed=self.config.seed,
            command=_command(self.config, self.env.name),
        )
        names: dict[str, Any] | None = None
        if ours.together:
            names = {"cameras": {BOTH: "both"}, "grey": list(ours.grey)}
        elif not ours.goal:
            names = {"cameras": {CAMERA: "pixels"}}
        ship(self.checkpoint, self.folder / "policy", card, names)


def configuration(phase: Phase, backbone: Path, device: torch.device) -> SmolVLAGridsConfig:
    """Of a new policy."""
    steps = phase.last - phase.first
    return SmolVLAGridsConfig(
        image_tokens=phase.tokens,
        choice=phase.choice,
        **smolvla_options(backbone.resolve(), SIZES, CHUNK, DENOISE),
        device=device.type,
        load_vlm_weights=False,
        freeze_vision_encoder=True,
        train_expert_only=False,
        optimizer_lr=phase.lr,
        optimizer_weight_decay=1e-4,
        optimizer_grad_clip_norm=1.0,
        scheduler_warmup_steps=min(500, steps // 10),
        scheduler_decay_steps=steps,
        scheduler_decay_lr=phase.lr / 50,
    )


def _check_tokens(config: PolicyTrainConfig) -> None:
    most = (SIZES.image // SIZES.patch // SIZES.shuffle) ** 2
    for name in ("early_tokens", "image_tokens"):
        if (asked := getattr(config.smolvla, name)) > most:
            raise UserError(f"`{name}` must be at most {most}, those of a picture, got {asked}")


def _policy_in(folder: Path) -> Path:
    """The folder of the policy that is started from: this one, or the one of a run."""
    for place in (folder, folder / "policy"):
        if (place / WEIGHTS).is_file():
            return place
    raise UserError(f"`start` {folder} holds no policy: give a folder that this command wrote")


def _environment(config: PolicyTrainConfig) -> SimulatedGoalEnv:
    if config.env is None:
        raise UserError("a SmolVLA is trained for an environment: give an `env`")
    env = make_env(config.env)
    if not isinstance(env, SimulatedGoalEnv):
        raise UserError(
            f"{env.name} is none of sparsewm's own environments, whose states and instructions are known: "
            "train a SmolVLA for it by LeRobot's lerobot-train, on segments that sparsewm convert writes"
        )
    if config.smolvla.look and config.smolvla.together:
        bodies(tuple(env.shown_state(np.zeros((1, env.state_dim)))), "leave `together` out, or give `look` 0")
    return env


def _dataset(config: PolicyTrainConfig, env: SimulatedGoalEnv) -> Dataset:
    name = config.dataset or f"data/{slug(env.name)}-expert.h5"
    if config.dataset is None and not Path(name).is_file():
        raise UserError(
            f"there is no {name}: give a `dataset`, or record one by sparsewm collect --env {env.name} "
            "--policy expert"
        )
    data = open_dataset(name, env.name)
    if config.smolvla.look and data.state is None:
        data.close()
        raise UserError(f"{name} has no states for vision to learn from: give another `dataset`, or `look` 0")
    height, width = data.pixels.shape[1:3]
    if height != width:
        data.close()
        raise UserError(
            f"pictures of {name} are {height} x {width}, a SmolVLA sees squares: sparsewm convert writes "
            f"others with --resolution {min(height, width)} {min(height, width)}"
        )
    sizes: list[tuple[str, int, int]] = [("proprio", data.proprio.shape[1], env.proprio_dim)]
    sizes += [("state", data.state.shape[1], env.state_dim)] if data.state is not None else []
    sizes += [("action", data.action.shape[1], len(env.action_low))]
    for column, found, size in sizes:
        if found != size:
            data.close()
            raise UserError(f"column '{column}' of {name} has {found} numbers a row, {env.name} has {size}")
    return data


def _pictures(config: PolicyTrainConfig) -> str:
    """What a policy sees, in words."""
    if config.smolvla.together:
        return "one picture of present and goal (the goal in red)"
    return "the present picture" + (", the picture of the goal" if config.smolvla.goal else "")


def _goals(config: PolicyTrainConfig) -> str:
    """What it was shown as goals, in words."""
    if not config.smolvla.goal:
        return "goals are not shown"
    longest = "" if config.longest is None else f"at most {config.longest} steps ahead, "
    return f"goals later in the episode, {longest}{ENDS:.0%} of them at its end"


def _command(config: PolicyTrainConfig, env: str) -> str:
    """The command that makes such a policy."""
    words = ["sparsewm", "train-policy", "--kind", config.kind, "--env", env]
    usual = PolicyTrainConfig.of(config.kind, env, config.start)
    for name, value in differences(config, usual):
        flag = "--" + name.replace("_", "-")
        if name in ("env", "resume", "device", "output", "save_every"):
            continue
        if isinstance(value, bool):
            section, _, leaf = flag.rpartition(".")
            words.append(flag if value else f"{section}.no-{leaf}")
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words if config.start is None else [*words, "--start", str(config.start)])


CARD = """# SmolVLA: {env}

A small SmolVLA (LeRobot's class and training code), {parameters:.1f} million parameters in bfloat16, trained
from scratch: chunks of {chunk} environment actions from {pictures},
proprioception and an instruction. Its transformer sees {tokens} of a picture.

- Backbone: {sizes}; its tokenizer is made of the words of "{text}" and reads other texts byte by byte.
- Data: {episodes} episodes ({source}), {frames} frames; {goals}.
- Training: vision {look} was frozen; {steps} steps of {batch} frames, seed {seed}.
- Made by: `{command}`.
"""
