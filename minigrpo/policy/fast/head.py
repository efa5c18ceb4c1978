"""Log-probs at the output head without keeping logits.

Replaces: ``(logits.float() / temperature).log_softmax(-1)``, gathered at the tokens, with plain autograd.
Faster because: the logits are the widest tensor there is. ``log_softmax`` reads them once; ``FrozenHead`` neither keeps them
for the backward pass nor computes them again.
Proved equal by: tests/policy/fast/test_head.py::test_a_frozen_head_and_one_that_learns_agree,
tests/policy/fast/test_head.py::test_log_softmax_is_that_of_logits_cast_first
"""

from typing import Any

import torch
from torch import Tensor

from minigrpo.policy.fast.onednn import linear


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
