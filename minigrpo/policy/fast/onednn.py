"""x Wᵀ + b by the library that is fastest at it.

Replaces: ``F.linear`` and ``nn.Linear``.
Faster because: in float32 on the CPU PyTorch calls MKL, which is slower than oneDNN (also a part of PyTorch) on processors
that are not Intel's. Measured on two cores of an AMD EPYC: 1.2 to 1.5 times as fast for a thousand rows, twice as fast for
eight rows or an output head. But oneDNN builds a kernel for every new number of rows and keeps the last 1,024 of them, at 0.5
ms and 0.6 MB each: for small weights that is more than it gains.
Proved equal by: tests/policy/fast/test_onednn.py::test_values_and_gradients_are_those_of_pytorch
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE = torch.backends.mkldnn.is_available()
MIN_WEIGHT_ELEMENTS = 2**18
MAX_FEW_ROWS = 64               # rows of x in a step of decoding


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] → [..., out]."""
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    wanted = on_cpu and weight.numel() >= MIN_WEIGHT_ELEMENTS and x.numel() > 0
    if wanted and AVAILABLE and not torch.compiler.is_compiling():      # the compiler chooses by itself
        product = OneDNN.apply if torch.is_grad_enabled() else onednn   # a node of the graph costs more than some products
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` that calls ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class OneDNN(torch.autograd.Function):
    """``linear`` of rows [T, in] by oneDNN, whose operator has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (onednn(grad, weight.T) if wanted[0] else None,
                grad.T @ x if wanted[1] else None,              # oneDNN is no faster where both are columns
                grad.sum(dim=0) if wanted[2] else None)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of rows x [T, in]. Few rows are taken as the columns of (W xᵀ)ᵀ: oneDNN then repacks x and reads W once, as
    it lies. Measured on the same cores: a tenth faster for 8 rows, two fifths for 16."""
    if len(x) > MAX_FEW_ROWS:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    y = torch.ops.mkldnn._linear_pointwise(weight, x, None, "none", [], "").T
    return y if bias is None else y.add_(bias)
