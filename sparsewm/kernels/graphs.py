"""CUDA graphs: the kernels of a computation recorded once, then started together.

An iteration of the planner is some hundred kernels of a few microseconds each; between kernels that Python
starts one by one a fast GPU waits. A graph is recorded for one set of shapes, with inputs and outputs at
fixed places in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[Sequence[Tensor]], Tensor]


class Recorded:
    """One computation of given shapes.

    Args:
        function: of tensors on a GPU; must not look at their values. inputs: of the shapes to come.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self._given = [_version(tensor) for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.inputs[0].device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries choose their kernels before anything is recorded
                function(self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = function(self.inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for i, tensor in enumerate(inputs):  # what was handed in last lies there still
            given = _version(tensor)
            before = self._given[i]
            if given is None or before is None or given[0] is not before[0] or given[1] != before[1]:
                self.inputs[i].copy_(tensor)
                self._given[i] = given
        self.graph.replay()
        return self.output.clone()


def _version(tensor: Tensor) -> tuple[Tensor, int] | None:
    """What stays the same while a tensor is not written to; None for one that does not tell."""
    return None if tensor.is_inference() else (tensor, tensor._version)


class Graphs:
    """Computations by name and shapes; each is recorded when it comes for the second time.

    Args:
        capacity: graphs kept, the least recently used one goes first. Each holds the memory of its
            computation. Of shapes that came once, four times as many are remembered.
    """

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self._seen: OrderedDict[object, Recorded | None] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Copies record their own."""
        return {"capacity": self.capacity, "_seen": OrderedDict()}

    def run(self, name: object, function: Function, inputs: Sequence[Tensor]) -> Tensor:
        """`function(inputs)`, from its graph where there is one.

        Args:
            name: what else than the shapes of its inputs the function depends on.
            function: must give the same for the same name and inputs.
        """
        key = (name, tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._seen:
            self._keep(key, None)
            return function(inputs)
        found = self._seen.pop(key) or Recorded(function, inputs)
        self._keep(key, found)
        return found(inputs)

    def _keep(self, key: object, recorded: Recorded | None) -> None:
        self._seen[key] = recorded
        graphs = [other for other, graph in self._seen.items() if graph is not None]
        once = [other for other, graph in self._seen.items() if graph is None]
        for other in (*graphs[: -self.capacity], *once[: -4 * self.capacity]):
            del self._seen[other]
