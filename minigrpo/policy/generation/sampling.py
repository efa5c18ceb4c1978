"""Sampling, and greedy decoding (temperature 0): K independent completions for each prompt."""

import torch
from torch import Tensor

from minigrpo.policy.fast.draw import draw
from minigrpo.policy.fast.head import log_softmax
from minigrpo.policy.generation.growing_tree import GrowingTree
from minigrpo.policy.generation.hypotheses import Hypotheses
from minigrpo.policy.model import CausalLM
from minigrpo.policy.stopping import Stopping


class Draws:
    """Sampling under way. All its tensors keep their place: ``begin`` and ``step`` can be recorded and replayed. So all that
    chance decides is drawn before the first step: one uniform number a token."""

    def __init__(self, tree: GrowingTree, model: CausalLM, depth: int, stopping: Stopping, *, temperature: float) -> None:
        (Q, K, _), device = tree.visible_QKS.shape, model.device
        self.tree, self.stopping, self.temperature = tree, stopping, temperature
        self.done = Hypotheses.empty(Q, K, depth, model.dtype, device)
        self.uniform_QKC = torch.zeros(Q, K, depth, dtype=torch.float64, device=device)     # 24 bits would miss rare tokens
        self.state_QK, self.token_QK = (torch.zeros(Q, K, dtype=torch.long, device=device) for _ in range(2))

    def select(self, logits_QKV: Tensor) -> None:
        """Draw a token for each completion, or take the likeliest, and append it."""
        depth_1, logp_QKV = self.tree.depth_1, log_softmax(logits_QKV, self.temperature or 1.0)
        self.token_QK.copy_(draw(logp_QKV, self.uniform_QKC.index_select(2, depth_1)[:, :, 0]) if self.temperature
                            else logp_QKV.argmax(dim=-1))
        self.done.append(self.token_QK, logp_QKV.gather(2, self.token_QK[:, :, None])[:, :, 0],
                         self.stopping.ends_UV[self.state_QK, self.token_QK], depth_1)
        self.state_QK.copy_(self.stopping.next_UV[self.state_QK, self.token_QK])

    def begin(self, model: CausalLM) -> None:
        self.done.clear()
        self.state_QK.zero_()
        self.select(self.tree.prefill(model).expand(-1, self.tree.branches, -1))

    def step(self, model: CausalLM) -> None:
        self.select(self.tree.grow(model, self.token_QK))

    def over(self) -> bool:
        return bool(self.done.stopped_QK.all())
