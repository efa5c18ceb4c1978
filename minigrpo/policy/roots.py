"""Roots: what several prompts begin with, read once. All that the rest of a prompt needs of its root are the root's keys and
values, by layer. Does not depend on completions or on a loss."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TypeVar

import torch

from minigrpo.policy.cache import KeysValues
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tree import Prompts

Root = list[KeysValues]                         # by layer; empty where prompts share nothing
Item = TypeVar("Item")
KEPT_BYTES = 2**28                              # 256 MiB: 376 tokens of CodeGemma-7B take 164 in bfloat16, SmolLM2's 16


class KeptRoots:
    """The roots that a policy has read, for as long as it does not move: the latest that fit into ``limit`` bytes together.

    There is one for each such policy: a run makes one for its start policy, an evaluation one for itself. A root is found by
    exactly its tokens, not as the beginning of a longer one, whose numbers may be rounded differently: a run that was stopped
    and goes on, with nothing kept, would differ from one that was not.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit, self.kept = limit, dict[tuple[int, ...], Root]()        # the latest last

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for root in self.kept.values() for layer in root for tensor in layer)

    def read(self, model: CausalLM, ids: tuple[int, ...]) -> Root:
        """``model.read(ids)``, computed only if it is not kept."""
        root = self.kept.pop(ids, None) or model.read(ids)
        self.kept[ids] = root
        while self.bytes > self.limit:
            del self.kept[next(iter(self.kept))]
        return root


def with_roots(parts: Iterable[tuple[Prompts, Item]], model: CausalLM,
               kept: KeptRoots | None = None) -> Iterator[tuple[Root, Item]]:
    """Each item with its prompts' root, computed once for all in a row that share one.

    Backward passes of the items leave gradients in it. They go on into the model, once, when the next root's turn comes or the
    items are at an end. ``kept`` is for passes without gradients by a policy that does not move.
    """
    for ids, alike in groupby(parts, key=lambda part: part[0].root):
        root = (kept or KeptRoots(0)).read(model, ids)
        if not root or not torch.is_grad_enabled():
            yield from ((root, item) for _, item in alike)
            continue
        leaves = [(keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in root]
        yield from ((leaves, item) for _, item in alike)
        pairs = [(made, leaf.grad) for layer, gathered in zip(root, leaves) for made, leaf in zip(layer, gathered)
                 if made.requires_grad and leaf.grad is not None]
        if pairs:
            torch.autograd.backward([made for made, _ in pairs], [gradient for _, gradient in pairs])
