"""x Wᵀ + b, and attention under a mask, by the kernels that are fastest at them.

Replaces: ``F.linear`` and ``nn.Linear``.
Faster because: in float32 on the CPU PyTorch calls MKL, which is slower than oneDNN (also a part of PyTorch) on processors
that are not Intel's. Measured on two cores of an AMD EPYC: 1.2 to 1.5 times as fast for a thousand rows, twice as fast for
eight rows or an output head. But oneDNN builds a kernel for every new number of rows and keeps the last 1,024 of them, at 0.5
ms and 0.6 MB each: for small weights that is more than it gains.
Proved equal by: tests/policy/fast/test_products.py::test_values_and_gradients_are_those_of_pytorch

Replaces: ``F.scaled_dot_product_attention`` alone.
Faster because: its fused kernels share out work by head and by rows, never by keys. With few heads and rows most of a device
idles. Measured on one H100: 24 heads of 24 rows, 0.8 instead of 3.7 ms in 30 layers of 2,400 keys; 128 heads of 2 rows, 50
instead of 69 µs a layer of 704 keys (35 µs where torch.compile fuses what lies between the products).
Proved equal by: tests/policy/fast/test_products.py::test_both_ways_give_the_same
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE = torch.backends.mkldnn.is_available()
MIN_WEIGHT_ELEMENTS = 2**18
MAX_FEW_ROWS = 64                       # rows of x in a step of decoding
MAX_ROWS, MAX_HEADS = 64, 128           # attention: rows of one key head, key heads of all sequences


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


def masked_attention(query_QMGH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: Tensor,
                     root: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """out_QMGH: softmax(query · key / √H + bias) · value. ``bias`` [Q, 1, G, S] is 0 or −inf. The keys and values of a
    ``root``, [1, M, L, H], come before those of every row; ``bias`` is then [Q, 1, G, L + S]. Where rows are few, the root is
    read once for all Q."""
    Q, M, G, H = query_QMGH.shape
    if root is None and (G > MAX_ROWS or Q * M > MAX_HEADS):
        return F.scaled_dot_product_attention(query_QMGH, key_QMSH, value_QMSH, attn_mask=bias)
    if root is None:
        scores_QMGS = (query_QMGH * H ** -0.5) @ key_QMSH.transpose(2, 3) + bias
        return scores_QMGS.softmax(dim=-1) @ value_QMSH
    if G > MAX_ROWS:
        key_QMSH, value_QMSH = (torch.cat([shared.expand(Q, -1, -1, -1), own], dim=2)
                                for shared, own in zip(root, (key_QMSH, value_QMSH)))
        return F.scaled_dot_product_attention(query_QMGH, key_QMSH, value_QMSH, attn_mask=bias)

    def with_root(x: Tensor, matrix: Tensor) -> Tensor:
        """x [Q, M, G, ...] · matrix [M, ...]: the rows of all Q are rows of one product."""
        return (x.transpose(0, 1).flatten(1, 2) @ matrix).unflatten(1, (Q, G)).transpose(0, 1)

    query_QMGH = query_QMGH * H ** -0.5
    (root_key_MLH,), (root_value_MLH,) = root
    scores = torch.cat([with_root(query_QMGH, root_key_MLH.transpose(1, 2)), query_QMGH @ key_QMSH.transpose(2, 3)], dim=3)
    of_root, own = (scores + bias).softmax(dim=-1).split([root_key_MLH.shape[1], key_QMSH.shape[2]], dim=3)
    return with_root(of_root, root_value_MLH) + own @ value_QMSH
