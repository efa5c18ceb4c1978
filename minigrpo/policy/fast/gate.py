"""The product of an MLP's activation and up projection, recomputed in the backward pass instead of kept.

Replaces: plain autograd, which keeps the product as the input of the down projection.
Faster because: no tensor of a layer is wider than gate, up and their product. Two of the three are kept and the third costs
one multiplication to recompute, so that larger micro-batches fit.
Proved equal by: tests/policy/fast/test_gate.py::test_the_recomputed_product_changes_no_bit_of_the_gradients
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def recomputed(product: Tensor, compute: Callable[[], Tensor], *, keep: bool = False) -> AbstractContextManager:
    """Around the operation that reads ``product``: ``compute()`` makes it again where the backward pass needs it.

    ``keep`` leaves everything to autograd, for a layer that is recomputed as a whole. torch.compile decides by itself.
    """
    if keep or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    memory = weakref.ref(product.untyped_storage())     # the operation may save the product by another view of its storage

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.untyped_storage() is memory() else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else compute().view(packed)

    return saved_tensors_hooks(pack, unpack)
