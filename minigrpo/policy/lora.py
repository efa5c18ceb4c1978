"""Low-rank adapters: W x + (α / R) B A x with W frozen (arXiv 2106.09685). Knows linear layers, not what they are for.

The start policy stays at hand: ``with reference(model): ...`` switches the adapters off, or to a frozen copy of the adapter
that training started from. Base weights are never written: merging makes a copy, because bf16 would not come back.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minigrpo.common.errors import UserError
from minigrpo.common.messages import shown
from minigrpo.policy.fast.onednn import linear

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` with an adapter beside it. The adapter's weights, and so all that training adds to them, are
    float32 or wider; its products are in the input's dtype, so that what is kept for the gradient is the base's own input.

    A [R, in] is drawn as ``nn.Linear`` draws its weights, B [out, R] is zero: at the start the layer with its adapter equals
    the layer without, bit for bit.
    """

    def __init__(self, base: nn.Linear, rank: int, scaling: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), scaling
        device, dtype = base.weight.device, torch.promote_types(base.weight.dtype, torch.float32)
        bound = 1 / math.sqrt(base.in_features)                 # kaiming_uniform with a = √5, as peft and nn.Linear do
        drawn = (torch.rand(rank, base.in_features, generator=generator) * 2 - 1) * bound
        self.lora_A = nn.Parameter(drawn.to(device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=dtype))
        self.active: tuple[Tensor, Tensor] | None = (self.lora_A, self.lora_B)
        self.start: tuple[Tensor, Tensor] | None = None         # what reference() switches to; None: the base alone
        self.siblings: tuple[nn.Module, ...] = (self,)          # the layers that it is computed together with
        self.joined: Stack | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)[self.stack.layers.index(self)]

    @property
    def stack(self) -> "Stack":
        """Where its weights lie, beside its siblings'; laid together when first asked for."""
        if self.joined is None or self.joined.parted:
            Stack(self.siblings)
        return self.joined

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LoRALinear":
        if self.joined is not None:
            self.joined.parted = True                           # ``to`` gives each weight a place of its own
        return super()._apply(fn, recurse)

    def merged(self) -> nn.Linear:
        """A new ``nn.Linear`` with W + scaling · B A, added in float32 and rounded once. The base stays as it is."""
        linear = copy.deepcopy(self.base)
        delta = self.lora_B.detach() @ self.lora_A.detach() * self.scaling
        linear.weight.data = (self.base.weight.to(delta.dtype) + delta).to(self.base.weight.dtype)
        return linear


def project(x: Tensor, *layers: nn.Linear | LoRALinear) -> list[Tensor]:
    """[layer(x) for each layer]; one product for all of them where they are siblings, as ``add_lora`` has made them."""
    stacks = {layer.stack for layer in layers if isinstance(layer, LoRALinear)}
    return stacks.pop()(x) if [stack.layers for stack in stacks] == [layers] else [layer(x) for layer in layers]


class Stack:
    """Linear layers that read one input x, some or all with an adapter: x Wᵀ + b + s (x Aᵀ) Bᵀ.

    Their frozen weights lie in one matrix, of which the layers' own are views, so that one product serves all of them. Below
    them is room for every A and, in ``B``, for each s B in its layer's rows and its A's columns: copies in the weights' dtype,
    which a pass reads while adapters are held. Then it takes two products in all. These tensors keep their place, so that such
    a pass can be recorded.
    """

    @torch.inference_mode(False)                                    # what it makes takes part in training too
    def __init__(self, layers: Sequence[nn.Linear | LoRALinear]) -> None:
        """Lays the weights together, for which these layers' are needed twice for a moment."""
        self.layers, bases = tuple(layers), [getattr(layer, "base", layer) for layer in layers]
        self.widths, first = [base.out_features for base in bases], bases[0].weight
        self.held = self.parted = False
        self.adapted = [layer for layer in layers if isinstance(layer, LoRALinear)]
        out, ranks = sum(self.widths), [len(layer.lora_A) for layer in self.adapted]
        room = -(-sum(ranks) // 8) * 8                              # rows of whole 16 bytes
        self.whole, self.B = first.new_zeros(out + room, first.shape[1]), first.new_zeros(out, room)
        self.whole_bias = None if all(base.bias is None for base in bases) else first.new_zeros(out + room)
        self.weight, self.bias = self.whole[:out], None if self.whole_bias is None else self.whole_bias[:out]
        self.starts, self.scalings = [], [layer.scaling for layer in self.adapted]
        row = 0
        for layer, base in zip(layers, bases):
            mine = slice(row, row := row + base.out_features)
            self.weight[mine] = base.weight.detach()
            base.weight.data = self.weight[mine]
            if base.bias is not None:
                self.bias[mine] = base.bias.detach()
            if isinstance(layer, LoRALinear):
                self.starts.append(mine.start)
                layer.joined, layer.siblings = self, self.layers

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The layers' outputs, [..., out] each."""
        rows = x.reshape(-1, x.shape[-1])
        if not any(layer.active for layer in self.adapted):
            y = linear(rows, self.weight, self.bias)
        elif self.held:
            product = held_op if torch.compiler.is_compiling() else held_product
            y = product(rows, self.whole, self.whole_bias, self.B)
        else:
            As, Bs = zip(*self.pairs())
            A, Bs = torch.cat(As).to(x.dtype), [B.to(x.dtype) for B in Bs]
            if torch.compiler.is_compiling():
                y, _ = adapted_op(rows, self.weight, self.bias, A, Bs, self.starts, self.scalings)
            else:
                y = Adapted.apply(rows, self.weight, self.bias, self.starts, self.scalings, A, *Bs)
        parts = y.split_with_sizes([*self.widths, y.shape[1] - sum(self.widths)], dim=1)
        return [part.view(*x.shape[:-1], -1) for part in parts[:-1]]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A and B of each adapter as they are in use; B is zero where one is not."""
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


# The products themselves. Every sum is taken inside a matrix product, in its accumulator: none costs a pass of its own over
# memory, or a rounding. To torch.compile they are operators that it does not look into, as it would undo just that.
def held_product(x: Tensor, whole: Tensor, bias: Tensor | None, B: Tensor) -> Tensor:
    """Rows x [T, in] → the outputs side by side and, behind them, x Aᵀ: [T, Σ out + room]."""
    y = linear(x, whole, bias)
    y[:, :len(B)].addmm_(y[:, len(B):], B.T)
    return y


def adapted_forward(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, Bs: list[Tensor], starts: list[int],
                    scalings: list[float]) -> tuple[Tensor, Tensor]:
    """Rows x [T, in] → the outputs side by side, [T, Σ out], and x Aᵀ, [T, Σ R]. ``A`` is that of all adapters, one below the
    other; what comes of B begins at output ``start``."""
    y, low = linear(x, weight, bias), x @ A.T
    for part, B, start, scaling in zip(low.split([B.shape[1] for B in Bs], dim=1), Bs, starts, scalings):
        y[:, start:start + len(B)].addmm_(part, B.T, alpha=scaling)
    return y, low


def adapted_backward(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, A: Tensor, Bs: list[Tensor], starts: list[int],
                     scalings: list[float]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x, of ``A`` and of each B, from that of the outputs."""
    grads = [grad[:, start:start + len(B)] for B, start in zip(Bs, starts)]
    parts = low.split([B.shape[1] for B in Bs], dim=1)
    grad_low = torch.cat([_scaled(scaling, part, B) for scaling, part, B in zip(scalings, grads, Bs)], dim=1)
    grad_Bs = [_scaled(scaling, part.T, low) for scaling, part, low in zip(scalings, grads, parts)]
    return linear(grad, weight.T).addmm_(grad_low, A), grad_low.T @ x, grad_Bs


def _scaled(scaling: float, a: Tensor, b: Tensor) -> Tensor:
    """scaling · a b, in one product."""
    return torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=scaling)


class Adapted(torch.autograd.Function):
    """``adapted_forward`` with its gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, starts: list[int],
                scalings: list[float], A: Tensor, *Bs: Tensor) -> Tensor:
        y, low = adapted_forward(x, weight, bias, A, list(Bs), starts, scalings)
        ctx.starts, ctx.scalings = starts, scalings
        ctx.save_for_backward(x, low, weight, A, *Bs)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, A, *Bs = ctx.saved_tensors
        grad_x, grad_A, grad_Bs = adapted_backward(grad, x, low, weight, A, Bs, ctx.starts, ctx.scalings)
        return grad_x, None, None, None, None, grad_A, *grad_Bs


# The compiler goes by strides: an operator's results lie row by row, as ``new_empty`` does, however a product has left them.
# And by sizes that may stand for any: ``len`` would make a number of one, and each batch would be compiled anew.
@torch.library.custom_op("minigrpo::held_product", mutates_args=())
def held_op(x: Tensor, whole: Tensor, bias: Tensor | None, B: Tensor) -> Tensor:
    return held_product(x, whole, bias, B).contiguous()


@torch.library.custom_op("minigrpo::adapted_forward", mutates_args=())
def adapted_op(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, Bs: list[Tensor], starts: list[int],
               scalings: list[float]) -> tuple[Tensor, Tensor]:
    y, low = adapted_forward(x, weight, bias, A, Bs, starts, scalings)
    return y.contiguous(), low


@torch.library.custom_op("minigrpo::adapted_backward", mutates_args=())
def backward_op(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, A: Tensor, Bs: list[Tensor], starts: list[int],
                scalings: list[float]) -> tuple[Tensor, Tensor, list[Tensor]]:
    grad_x, grad_A, grad_Bs = adapted_backward(grad, x, low, weight, A, Bs, starts, scalings)
    return grad_x.contiguous(), grad_A, grad_Bs


@held_op.register_fake
def _(x: Tensor, whole: Tensor, bias: Tensor | None, B: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], whole.shape[0])


@adapted_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, Bs: list[Tensor], starts: list[int],
      scalings: list[float]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], A.shape[0])


@backward_op.register_fake
def _(grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, A: Tensor, Bs: list[Tensor], starts: list[int],
      scalings: list[float]) -> tuple[Tensor, Tensor, list[Tensor]]:
    return torch.empty_like(x), torch.empty_like(A), [torch.empty_like(B) for B in Bs]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, A, Bs, ctx.starts, ctx.scalings = inputs
    ctx.save_for_backward(x, output[1], weight, A, *Bs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor | None) -> tuple:
    x, low, weight, A, *Bs = ctx.saved_tensors
    grad_x, grad_A, grad_Bs = backward_op(grad, x, low, weight, A, Bs, ctx.starts, ctx.scalings)
    return grad_x, None, None, grad_A, grad_Bs, None, None


adapted_op.register_autograd(_backward, setup_context=_save)


def add_lora(model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str] = TARGETS, rank_stabilised: bool = False,
             generator: torch.Generator) -> None:
    """Freeze ``model`` and put an adapter beside every linear layer whose name is one of ``targets`` or ends in one
    ("q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj"), in place.

    Scaling is α / R, or α / √R when ``rank_stabilised`` (arXiv 2312.03732). A target that names no layer: ``ValueError``.
    """
    model.requires_grad_(False)
    found = set()
    scaling = alpha / (math.sqrt(rank) if rank_stabilised else rank)
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            named = {target for target in targets if f".{path}.{name}".endswith(f".{target}")}
            if named and isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child, rank, scaling, generator))
                found |= named
    if missing := [name for name in targets if name not in found]:
        raise UserError(f"lora.targets: the model has no linear layer named {shown(', '.join(missing))}")
    for module in model.modules():
        for names in getattr(module, "of_one_input", ()):
            layers = tuple(getattr(module, name) for name in names)
            for layer in layers:
                if isinstance(layer, LoRALinear):
                    layer.siblings = layers


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training moves: ``"<module>.lora_A"`` and ``"<module>.lora_B"`` → parameter."""
    return {f"{name}.{half}": getattr(layer, half) for name, layer in adapters(model).items()
            for half in ("lora_A", "lora_B")}


def stacks(model: nn.Module) -> set[Stack]:
    """Where the adapted layers' weights lie, laid together now if they were not."""
    return {layer.stack for layer in adapters(model).values()}


def active_tensors(model: nn.Module) -> list[Tensor]:
    """The adapters' weights that a pass would read now: theirs, the start policy's, or none."""
    return [tensor for layer in adapters(model).values() for tensor in layer.active or ()]


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All but the adapters' own parameters, by the names that they have in a model without adapters."""
    added = adapter_parameters(model)
    return {name.replace(".base.", "."): parameter for name, parameter in model.named_parameters() if name not in added}


def freeze_reference(model: nn.Module) -> None:
    """Make the adapters as they are now the start policy: ``reference`` will use this frozen copy."""
    for layer in adapters(model).values():
        layer.start = (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())


@contextmanager
def reference(model: nn.Module) -> Iterator[None]:
    """Within the block the model is the start policy. Used around forward passes that need no gradient."""
    with _using({layer: layer.start for layer in adapters(model).values()}):
        yield


@contextmanager
def _using(pairs: Mapping[LoRALinear, tuple[Tensor, Tensor] | None]) -> Iterator[None]:
    """Within the block each layer reads this A and B; None: its base alone."""
    before = {layer: layer.active for layer in pairs}
    for layer, pair in pairs.items():
        layer.active = pair
    try:
        yield
    finally:
        for layer, active in before.items():
            layer.active = active


@contextmanager
def adapters_held(model: nn.Module) -> Iterator[None]:
    """Within the block adapters do not change: they are copied to where products read them once, now, and not in each of many
    small passes."""
    held = stacks(model)
    for stack in held:
        stack.hold()
    try:
        yield
    finally:
        for stack in held:
            stack.held = False


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose adapters are merged into plain linear layers; everything unadapted is shared, not copied."""
    shared = {id(p): p for p in model.parameters()}
    replaced = {id(layer): layer.merged() for layer in adapters(model).values()}
    return copy.deepcopy(model, shared | replaced)
