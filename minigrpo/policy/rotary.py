"""Rotary positions (arXiv 2104.09864): a head's pairs of numbers are turned by angles that grow with the position."""

import torch
from torch import Tensor

from minigrpo.policy.architecture import Architecture, RopeScaling


def rotary_angles(architecture: Architecture, positions_QT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_QTH and sin_QTH of every position, computed in float32. Both halves of H are alike, except that the first half's
    sines are negative, as ``rotate`` needs them."""
    exponents = torch.arange(0, architecture.head_size, 2, device=positions_QT.device).float() / architecture.head_size
    frequencies = 1.0 / architecture.rope_theta ** exponents
    if architecture.rope_scaling is not None:
        frequencies = stretched(frequencies, architecture.rope_scaling)
    angles = positions_QT[:, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x_QTNH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + H/2) of each head by the position's angles: (a, b) → (a cos − b sin, b cos + a sin)."""
    cos_QTH, sin_QTH = rotary
    turned_QTNH = x_QTNH.roll(x_QTNH.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_QTNH * cos_QTH[:, :, None], turned_QTNH, sin_QTH[:, :, None])


def stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Rotary frequencies for longer contexts. "linear": all are divided by the factor. "llama3", as in Llama 3.1: fast ones
    (short wavelengths) stay, slow ones are divided by the factor, those between are interpolated."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_positions * frequencies / (2 * torch.pi)           # full turns within the old context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor
