"""A group is a tree: the prompt is the trunk, its K completions are the branches. Slots, positions, visibility, cache.

One rule: a token sees the trunk, its own ancestors in the branches, and itself (with a sliding window, only positions less
than a window away). Padding sees itself only and is seen by no one: a row that saw nothing would be 0/0 in the softmax, and
NaN spreads. Even unseen it must be a number, as what is masked counts 0 times and 0 · NaN is NaN: so padding repeats its
prompt's first token, which sees only itself too, and is finite wherever the prompt is. Knows no model and no text.

Layout of the S = P + K·C slots: trunk first, right-padded to P; then the branches: one after the other where they are finished
(slot P + k·C + c), depth by depth while they grow (slot P + c·K + k), so that the slots in use are a prefix. Positions are
p_q + c, never slot numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minigrpo.common.shapes import check


@dataclass(frozen=True)
class Prompts:
    """Prompts side by side: ``ids_QP``, right-padded each with its own first token, ``length_Q`` the true lengths p_q ≥ 1."""

    ids_QP: Tensor
    length_Q: Tensor

    @property
    def live_QP(self) -> Tensor:
        return torch.arange(self.ids_QP.shape[1], device=self.ids_QP.device) < self.length_Q[:, None]


def pad_prompts(prompts: Sequence[Sequence[int]], *, multiple: int = 1, device: torch.device | str = "cpu") -> Prompts:
    """Ragged prompts (token ids) → ``Prompts``, padded to the longest, and on to a ``multiple``. An empty prompt has no token
    to predict from: ``ValueError``."""
    if not prompts or not all(prompts):
        raise ValueError("a prompt has no tokens")
    length_Q = torch.tensor([len(ids) for ids in prompts])
    width = -(-int(length_Q.max()) // multiple) * multiple
    ids_QP = torch.tensor([[*ids, *ids[:1] * (width - len(ids))] for ids in prompts])
    return Prompts(ids_QP.to(device), length_Q.to(device))


def pad_completions(completions: Sequence[Sequence[Sequence[int]]], *,
                    device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """K completions (token ids) of each of Q prompts → ids_QKC, right-padded with zeros, and mask_QKC: what is no padding."""
    length_QK = torch.tensor([[len(ids) for ids in group] for group in completions])
    mask_QKC = torch.arange(int(length_QK.max())) < length_QK[:, :, None]
    ids_QKC = torch.zeros(mask_QKC.shape, dtype=torch.long)
    ids_QKC[mask_QKC] = torch.tensor([token for group in completions for ids in group for token in ids], dtype=torch.long)
    return ids_QKC.to(device), mask_QKC.to(device)


# ---------------------------------------------------------------------------------------------------------- visibility
def trunk_visibility(live_QP: Tensor) -> Tensor:
    """visible_QPP of the prompts alone: live tokens see live tokens up to themselves, padding sees itself."""
    check(live_QP=live_QP)
    causal_PP = torch.ones(live_QP.shape[1], live_QP.shape[1], dtype=torch.bool, device=live_QP.device).tril()
    return (causal_PP & live_QP[:, None, :] & live_QP[:, :, None]) | torch.eye(
        len(causal_PP), dtype=torch.bool, device=live_QP.device)


def within_window(visible_QTS: Tensor, positions_QT: Tensor, positions_QS: Tensor, window: int | None) -> Tensor:
    """``visible_QTS`` less what lies a sliding window or more behind."""
    check(visible_QTS=visible_QTS, positions_QT=positions_QT, positions_QS=positions_QS)
    if window is None:
        return visible_QTS
    return visible_QTS & (positions_QT[:, :, None] - positions_QS[:, None, :] < window)


def causal_visibility(live_QP: Tensor, window: int | None) -> Tensor | None:
    """visible_QPP of the prompts, or None where plain causal attention does: live tokens come first, so they see live ones
    only, and what padding sees does not matter."""
    Q, P = live_QP.shape
    if window is None or P <= window:
        return None
    positions_QP = torch.arange(P, device=live_QP.device).expand(Q, P)
    return within_window(trunk_visibility(live_QP), positions_QP, positions_QP, window)


@dataclass(frozen=True)
class TreeVisibility:
    """Who sees whom in a tree of finished completions. The trunk: ``trunk_QPP``, or plain causal (None). Slot c of branch k:
    ``branch_QKCS``, over the P slots of the trunk and the C of its own branch; it never sees another branch, and none of the
    S × S pairs of slots of different branches is ever laid out."""

    trunk_QPP: Tensor | None
    branch_QKCS: Tensor


@dataclass(frozen=True)
class ScoringTree:
    """Finished completions laid out for one pass: prompts once, branches behind them.

    ``predictor_QKC`` is the slot whose hidden state predicts completion token (k, c): trunk slot p_q − 1 for c = 0, else
    the token before it in its branch. The shift by one happens here and nowhere else.
    """

    ids_QS: Tensor
    positions_QS: Tensor
    visible: TreeVisibility
    predictor_QKC: Tensor


def scoring_tree(prompts: Prompts, ids_QKC: Tensor, live_QKC: Tensor, *, window: int | None = None) -> ScoringTree:
    """Trunk and branches as one sequence of S = P + K·C slots. ``live_QKC`` (boolean) marks tokens that are not padding."""
    check(ids_QP=prompts.ids_QP, length_Q=prompts.length_Q, ids_QKC=ids_QKC, live_QKC=live_QKC)
    (Q, K, C), P, device = ids_QKC.shape, prompts.ids_QP.shape[1], ids_QKC.device
    depth_C, trunk_P = torch.arange(C, device=device), torch.arange(P, device=device)
    position_QC = prompts.length_Q[:, None] + depth_C
    positions_QS = torch.cat([trunk_P.expand(Q, P), position_QC.repeat(1, K)], dim=1)

    own_QKCC = live_QKC[:, :, :, None] & live_QKC[:, :, None, :] & (depth_C[:, None] >= depth_C)
    trunk_QKCP = live_QKC[:, :, :, None] & prompts.live_QP[:, None, None]
    seen_QS = torch.cat([trunk_P.expand(Q, P), position_QC], dim=1)
    branch_QKCS = torch.cat([trunk_QKCP, own_QKCC], dim=3)
    branch_QKCS = within_window(branch_QKCS.flatten(1, 2), position_QC.repeat(1, K), seen_QS, window).view_as(branch_QKCS)
    branch_QKCS[..., depth_C, P + depth_C] = True                   # padding too sees itself

    inside_KC = P - 1 + torch.arange(K, device=device)[:, None] * C + depth_C
    predictor_QKC = torch.where(depth_C == 0, (prompts.length_Q - 1)[:, None, None], inside_KC)
    ids_QKC = ids_QKC.where(live_QKC, prompts.ids_QP[:, :1, None])
    return ScoringTree(torch.cat([prompts.ids_QP, ids_QKC.flatten(1)], dim=1), positions_QS,
                       TreeVisibility(causal_visibility(prompts.live_QP, window), branch_QKCS), predictor_QKC)


# --------------------------------------------------------------------------------------------------------------- cache
class LayerCache(NamedTuple):
    """One layer's keys and values, [Q, M, S, H], as a call sees them: it writes its T tokens to ``slots_T`` and attends over
    the first ``stop`` slots."""

    keys: Tensor
    values: Tensor
    slots_T: Tensor
    stop: int

    def write(self, key_QMTH: Tensor, value_QMTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values; return those of all slots it attends over."""
        self.keys.index_copy_(2, self.slots_T, key_QMTH)
        self.values.index_copy_(2, self.slots_T, value_QMTH)
        return self.keys[:, :, :self.stop], self.values[:, :, :self.stop]


@dataclass
class KVCache:
    """Keys and values of all layers. Zeros at the start: a slot that nobody has written and nobody sees is multiplied by zero.

    ``slots_T`` and ``stop`` are set before each call, by ``next`` for plain causal use. Where a call writes is a tensor, so
    that a recorded call can be replayed at another place.
    """

    keys: list[Tensor]
    values: list[Tensor]
    slots_T: Tensor
    stop: int = 0

    @classmethod
    def empty(cls, *, layers: int, groups: int, kv_heads: int, slots: int, head_size: int, dtype: torch.dtype,
              device: torch.device | str) -> "KVCache":
        def zeros() -> list[Tensor]:
            return [torch.zeros(groups, kv_heads, slots, head_size, dtype=dtype, device=device) for _ in range(layers)]

        return cls(zeros(), zeros(), torch.zeros(0, dtype=torch.long, device=device))

    def next(self, tokens: int) -> None:
        """The next call writes the ``tokens`` slots behind those in use."""
        self.slots_T = torch.arange(self.stop, self.stop + tokens, device=self.slots_T.device)
        self.stop += tokens

    def clear(self) -> None:
        self.stop = 0
        for tensor in (*self.keys, *self.values):
            tensor.zero_()

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self.keys[index], self.values[index], self.slots_T, self.stop)
