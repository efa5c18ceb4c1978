"""Low-rank adapters: W x + (α / R) B A x with W frozen (arXiv 2106.09685). Knows linear layers, not what they are for.

The start policy stays at hand: ``with reference(model): ...`` switches the adapters off, or to a frozen copy of the adapter
that training started from. Base weights are never written: merging makes a copy, because bf16 would not come back.
"""

import copy
import math
from contextlib import contextmanager
from typing import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` with an adapter beside it. The adapter's weights, and so all that training adds to them, are
    float32 or wider; its products are in the input's dtype, so that what is kept for the gradient is the base's own input.

    A [R, in] is drawn as ``nn.Linear`` draws its weights, B [out, R] is zero: at the start the layer equals its base, bit
    for bit.
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

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self)[0]

    def merged(self) -> nn.Linear:
        """A new ``nn.Linear`` with W + scaling · B A, added in float32 and rounded once. The base stays as it is."""
        linear = copy.deepcopy(self.base)
        delta = self.lora_B.detach() @ self.lora_A.detach() * self.scaling
        linear.weight.data = (self.base.weight.to(delta.dtype) + delta).to(self.base.weight.dtype)
        return linear


def project(x: Tensor, *layers: nn.Linear | LoRALinear) -> list[Tensor]:
    """[layer(x) for each layer]; adapters that are in use share their first product."""
    bases = [getattr(layer, "base", layer) for layer in layers]
    pairs = [getattr(layer, "active", None) for layer in layers]
    if None in pairs:
        return [F.linear(x, base.weight, base.bias) if pair is None else project(x, layer)[0]
                for layer, base, pair in zip(layers, bases, pairs)]
    rows, (As, Bs) = x.reshape(-1, x.shape[-1]), zip(*pairs)
    outs = Adapted.apply(rows, tuple(layer.scaling for layer in layers), *(base.weight for base in bases),
                         *(base.bias for base in bases), *As, *Bs)
    return [out.view(*x.shape[:-1], -1) for out in outs]


class Adapted(torch.autograd.Function):
    """n frozen linear layers of one input, each with an adapter: x Wᵢᵀ + bᵢ + sᵢ (x Aᵢᵀ) Bᵢᵀ; ``tensors`` are all W, all b
    (or None), all A, all B.

    Every sum is taken inside a matrix product, in its accumulator: none costs a pass of its own over memory, or a rounding.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scalings: tuple[float, ...],
                *tensors: Tensor | None) -> tuple[Tensor, ...]:
        n = len(scalings)
        Ws, biases, As, Bs = (tensors[i:i + n] for i in range(0, 4 * n, n))
        A = As[0].to(x.dtype) if n == 1 else torch.cat(As).to(x.dtype)
        low, Bs = x @ A.T, [B.to(x.dtype) for B in Bs]
        ctx.scalings, ctx.dtypes = scalings, [half.dtype for half in tensors[2 * n:]]
        ctx.save_for_backward(x, low, A, *Ws, *Bs)
        return tuple(F.linear(x, W, bias).addmm_(part, B.T, alpha=scaling) for W, bias, part, B, scaling
                     in zip(Ws, biases, low.split([B.shape[1] for B in Bs], dim=1), Bs, scalings))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n = len(grads)
        x, low, A, *saved = ctx.saved_tensors
        Ws, Bs = saved[:n], saved[n:]
        ranks = [B.shape[1] for B in Bs]
        grad_low = torch.cat([_scaled(scaling, grad, B) for scaling, grad, B in zip(ctx.scalings, grads, Bs)], dim=1)
        grad_Bs = [_scaled(scaling, grad.T, part)
                   for scaling, grad, part in zip(ctx.scalings, grads, low.split(ranks, dim=1))]
        grad_x = grads[0] @ Ws[0]
        for grad, W in zip(grads[1:], Ws[1:]):
            grad_x.addmm_(grad, W)
        grad_x.addmm_(grad_low, A)
        halves = (grad.to(dtype) for grad, dtype in zip((*(grad_low.T @ x).split(ranks), *grad_Bs), ctx.dtypes))
        return grad_x, None, *[None] * (2 * n), *halves


def _scaled(scaling: float, a: Tensor, b: Tensor) -> Tensor:
    """scaling · a b, in one product."""
    return torch.addmm(a.new_zeros(1, 1), a, b, beta=0, alpha=scaling)


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
        raise ValueError(f"lora.targets: the model has no linear layer named {', '.join(missing)}")


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training moves: ``"<module>.lora_A"`` and ``"<module>.lora_B"`` → parameter."""
    return {f"{name}.{half}": getattr(layer, half) for name, layer in adapters(model).items()
            for half in ("lora_A", "lora_B")}


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


class Rounded:
    """The adapters in use in the base's dtype, for many small passes. The copies stay where they are, so that a recorded pass
    can read them."""

    def __init__(self, model: nn.Module) -> None:
        self.sources = {layer: layer.active for layer in adapters(model).values() if layer.active is not None}
        self.copies = {layer: (A.to(layer.base.weight.dtype), B.to(layer.base.weight.dtype))
                       for layer, (A, B) in self.sources.items()}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the model reads the copies, brought up to date."""
        for layer, sources in self.sources.items():
            for rounded, source in zip(self.copies[layer], sources):
                if rounded is not source:                   # a float32 model's adapters are in its dtype already
                    rounded.copy_(source)
        with _using(self.copies):
            yield


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose adapters are merged into plain linear layers; everything unadapted is shared, not copied."""
    shared = {id(p): p for p in model.parameters()}
    replaced = {id(layer): layer.merged() for layer in adapters(model).values()}
    return copy.deepcopy(model, shared | replaced)
