"""Operations by formula are those that torch counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsewm.evaluation.bench.operations import (
    parameters,
    recipe_operations,
    recipe_step_operations,
    rollout_operations,
    step_operations,
    window_operations,
)
from sparsewm.evaluation.bench.recipe import PlainPredictor, PlainTraining, RecipeConfig
from sparsewm.evaluation.dino_wm import WindowRollout
from tests.model.tiny import random_actions, random_latent, tiny_model

GENERATOR = torch.Generator().manual_seed(0)


def counted(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def test_a_rollout_of_one_candidate() -> None:
    model, patches = tiny_model(width=48, heads=3), torch.tensor([[7, 2, 11, 5, 9]])
    start, actions = random_latent(model, 1, GENERATOR), random_actions(model, 1, 1, 5, generator=GENERATOR)
    kept = start.tokens[:, patches[0]]
    found = counted(lambda: model.rollout(kept, start.proprio, actions, patches))
    assert found == rollout_operations(model.config, 5, 5)


def test_the_baseline_that_computes_its_window_anew() -> None:
    model, patches = tiny_model(width=48, heads=3), torch.tensor([7, 2, 11, 5, 9])
    start, actions = random_latent(model, 1, GENERATOR), random_actions(model, 1, 5, generator=GENERATOR)
    window = WindowRollout(model)
    given = start.tokens[:, patches], start.proprio, actions, patches
    # Not in inference mode, in which torch counts nothing.
    found = counted(lambda: WindowRollout.rollout.__wrapped__(window, *given))  # type: ignore[attr-defined]
    assert found == window_operations(model.config, 5, 5)
    assert found > 1.5 * rollout_operations(model.config, 5, 5)


@pytest.mark.parametrize("width", [None, 40])
def test_the_published_network(width: int | None) -> None:
    config = RecipeConfig(8, 16, 2, 4, 3, width, 2, 2, 16, 48, 3)
    network = PlainPredictor(config).eval()
    patches = torch.tensor([[7, 2, 11, 5, 9]])
    tokens, proprio, actions = torch.randn(1, 5, 8), torch.randn(1, 2), torch.randn(1, 5, 4)
    with torch.no_grad():
        found = counted(lambda: network.imagine(tokens, proprio, actions, patches))
    assert found == pytest.approx(recipe_operations(config, 5, 5), rel=0.01)  # embeds each action once


def test_training_steps() -> None:
    model = tiny_model(width=48, heads=3)
    model.predictor.requires_grad_(True)
    batch = {
        "tokens": torch.randn(4, 5, 16, 8),
        "proprio": torch.randn(4, 5, 2),
        "action": torch.randn(4, 4, 4),
    }
    groups = [torch.arange(10).expand(4, -1)]
    ours = counted(lambda: model.loss(batch, 2, groups)["loss"].backward())
    assert ours == pytest.approx(step_operations(model.config, 10, 4, 4), rel=0.03)
    config = RecipeConfig(8, 16, 2, 4, 3, None, 2, 2, 16, 48, 3)
    training = PlainTraining(config, torch.device("cpu"), 0)
    theirs = counted(
        lambda: training.step(batch["tokens"][:, :4], batch["proprio"][:, :4], batch["action"][:, :3])
    )
    assert theirs == pytest.approx(recipe_step_operations(config, 16, 4), rel=0.03)


def test_the_published_network_has_the_parameters_of_the_official_one() -> None:
    with torch.device("meta"):
        network = PlainPredictor(RecipeConfig(384, 196, proprio_dim=4, action_dim=10))
    assert parameters(network) == 20_122_760  # counted on its code, embeddings of PushT included
