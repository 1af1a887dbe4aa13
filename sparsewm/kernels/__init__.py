"""Compiled parts of the planner's rollout. Nothing needs them.

The C files here are compiled once, by the machine's C compiler, and kept in the user's cache folder: `amx`
for processors with a matrix unit, in bfloat16; `layers` for those with AVX2, in float32. Where there is no
compiler, another processor or another system, torch's own operations take their place; SPARSEWM_KERNELS=0
asks for that.
"""

from sparsewm.kernels.amx import Frame, Kernels, kernels
from sparsewm.kernels.layers import CompiledLayers, LayersFrame, layers_library

__all__ = ["CompiledLayers", "Frame", "Kernels", "LayersFrame", "kernels", "layers_library"]
