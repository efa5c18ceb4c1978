"""Linear layers that read one input, computed together with their adapters in a few large matrix products.

Replaces: ``[layer(x) for layer in layers]`` with the plain forward of ``lora.LoRALinear``, W x + b + s B A x.
Faster because: one product serves all the layers of one input, and every sum is taken inside a matrix product, in its
accumulator: no sum costs a pass of its own over memory, or a rounding. While adapters are held (decoding) it is two products.
Proved equal by: tests/policy/fast/test_stacked.py::test_layers_projected_together_are_each_its_formula_with_its_gradients,
tests/policy/fast/test_stacked.py::test_a_layer_alone_computes_its_slice_of_the_stack (up to rounding: the sums are taken
elsewhere) and, for held adapters, tests/policy/fast/test_stacked.py::test_siblings_held_compute_what_they_compute_freely

Names: W [out, in] is frozen; A [R, in] and B [out, R] are the adapter's two matrices (``B`` is not the axis of that letter).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from minigrpo.policy.fast.products import linear


class Adapted(Protocol):
    """What this file uses of a ``lora.LoRALinear``."""

    base: nn.Linear
    scaling: float
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    active: tuple[Tensor, Tensor] | None
    siblings: tuple["nn.Linear | Adapted", ...]
    stack: "Stack | None"


Layer = nn.Linear | Adapted


def is_adapted(layer: object) -> TypeGuard[Adapted]:
    return hasattr(layer, "lora_A")


def project(x: Tensor, *layers: Layer) -> list[Tensor]:
    """[layer(x) for each layer], through their stack where they are all the siblings of one input."""
    adapted = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    if not adapted or adapted[0].siblings != layers:
        return [layer(x) for layer in layers]           # type: ignore[operator]  # a Protocol says nothing of calling
    return stack_of(adapted[0])(x)


def link_siblings(model: nn.Module) -> None:
    """Tell each adapted layer which layers read the same input, as its parent module names them in ``of_one_input``."""
    for module in model.modules():
        for names in getattr(module, "of_one_input", ()):
            layers = tuple(getattr(module, name) for name in names)
            for layer in filter(is_adapted, layers):
                layer.siblings = layers


def stack_of(layer: Adapted) -> "Stack":
    """Where the layer's weights lie beside its siblings'; laid together when first asked for, and again after ``model.to``."""
    return Stack(layer.siblings) if layer.stack is None or layer.stack.parted else layer.stack


def stacks(model: nn.Module) -> set["Stack"]:
    """The stacks of all adapted layers, laid together now if they were not."""
    return {stack_of(module) for module in model.modules() if is_adapted(module)}


@contextmanager
def adapters_held(model: nn.Module) -> Iterator[None]:
    """Within the block the adapters do not change. They are copied once, now, to where the products read them, instead of in
    each of many small passes."""
    held = stacks(model)
    for stack in held:
        stack.hold()
    try:
        yield
    finally:
        for stack in held:
            stack.held = False


class Stack:
    """Layers of one input x, some or all of them with an adapter: x Wᵀ + b + s (x Aᵀ) Bᵀ.

    Their frozen weights lie in one matrix, ``weight``, of which the layers' own become views. Below it, in ``whole``, is room
    for every A; ``B`` has room for each s B, in its layer's rows and its A's columns. Held adapters are copied there, in the
    weights' dtype. These tensors keep their place, so that a pass that reads them can be recorded.
    """

    @torch.inference_mode(False)                        # its tensors take part in training too
    def __init__(self, layers: Sequence[Layer]) -> None:
        """Lay the weights together; for a moment these layers' weights are in memory twice."""
        self.layers = tuple(layers)
        self.adapted: list[Adapted] = [layer for layer in layers if is_adapted(layer)]
        bases = [layer if isinstance(layer, nn.Linear) else layer.base for layer in layers]
        self.widths, first = [base.out_features for base in bases], bases[0].weight
        self.held = self.parted = False
        out = sum(self.widths)
        room = -(-sum(len(layer.lora_A) for layer in self.adapted) // 8) * 8            # rows of whole 16 bytes
        self.whole, self.B = first.new_zeros(out + room, first.shape[1]), first.new_zeros(out, room)
        self.whole_bias = None if all(base.bias is None for base in bases) else first.new_zeros(out + room)
        self.weight, self.bias = self.whole[:out], None if self.whole_bias is None else self.whole_bias[:out]
        self.starts, self.scalings = [], [layer.scaling for layer in self.adapted]
        row = 0
        for layer, base in zip(layers, bases):
            mine = slice(row, row := row + base.out_features)
            self.weight[mine] = base.weight.detach()
            base.weight.data = self.weight[mine]
            if base.bias is not None and self.bias is not None:
                self.bias[mine] = base.bias.detach()
            if is_adapted(layer):
                self.starts.append(mine.start)
                layer.stack, layer.siblings = self, self.layers

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The layers' outputs, [..., out] each."""
        rows = x.reshape(-1, x.shape[-1])
        if not any(layer.active for layer in self.adapted):
            y = linear(rows, self.weight, self.bias)
        elif self.held:
            product = held_op if torch.compiler.is_compiling() else held_product
            y = product(rows, self.whole, self.whole_bias, self.B)
        else:
            pairs = self.pairs()
            A, Bs = torch.cat([A for A, _ in pairs]).to(x.dtype), [B.to(x.dtype) for _, B in pairs]
            if torch.compiler.is_compiling():
                y, _ = forward_op(rows, self.weight, self.bias, A, Bs, self.starts, self.scalings)
            else:
                y = StackedProduct.apply(rows, self.weight, self.bias, self.starts, self.scalings, A, *Bs)
        parts = y.split_with_sizes([*self.widths, y.shape[1] - sum(self.widths)], dim=1)
        return [part.view(*x.shape[:-1], -1) for part in parts[:-1]]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A and B of each adapter as they are in use; B is zero where an adapter is off."""
        return [layer.active or (layer.lora_A.detach(), torch.zeros_like(layer.lora_B)) for layer in self.adapted]

    @torch.no_grad()
    def hold(self) -> None:
        """Copy the adapters in use to where a pass reads them while they are held."""
        rows, column = self.whole[len(self.B):], 0
        for (A, B), start, scaling in zip(self.pairs(), self.starts, self.scalings):
            columns = slice(column, column := column + len(A))
            rows[columns] = A
            self.B[start:start + len(B), columns] = B * scaling
        self.held = True


# ------------------------------------------------------------------------------------------------------------- products
def held_product(x: Tensor, whole: Tensor, bias: Tensor | None, B: Tensor) -> Tensor:
    """Rows x [T, in] → the outputs side by side and, behind them, x Aᵀ: [T, Σ out + room]."""
    y = linear(x, whole, bias)
    y[:, :len(B)].addmm_(y[:, len(B):], B.T)
    return y


def stacked_forward(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, Bs: list[Tensor], starts: list[int],
                    scalings: list[float]) -> tuple[Tensor, Tensor]:
    """Rows x [T, in] → the outputs side by side, [T, Σ out], and x Aᵀ, [T, Σ R]. ``A`` holds all adapters' A, one below the
    other; ``starts`` says at which output each B begins."""
    y, low = linear(x, weight, bias), x @ A.T
    for part, B, start, scaling in zip(low.split([B.shape[1] for B in Bs], dim=1), Bs, starts, scalings):
        y[:, start:start + len(B)].addmm_(part, B.T, alpha=scaling)
    return y, low


def stacked_backward(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, A: Tensor, Bs: list[Tensor], starts: list[int],
                     scalings: list[float]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x, of ``A`` and of each B, from the gradient of the outputs."""
    grads = [grad[:, start:start + len(B)] for B, start in zip(Bs, starts)]
    parts = low.split([B.shape[1] for B in Bs], dim=1)
    grad_low = torch.cat([_scaled(scaling, part, B) for scaling, part, B in zip(scalings, grads, Bs)], dim=1)
    grad_Bs = [_scaled(scaling, part.T, low) for scaling, part, low in zip(scalings, grads, parts)]
    return linear(grad, weight.T).addmm_(grad_low, A), grad_low.T @ x, grad_Bs


def _scaled(scaling: float, a: Tensor, b: Tensor) -> Tensor:
    """scaling · a b, in one product."""
    return torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=scaling)


class StackedProduct(torch.autograd.Function):
    """``stacked_forward`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, starts: list[int], scalings: list[float],
                A: Tensor, *Bs: Tensor) -> Tensor:
        y, low = stacked_forward(x, weight, bias, A, list(Bs), starts, scalings)
        ctx.starts, ctx.scalings = starts, scalings
        ctx.save_for_backward(x, low, weight, A, *Bs)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, A, *Bs = ctx.saved_tensors
        grad_x, grad_A, grad_Bs = stacked_backward(grad, x, low, weight, A, Bs, ctx.starts, ctx.scalings)
        return grad_x, None, None, None, None, grad_A, *grad_Bs


# ------------------------------------------------------------------------------------------------------- for torch.compile
# The same products as operators that the compiler does not look into: it would take the sums apart again. The compiler relies
# on strides: the results of an operator lie row by row, as ``new_empty`` makes them, however a product has left them. It also
# relies on sizes that may stand for any size: ``len`` would make a number of one, and each batch would be compiled anew.
@torch.library.custom_op("minigrpo::held_product", mutates_args=())
def held_op(x: Tensor, whole: Tensor, bias: Tensor | None, B: Tensor) -> Tensor:
    return held_product(x, whole, bias, B).contiguous()


@torch.library.custom_op("minigrpo::stacked_forward", mutates_args=())
def forward_op(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, Bs: list[Tensor], starts: list[int],
               scalings: list[float]) -> tuple[Tensor, Tensor]:
    y, low = stacked_forward(x, weight, bias, A, Bs, starts, scalings)
    return y.contiguous(), low


@torch.library.custom_op("minigrpo::stacked_backward", mutates_args=())
def backward_op(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, A: Tensor, Bs: list[Tensor], starts: list[int],
                scalings: list[float]) -> tuple[Tensor, Tensor, list[Tensor]]:
    grad_x, grad_A, grad_Bs = stacked_backward(grad, x, low, weight, A, Bs, starts, scalings)
    return grad_x.contiguous(), grad_A, grad_Bs


held_op.register_fake(lambda x, whole, bias, B: x.new_empty(x.shape[0], whole.shape[0]))
forward_op.register_fake(lambda x, weight, bias, A, *_: (x.new_empty(x.shape[0], weight.shape[0]),
                                                         x.new_empty(x.shape[0], A.shape[0])))
backward_op.register_fake(lambda grad, x, low, weight, A, Bs, *_: (torch.empty_like(x), torch.empty_like(A),
                                                                   [torch.empty_like(B) for B in Bs]))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, A, Bs, ctx.starts, ctx.scalings = inputs
    ctx.save_for_backward(x, output[1], weight, A, *Bs)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple:
    x, low, weight, A, *Bs = ctx.saved_tensors
    grad_x, grad_A, grad_Bs = backward_op(grad, x, low, weight, A, Bs, ctx.starts, ctx.scalings)
    return grad_x, None, None, grad_A, grad_Bs, None, None


forward_op.register_autograd(_backward, setup_context=_save)
