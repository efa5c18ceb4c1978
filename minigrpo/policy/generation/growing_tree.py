"""The tree of a batch while it grows: the cache, and what each branch sees. Depth c writes the K slots from P + c · K on.

The root, what the prompts share, lies there once, and all trunks and branches read it; their own slots follow it.

No beam moves the cache. One that changes parent changes which earlier slots it sees: it takes over the parent's row of
booleans. All tensors keep their place and shape, and the place where a token goes is itself read from a tensor (``depth_1``),
so that a step can be recorded once and replayed; prompts that stay when others leave are moved to the front of these tensors.
The model is given in each call: see ``fast.replay``.
"""

from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minigrpo.policy.cache import KVCache
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import Root
from minigrpo.policy.tree import Prompts, trunk_visibility, within_window

STRETCH = 32           # tokens: a prompt's room is rounded up to it, and so many depths attend over equally many slots


def stretched(tokens: int) -> int:
    """Rounded up to whole stretches."""
    return -(-tokens // STRETCH) * STRETCH


def to_front(tensor: Tensor, rows_Q: Tensor) -> Tensor:
    """Move rows of a tensor to its front, in place; a view of them, whose place depends on nothing but their number."""
    tensor[:len(rows_Q)] = tensor[rows_Q]
    return tensor[:len(rows_Q)]


class GrowingTree:
    def __init__(self, model: CausalLM, groups: int, longest: int, branches: int, depth: int, root: int = 0) -> None:
        """``longest``: tokens of the longest prompt, of which ``root`` are computed once. The others have room that is rounded
        up to a whole stretch."""
        room = root + stretched(longest - root)
        arch, device, slots = model.architecture, model.device, room + branches * depth
        self.root, self.room, self.branches, self.window = root, room, branches, arch.window
        empty = partial(KVCache.empty, layers=arch.layers, kv_heads=arch.kv_heads, head_size=arch.head_size, dtype=model.dtype,
                        device=device)
        self.cache, before = empty(groups=groups, slots=slots - root), empty(groups=1, slots=root)
        self.root_layers = list(zip(before.keys, before.values)) if root else []
        self.ids_QP = torch.zeros(groups, room, dtype=torch.long, device=device)
        self.length_Q = torch.zeros(groups, dtype=torch.long, device=device)
        self.visible_QKS = torch.zeros(groups, branches, slots, dtype=torch.bool, device=device)
        self.positions_QS = torch.zeros(groups, slots, dtype=torch.long, device=device)
        self.depth_1 = torch.zeros(1, dtype=torch.long, device=device)              # tokens grown so far
        self.branch_K = torch.arange(branches, device=device)
        self.eye_KK = torch.eye(branches, dtype=torch.bool, device=device)

    def fits(self, longest: int, root: int) -> bool:
        """Whether there is room for prompts of so many tokens, of which they share so many, but at most twice the room that a
        new tree would have: the rest would be read for nothing."""
        return self.root <= root and longest <= self.room <= self.root + 2 * stretched(longest - self.root)

    def load(self, prompts: Prompts, root: Root) -> int:
        """Copy the prompts and what the model has read of their root to where ``prefill`` and ``grow`` read them; how many
        slots a prompt takes, padding included."""
        P = prompts.ids_QP.shape[1]
        self.prompts = Prompts(self.ids_QP[:, :P], self.length_Q, prompts.root)
        self.prompts.ids_QP.copy_(prompts.ids_QP)
        self.prompts.length_Q.copy_(prompts.length_Q)
        for places, tensors in zip(self.root_layers, root, strict=True):
            for place, tensor in zip(places, tensors):
                place.copy_(tensor)
        return P

    def prefill(self, model: CausalLM) -> Tensor:
        """Begin anew with the prompts; logits_Q1V that predict the first token, from the slot of a prompt's last token."""
        (Q, P), L, device, prompts = self.prompts.ids_QP.shape, self.root, self.prompts.ids_QP.device, self.prompts
        depth_S = torch.arange(self.positions_QS.shape[1] - self.room, device=device) // self.branches
        self.positions_QS[:, :self.room] = torch.arange(self.room, device=device)
        self.positions_QS[:, self.room:] = prompts.length_Q[:, None] + depth_S
        self.visible_QKS.zero_()
        self.visible_QKS[:, :, :P] = prompts.live_QP[:, None]
        self.depth_1.zero_()
        self.cache.clear()
        self.cache.next(P - L)
        hidden_QTD = model(prompts.ids_QP[:, L:], positions_QT=self.positions_QS[:, L:P],
                           visible_QTS=trunk_visibility(prompts, self.window), cache=self.cache, root=self.root_layers)
        self.reach(0)
        return model.logits(hidden_QTD[torch.arange(Q, device=device), prompts.length_Q - 1 - L])[:, None]

    def narrowed(self, rows_Q: Tensor) -> "GrowingTree":
        """The tree of these prompts alone, which grows on at the front of this tree's tensors."""
        tree = copy(self)
        tree.length_Q, tree.visible_QKS, tree.positions_QS = (
            to_front(x_Q, rows_Q) for x_Q in (self.length_Q, self.visible_QKS, self.positions_QS))
        tree.cache = replace(self.cache, keys=[to_front(keys, rows_Q) for keys in self.cache.keys],
                             values=[to_front(values, rows_Q) for values in self.cache.values])
        return tree

    def reach(self, depth: int) -> int:
        """Attend over all slots up to those of ``depth`` and of its stretch: a few more than are in use. How many that is."""
        stop = min(self.room + self.branches * STRETCH * (depth // STRETCH + 1), self.positions_QS.shape[1])
        self.cache.stop = stop - self.root
        return stop

    def grow(self, model: CausalLM, ids_QK: Tensor, parent_QK: Tensor | None = None) -> Tensor:
        """Add one token to every branch, branch k continuing branch ``parent_QK[q, k]`` (None: itself); logits_QKV."""
        stop, slots_K = self.root + self.cache.stop, self.room + self.depth_1 * self.branches + self.branch_K
        if parent_QK is not None:
            self.visible_QKS.copy_(self.visible_QKS.gather(1, parent_QK[:, :, None].expand_as(self.visible_QKS)))
        self.visible_QKS.index_copy_(2, slots_K, self.eye_KK.expand(len(ids_QK), -1, -1))
        positions_QK = self.positions_QS.index_select(1, slots_K)
        visible_QKS = within_window(self.visible_QKS[:, :, :stop], positions_QK, self.positions_QS[:, :stop], self.window)
        self.cache.slots_T = slots_K - self.root
        hidden_QKD = model(ids_QK, positions_QT=positions_QK, visible_QTS=visible_QKS, cache=self.cache, root=self.root_layers)
        self.depth_1 += 1
        return model.logits(hidden_QKD)
