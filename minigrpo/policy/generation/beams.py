"""Beam search. The rule, for each prompt at each step (that of transformers' ``generate``):

1. Every live beam is continued by every token: K · V candidates, each with its total log-prob.
2. Of the K best candidates, those that end here are set aside in ``done``, scored total / length^penalty. They end by a stop,
   or because this is the last depth. ``done`` keeps its K best.
3. The K best candidates that do not end are the next live beams. Each takes over what its parent sees in the tree.
4. The prompt is closed when ``done`` is full and its worst score is no worse than the best live beam's, at its present length;
   with early stopping, as soon as ``done`` is full.
"""

from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minigrpo.common.errors import UserError
from minigrpo.policy.fast.head import log_softmax
from minigrpo.policy.generation.growing_tree import GrowingTree, to_front
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tokenizer import Stopping


class Beams:
    """A beam search under way. All its tensors keep their place: ``begin`` and ``step`` can be recorded and replayed."""

    def __init__(self, tree: GrowingTree, model: CausalLM, depth: int, stopping: Stopping, *, length_penalty: float,
                 early_stopping: bool) -> None:
        (Q, K, _), device = tree.visible_QKS.shape, model.device
        self.tree, self.stopping, self.early_stopping = tree, stopping, early_stopping
        self.live, self.done = (Hypotheses.empty(Q, K, depth, model.dtype, device) for _ in range(2))
        self.open_Q1 = torch.ones(Q, 1, dtype=torch.bool, device=device)
        self.state_QK, self.token_QK, self.parent_QK = (torch.zeros(Q, K, dtype=torch.long, device=device) for _ in range(3))
        self.divisor_C = torch.tensor([(c + 1.0) ** length_penalty for c in range(depth)], dtype=torch.float64)
        self.divisor_C = self.divisor_C.to(device, self.live.score_QK.dtype)

    def select(self, logp_QKV: Tensor) -> None:
        """The rule above: from the log-probs of every beam's next token to the next ``live``, ``done`` and ``open_Q1``."""
        ends_QKV, depth_1 = self.stopping.ends_UV[self.state_QK], self.tree.depth_1
        total_QKV, divisor_1 = self.live.score_QK[:, :, None] + logp_QKV, self.divisor_C[depth_1]
        candidates, _ = best_continuations(self.live, total_QKV, logp_QKV, ends_QKV, depth_1)
        finished_QK = self.open_Q1 & (candidates.stopped_QK | (depth_1 == len(self.divisor_C) - 1))
        score_QK = (candidates.score_QK / divisor_1).where(finished_QK, -torch.inf)
        self.done.set(self.done.best_with(candidates._replace(score_QK=score_QK)))

        going_on_QKV = total_QKV.masked_fill(ends_QKV, -torch.inf)
        live, parent_QK = best_continuations(self.live, going_on_QKV, logp_QKV, ends_QKV, depth_1)
        best_Q1, worst_Q1 = live.score_QK[:, :1] / divisor_1, self.done.score_QK[:, -1:]
        self.open_Q1 &= worst_Q1.isinf() | ((best_Q1 > worst_Q1) & (not self.early_stopping))
        self.live.set(live)
        self.parent_QK.copy_(parent_QK)
        self.token_QK.copy_(live.ids_QKC.index_select(2, depth_1)[:, :, 0])
        self.state_QK.copy_(self.stopping.next_UV[self.state_QK.gather(1, parent_QK), self.token_QK])

    def begin(self, model: CausalLM) -> None:
        self.live.clear()
        self.done.clear()
        self.live.score_QK[:, 0] = 0.0              # one root: until it has branched, the other beams are impossible
        self.open_Q1.fill_(True)
        self.state_QK.zero_()
        self.select(log_softmax(self.tree.prefill(model)).expand(-1, self.tree.branches, -1))

    def step(self, model: CausalLM) -> None:
        self.select(log_softmax(self.tree.grow(model, self.token_QK, self.parent_QK)))

    def open_Q(self) -> Tensor:
        """Which prompts go on."""
        return self.open_Q1[:, 0]

    def narrowed(self, rows_Q: Tensor) -> "Beams":
        """The search for these prompts alone, which goes on at the front of this one's tensors."""
        search = copy(self)
        search.tree = self.tree.narrowed(rows_Q)
        search.live, search.done = self.live.narrowed(rows_Q), self.done.narrowed(rows_Q)
        search.open_Q1, search.state_QK, search.token_QK, search.parent_QK = (
            to_front(x_Q, rows_Q) for x_Q in (self.open_Q1, self.state_QK, self.token_QK, self.parent_QK))
        return search


def best_continuations(live: "Hypotheses", total_QKV: Tensor, logp_QKV: Tensor, ends_QKV: Tensor,
                       depth_1: Tensor) -> tuple["Hypotheses", Tensor]:
    """The K best of all K · V one-token continuations by ``total_QKV``, and the beam that each came from (parent_QK)."""
    K, V = total_QKV.shape[1:]
    score_QK, place_QK = total_QKV.flatten(1).topk(K, dim=1)
    parent_QK = place_QK // V
    chosen = live.pick(parent_QK)._replace(score_QK=score_QK)
    chosen.append(place_QK % V, logp_QKV.flatten(1).gather(1, place_QK), ends_QKV.flatten(1).gather(1, place_QK), depth_1)
    return chosen, parent_QK


@dataclass(frozen=True)
class Completion:
    """One finished completion. ``ids`` include the stop token. ``logprobs``, one a token, are those of the distribution that
    was searched or drawn from. ``stopped`` is False where ``max_new_tokens`` cut the completion off."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class Hypotheses(NamedTuple):
    """K sequences for each prompt: tokens and their log-probs up to depth C, length, whether a stop ended them, and in beam
    search their score (−inf: there is no such hypothesis yet). ``set`` and ``append`` write in place."""

    ids_QKC: Tensor
    logp_QKC: Tensor
    length_QK: Tensor
    score_QK: Tensor
    stopped_QK: Tensor

    @classmethod
    def empty(cls, groups: int, count: int, depth: int, dtype: torch.dtype, device: torch.device) -> "Hypotheses":
        """``dtype`` is the model's; log-probs and scores are float32 or wider."""
        wide = torch.promote_types(dtype, torch.float32)
        zeros = partial(torch.zeros, device=device)
        return cls(zeros(groups, count, depth, dtype=torch.long), zeros(groups, count, depth, dtype=wide),
                   zeros(groups, count, dtype=torch.long), zeros(groups, count, dtype=wide) - torch.inf,
                   zeros(groups, count, dtype=torch.bool))

    def of(self, rows_Q: Tensor) -> "Hypotheses":
        """A copy of those of some prompts."""
        return Hypotheses(*(tensor[rows_Q] for tensor in self))

    def narrowed(self, rows_Q: Tensor) -> "Hypotheses":
        """Those of some prompts, at the front of these tensors."""
        return Hypotheses(*(to_front(tensor, rows_Q) for tensor in self))

    def set(self, other: "Hypotheses") -> None:
        for mine, theirs in zip(self, other):
            mine.copy_(theirs)

    def clear(self) -> None:
        for tensor in self:
            tensor.zero_()
        self.score_QK.fill_(-torch.inf)

    def append(self, ids_QK: Tensor, logp_QK: Tensor, ends_QK: Tensor, depth_1: Tensor) -> None:
        """Add one token to each hypothesis at ``depth_1``; a hypothesis that has ended stays as it is."""
        live_QK = ~self.stopped_QK
        self.ids_QKC.index_copy_(2, depth_1, ids_QK.where(live_QK, 0)[:, :, None])
        self.logp_QKC.index_copy_(2, depth_1, logp_QK.where(live_QK, 0.0)[:, :, None])
        self.length_QK.add_(live_QK)
        self.stopped_QK.logical_or_(ends_QK)

    def pick(self, index_QK: Tensor) -> "Hypotheses":
        wide_QKC = index_QK[:, :, None].expand(*index_QK.shape, self.ids_QKC.shape[2])
        return Hypotheses(*(tensor.gather(1, wide_QKC if tensor.ndim == 3 else index_QK) for tensor in self))

    def best_with(self, other: "Hypotheses") -> "Hypotheses":
        """The best-scored of both, as many as there are here, best first."""
        both = Hypotheses(*(torch.cat(pair, dim=1) for pair in zip(self, other)))
        return both.pick(both.score_QK.topk(self.score_QK.shape[1], dim=1).indices)

    def completions(self) -> list[list[Completion]]:
        """Off the device. Log-probs that are not finite come from a broken model: ``UserError``, before anyone trains on
        them."""
        if not self.logp_QKC.isfinite().all():
            raise UserError("the model's log-probs are not finite: its weights, or the adapter's, hold NaN or inf")
        return [[Completion(tuple(ids[:length]), tuple(logp[:length]), stopped)
                 for ids, logp, length, stopped in zip(*group)]
                for group in zip(self.ids_QKC.tolist(), self.logp_QKC.tolist(), self.length_QK.tolist(),
                                 self.stopped_QK.tolist())]
