"""Compiled parts of the planner's rollout, and how a GPU is told many of them at once. Nothing needs them.

`amx` is for processors with a matrix unit, in bfloat16; `layers` for those with AVX-512, in bfloat16 and
8-bit integers: C files that the machine's own C compiler compiles once, into the user's cache folder. `gpu`
is what Triton compiles for a GPU, `graphs` records what runs there.
Where there is no compiler, another processor or another system, torch's own operations take their place;
SPARSEWM_KERNELS=0 asks for that. `linear` is torch's own product, of packed weights; `denormals` keeps the
least of numbers out of products; `vit` is what a frozen encoder makes of all of them, `training` and
`products` are what a training step does.
"""

from sparsewm.kernels.amx import Kernels, kernels
from sparsewm.kernels.blocks import Affine, VitBlock
from sparsewm.kernels.denormals import flushed
from sparsewm.kernels.frame import Frame, RolloutKernels
from sparsewm.kernels.gpu import GpuKernels, gpu_kernels
from sparsewm.kernels.graphs import Graphs
from sparsewm.kernels.layers import (
    LAYOUTS,
    CompiledLayers,
    LayersFrame,
    Layout,
    layers_library,
)
from sparsewm.kernels.linear import FrozenLinear, PackedLinear
from sparsewm.kernels.vit import PackedVit, packed_vit

__all__ = [
    "LAYOUTS",
    "Affine",
    "CompiledLayers",
    "Frame",
    "FrozenLinear",
    "GpuKernels",
    "Graphs",
    "Kernels",
    "LayersFrame",
    "Layout",
    "PackedLinear",
    "PackedVit",
    "RolloutKernels",
    "VitBlock",
    "flushed",
    "gpu_kernels",
    "kernels",
    "layers_library",
    "packed_vit",
]
