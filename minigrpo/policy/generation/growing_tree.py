"""The tree of a group while it grows: the cache, and what each branch sees. Depth c writes the K slots from P + c · K on.

The cache is never moved. A beam that changes parent changes which earlier slots it sees: it takes over the parent's row of
booleans. All tensors keep their place and shape, and the place where a token goes is itself read from a tensor (``depth_1``),
so that a step can be recorded once and replayed. The model is given in each call: see ``fast.replay``.
"""

import torch
from torch import Tensor

from minigrpo.policy.cache import KVCache
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tree import Prompts, causal_visibility, within_window

STRETCH = 32           # tokens: a prompt's room is rounded up to it, and so many depths attend over equally many slots


class GrowingTree:
    def __init__(self, model: CausalLM, groups: int, longest: int, branches: int, depth: int) -> None:
        """``longest``: tokens of the longest prompt. The trunk has room for it, rounded up to a whole stretch."""
        trunk = -(-longest // STRETCH) * STRETCH
        arch, device, slots = model.architecture, model.device, trunk + branches * depth
        self.trunk, self.branches, self.window = trunk, branches, arch.window
        self.cache = KVCache.empty(layers=arch.layers, groups=groups, kv_heads=arch.kv_heads, slots=slots,
                                   head_size=arch.head_size, dtype=model.dtype, device=device)
        self.ids_QP = torch.zeros(groups, trunk, dtype=torch.long, device=device)
        self.length_Q = torch.zeros(groups, dtype=torch.long, device=device)
        self.visible_QKS = torch.zeros(groups, branches, slots, dtype=torch.bool, device=device)
        self.positions_QS = torch.zeros(groups, slots, dtype=torch.long, device=device)
        self.depth_1 = torch.zeros(1, dtype=torch.long, device=device)              # tokens grown so far
        self.branch_K = torch.arange(branches, device=device)
        self.eye_KK = torch.eye(branches, dtype=torch.bool, device=device)

    def has_room(self, longest: int) -> bool:
        """For a prompt of so many tokens, without so much room that most of it would be read for nothing."""
        return self.trunk // 2 <= longest <= self.trunk

    def load(self, prompts: Prompts) -> int:
        """Copy the prompts to where ``prefill`` reads them; how many slots it will compute, padding included."""
        P = prompts.ids_QP.shape[1]
        self.prompts = Prompts(self.ids_QP[:, :P], self.length_Q)
        self.prompts.ids_QP.copy_(prompts.ids_QP)
        self.prompts.length_Q.copy_(prompts.length_Q)
        return P

    def prefill(self, model: CausalLM) -> Tensor:
        """Begin anew with the prompts; logits_Q1V that predict the first token, from trunk slot p_q − 1."""
        (Q, P), device, prompts = self.prompts.ids_QP.shape, self.prompts.ids_QP.device, self.prompts
        self.cache.clear()
        self.cache.next(P)
        depth_S = torch.arange(self.positions_QS.shape[1] - self.trunk, device=device) // self.branches
        self.positions_QS[:, :self.trunk] = torch.arange(self.trunk, device=device)
        self.positions_QS[:, self.trunk:] = prompts.length_Q[:, None] + depth_S
        self.visible_QKS.zero_()
        self.visible_QKS[:, :, :P] = prompts.live_QP[:, None]
        self.depth_1.zero_()
        hidden_QPD = model(prompts.ids_QP, visible_QTS=causal_visibility(prompts.live_QP, self.window), cache=self.cache)
        self.reach(0)
        return model.logits(hidden_QPD[torch.arange(Q, device=device), prompts.length_Q - 1])[:, None]

    def reach(self, depth: int) -> int:
        """Attend over all slots up to those of ``depth`` and of its stretch: a few more than are in use. How many that is."""
        stretches = depth // STRETCH + 1
        self.cache.stop = min(self.trunk + self.branches * STRETCH * stretches, self.positions_QS.shape[1])
        return self.cache.stop

    def grow(self, model: CausalLM, ids_QK: Tensor, parent_QK: Tensor | None = None) -> Tensor:
        """Add one token to every branch, branch k continuing branch ``parent_QK[q, k]`` (None: itself); logits_QKV."""
        stop, slots_K = self.cache.stop, self.trunk + self.depth_1 * self.branches + self.branch_K
        if parent_QK is not None:
            self.visible_QKS.copy_(self.visible_QKS.gather(1, parent_QK[:, :, None].expand_as(self.visible_QKS)))
        self.visible_QKS.index_copy_(2, slots_K, self.eye_KK.expand(len(ids_QK), -1, -1))
        positions_QK = self.positions_QS.index_select(1, slots_K)
        visible_QKS = within_window(self.visible_QKS[:, :, :stop], positions_QK, self.positions_QS[:, :stop], self.window)
        self.cache.slots_T = slots_K
        hidden_QKD = model(ids_QK, positions_QT=positions_QK, visible_QTS=visible_QKS, cache=self.cache)
        self.depth_1 += 1
        return model.logits(hidden_QKD)
