"""Steps that are done again and again on tensors that keep their place: recorded as CUDA graphs and replayed.

Replaces: calling the step.
Faster because: one launch starts all of its kernels. A step of decoding is many small kernels, and without a recording the
device waits for Python between them.
Proved equal by (on a GPU):
tests/policy/fast/test_replay.py::test_on_cuda_the_step_is_called_twice_for_each_shape_and_replayed_from_then_on,
tests/policy/test_device.py::test_beams_of_rollout_after_rollout_are_those_of_a_search_of_its_own
"""

from collections.abc import Callable, Hashable

import torch


class Replay:
    """``replay(step, shape, *given)`` does ``step(*given)``. On CUDA the first call for each shape is an ordinary one, which
    also loads and tunes the kernels; the second is recorded; from then on the recording is replayed.

    A step reads and writes tensors in place and asks the device for no value. Everything that changes the course of its Python
    code or the tensors that it touches is part of ``shape``; ``given`` are the same objects in every call.
    """

    def __init__(self, device: torch.device) -> None:
        self.records = device.type == "cuda"
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.records else None

    def __call__(self, step: Callable[..., None], shape: Hashable, *given: object) -> None:
        key = step, shape
        if not self.records or key not in self.graphs:
            self.graphs[key] = None
            step(*given)
            return
        graph = self.graphs[key]
        if graph is None:
            self.graphs[key] = graph = torch.cuda.CUDAGraph()
            # One pool for all: they are never replayed at once, and nothing that a step allocates outlives it.
            with torch.cuda.graph(graph, pool=self.pool):
                step(*given)
        graph.replay()
