"""x Wᵀ + b, by the library that is fastest at it. Knows no adapters and no model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available()
LARGE = 2**18                   # elements of a weight
FEW_ROWS = 64                   # of x: a step of decoding


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] → [..., out].

    In float32 on the CPU PyTorch calls MKL, which on processors of other makers than its own does not reach what oneDNN, also
    a part of PyTorch, does: measured on two cores of an AMD EPYC, 1.2 to 1.5 times as fast for a thousand rows, twice for
    eight rows or an output head. But oneDNN makes a kernel for every new number of rows and keeps the last 1,024 of them, at
    0.5 ms and 0.6 MB each: for small weights that is more than it gains.
    """
    wanted = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and weight.numel() >= LARGE and x.numel() > 0
    if wanted and ONEDNN and not torch.compiler.is_compiling():         # the compiler chooses by itself
        product = OneDNN.apply if torch.is_grad_enabled() else onednn       # a node of the graph costs more than some products
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` that calls ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class OneDNN(torch.autograd.Function):
    """``linear`` of rows [T, in] by oneDNN, whose operator has no gradient of its own."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (onednn(grad, weight.T) if wanted[0] else None,
                grad.T @ x if wanted[1] else None,          # for columns of both there is nothing to gain
                grad.sum(dim=0) if wanted[2] else None)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of rows x [T, in]. Few of them are the columns of (W xᵀ)ᵀ: then x is what gets packed and W is read once, as it lies.
    Measured on the same cores: a tenth faster for 8 rows, two fifths for 16."""
    if len(x) > FEW_ROWS:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    y = torch.ops.mkldnn._linear_pointwise(weight, x, None, "none", [], "").T
    return y if bias is None else y.add_(bias)
