"""Device, dtype, threads and randomness: named here and nowhere else. Knows no model and no task."""

import hashlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minigrpo.common.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """"auto" is the first CUDA device, else the CPU. A device that is not there, or no device: ``ValueError``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"model.device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"model.device: {name!r} was asked for; CUDA devices here: {torch.cuda.device_count()}")
    # cuDNN's attention plans anew for every length, milliseconds for each layer of each decoded token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """"auto" is bfloat16 on CUDA and float32 on the CPU, where bfloat16 is mostly slower."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[name]


def generator(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator that depends on (seed, step, purpose) alone, so that resuming needs no stored randomness."""
    digest = hashlib.sha256(f"minigrpo {seed} {step} {purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def settle(device: torch.device) -> None:
    """Wait until the device has done all it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def use_threads(count: int) -> None:
    """CPU threads of PyTorch; 0 leaves its own choice."""
    if count:
        torch.set_num_threads(count)


def total_memory(device: torch.device) -> int:
    """Bytes that the CUDA device has, or this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> int:
    """Bytes that the CUDA device has left, those that PyTorch holds in reserve too, or this machine."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def memory_explained(device: torch.device, work: str, remedy: str) -> Iterator[None]:
    """Within the block, memory that is not to be had is a ``MemoryError`` with the arithmetic: for what ``work`` how much was
    asked, how much there is, and what to change."""
    try:
        yield
    except RuntimeError as error:           # CUDA's allocator has a class of its own for it, the CPU's only a text
        asked = re.search(r"[Tt]r(?:ied|y) to allocate ([\d.]+) ?([KMGT]iB|bytes)?", str(error))
        if asked is None:
            raise
        size = float(asked[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(asked[2] or "bytes")
        total, free = total_memory(device), free_memory(device)
        raise MemoryError(f"{work} does not fit on {device}: {size / 1e9:.2f} GB more were asked for, {free / 1e9:.2f} of "
                          f"{total / 1e9:.2f} GB are free (in pieces of any size): {remedy}") from error


def program_memory(device: torch.device) -> int:
    """Bytes in use there before any model is loaded: on the CPU those of this process."""
    return 0 if device.type == "cuda" else peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """Highest memory so far in bytes: allocated by PyTorch on a CUDA device, resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
