"""Steps that are done again and again on tensors that keep their place: recorded as CUDA graphs, replayed, and kept for the
next search of the same model.

Replaces: calling the step; new tensors and new recordings for every search.
Faster because: one launch starts all of a step's kernels. A step of decoding is many small kernels, and without a recording
the device waits for Python between them. Recording takes longer than decoding some tokens, and recorded steps read the very
tensors that they were recorded with, so from rollout to rollout both are used again.
Proved equal by: tests/policy/fast/test_replay.py::test_a_kept_search_finds_what_a_new_one_finds and, on a GPU,
tests/policy/fast/test_replay.py::test_on_cuda_the_step_is_called_twice_for_each_shape_and_replayed_from_then_on,
tests/policy/test_device.py::test_beams_of_rollout_after_rollout_are_those_of_a_search_of_its_own
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn


class Replay:
    """``replay(step, shape, *given)`` does ``step(*given)``. On CUDA the first call for each shape is an ordinary one, which
    also loads and tunes the kernels; the second is recorded; from then on the recording is replayed.

    A step reads and writes tensors in place and asks the device for no value. Everything that changes the course of its Python
    code or the place of the tensors that it touches is part of ``shape``.
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


class Kept(NamedTuple):
    """One search with its recorded steps. ``kind``: all that these depend on, the addresses of what they read among it."""

    kind: Hashable
    search: Any
    replay: Replay


# A search must not refer to its model, or neither would ever be freed: steps are given the model in each call.
_KEPT: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def kept_search(model: nn.Module, device: torch.device, kind: Hashable, make: Callable[[], Any],
                fits: Callable[[Any], bool]) -> Kept:
    """The model's last search, if it was of this ``kind`` and ``fits``; else a new one, which is kept where steps are
    recorded. The last one's memory is freed before the new one is made."""
    kept = _KEPT.get(model)
    if kept is not None and kept.kind == kind and fits(kept.search):
        return kept
    del kept
    release(model)
    kept = Kept(kind, make(), Replay(device))
    if kept.replay.records:                             # else nothing is gained by keeping it
        _KEPT[model] = kept
    return kept


def release(model: nn.Module) -> None:
    """Free the memory of the model's last search. The next one makes its tensors and recordings anew."""
    _KEPT.pop(model, None)
