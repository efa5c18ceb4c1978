"""Log-probs at the output head without keeping logits, and tokens drawn from log-probs by uniform numbers.

Replaces: ``(logits.float() / temperature).log_softmax(-1)``, gathered at the tokens, with plain autograd.
Faster because: the logits are the widest tensor there is. ``log_softmax`` reads them once; ``FrozenHead`` neither keeps them
for the backward pass nor computes them again.
Proved equal by: tests/policy/fast/test_head.py::test_a_frozen_head_and_one_that_learns_agree,
tests/policy/fast/test_head.py::test_log_softmax_is_that_of_logits_cast_first

Replaces: ``searchsorted`` on the running sum of the probabilities along the whole vocabulary.
Faster because: a running sum along a whole vocabulary is slow on every device. ``draw`` runs over the sums of blocks first,
then within one block.
Proved equal by: tests/policy/fast/test_head.py::test_the_token_is_where_the_running_sum_passes_the_uniform_number
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.policy.fast.products import linear

BLOCK = 512                             # tokens that ``draw`` sums up together


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last axis, in float32 (float64 for a float64 model)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if temperature != 1.0:                      # a pass over all logits
        logits = logits.to(wide) / temperature
    return logits.log_softmax(dim=-1, dtype=wide)


class FrozenHead(torch.autograd.Function):
    """logp_T = log softmax(W hidden / temperature)[id] where W does not learn.

    A log-prob depends on its own hidden state alone, and its slope is known as soon as the log-prob is:
    ∂ logp / ∂ hidden = (onehot(id) − softmax(logits / temperature)) W / temperature. The backward pass needs only these T × D
    numbers.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, ids_T: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
        logp_TV = log_softmax(linear(hidden_TD, weight_VD), temperature)
        logp_T = logp_TV.gather(1, ids_T[:, None])[:, 0]
        if ctx.needs_input_grad[0]:
            p_TV = logp_TV.exp_()
            p_TV.scatter_add_(1, ids_T[:, None], p_TV.new_full((len(ids_T), 1), -1.0))
            ctx.save_for_backward(linear(p_TV.to(hidden_TD.dtype), weight_VD.T) / -temperature)
        return logp_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        slope_TD, = ctx.saved_tensors
        return (grad_T[:, None] * slope_TD).to(slope_TD.dtype), None, None, None


def draw(logp_QKV: Tensor, uniform_QK: Tensor) -> Tensor:
    """token_QK: where the running sum of the probabilities passes uniform · their sum, in float64.

    I blocks of J = ``BLOCK`` tokens make up the vocabulary.
    """
    V = logp_QKV.shape[-1]
    p_QKIJ = F.pad(logp_QKV.exp(), (0, -V % BLOCK)).unflatten(-1, (-1, BLOCK))
    mass_QKI = p_QKIJ.sum(dim=-1, dtype=torch.float64)
    upto_QKI = mass_QKI.cumsum(dim=-1)
    goal_QK1 = uniform_QK[:, :, None] * upto_QKI[:, :, -1:]
    block_QK1 = torch.searchsorted(upto_QKI, goal_QK1, right=True).clamp(max=upto_QKI.shape[2] - 1)     # NaN: beyond all
    goal_QK1 = goal_QK1 - (upto_QKI - mass_QKI).gather(2, block_QK1)
    p_QKJ = p_QKIJ.gather(2, block_QK1[:, :, :, None].expand(-1, -1, -1, BLOCK))[:, :, 0]
    place_QK1 = torch.searchsorted(p_QKJ.cumsum(dim=-1, dtype=torch.float64), goal_QK1, right=True)
    return (block_QK1 * BLOCK + place_QK1)[:, :, 0].clamp(max=V - 1)
