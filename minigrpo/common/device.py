"""Device, dtype, threads, memory and randomness. Only this file and the recorded graphs call CUDA."""

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


def set_up_torch(threads: int = 0) -> None:
    """Each recipe calls this once, first: all of PyTorch's global state that minigrpo changes, except for what ``model.fuse``
    tells the compiler. ``threads`` on the CPU; 0 leaves PyTorch's own choice."""
    if threads:
        torch.set_num_threads(threads)
    # cuDNN's attention makes a new plan for every length: milliseconds for each layer of each decoded token.
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_device(name: str = "auto") -> torch.device:
    """"auto" is the first CUDA device, else the CPU. ``UserError``: the name is no device, or there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"model.device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"model.device: {name!r} was asked for; CUDA devices here: {torch.cuda.device_count()}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """"auto" is bfloat16 on CUDA and float32 on the CPU, where bfloat16 is mostly slower."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[name]


def generator(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator that depends on (seed, step, purpose) alone, so that resuming needs no stored state."""
    digest = hashlib.sha256(f"minigrpo {seed} {step} {purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def settle(device: torch.device) -> None:
    """Wait until the device has finished its queued work; the CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the CUDA device, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> int:
    """Free bytes of the CUDA device, with those that PyTorch holds in reserve, or of this machine."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def memory_explained(device: torch.device, work: str, remedy: str) -> Iterator[None]:
    """Within the block, turn an out-of-memory error into a ``MemoryError`` that says for which ``work`` how much was
    requested, how much is free, and what to lower."""
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


def peak_memory(device: torch.device) -> int:
    """Highest memory so far in bytes: allocated by PyTorch on a CUDA device, resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
