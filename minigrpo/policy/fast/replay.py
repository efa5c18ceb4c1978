"""Steps that are done again and again on tensors that stay where they are: on CUDA graphs, replayed. Knows no search."""

from collections.abc import Callable, Hashable

import torch


class Replay:
    """``replay(step, shape)`` calls ``step``. On CUDA the first call for each shape is an ordinary one, which also loads and
    tunes what it uses, the second is recorded, and from then on one launch does for all of its kernels.

    A step reads and writes tensors in place and asks nothing of the device; whatever changes the course of its Python code or
    the tensors that it touches is part of ``shape``.
    """

    def __init__(self, device: torch.device) -> None:
        self.records = device.type == "cuda"
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.records else None

    def __call__(self, step: Callable[[], None], shape: Hashable) -> None:
        key = step, shape
        if not self.records or key not in self.graphs:
            self.graphs[key] = None
            step()
            return
        if self.graphs[key] is None:
            self.graphs[key] = graph = torch.cuda.CUDAGraph()
            # One pool for all: they are never replayed at once, and nothing that a step allocates outlives it.
            with torch.cuda.graph(graph, pool=self.pool):
                step()
        self.graphs[key].replay()
