"""The published recipe, against which training is timed, learns and imagines as it is described."""

from __future__ import annotations

import torch

from sparsewm.evaluation.bench.recipe import PlainPredictor, PlainTraining, RecipeConfig

CONFIG = RecipeConfig(8, 16, 2, 4, 3, None, 2, 2, 16, 48, 3, dropout=0.0)


def frames(count: int, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, count, 16, 8), (batch, count, 2), (batch, count - 1, 4)
    tokens, proprio, action = (torch.randn(shape, generator=generator) for shape in shapes)
    return tokens, proprio, action


def test_no_frame_sees_a_later_one_and_all_see_earlier_ones() -> None:
    network, (tokens, proprio, action) = PlainPredictor(CONFIG).eval(), frames(4)
    patches, seen = torch.arange(16), network.joined(tokens[:, :3], proprio[:, :3], action)
    before = network(seen, patches)
    changed = seen.clone()
    changed[:, 1] += torch.randn(changed[:, 1].shape)
    difference = (network(changed, patches) - before).abs().amax((0, 2, 3))
    assert difference[0] == 0 and difference[1] > 1e-3 and difference[2] > 1e-3


def test_imagined_frames_are_those_of_the_window() -> None:
    network, (tokens, proprio, action) = PlainPredictor(CONFIG).eval(), frames(6)
    patches = torch.tensor([[3, 1, 8, 15]]).expand(4, -1)
    with torch.no_grad():
        found = network.imagine(tokens[:, 0, :4], proprio[:, 0], action, patches)
        assert found.shape == (4, 5, 4, 8)
        first = network.joined(tokens[:, :1, :4], proprio[:, :1], action[:, :1])
        torch.testing.assert_close(network(first, patches)[:, 0, :, :8], found[:, 0])
        again = network.imagine(tokens[:, 0, :4], proprio[:, 0], action[:, :2], patches)
        torch.testing.assert_close(again, found[:, :2])  # later actions change nothing


def test_half_of_the_patches_keep_their_places() -> None:
    network, (tokens, proprio, action) = PlainPredictor(CONFIG).eval(), frames(4)
    order = torch.tensor([3, 1, 8, 15])
    swapped = order.flip(0)
    with torch.no_grad():
        one = network.imagine(tokens[:, 0, order], proprio[:, 0], action, order.expand(4, -1))
        other = network.imagine(tokens[:, 0, swapped], proprio[:, 0], action, swapped.expand(4, -1))
    torch.testing.assert_close(one, other.flip(2))


def test_it_learns_in_both_precisions() -> None:
    batch = frames(4)
    for autocast in (False, True):
        training = PlainTraining(CONFIG, torch.device("cpu"), 0, autocast=autocast)
        losses = [training.step(*batch) for _ in range(40)]
        assert losses[-1] < 0.9 * losses[0]
        assert next(training.network.parameters()).dtype == torch.float32


def test_a_batch_in_parts_is_the_same_step() -> None:
    batch, weights = frames(4, batch=5), []
    for memory in (1e9, 1.0):
        training = PlainTraining(CONFIG, torch.device("cpu"), 0, memory=memory)
        training.step(*batch)
        weights.append([parameter.grad for parameter in training.network.parameters()])
    assert training.most == 1
    torch.testing.assert_close(*weights)
