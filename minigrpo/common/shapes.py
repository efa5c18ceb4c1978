"""A tensor's name ends in its axes, and ``check(logp_BC=x, advantage_B=y)`` checks that its shape agrees."""

from typing import Protocol


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> object: ...


def check(**named: "Shaped | int") -> None:
    """Check that every tensor has the axes that its name ends in, and that equal letters mean equal sizes.

    An integer ties a letter to a size; an axis written 1 has size one. Call it at the door of a public function.

    Raises ``ValueError`` that names the tensor, the expected axes and the shape got.

    >>> import torch
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
        fits = len(axes) == len(shape)
        for axis, size in zip(axes, shape):
            fits = fits and size == (1 if axis == "1" else sizes.setdefault(axis, size))
        if not fits:
            known = ", ".join(f"{axis}={sizes[axis]}" for axis in dict.fromkeys(axes) if axis in sizes)
            ties = f" with {known}" if known else ""
            raise ValueError(f"{name}: expected [{', '.join(axes)}]{ties}, got {list(shape)}")


def check_boolean(**masks: Shaped) -> None:
    """Check that masks are boolean; a mask of numbers would weigh instead of select. ``ValueError`` names the mask."""
    for name, mask in masks.items():
        if str(mask.dtype) != "torch.bool":
            raise ValueError(f"{name}: expected a boolean tensor, got {mask.dtype}")
