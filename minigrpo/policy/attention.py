"""Attention over a plain sequence, a cache or a tree: positions, what the scores are masked by, and the products. Has no
weights."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.policy.architecture import Architecture
from minigrpo.policy.cache import KeysValues
from minigrpo.policy.fast.products import masked_attention
from minigrpo.policy.tree import TreeVisibility


class TreeBias(NamedTuple):
    """The additive masks of a ``TreeVisibility``: the trunks' (None: plain causal), and that of Q · K branches."""

    trunk: Tensor | None
    branch: Tensor
    branches: int


Bias = Tensor | TreeBias | None                 # None: plain causal


def attention_biases(visible: Tensor | TreeVisibility | None, sharing: int, dtype: torch.dtype) -> Bias:
    """What ``attend`` adds to the scores, made once for all layers. ``sharing``: query heads that share a key head, N / M."""
    if isinstance(visible, TreeVisibility):
        trunk = None if visible.trunk_QYP is None else additive(visible.trunk_QYP, sharing, dtype)
        return TreeBias(trunk, additive(visible.branch_QKCS.flatten(0, 1), sharing, dtype), visible.branch_QKCS.shape[1])
    return None if visible is None else additive(visible, sharing, dtype)


def additive(visible_QTS: Tensor, sharing: int, dtype: torch.dtype) -> Tensor:
    """[Q, 1, G, S]: 0 where visible, else −inf, for the G = sharing · T query rows of a key head. Rows begin at multiples of
    eight elements, or CUDA's kernel would copy the mask in every layer to have them so; and never where the last one ends, or
    torch.compile would compile that case by itself."""
    Q, T, S = visible_QTS.shape
    bias = torch.zeros(Q, sharing, T, S // 8 * 8 + 8, dtype=dtype, device=visible_QTS.device)[..., :S]
    return bias.masked_fill_(~visible_QTS[:, None], -torch.inf).flatten(1, 2)[:, None]


def attend(query_QNTH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: Bias, root: KeysValues | None = None) -> Tensor:
    """out_QNTH: softmax(query · key / √H + bias) · value; N / M query heads in a row share a key head. The keys and values of
    a ``root``, [1, M, L, H], come before those of every row; ``bias`` is over both."""
    if isinstance(bias, TreeBias):
        return attend_tree(query_QNTH, key_QMSH, value_QMSH, bias, root)
    if bias is None:
        shared = query_QNTH.shape[1] != key_QMSH.shape[1]
        return F.scaled_dot_product_attention(query_QNTH, key_QMSH, value_QMSH, is_causal=True, enable_gqa=shared)
    # Heads that share keys become further rows of one query: the keys are read once for all of them, and any kernel can do it
    # (CUDA's own way of sharing takes no mask).
    M, (N, T) = key_QMSH.shape[1], query_QNTH.shape[1:3]
    query_QMGH = query_QNTH.unflatten(1, (M, N // M)).flatten(2, 3)
    out_QMGH = masked_attention(query_QMGH, key_QMSH, value_QMSH, bias, root)
    return out_QMGH.unflatten(2, (N // M, T)).flatten(1, 2)


def attend_tree(query_1NSH: Tensor, key_1MSH: Tensor, value_1MSH: Tensor, bias: TreeBias, root: KeysValues | None) -> Tensor:
    """Each trunk attends to the root and itself; each branch is a sequence of its own, behind the root and its trunk."""
    sharing, K = query_1NSH.shape[1] // key_1MSH.shape[1], bias.branches
    Q, C = bias.branch.shape[0] // K, bias.branch.shape[2] // sharing
    # Not from S and L: torch.compile fails on differences of them where sizes vary.
    P = bias.branch.shape[3] - C
    Y = P if bias.trunk is None else bias.trunk.shape[2] // sharing

    def levels(x_1NSH: Tensor) -> tuple[Tensor, Tensor]:
        """trunk_QNYH, branch_QKNCH."""
        trunk, branch = x_1NSH[0].split([Q * Y, Q * K * C], dim=1)
        return trunk.unflatten(1, (Q, Y)).transpose(0, 1), branch.unflatten(1, (Q, K, C)).movedim(0, 2)

    def behind(x_1MSH: Tensor, root_1MLH: Tensor | None) -> tuple[Tensor, Tensor]:
        """What trunks and branches attend to, with what is before them."""
        trunk_QMYH, branch_QKMCH = levels(x_1MSH)
        prompt_QMPH = trunk_QMYH if root_1MLH is None else torch.cat([root_1MLH.expand(Q, -1, -1, -1), trunk_QMYH], dim=2)
        return prompt_QMPH, torch.cat([prompt_QMPH[:, None].expand(-1, K, -1, -1, -1), branch_QKMCH], dim=3).flatten(0, 1)

    (trunk_QNYH, branch_QKNCH), (root_keys, root_values) = levels(query_1NSH), root or (None, None)
    (trunk_keys, branch_keys), (trunk_values, branch_values) = behind(key_1MSH, root_keys), behind(value_1MSH, root_values)
    out_QNYH = attend(trunk_QNYH, trunk_keys, trunk_values, bias.trunk)
    out_BNCH = attend(branch_QKNCH.flatten(0, 1), branch_keys, branch_values, bias.branch)
    return torch.cat([x_QNYH.transpose(0, 1).flatten(1, 2)[None] for x_QNYH in (out_QNYH, out_BNCH)], dim=2)


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
