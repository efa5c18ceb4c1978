"""Attention over a plain sequence, a cache or a tree: positions, what the scores are masked by, and the products. Has no
weights."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.policy.architecture import Architecture
from minigrpo.policy.fast.products import masked_attention
from minigrpo.policy.tree import TreeVisibility


class TreeBias(NamedTuple):
    """The additive masks of a tree: the trunk's (None: plain causal), and that of Q · K branches over trunk and branch."""

    trunk: Tensor | None
    branch: Tensor
    branches: int


Bias = Tensor | TreeBias | None                 # None: plain causal


def attention_biases(visible: Tensor | TreeVisibility | None, sharing: int, dtype: torch.dtype) -> Bias:
    """What ``attend`` adds to the scores, made once for all layers. ``sharing``: query heads that share a key head, N / M."""
    if isinstance(visible, TreeVisibility):
        trunk = None if visible.trunk_QPP is None else additive(visible.trunk_QPP, sharing, dtype)
        return TreeBias(trunk, additive(visible.branch_QKCS.flatten(0, 1), sharing, dtype), visible.branch_QKCS.shape[1])
    return None if visible is None else additive(visible, sharing, dtype)


def additive(visible_QTS: Tensor, sharing: int, dtype: torch.dtype) -> Tensor:
    """[Q, 1, G, S]: 0 where visible, else −inf, for the G = sharing · T query rows of a key head. Rows begin at multiples of
    eight elements, or CUDA's kernel would copy the mask in every layer to have them so."""
    Q, T, S = visible_QTS.shape
    bias = torch.zeros(Q, sharing, T, -(-S // 8) * 8, dtype=dtype, device=visible_QTS.device)[..., :S]
    return bias.masked_fill_(~visible_QTS[:, None], -torch.inf).flatten(1, 2)[:, None]


def attend(query_QNTH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: Bias) -> Tensor:
    """out_QNTH: softmax(query · key / √H + bias) · value; N / M query heads in a row share a key head."""
    if isinstance(bias, TreeBias):
        return attend_tree(query_QNTH, key_QMSH, value_QMSH, bias)
    if bias is None:
        shared = query_QNTH.shape[1] != key_QMSH.shape[1]
        return F.scaled_dot_product_attention(query_QNTH, key_QMSH, value_QMSH, is_causal=True, enable_gqa=shared)
    # Heads that share keys become further rows of one query: the keys are read once for all of them, and any kernel can do it
    # (CUDA's own way of sharing takes no mask).
    M, (N, T) = key_QMSH.shape[1], query_QNTH.shape[1:3]
    query_QMGH = query_QNTH.unflatten(1, (M, N // M)).flatten(2, 3)
    out_QMGH = masked_attention(query_QMGH, key_QMSH, value_QMSH, bias)
    return out_QMGH.unflatten(2, (N // M, T)).flatten(1, 2)


def attend_tree(query_QNSH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: TreeBias) -> Tensor:
    """The trunk attends to itself; each branch is a sequence of its own, behind the trunk's keys and values."""
    (Q, N, _, _), M, K = query_QNSH.shape, key_QMSH.shape[1], bias.branches
    C = bias.branch.shape[2] // (N // M)
    P = bias.branch.shape[3] - C                            # not S − K · C: torch.compile fails on that where K varies
    (query_QNPH, query_QNXH), (key_QMPH, key_QMXH), (value_QMPH, value_QMXH) = (
        x.split([P, K * C], dim=2) for x in (query_QNSH, key_QMSH, value_QMSH))

    def own(x_QMXH: Tensor) -> Tensor:
        return x_QMXH.unflatten(2, (K, C)).transpose(1, 2)

    def behind(trunk_QMPH: Tensor, x_QMXH: Tensor) -> Tensor:
        trunk_QKMPH = trunk_QMPH[:, None].expand(Q, K, M, P, -1)
        return torch.cat([trunk_QKMPH, own(x_QMXH)], dim=3).flatten(0, 1)

    out_QNPH = attend(query_QNPH, key_QMPH, value_QMPH, bias.trunk)
    out_BNCH = attend(own(query_QNXH).flatten(0, 1), behind(key_QMPH, key_QMXH), behind(value_QMPH, value_QMXH), bias.branch)
    return torch.cat([out_QNPH, out_BNCH.unflatten(0, (Q, K)).transpose(1, 2).flatten(2, 3)], dim=2)


# ---------------------------------------------------------------------------------------------------- rotary positions
def rotary_angles(architecture: Architecture, positions_QT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_QTH and sin_QTH by which rotary positions (arXiv 2104.09864) turn a head's pairs, in float32. Both halves of H are
    alike, except that the first half's sines are negative, as ``rotate`` needs them."""
    exponents = torch.arange(0, architecture.head_size, 2, device=positions_QT.device).float() / architecture.head_size
    frequencies = 1.0 / architecture.rope_theta ** exponents
    if architecture.rope_scaling is not None:
        frequencies = architecture.rope_scaling.stretch(frequencies)
    angles = positions_QT[:, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x_QTNH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + H/2) of each head by the position's angles: (a, b) → (a cos − b sin, b cos + a sin)."""
    cos_QTH, sin_QTH = rotary
    turned_QTNH = x_QTNH.roll(x_QTNH.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_QTNH * cos_QTH[:, :, None], turned_QTNH, sin_QTH[:, :, None])
