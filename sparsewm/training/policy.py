"""Training of a policy on stretches of recorded episodes, drawn anew at every step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sparsewm.bodies import bodies, shown_numbers
from sparsewm.config import PlanConfig
from sparsewm.data import Dataset, Tokens, fast_copy, open_dataset, tokens_of
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.files import only_one, output_folder
from sparsewm.model.checkpoint import load, pretrained_path
from sparsewm.model.world_model import WorldModel
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.proposals.flow import PolicySizes
from sparsewm.proposals.inverse import STATE, InverseDynamics
from sparsewm.proposals.latent import KINDS, WEIGHTS, kept_beside, load_policy, policy_folder
from sparsewm.proposals.wam import WorldActionModel
from sparsewm.settings import make_env
from sparsewm.training.draws import generators
from sparsewm.training.inputs import token_folder
from sparsewm.training.policy_config import SMOLVLA, PolicyTrainConfig
from sparsewm.training.policy_trainer import PolicyTrainer, validation_draw
from sparsewm.training.report import Progress, Say, quiet, silent
from sparsewm.training.start import check_sizes
from sparsewm.training.state import STATE_FILE
from sparsewm.training.state_reader import Lesson, reader_rows, teach_reader
from sparsewm.training.stretches import Stretches


@dataclass(frozen=True)
class TrainedPolicy:
    """What a training leaves: the policy's folder, its environment, the last metrics, steps and seconds."""

    folder: Path
    environment: str
    metrics: dict[str, Any]
    steps: int
    seconds: float


def train_policy(config: PolicyTrainConfig, progress: Progress = quiet, say: Say = silent) -> TrainedPolicy:
    """Train a policy that proposes to the planner.

    Args:
        config: the settings. progress: makes a bar of a label. say: takes what is worth knowing.

    Raises:
        UserError: settings, data or a world model that cannot be trained with; training diverges; the disk is
            full; a SmolVLA lacks LeRobot.
    """
    if config.kind == SMOLVLA:
        from sparsewm.training.smolvla.run import train_smolvla  # loads LeRobot, which takes seconds

        return train_smolvla(config, progress, say)
    with ExitStack() as held:
        device = choose_device(config.device)
        model = _world_model(config, device)
        data = held.enter_context(closing(_dataset(config, model)))
        others = list(config.inverse.reader_data)
        shown = data  # whose pictures are seen
        if not data.has_pictures:
            shown = held.enter_context(closing(_recording(config, model, others.pop(0))))
        dtype = choose_dtype(config.dtype, device)
        torch.manual_seed(config.seed)
        read = _shown_state(config, model, data)
        told = read.states is not None
        looks = told and config.kind == InverseDynamics.kind  # a wam is told by one that has
        seen = read if shown is data else _shown_state(config, model, shown)
        for other in others if looks else ():
            with closing(_recording(config, model, other)) as opened:
                _shown_state(config, model, opened)
        policy = _newborn(config, model, read, say)
        watched, held_out = shown.split(shortest=2)
        train = watched if shown is data else np.arange(data.episodes)
        folder = config.output or kept_beside(config.kind, model.environment, model.folder)
        if (folder / STATE_FILE).exists() and not config.resume:
            raise UserError(f"{folder} holds a run already: `resume` it, or give another `output`")
        held.enter_context(only_one(output_folder(folder)))
        if 0 < config.episodes < len(train):
            train = np.sort(np.random.default_rng(config.seed).choice(train, config.episodes, replace=False))
            watched = train if shown is data else watched
        future = getattr(policy, "frames", 0)
        how = model.frameskip, policy.sizes, config.longest, config.still, future
        parts = Stretches(data, train, *how, read.states), Stretches(shown, held_out, *how, seen.states)
        looked = reader_rows(shown, (watched, held_out), config.seed) if looks else None
        rows = np.union1d(*looked) if looked else _drawn(config, parts[0])
        rows = np.union1d(rows, validation_draw(parts[1]).rows)
        tokens = _tokens(config, shown, model, rows, folder, dtype, progress, say)
        if looked:
            assert seen.states is not None
            lesson = Lesson(seen.states, tokens, *looked)
            _look(config, policy, model, lesson, others, folder, dtype, progress, say)
        trainer = PolicyTrainer(policy, model, parts[0], parts[1], tokens, folder, config, dtype)
        if config.resume:
            found = trainer.resume()
            say(f"continuing at step {trainer.step}" if found else f"no run in {folder}: starting one")
        with progress("training") as bar:
            trainer.run(lambda step, loss: bar(step, config.steps, f"loss {loss:.3f}"))
    return TrainedPolicy(folder, model.environment, trainer.metrics[-1], trainer.step, trainer.seconds)


def _world_model(config: PolicyTrainConfig, device: torch.device) -> WorldModel:
    if config.env is None and config.checkpoint is None:
        raise UserError("give an `env` whose shipped world model is used, or the `checkpoint` of another one")
    name = None if config.env is None else make_env(config.env).name
    path = config.checkpoint or pretrained_path(str(name), config.encoder)
    return load(path, device, environment=name, encoder_name=config.encoder)


def _dataset(config: PolicyTrainConfig, model: WorldModel) -> Dataset:
    name = config.dataset or f"data/{model.environment}.h5"
    if config.dataset is None and not Path(name).is_file():
        raise UserError(f"there is no {name}: give a `dataset`, or record one by sparsewm collect")
    inverse = config.inverse
    blind = config.kind == InverseDynamics.kind and inverse.reads == STATE and inverse.reader_data
    return _recording(config, model, name, pictures=not blind)


def _recording(config: PolicyTrainConfig, model: WorldModel, name: str, pictures: bool = True) -> Dataset:
    shown = model.interface
    cameras = () if shown is None else shown.cameras
    environment = None if config.env is None else model.environment
    data = open_dataset(name, environment, cameras, pictures=pictures)
    check_sizes(model, data)
    return data


@dataclass(frozen=True)
class _ShownState:
    """What is read of recorded states: names of numbers, (rows, V) of them, the symmetry of angles, and
    which of them proprioception says, too."""

    names: tuple[str, ...] = ()
    states: np.ndarray | None = None
    symmetry: int = 1
    felt: tuple[int, ...] = ()


def _shown_state(config: PolicyTrainConfig, model: WorldModel, data: Dataset) -> _ShownState:
    """What a policy that reads the state reads; nothing for others."""
    inverse = config.kind == InverseDynamics.kind
    if (config.inverse.reads != STATE) if inverse else not config.wam.told:
        return _ShownState()
    how = "give `reads` tokens" if inverse else "leave `told` out"
    remedy = f"{how}, or take another dataset than {data.path}"
    if data.state is None:
        raise UserError(f"there are no recorded states to learn from: {remedy}")
    env = make_env(config.env or model.environment)
    names = getattr(env, "state_names", ())
    if len(names) != data.state.shape[1]:
        raise UserError(
            f"{env.name} names {len(names)} numbers of a state, recorded are {data.state.shape[1]}: {remedy}"
        )
    seen = (
        env.shown_state(data.state) if isinstance(env, SimulatedGoalEnv) else shown_numbers(names, data.state)
    )
    bodies(tuple(seen), how)
    symmetry, felt = getattr(env, "angle_symmetry", 1), tuple(_felt(one, data) for one in seen.values())
    return _ShownState(tuple(seen), np.stack([*seen.values()], 1), symmetry, felt)


def _felt(values: np.ndarray, data: Dataset) -> int:
    """The column of proprioception that is the same as values (rows,) of the state; -1: there is none."""
    same = np.isclose(data.proprio, values[:, None], rtol=1e-5, atol=1e-5 * float(np.std(values))).all(0)
    return int(same.argmax()) if same.any() and np.std(values) else -1


def _look(
    config: PolicyTrainConfig,
    policy: InverseDynamics,
    model: WorldModel,
    lesson: Lesson,
    others: Sequence[str],
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    say: Say,
) -> None:
    """Teach the policy to tell the state, by the lesson and other recordings; a run that is resumed has
    learned it."""
    bodies, weights = policy.bodies, folder / WEIGHTS
    if config.resume and (folder / STATE_FILE).exists() and weights.exists():
        try:
            kept = {name: value.float() for name, value in load_file(weights).items()}
            own = {name: kept[f"bodies.{name}"] for name in bodies.state_dict()}
            bodies.load_state_dict(own)
            return
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{weights} is damaged ({error}): give another `output`") from None
    with ExitStack() as held:
        lessons = [lesson]
        for name in others:
            data = held.enter_context(closing(_recording(config, model, name)))
            rows = reader_rows(data, data.split(shortest=2), config.seed)
            tokens = _tokens(config, data, model, np.union1d(*rows), folder, dtype, progress, say)
            states = _shown_state(config, model, data).states
            assert states is not None
            lessons.append(Lesson(states, tokens, *rows))
        with progress("looking") as bar:
            errors = teach_reader(
                bodies.reader,
                lessons,
                model.standardizer,
                config.inverse.reader_steps,
                config.seed,
                lambda step, loss: bar(step, config.inverse.reader_steps, f"loss {loss:.3f}"),
            )
    bodies.fit(errors, model.standardizer)


def _told_by(model: WorldModel) -> InverseDynamics:
    """The inverse dynamics beside a world model, which tells the state."""
    folder = policy_folder(InverseDynamics.kind, model.environment, model.folder)
    assert folder is not None
    found: InverseDynamics = load_policy(folder, model)
    if not found.reads_states:
        raise UserError(f"the inverse dynamics in {folder} reads tokens: train one that `reads` state, first")
    return found


def _newborn(config: PolicyTrainConfig, model: WorldModel, read: _ShownState, say: Say) -> Any:
    """A new policy of the model's sizes."""
    network, _ = KINDS[config.kind]
    sizes = model.config
    chunk = config.chunk
    if chunk is None:
        chunk = PlanConfig.of(model.environment).search.horizon if config.env else PlanConfig().search.horizon
    shape = PolicySizes(
        sizes.token_dim,
        sizes.grid,
        sizes.proprio_dim,
        sizes.action_dim,
        chunk,
        read.names,
        read.symmetry,
        config.inverse.turned and bool(read.names),
        config.inverse.free if read.names else (),
        model.encoder.dim if read.names and model.space is not None else 0,
        read.felt if max(read.felt, default=-1) >= 0 else (),
    )
    reader = None
    if config.kind == WorldActionModel.kind and read.names:
        reader = _told_by(model)
        told = ("turned", "free", "given_dim", "felt")
        shape = replace(shape, **{name: getattr(reader.sizes, name) for name in told})
    policy = network(shape, getattr(config, config.kind))
    if reader is not None:
        policy.bodies.load_state_dict(reader.bodies.state_dict())
    if isinstance(policy, WorldActionModel) and policy.imagines and config.wam.from_predictor:
        agree = policy.begin(model.predictor)
        say(
            "the future expert starts from the predictor"
            if agree
            else "the future expert starts anew: the predictor has other sizes"
        )
    return policy.to(model.device)


def _drawn(config: PolicyTrainConfig, stretches: Stretches) -> np.ndarray:
    """The rows of all stretches that this training draws, ascending."""
    read = np.zeros(stretches.dataset.rows, bool)
    for step in range(config.steps):
        read[stretches.draw(generators(config.seed, 3, step)[0], config.batch).rows] = True
    return np.flatnonzero(read)


def _tokens(
    config: PolicyTrainConfig,
    data: Dataset,
    model: WorldModel,
    rows: np.ndarray,
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    say: Say,
) -> Tokens:
    """The tokens of these rows, ascending."""
    pictures = data.pixels[np.unique(np.linspace(0, data.rows - 1, 64).astype(int))]
    whitening = float(model.metadata.get("training", {}).get("whitening", 0.0))
    fast = fast_copy(model.encoder, pictures, dtype, whitening, report=say)
    place = None if config.cache == "none" else token_folder(data, fast, folder, config.cache, len(rows))
    with progress("encoding") as bar:
        return tokens_of(data, fast, config.cache, place, bar, say, rows)
