"""Compiled parts of the planner's rollout, and how a GPU is told many of them at once. Nothing needs them.

`layers` is for processors with AVX-512, in bfloat16 and 8-bit integers, with a matrix unit (AMX) or without:
C files that the machine's own C compiler compiles once, into the user's cache folder. `gpu` is what Triton
compiles for a GPU, `graphs` records what runs there.
Where there is no compiler, another processor or another system, torch's own operations take their place;
SPARSEWM_KERNELS=0 asks for that. `linear` is torch's own product, of packed weights; `denormals` keeps the
least of numbers out of products; `vit` is what a frozen encoder makes of all of them, `training` and
`products` are what a training step does.
"""

from sparsewm.kernels.blocks import Affine, VitBlock
from sparsewm.kernels.denormals import flushed
from sparsewm.kernels.gpu import Frame, GpuKernels, gpu_kernels
from sparsewm.kernels.graphs import Graphs
from sparsewm.kernels.layers import (
    LAYOUTS,
    CompiledLayers,
    LayersFrame,
    Layout,
    layers_library,
    layout_of,
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
    "LayersFrame",
    "Layout",
    "PackedLinear",
    "PackedVit",
    "VitBlock",
    "flushed",
    "gpu_kernels",
    "layers_library",
    "layout_of",
    "packed_vit",
]
