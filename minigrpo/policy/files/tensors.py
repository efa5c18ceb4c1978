"""Tensors by name, in and out of safetensors files. Nothing is ever unpickled. Does not depend on the model."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigrpo.common.errors import UserError, shown

FLOATS, OTHERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "U8", "BOOL")


def read_safetensors(file: Path, kinds: tuple[str, ...] = FLOATS) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of one file with its name, one at a time. ``UserError`` that names the file if it is missing or torn, or
    the tensor whose type is not among ``kinds``."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                if (kind := tensors.get_slice(name).get_dtype()) not in kinds:
                    raise UserError(f"{file}: tensor {shown(name)} is of {kind}; only {', '.join(kinds)} are read")
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file: {str(error)[:120]!r}") from None


def save_tensors(file: Path, tensors: Mapping[str, Tensor], note: tuple[str, str] = ("format", "pt")) -> None:
    """Write one safetensors file. ``OSError`` where the disk is full or the like.

    ``note``, a key and its value, goes into the header. There can be only one: the library writes several in a random order.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, metadata=dict([note]))
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """All of one file, integers too, which an optimiser's state may hold. ``UserError`` as above."""
    return dict(read_safetensors(file, FLOATS + OTHERS))


def read_note(file: Path, key: str) -> str | None:
    """What ``save_tensors`` has noted in the header under ``key``."""
    with safe_open(file, framework="pt") as tensors:
        return (tensors.metadata() or {}).get(key)


def check_names(what: str, expected: Mapping[str, object], got: Mapping[str, object]) -> None:
    """``UserError`` that begins with ``what`` and names up to three missing or extra tensors."""
    for problem, odd in (("lack", expected.keys() - got.keys()), ("have no place for", got.keys() - expected.keys())):
        if names := sorted(odd):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{what} {problem} {', '.join(map(shown, names[:3]))}{more}")
