"""Completions: under way, as tensors of K for each prompt; finished, as plain ids."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minigrpo.common.errors import UserError


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
