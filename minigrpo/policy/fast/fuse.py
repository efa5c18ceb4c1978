"""torch.compile for the decoder's layers: few kernels for all that a layer does between its matrix products.

Replaces: ``Layer.forward``, called operation by operation (``Decoder.run_layer``).
Faster because: norms, rotation, activation and sums are fused, forward and backward, and read memory once.
Proved equal by: tests/policy/fast/test_fuse.py::test_fused_operations_compute_the_same
"""

from typing import Any

import torch
import torch._dynamo
import torch._functorch.config
import torch.fx.experimental._config
from torch import Tensor, nn

from minigrpo.policy.fast.stacked import stacks


def fuse(model: nn.Module) -> None:
    """Have the layers of a ``CausalLM`` compiled. Each use is compiled for its first shapes and once more for any shapes.
    CUDA needs a C compiler for it.

    **Global effect**: this sets three options of torch.compile for the whole process. It is the only place that does.
    """
    torch._dynamo.config.recompile_limit = 64           # prefill, decoding, scoring, updates: several kinds of shapes each
    torch.fx.experimental._config.use_duck_shape = False        # sizes that once are equal need not be so again
    # The backward pass recomputes what is cheap, even where it is the operand of a product, as in ``gate.recomputed``.
    torch._functorch.config.ban_recompute_materialized_backward = False
    decoder: Any = model.model
    compiled = torch.compile(type(decoder.layers[0]).forward)

    def run_layer(layer: nn.Module, *inputs: object) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        stacks(layer)                                   # the compiler could not lay weights together
        return compiled(layer, *inputs)

    decoder.run_layer = run_layer
