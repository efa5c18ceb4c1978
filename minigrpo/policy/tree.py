"""A batch is a tree. What its prompts share is the root, the rest of each is a trunk, its K completions are its branches.

A token sees the root, its own trunk, the tokens before it in its own branch, and itself: what it would see if its prompt and
completion stood alone. Its position is what it would be there, too. Two prompts (Q = 2) that begin with the same two tokens
(L = 2) and have up to two of their own (Y = 2), with two completions each (K = 2) of up to three tokens (C = 3):

                           ┌─ many ────────────┬─ SELECT ── name ── ;             trunk 0, branches (0, 0) and (0, 1)
                           │                   └─ SELECT ── *
      Table ── How ────────┤
                           └─ old ── is ───────┬─ SELECT ── age ── ;              trunk 1, branches (1, 0) and (1, 1)
                                               └─ 7 ── ;
      position 0    1         2      3           p_q    p_q + 1  p_q + 2          p_q: the length of the prompt

The root goes through the model first, and its keys and values are all that the rest needs of it. Finished completions then are
one sequence of Q · Y + Q · K · C slots, padding included: the trunks, then the branches, each one after the other:

      slot     0     1      2    3    4       5     6   7       8   9       10      11   12  13  14  15
      token    many  (pad)  old  is   SELECT  name  ;   SELECT  *   (pad)   SELECT  age  ;   7   ;   (pad)
               └ trunk 0 ┘  └ trunk 1 ┘  └─ branch (0, 0) ─┘  └─ (0, 1) ─┘  └─ (1, 0) ────┘  └─ (1, 1) ─┘

Growing ones have a row of slots for each prompt, the whole prompt first, then depth by depth the tokens of its branches, slot
P + c · K + k, so that the slots in use are always a prefix.

Padding is seen by no one and sees only itself: a row that saw nothing would be 0 / 0 in the softmax. Padding must also hold a
finite number, because what is masked is multiplied by 0, and 0 · NaN is NaN. So it repeats its prompt's first token, which
also sees only itself and is finite wherever the prompt is. Does not depend on the model or on text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import torch
from torch import Tensor

from minigrpo.common.shapes import check

MIN_SAVED = 32          # slots: for fewer, a root is not worth the passes over it


@dataclass(frozen=True)
class Prompts:
    """Prompts side by side: ``ids_QP``, right-padded each with its own first token; ``length_Q``, the true lengths p_q ≥ 1;
    ``root``, the L < p_q tokens that all of them begin with and that are computed once."""

    ids_QP: Tensor
    length_Q: Tensor
    root: tuple[int, ...] = ()

    @property
    def live_QP(self) -> Tensor:
        return torch.arange(self.ids_QP.shape[1], device=self.ids_QP.device) < self.length_Q[:, None]


def pad_prompts(prompts: Sequence[Sequence[int]], *, root: int | None = None, multiple: int = 1,
                device: torch.device | str = "cpu") -> Prompts:
    """Ragged prompts (token ids) → ``Prompts``, padded to the longest, rounded up to a ``multiple``. ``root``: L, if it is not
    to be the longest possible. ``ValueError`` for an empty prompt, which has no token to predict from."""
    if not prompts or not all(prompts):
        raise ValueError("a prompt has no tokens")
    length_Q = torch.tensor([len(ids) for ids in prompts])
    width = -(-int(length_Q.max()) // multiple) * multiple
    ids_QP = torch.tensor([list(ids) + [ids[0]] * (width - len(ids)) for ids in prompts])
    return Prompts(ids_QP.to(device), length_Q.to(device), tuple(prompts[0][:root_of(prompts) if root is None else root]))


def root_of(prompts: Sequence[Sequence[int]]) -> int:
    """L: how many tokens all prompts begin with, or 0 where a root would save fewer than ``MIN_SAVED`` slots."""
    shared = common_beginning(prompts)
    return shared if (len(prompts) - 1) * shared >= MIN_SAVED else 0


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, if each is left one of its own.

    >>> common_beginning([[5, 6, 7, 8], [5, 6, 9]]), common_beginning([[5, 6, 7], [5, 6]]), common_beginning([[5, 6], [5, 6]])
    (2, 1, 1)
    """
    return min(len(commonprefix(list(map(list, prompts)))), min(map(len, prompts)) - 1)


def pad_completions(completions: Sequence[Sequence[Sequence[int]]], *,
                    device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """K completions (token ids) of each of Q prompts → ids_QKC, right-padded with zeros, and mask_QKC: True for tokens."""
    length_QK = torch.tensor([[len(ids) for ids in group] for group in completions])
    mask_QKC = torch.arange(int(length_QK.max())) < length_QK[:, :, None]
    ids_QKC = torch.zeros(mask_QKC.shape, dtype=torch.long)
    ids_QKC[mask_QKC] = torch.tensor([token for group in completions for ids in group for token in ids], dtype=torch.long)
    return ids_QKC.to(device), mask_QKC.to(device)


# ---------------------------------------------------------------------------------------------------------- visibility
def prompt_visibility(live_QP: Tensor, root: int = 0) -> Tensor:
    """visible_QYP of the prompts alone, for the Y = P − ``root`` slots behind the root: live tokens see live tokens up to
    themselves, padding sees itself."""
    check(live_QP=live_QP)
    slot_P = torch.arange(live_QP.shape[1], device=live_QP.device)
    slot_Y1 = slot_P[root:, None]
    return (slot_Y1 >= slot_P) & live_QP[:, None, :] & live_QP[:, root:, None] | (slot_Y1 == slot_P)


def within_window(visible_QTS: Tensor, positions_QT: Tensor, positions_QS: Tensor, window: int | None) -> Tensor:
    """``visible_QTS`` less what lies a sliding window or more behind (None: no window)."""
    check(visible_QTS=visible_QTS, positions_QT=positions_QT, positions_QS=positions_QS)
    if window is None:
        return visible_QTS
    return visible_QTS & (positions_QT[:, :, None] - positions_QS[:, None, :] < window)


def trunk_visibility(prompts: Prompts, window: int | None) -> Tensor | None:
    """visible_QYP: the Y = P − L tokens of each prompt behind the root over all P. None where plain causal attention gives the
    same: without a root live tokens come first, so they see only live ones, and what padding sees does not matter."""
    (Q, P), L, device = prompts.ids_QP.shape, len(prompts.root), prompts.ids_QP.device
    if not L and (window is None or P <= window):
        return None
    positions_QP = torch.arange(P, device=device).expand(Q, P)
    return within_window(prompt_visibility(prompts.live_QP, L), positions_QP[:, L:], positions_QP, window)


@dataclass(frozen=True)
class TreeVisibility:
    """Who sees whom in a tree of finished completions. ``trunk_QYP``: see ``trunk_visibility``. ``branch_QKCS``: slot c of
    branch k over the P slots of its prompt and the C of its own branch. No mask of all pairs of slots is laid out."""

    trunk_QYP: Tensor | None
    branch_QKCS: Tensor


@dataclass(frozen=True)
class ScoringTree:
    """Finished completions laid out for one pass behind the root, as one sequence of S slots: each trunk once, its branches.

    ``predictor_QKC`` is the slot whose hidden state predicts completion token (k, c): for c = 0 that of the prompt's last
    token, else that of the token before it in its branch. The shift by one happens here and nowhere else.
    """

    ids_1S: Tensor
    positions_1S: Tensor
    visible: TreeVisibility
    predictor_QKC: Tensor


def scoring_tree(prompts: Prompts, ids_QKC: Tensor, live_QKC: Tensor, *, window: int | None = None) -> ScoringTree:
    """Trunks and branches as one sequence. ``live_QKC`` (boolean) marks tokens that are not padding."""
    check(ids_QP=prompts.ids_QP, length_Q=prompts.length_Q, ids_QKC=ids_QKC, live_QKC=live_QKC)
    (Q, K, C), L, P, device = ids_QKC.shape, len(prompts.root), prompts.ids_QP.shape[1], ids_QKC.device
    depth_C, position_QP = torch.arange(C, device=device), torch.arange(P, device=device).expand(Q, P)
    position_QC = prompts.length_Q[:, None] + depth_C

    def flat(prompt_QP: Tensor, branch_QKC: Tensor) -> Tensor:
        return torch.cat([prompt_QP[:, L:].flatten(), branch_QKC.flatten()])[None]

    own_QKCC = live_QKC[:, :, :, None] & live_QKC[:, :, None, :] & (depth_C[:, None] >= depth_C)
    prompt_QKCP = live_QKC[:, :, :, None] & prompts.live_QP[:, None, None]
    branch_QKCS = torch.cat([prompt_QKCP, own_QKCC], dim=3)
    branch_QKCS = within_window(branch_QKCS.flatten(1, 2), position_QC.repeat(1, K),
                                torch.cat([position_QP, position_QC], dim=1), window).view_as(branch_QKCS)
    branch_QKCS[..., depth_C, P + depth_C] = True                   # padding too sees itself

    last_Q = torch.arange(Q, device=device) * (P - L) + prompts.length_Q - L - 1
    before_QKC = Q * (P - L) + torch.arange(Q * K * C, device=device).view(Q, K, C) - 1
    return ScoringTree(flat(prompts.ids_QP, ids_QKC.where(live_QKC, prompts.ids_QP[:, :1, None])),
                       flat(position_QP, position_QC[:, None].expand(Q, K, C)),
                       TreeVisibility(trunk_visibility(prompts, window), branch_QKCS),
                       torch.where(depth_C == 0, last_Q[:, None, None], before_QKC))
