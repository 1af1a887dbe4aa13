"""Compiled kernels as tests want them: a matrix unit's and a training step's in plain C where need be."""

from __future__ import annotations

import functools
from ctypes import CDLL

import pytest
import torch

from scripts.trust.emulation import emulated
from sparsewm.kernels import LAYOUTS, Layout, layers, layers_library, training
from sparsewm.kernels.training import VARIANTS, TrainingKernels, variant


@functools.cache
def library_of(layout: Layout) -> CDLL | str:
    """As `layers_library`."""
    found = layers_library(layout)
    if not isinstance(found, str) or not layout.tiles:
        return found
    return emulated(layout.name, tuple(layers.SOURCES), layout.flags, layout.needed)


@functools.cache
def training_of(name: str) -> TrainingKernels | str:
    """As `variant`."""
    found = variant(name)
    if not isinstance(found, str):
        return found
    library = emulated(name, tuple(training.SOURCES), *VARIANTS[name])
    return library if isinstance(library, str) else TrainingKernels(library)


def compiled(*precisions: torch.dtype) -> pytest.MarkDecorator:
    """Tests of all layouts of these precisions."""
    return pytest.mark.parametrize(
        "layout",
        [
            pytest.param(
                layout,
                marks=pytest.mark.skipif(isinstance(library_of(layout), str), reason=f"{library_of(layout)}"),
                id=layout.name,
            )
            for layout in LAYOUTS
            if layout.weights in precisions
        ],
    )
