"""A step that is done again and again on tensors that stay where they are: on CUDA a graph, replayed. Knows no search."""

from typing import Callable, Hashable

import torch


class Replay:
    """Calls ``step``; on CUDA its first call for each ``shape`` is an ordinary one, which also loads and tunes what it uses,
    the second is recorded, and from then on one launch does for all of its kernels.

    ``step`` reads and writes tensors in place and asks nothing of the device; whatever changes the course of its Python code
    or the tensors that it touches is part of ``shape``.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.records = step, device.type == "cuda"
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.records else None

    def __call__(self, shape: Hashable) -> None:
        if not self.records or shape not in self.graphs:
            self.graphs[shape] = None
            self.step()
            return
        if self.graphs[shape] is None:
            self.graphs[shape] = graph = torch.cuda.CUDAGraph()
            # One pool for all: they are never replayed at once, and nothing that a step allocates outlives it.
            with torch.cuda.graph(graph, pool=self.pool):
                self.step()
        self.graphs[shape].replay()
