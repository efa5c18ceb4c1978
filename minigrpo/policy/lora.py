"""Low-rank adapters: W x + (α / R) B A x with W frozen (arXiv 2106.09685). Knows linear layers, not what they are for.

The start policy stays at hand: ``with reference(model): ...`` switches the adapters off, or to a frozen copy of the adapter
that training started from. Base weights are never written: merging makes a copy, because bf16 would not come back.
"""

import copy
import math
from contextlib import contextmanager
from typing import Iterator, Sequence

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
        out = self.base(x)
        if self.active is None:
            return out
        A, B = self.active
        return out + F.linear(F.linear(x, A.to(x.dtype)) * self.scaling, B.to(x.dtype))

    def merged(self) -> nn.Linear:
        """A new ``nn.Linear`` with W + scaling · B A, added in float32 and rounded once. The base stays as it is."""
        linear = copy.deepcopy(self.base)
        delta = self.lora_B.detach() @ self.lora_A.detach() * self.scaling
        linear.weight.data = (self.base.weight.to(delta.dtype) + delta).to(self.base.weight.dtype)
        return linear


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
    before = {layer: layer.active for layer in adapters(model).values()}
    for layer in before:
        layer.active = layer.start
    try:
        yield
    finally:
        for layer, active in before.items():
            layer.active = active


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose adapters are merged into plain linear layers; everything unadapted is shared, not copied."""
    shared = {id(p): p for p in model.parameters()}
    replaced = {id(layer): layer.merged() for layer in adapters(model).values()}
    return copy.deepcopy(model, shared | replaced)
