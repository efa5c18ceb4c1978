"""A tensor's name ends in its axes, and ``check(logp_BC=x, advantage_B=y)`` checks that its shape agrees."""

import torch
from torch import Tensor


def check(**named: Tensor | int) -> None:
    """Check that every tensor has the axes that its name ends in, and that equal letters mean equal sizes.

    An integer ties a letter to a size; an axis written 1 has size one. Call it at the door of a public function.

    Raises ``ValueError`` that names the tensor, the expected axes and the shape got.

    >>> check(logp_BC=torch.zeros(2, 3), advantage_B=torch.zeros(2), C=3)
    >>> check(logp_BC=torch.zeros(2, 3), advantage_B=torch.zeros(4))
    Traceback (most recent call last):
    ValueError: advantage_B: expected [B] with B=2, got [4]
    """
    sizes = {name: size for name, size in named.items() if isinstance(size, int)}
    for name, tensor in named.items():
        if isinstance(tensor, int):
            continue
        _, underscore, axes = name.rpartition("_")
        if not underscore:
            raise ValueError(f"{name}: a tensor's name must end in its axes, as in {name}_BC")
        shape = tuple(tensor.shape)
        if len(axes) != len(shape) or any(size != (1 if axis == "1" else sizes.setdefault(axis, size))
                                          for axis, size in zip(axes, shape)):
            known = ", ".join(f"{axis}={sizes[axis]}" for axis in dict.fromkeys(axes) if axis in sizes)
            ties = f" with {known}" if known else ""
            raise ValueError(f"{name}: expected [{', '.join(axes)}]{ties}, got {list(shape)}")


def check_boolean(**masks: Tensor) -> None:
    """Check that masks are boolean; a mask of numbers would weigh instead of select. ``ValueError`` names the mask."""
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(f"{name}: expected a boolean tensor, got {mask.dtype}")
