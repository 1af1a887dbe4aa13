"""What a world model is shown and asked to do, from the model or from its environment."""

from __future__ import annotations

from dataclasses import replace

from sparsewm.envs import ENVIRONMENTS, GoalEnv, make
from sparsewm.errors import UserError
from sparsewm.model.interface import Interface
from sparsewm.model.world_model import WorldModel


def interface_of(model: WorldModel) -> Interface:
    """What a model is shown and asked to do; where its checkpoint does not say it, from its environment.

    Only one that is known by name (`sparsewm.envs.ENVIRONMENTS`) is asked: a checkpoint chooses no code.

    Raises:
        UserError: neither says it.
    """
    found = model.interface
    if found is None and model.environment in ENVIRONMENTS:
        env = make(model.environment)
        found = replace(interface_of_env(env), frameskip=model.frameskip)
        env.close()
    if found is None:
        raise UserError(
            f"the checkpoint of '{model.environment}' does not say what its actions are: train it again, or "
            "add an interface to its metadata.json (sparsewm.model.interface)"
        )
    sizes = (found.action_dim * found.frameskip, max(1, found.proprio_dim))
    if sizes != (model.action_dim, model.config.proprio_dim) or found.frameskip != model.frameskip:
        raise UserError(
            f"the interface of this checkpoint ({sizes[0]} action and {sizes[1]} proprioception numbers per "
            f"model step) does not fit its predictor ({model.action_dim} and {model.config.proprio_dim}): "
            "train it again"
        )
    return replace(found, name=model.environment)


def interface_of_env(env: GoalEnv) -> Interface:
    """What an environment's world model is shown and asked to do."""
    space = env.observation_space["pixels"], env.observation_space["proprio"]  # type: ignore[index]
    low = env.action_space.low
    numbered = tuple(f"proprio_{i}" for i in range(space[1].shape[0]))
    return Interface(
        name=env.name,
        picture=tuple(space[0].shape[:2]),
        action_low=tuple(float(x) for x in low),
        action_high=tuple(float(x) for x in env.action_space.high),
        action_names=tuple(f"action_{i}" for i in range(len(low))),
        proprio_names=tuple(env.proprio_names) or numbered,
        frameskip=env.frameskip,
        fps=env.metadata.get("render_fps"),
    )
