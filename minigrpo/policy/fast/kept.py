"""A search's tensors and recorded steps, kept for the next search of the same model.

Replaces: new tensors and new recordings for every search.
Faster because: recorded steps read the very tensors that they were recorded with. Recording takes longer than decoding some
tokens, so from rollout to rollout the tensors are used again.
Proved equal by: tests/policy/fast/test_kept.py::test_a_kept_search_finds_what_a_new_one_finds
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from minigrpo.policy.fast.replay import Replay

Search = TypeVar("Search")


@dataclass
class Kept(Generic[Search]):
    """One search with its recorded steps. ``reads``: addresses of the weights and adapters that these read."""

    kind: Hashable
    reads: tuple[int, ...]
    search: Search
    replay: Replay


# A search must not refer to its model, or neither would ever be freed: steps are given the model in each call.
_KEPT: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def kept_search(model: nn.Module, device: torch.device, kind: Hashable, reads: tuple[int, ...], make: Callable[[], Search],
                fits: Callable[[Search], bool]) -> Kept[Search]:
    """The model's last search, if it was of this ``kind``, reads the same weights and ``fits``; else a new one, which is kept
    where steps are recorded. The last one's memory is freed before the new one is made."""
    kept = _KEPT.get(model)
    if kept is not None and (kept.kind, kept.reads) == (kind, reads) and fits(kept.search):
        return kept
    del kept
    release(model)
    kept = Kept(kind, reads, make(), Replay(device))
    if kept.replay.records:                             # else nothing is gained by keeping it
        _KEPT[model] = kept
    return kept


def release(model: nn.Module) -> None:
    """Free the memory of the model's last search. The next one makes its tensors and recordings anew."""
    _KEPT.pop(model, None)
