"""A configuration, run: from the tree of settings to episodes and results."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

import sparsewm
from sparsewm.adaptation import SceneAdaptation
from sparsewm.agent import Agent, interface_of
from sparsewm.config import NO_PROPOSALS, PlanConfig
from sparsewm.encoders import base_name, names_code
from sparsewm.envs import GoalEnv, SimulatedGoalEnv
from sparsewm.envs.looks import Look
from sparsewm.errors import UserError
from sparsewm.evaluation.actors import (
    AgentActor,
    Nothing,
    Oracle,
    PolicyActor,
    RandomActions,
    interface_of_env,
)
from sparsewm.evaluation.episodes import (
    Actor,
    Episode,
    deadline_report,
    run_episodes,
    success_rate,
    summarize,
)
from sparsewm.evaluation.machine import machine
from sparsewm.files import parse_json, parse_yaml
from sparsewm.model import WorldModel, kept_patches, load
from sparsewm.model.checkpoint import encoder_folder, pretrained_path
from sparsewm.model.choices import ALL, CHOICES
from sparsewm.model.hub import CHECKPOINT_FILES, checkpoint_folder
from sparsewm.model.objectives import OBJECTIVES
from sparsewm.observations import Eyes
from sparsewm.planners import PlanningError, ProposalSampler
from sparsewm.precision import choose_device, choose_dtype, fastest_dtype
from sparsewm.processes import processes
from sparsewm.proposals import load_sampler, reads_tokens
from sparsewm.settings import make_env, told
from sparsewm.tasks import Task, make_tasks, solved_at_start, tasks_hash

OnPlan = Callable[[int, int, Episode], None]
OnEpisode = Callable[[int, Episode], None]


@dataclass
class Prepared:
    """A checked configuration with all it needs: nothing is left to refuse.

    Attributes:
        envs: one for each episode of a batch. model: None for actors that need none.
        sampler: a policy's candidates, None without. reads: the world model by which the policy sees.
    """

    config: PlanConfig
    envs: list[GoalEnv]
    device: torch.device
    dtype: torch.dtype
    model: WorldModel | None
    sampler: ProposalSampler | None
    tasks: list[Task]
    reads: WorldModel | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches, None without a world model."""
        return None if self.model is None else self.model.config.grid

    def actor(self) -> Actor:
        """What acts in the environment."""
        config, kind = self.config, self.config.run.actor
        interface, instruction = interface_of_env(self.envs[0]), config.proposals.instruction
        if kind == "nothing":
            return Nothing()
        if kind == "random":
            return RandomActions()
        eyes = None
        if self.reads is not None and kind in ("policy", "oracle"):
            adaptation = SceneAdaptation.of(self.reads) if config.run.adapt else None
            eyes = Eyes(interface_of(self.reads), config.run.letterbox, adaptation)
        if kind == "policy":
            assert self.sampler is not None
            steps = config.search.execute * self.envs[0].frameskip
            return PolicyActor(self.sampler, interface, instruction, steps, eyes)
        if kind == "oracle":
            return Oracle(config, None, self.sampler, interface, instruction, eyes)
        assert self.model is not None
        return AgentActor(Agent(self.model, config, sampler=self.sampler))


def devices_of(config: PlanConfig) -> list[str]:
    """Names of the devices that share the episodes."""
    return config.run.device.split(",")


def prepare(config: PlanConfig) -> Prepared:
    """Everything that can be refused, before anything is written or run.

    Raises:
        UserError: a setting is wrong, the checkpoint or the policy cannot be loaded or does not fit.
    """
    config = config.checked()
    run = config.run
    env = make_env(config.env)
    if run.actor == "oracle" and not isinstance(env, SimulatedGoalEnv):
        raise UserError(
            f"{env.name} is no simulator whose states can be set: `actor` oracle cannot plan in it"
        )
    if run.landscape and not (isinstance(env, SimulatedGoalEnv) and env.action_dim > 1):
        raise UserError(f"{env.name} is no simulator with two actions: leave `landscape` out")
    device, *_ = [choose_device(name) for name in devices_of(config)]
    dtype = choose_dtype(run.dtype, device, planning=True)
    model = load_model(config, env, device, dtype) if run.actor == "planner" else None
    tasks = make_tasks(env, run.episodes, run.seed, config.goal)
    if not isinstance(env, SimulatedGoalEnv):
        _check_goal(env, tasks[0], config)
    sampler, read = None, model
    if config.proposals.source != NO_PROPOSALS:
        interface = interface_of_env(env) if model is None else interface_of(model)
        kept = dtype if dtype.is_floating_point else fastest_dtype(device)
        if read is None and (run.adapt or reads_tokens(config.proposals.source)):
            read = load_model(config, env, device, kept)
        asked = config.proposals
        sampler = load_sampler(asked.source, interface, device, run.seed, asked.names, kept, read, asked)
    envs = [env, *(make_env(config.env) for _ in range(min(run.batch, run.episodes) - 1))]
    for one in envs:
        dress(one, run.look)
    prepared = Prepared(config, envs, device, dtype, model, sampler, tasks, read)
    prepared.actor()  # an objective that the model lacks is refused here
    return prepared


def dress(env: GoalEnv, look: str) -> None:
    """Let an environment look otherwise, where `look` says so.

    Raises:
        UserError: it is no simulator, or has nothing of that kind to change.
    """
    if looks := Look.parse(look):
        if not isinstance(env, SimulatedGoalEnv):
            raise UserError(f"{env.name} is no simulator of ours, whose `look` can be changed")
        env.dress(looks)


def _check_goal(env: GoalEnv, task: Task, config: PlanConfig) -> None:
    """Refuse an environment of somebody else's that shows no goal where it is to draw it itself."""
    env.reset(seed=task.seed, options=task.options)
    try:
        env.goal_observation()
    except UserError as error:
        if config.goal.source != "random":
            raise
        raise UserError(
            f"{env.name} shows no goal of its own: give `source` trajectory, and what is seen `offset` "
            "steps ahead is the goal"
        ) from error


def check_checkpoint(config: PlanConfig, checkpoint: str | Path) -> str:
    """Refuse a world model that cannot plan as it is asked to, by what its folder says: no weights are read.

    Returns:
        name of its encoder.

    Raises:
        UserError: it is damaged, of another environment or encoder, or lacks what the cost or the adaptation
            needs; or there is no such objective, or choice of tokens.
    """
    run, tokens = config.run, config.tokens
    folder, downloaded = checkpoint_folder(checkpoint)
    try:
        about, sizes = parse_json(folder / CHECKPOINT_FILES[2]), parse_yaml(folder / CHECKPOINT_FILES[1])
        encoder, parts = str(about["encoder"]["name"]), set(sizes)
        environment = str(about["environment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({error}): copy it again or train anew"
        ) from None
    if _is_ours(config.env):
        _check_environment(environment, config.env)
    if run.encoder is not None and base_name(encoder) != base_name(run.encoder):
        raise UserError(
            f"checkpoint {checkpoint} was trained on encoder {encoder}, not {run.encoder}: leave `encoder` "
            f"out, or train with {run.encoder}"
        )
    if downloaded and run.encoder is None and names_code(encoder):
        raise UserError(
            f"the encoder of {checkpoint} is {encoder}, code that nothing from the hub may choose: name the "
            "`encoder` yourself if you trust it"
        )
    if run.actor != "planner":
        return encoder
    OBJECTIVES.get(config.cost.objective)
    CHOICES.get(tokens.choose)
    if tokens.cost != ALL:
        CHOICES.get(tokens.cost)
    if config.cost.objective == "temporal" and "distance" not in parts:
        raise UserError(
            f"checkpoint {checkpoint} was trained without a temporal distance: plan with `objective` mse, or "
            "add one with sparsewm train --extend CHECKPOINT --distance-steps 400"
        )
    if run.adapt and "decoder" not in parts:
        raise UserError(
            f"`adapt` needs the mean picture of the training data, which checkpoint {checkpoint} lacks, as "
            "it has no decoder: leave it out, or train with one"
        )
    return encoder


def load_model(config: PlanConfig, env: GoalEnv, device: torch.device, dtype: torch.dtype) -> WorldModel:
    """The world model of a configuration, checked against its environment."""
    run = config.run
    model = load(
        run.checkpoint or pretrained_path(env.name, run.encoder),
        device,
        dtype,
        encoder_name=run.encoder,
        encoder_weights=run.encoder_weights,
        hub_repo=run.hub_repo,
    )
    if isinstance(env, SimulatedGoalEnv):
        _check_environment(model.environment, env.name)
    wanted, found = interface_of_env(env), interface_of(model)
    sizes = [(one.action_dim, max(1, one.proprio_dim)) for one in (wanted, found)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the checkpoint of {model.environment} has {sizes[1][0]} action and {sizes[1][1]} "
            f"proprioception numbers, {env.name} has {sizes[0][0]} and {sizes[0][1]}: give another `env` or "
            "`checkpoint`"
        )
    return model


def _check_environment(trained: str, name: str) -> None:
    """Refuse a world model of another one of our environments."""
    if trained != name and _is_ours(trained):
        raise UserError(
            f"the checkpoint was trained for {trained}, not {name}: give `env` {trained} or another "
            "`checkpoint`"
        )


def _is_ours(name: str) -> bool:
    from sparsewm import envs

    return name in envs.names()


def run(
    ready: Prepared,
    on_plan: OnPlan | None = None,
    on_episode: OnEpisode | None = None,
    frames: float = 0,
) -> list[Episode]:
    """Run the episodes of a prepared configuration on its devices.

    Raises:
        UserError: a process died, or an episode could not be planned.
    """
    if len(devices_of(ready.config)) > 1:
        return _run_on_devices(ready, on_episode, frames)
    try:
        goal = ready.config.goal
        return run_episodes(
            ready.envs, ready.tasks, ready.actor(), goal.max_steps, on_plan, on_episode, frames, goal.rule
        )
    except PlanningError as error:
        raise UserError(str(error)) from None


def results(ready: Prepared, episodes: list[Episode]) -> dict[str, Any]:
    """What goes into results.json, besides the command."""
    config, model = ready.config, ready.model
    kept = None
    if model is not None:
        kept = {"kept": kept_patches(model.patches, config.tokens.drop), "total": model.patches}
        if config.tokens.selection == "none":
            kept["kept"] = 0
    deadline = config.search.deadline_ms
    shipped = f"pretrained/{(encoder_folder(config.run.encoder) / ready.envs[0].name).as_posix()}"
    read = getattr(ready.sampler, "model", None) if model is None else model  # whose tokens
    return {
        "environment": ready.envs[0].name,
        "actor": config.run.actor,
        "drop": config.tokens.drop,
        "tokens": kept,
        "planner": config.search.planner,
        "proposals": config.proposals.source,
        "encoder": None if read is None else {"name": read.encoder.name, "hash": read.encoder.hash},
        "checkpoint": None if read is None else config.run.checkpoint or shipped,
        "device": config.run.device if len(devices_of(config)) > 1 else str(ready.device),
        "dtype": None if model is None else str(ready.dtype).removeprefix("torch."),
        "seed": config.run.seed,
        "episodes": len(episodes),
        "goal": {
            "source": config.goal.source,
            "offset": config.goal.offset if config.goal.source == "trajectory" else None,
            "budget": config.goal.max_steps,
            "tasks": config.goal.tasks,
            "solved_at_start": solved_at_start([episode.task for episode in episodes]),
            "tasks_sha256": tasks_hash(ready.envs[0].name, config.goal, len(episodes)),
            "rule": config.goal.rule,
        },
        "settings": config.settings(),
        **summarize(ready.envs[0].name, episodes),
        **_told(ready),
        **_by_task(ready.envs[0], episodes),
        "deadline": None if deadline is None else deadline_report(episodes, deadline),
        "machine": machine(ready.device),
        "version": sparsewm.__version__,
    }


def _told(ready: Prepared) -> dict[str, Any]:
    """What a policy that reads no tokens is told: one text, or each task's where there are several."""
    proposals, env = ready.config.proposals, ready.envs[0]
    if proposals.source == NO_PROPOSALS or reads_tokens(proposals.source):
        return {}
    starts = [task.start for task in ready.tasks if task.start is not None]
    if proposals.instruction is None and isinstance(env, SimulatedGoalEnv):
        texts = {name: env.instruction_of(start) for start in starts if (name := env.task_of(start))}
        if texts:
            return {"instruction": dict(sorted(texts.items()))}
    return {"instruction": told(proposals.instruction, env)}


def _by_task(env: GoalEnv, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success of each task, where an environment has several."""
    found: dict[str, list[bool]] = {}
    for episode in episodes:
        start = episode.task.start
        if isinstance(env, SimulatedGoalEnv) and start is not None and (name := env.task_of(start)):
            found.setdefault(name, []).append(episode.success)
    rates = {name: {"episodes": len(one)} | success_rate(one) for name, one in sorted(found.items())}
    return {"by_task": rates} if rates else {}


# Episodes shared by several devices, with a process for each ----------------------------------------------

_here: Prepared | None = None  # what this worker process has prepared


def _begin(config: PlanConfig, devices: Queue[str], threads: int) -> None:
    global _here
    torch.set_num_threads(threads)
    _here = prepare(replace(config, run=replace(config.run, device=devices.get())))


def _run_some(numbers: list[int], frames: float) -> list[Episode]:
    assert _here is not None
    return run(replace(_here, tasks=[_here.tasks[i] for i in numbers]), frames=frames - numbers[0])


def _run_on_devices(ready: Prepared, on_episode: OnEpisode | None, frames: float) -> list[Episode]:
    """Batches of episodes on whichever device is free; every episode has its own seed."""
    config, devices = ready.config, devices_of(ready.config)
    queue = get_context("spawn").Queue()
    for device in devices:
        queue.put(device)
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    count, size = len(ready.tasks), config.run.batch
    batches = [list(range(first, min(first + size, count))) for first in range(0, count, size)]
    episodes: dict[int, Episode] = {}
    try:
        with processes(len(devices), _begin, config, queue, threads) as submit:
            jobs = {submit(_run_some, batch, frames): batch for batch in batches}
            for job in as_completed(jobs):
                for number, episode in zip(jobs[job], job.result(), strict=True):
                    episodes[number] = episode
                    if on_episode is not None:
                        on_episode(number, episode)
    except BrokenProcessPool:
        raise UserError(
            "a planning process died, perhaps for lack of memory: try fewer devices, or a smaller `batch`"
        ) from None
    return [episodes[number] for number in range(count)]
