"""A group is a tree: the prompt is the trunk, its K completions are the branches. Which slot, which position, who sees whom.

A token sees the trunk, the tokens before it in its own branch, and itself. Positions are p_q + c: the prompt's length plus the
place in the branch. Two completions (K = 2) of up to three tokens (C = 3) after a prompt of two tokens, padded to P = 3:

                       ┌─ SELECT ── name ─── ;        branch k = 0
      How ── many ─────┤
                       └─ SELECT ── * ── (padding)    branch k = 1
                          c = 0     c = 1   c = 2
      position  0    1      2        3       4

The S = P + K · C slots of a tensor hold the trunk first. Finished completions lie one after the other, slot P + k · C + c;
growing ones depth by depth, slot P + c · K + k, so that the slots in use are always a prefix:

      slot          0    1     2   │  3       4       5       6       7       8
      finished     How  many  (pad)│ SELECT   name    ;      SELECT   *     (pad)
      growing      How  many  (pad)│ SELECT  SELECT   name    *       ;      (pad)
      (k, c) finished              │ (0, 0)  (0, 1)  (0, 2)  (1, 0)  (1, 1)  (1, 2)
      (k, c) growing               │ (0, 0)  (1, 0)  (0, 1)  (1, 1)  (0, 2)  (1, 2)

Padding is seen by no one and sees only itself: a row that saw nothing would be 0 / 0 in the softmax. Padding must also hold a
finite number, because what is masked is multiplied by 0, and 0 · NaN is NaN. So it repeats its prompt's first token, which
also sees only itself and is finite wherever the prompt is. Does not depend on the model or on text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigrpo.common.shapes import check


@dataclass(frozen=True)
class Prompts:
    """Prompts side by side: ``ids_QP``, right-padded each with its own first token; ``length_Q``, the true lengths p_q ≥ 1."""

    ids_QP: Tensor
    length_Q: Tensor

    @property
    def live_QP(self) -> Tensor:
        return torch.arange(self.ids_QP.shape[1], device=self.ids_QP.device) < self.length_Q[:, None]


def pad_prompts(prompts: Sequence[Sequence[int]], *, multiple: int = 1, device: torch.device | str = "cpu") -> Prompts:
    """Ragged prompts (token ids) → ``Prompts``, padded to the longest, rounded up to a ``multiple``. ``ValueError`` for an
    empty prompt, which has no token to predict from."""
    if not prompts or not all(prompts):
        raise ValueError("a prompt has no tokens")
    length_Q = torch.tensor([len(ids) for ids in prompts])
    width = -(-int(length_Q.max()) // multiple) * multiple
    ids_QP = torch.tensor([list(ids) + [ids[0]] * (width - len(ids)) for ids in prompts])
    return Prompts(ids_QP.to(device), length_Q.to(device))


def pad_completions(completions: Sequence[Sequence[Sequence[int]]], *,
                    device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """K completions (token ids) of each of Q prompts → ids_QKC, right-padded with zeros, and mask_QKC: True for tokens."""
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
    """``visible_QTS`` less what lies a sliding window or more behind (None: no window)."""
    check(visible_QTS=visible_QTS, positions_QT=positions_QT, positions_QS=positions_QS)
    if window is None:
        return visible_QTS
    return visible_QTS & (positions_QT[:, :, None] - positions_QS[:, None, :] < window)


def causal_visibility(live_QP: Tensor, window: int | None) -> Tensor | None:
    """visible_QPP of the prompts, or None where plain causal attention gives the same: live tokens come first, so they see
    only live ones, and what padding sees does not matter."""
    Q, P = live_QP.shape
    if window is None or P <= window:
        return None
    positions_QP = torch.arange(P, device=live_QP.device).expand(Q, P)
    return within_window(trunk_visibility(live_QP), positions_QP, positions_QP, window)


@dataclass(frozen=True)
class TreeVisibility:
    """Who sees whom in a tree of finished completions. The trunk: ``trunk_QPP``, or plain causal (None). Slot c of branch k:
    ``branch_QKCS``, over the P slots of the trunk and the C of its own branch. It never sees another branch, so no mask of
    all S × S pairs of slots is laid out."""

    trunk_QPP: Tensor | None
    branch_QKCS: Tensor


@dataclass(frozen=True)
class ScoringTree:
    """Finished completions laid out for one pass: each prompt once, its branches behind it.

    ``predictor_QKC`` is the slot whose hidden state predicts completion token (k, c): trunk slot p_q − 1 for c = 0, else
    the slot of the token before it in its branch. The shift by one happens here and nowhere else.
    """

    ids_QS: Tensor
    positions_QS: Tensor
    visible: TreeVisibility
    predictor_QKC: Tensor


def scoring_tree(prompts: Prompts, ids_QKC: Tensor, live_QKC: Tensor, *, window: int | None = None) -> ScoringTree:
    """Trunk and branches as one sequence of S = P + K · C slots. ``live_QKC`` (boolean) marks tokens that are not padding."""
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
