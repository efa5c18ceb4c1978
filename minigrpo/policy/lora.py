"""Low-rank adapters: W x + s B A x with W frozen and s = α / R (arXiv 2106.09685). Does not know what the layers are for.

The start policy stays at hand: ``with reference(model): ...`` switches the adapters off, or to a frozen copy of the adapter
that training started from. The base weights are never written: merging makes a copy, because subtracting again in bfloat16
would not restore them. The model calls ``fast.stacked.project``, which computes several such layers in one product.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minigrpo.common.errors import UserError, shown
from minigrpo.policy.fast.stacked import Layer, Stack, link_siblings

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` (W [out, in]) with an adapter beside it: A [R, in] and B [out, R].

    The adapter's weights are float32 or wider, and so is everything that training adds to them. Its products are computed in
    the input's dtype.
    """

    def __init__(self, base: nn.Linear, rank: int, scaling: float, generator: torch.Generator) -> None:
        """A is drawn as ``nn.Linear`` draws its weights; B is zero: at the start the layer equals its base, bit for bit."""
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), scaling
        device, dtype = base.weight.device, torch.promote_types(base.weight.dtype, torch.float32)
        bound = 1 / math.sqrt(base.in_features)                 # kaiming_uniform with a = √5, as peft and nn.Linear do
        drawn = (torch.rand(rank, base.in_features, generator=generator) * 2 - 1) * bound
        self.lora_A = nn.Parameter(drawn.to(device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=dtype))
        self.active: tuple[Tensor, Tensor] | None = (self.lora_A, self.lora_B)      # in use now; None: the base alone
        self.start: tuple[Tensor, Tensor] | None = None         # what ``reference`` switches to; None: the base alone
        self.siblings: tuple[Layer, ...] = (self,)              # the layers of the same input, for ``fast.stacked``
        self.stack: Stack | None = None                         # where their weights lie together

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + s B A x, of this layer alone. Differs by rounding from its slice of ``project``, which sums elsewhere."""
        if self.active is None:
            return self.base(x)
        A, B = (half.to(x.dtype) for half in self.active)
        return self.base(x) + self.scaling * (x @ A.T @ B.T)

    def merged(self) -> nn.Linear:
        """A new ``nn.Linear`` with W + s B A, added in float32 and rounded once. The base stays as it is."""
        linear = copy.deepcopy(self.base)
        delta = self.lora_B.detach() @ self.lora_A.detach() * self.scaling
        linear.weight.data = (self.base.weight.to(delta.dtype) + delta).to(self.base.weight.dtype)
        return linear

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LoRALinear":
        if self.stack is not None:
            self.stack.parted = True                            # ``to`` gives each weight a place of its own
        return super()._apply(fn, recurse)


def add_lora(model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str] = TARGETS, rank_stabilised: bool = False,
             generator: torch.Generator) -> None:
    """Freeze ``model`` and put an adapter beside every linear layer whose name is one of ``targets`` or ends in one
    ("q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj"), in place.

    The scaling s is α / R, or α / √R when ``rank_stabilised`` (arXiv 2312.03732). ``UserError`` for a target that names no
    linear layer.
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
    link_siblings(model)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes: ``"<module>.lora_A"`` and ``"<module>.lora_B"`` → parameter."""
    return {f"{name}.{half}": getattr(layer, half) for name, layer in adapters(model).items()
            for half in ("lora_A", "lora_B")}


def freeze_reference(model: nn.Module) -> None:
    """Make the adapters as they are now the start policy: ``reference`` will use this frozen copy."""
    for layer in adapters(model).values():
        layer.start = (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())


@contextmanager
def reference(model: nn.Module) -> Iterator[None]:
    """Within the block the model is the start policy. For forward passes that need no gradient."""
    before = {layer: layer.active for layer in adapters(model).values()}
    for layer in before:
        layer.active = layer.start
    try:
        yield
    finally:
        for layer, active in before.items():
            layer.active = active
