"""Beam search and sampling over batches of ragged prompts. Knows ids, not text: what ends a completion is an automaton.

Each prompt is computed once; its K completions grow as branches of one tree over one cache. No cache is ever moved: a beam
that changes parent changes which earlier branch slots it sees, a row of booleans. Everything that a step decides stays in
tensors of fixed shape; only "have all finished?" is asked of the device, every few steps.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from minigrpo.policy.model import CausalLM
from minigrpo.policy.stopping import Stopping
from minigrpo.policy.tree import KVCache, Prompts, pad_prompts, trunk_visibility, within_window

ASK_EVERY = 8          # steps between two looks at "all finished" on an accelerator, which has to wait for a look


@dataclass(frozen=True)
class Completion:
    """One finished completion. ``ids`` include the stop token; ``logprobs``, one a token, are those of the distribution it
    was searched or drawn in; ``stopped`` is False where ``max_new_tokens`` cut it off."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class GrowingTree:
    """The tree while it grows: the cache, and what each branch sees. Depth c writes the K slots from P + c·K on."""

    def __init__(self, model: CausalLM, prompts: Prompts, branches: int, depth: int) -> None:
        Q, P = prompts.ids_QP.shape
        arch, device, slots = model.architecture, model.device, P + branches * depth
        self.model, self.prompts, self.branches = model, prompts, branches
        self.cache = KVCache.empty(layers=arch.layers, groups=Q, kv_heads=arch.kv_heads, slots=slots,
                                   head_size=arch.head_size, dtype=model.dtype, device=device)
        self.visible_QKS = torch.zeros(Q, branches, slots, dtype=torch.bool, device=device)
        self.visible_QKS[:, :, :P] = prompts.live_QP[:, None]
        depth_S = torch.arange(depth, device=device).repeat_interleave(branches)
        self.positions_QS = torch.cat([torch.arange(P, device=device).expand(Q, P),
                                       prompts.length_Q[:, None] + depth_S], dim=1)

    def prefill(self) -> Tensor:
        """Run the prompts; logits_Q1V that predict the first token, from trunk slot p_q − 1."""
        P = self.prompts.ids_QP.shape[1]
        positions_QP = self.positions_QS[:, :P]
        visible_QPP = within_window(trunk_visibility(self.prompts.live_QP), positions_QP, positions_QP,
                                    self.model.architecture.window)
        hidden_QPD = self.model(self.prompts.ids_QP, positions_QT=positions_QP, visible_QTS=visible_QPP, cache=self.cache)
        self.cache.start = P
        rows = torch.arange(len(hidden_QPD), device=hidden_QPD.device)
        return self.model.logits(hidden_QPD[rows, self.prompts.length_Q - 1])[:, None]

    def grow(self, ids_QK: Tensor, parent_QK: Tensor | None = None) -> Tensor:
        """Add one token to every branch, branch k continuing branch ``parent_QK[q, k]`` (None: itself); logits_QKV."""
        start, stop = self.cache.start, self.cache.start + self.branches
        if parent_QK is not None:
            self.visible_QKS = self.visible_QKS.gather(1, parent_QK[:, :, None].expand_as(self.visible_QKS))
        self.visible_QKS[:, :, start:stop] = torch.eye(self.branches, dtype=torch.bool, device=ids_QK.device)
        positions_QK = self.positions_QS[:, start:stop]
        visible_QKS = within_window(self.visible_QKS[:, :, :stop], positions_QK, self.positions_QS[:, :stop],
                                    self.model.architecture.window)
        hidden_QKD = self.model(ids_QK, positions_QT=positions_QK, visible_QTS=visible_QKS, cache=self.cache)
        self.cache.start = stop
        return self.model.logits(hidden_QKD)


@dataclass
class Hypotheses:
    """K sequences a question: tokens and their log-probs to depth C, length, whether a stop ended them, and in beam search
    their score (−inf: no such hypothesis yet)."""

    ids_QKC: Tensor
    logp_QKC: Tensor
    length_QK: Tensor
    score_QK: Tensor
    stopped_QK: Tensor

    @classmethod
    def empty(cls, groups: int, count: int, depth: int, device: torch.device) -> "Hypotheses":
        return cls(torch.zeros(groups, count, depth, dtype=torch.long, device=device),
                   torch.zeros(groups, count, depth, device=device),
                   torch.zeros(groups, count, dtype=torch.long, device=device),
                   torch.full((groups, count), -torch.inf, device=device),
                   torch.zeros(groups, count, dtype=torch.bool, device=device))

    def pick(self, index_QK: Tensor) -> "Hypotheses":
        wide_QKC = index_QK[:, :, None].expand(*index_QK.shape, self.ids_QKC.shape[2])
        return Hypotheses(self.ids_QKC.gather(1, wide_QKC), self.logp_QKC.gather(1, wide_QKC),
                          self.length_QK.gather(1, index_QK), self.score_QK.gather(1, index_QK),
                          self.stopped_QK.gather(1, index_QK))

    def append(self, ids_QK: Tensor, logp_QK: Tensor, ends_QK: Tensor, depth: int) -> None:
        """Put one token a hypothesis at ``depth``; a hypothesis that had ended stays as it is."""
        live_QK = ~self.stopped_QK
        self.ids_QKC[:, :, depth] = ids_QK.where(live_QK, 0)
        self.logp_QKC[:, :, depth] = logp_QK.where(live_QK, 0.0)
        self.length_QK = self.length_QK + live_QK
        self.stopped_QK = self.stopped_QK | ends_QK

    def best_with(self, other: "Hypotheses") -> "Hypotheses":
        """The best-scored of both, as many as there are here, best first."""
        both = Hypotheses(*(torch.cat([getattr(self, name), getattr(other, name)], dim=1)
                            for name in self.__dataclass_fields__))
        return both.pick(both.score_QK.topk(self.score_QK.shape[1], dim=1).indices)

    def completions(self) -> list[list[Completion]]:
        """Off the device. Log-probs that are not finite come from a broken model and must not become anybody's answer."""
        if not self.logp_QKC.isfinite().all():
            raise ValueError("the model's log-probs are not finite: its weights, or the adapter's, hold NaN or inf")
        return [[Completion(tuple(ids[:length]), tuple(logp[:length]), stopped)
                 for ids, logp, length, stopped in zip(*group)]
                for group in zip(self.ids_QKC.tolist(), self.logp_QKC.tolist(), self.length_QK.tolist(),
                                 self.stopped_QK.tolist())]


@torch.inference_mode()
def beam_search(model: CausalLM, prompts: Sequence[Sequence[int]], *, completions: int, max_new_tokens: int,
                stopping: Stopping, length_penalty: float = 1.0, early_stopping: bool = False) -> list[list[Completion]]:
    """The K = ``completions`` best hypotheses of a beam K wide, best first, for each prompt (token ids).

    A hypothesis is scored Σ log-prob / length^``length_penalty``, its stop token counted. A finished one is set aside if it
    is among the K best candidates of its step; the search of a prompt ends when K are set aside and the best live beam, at
    its present length, scores no better than the worst of them, or as soon as K are with ``early_stopping``. What is still
    live at ``max_new_tokens`` is finished there, unstopped. (These are the rules of transformers' ``generate``.)

    Raises ``ValueError`` for a prompt that does not fit the context, and if fewer than K different completions exist.
    """
    K, C, device = completions, max_new_tokens, model.device
    tree, stopping = GrowingTree(model, _prompts(model, prompts, C), K, C), stopping.to(device)
    live, done = Hypotheses.empty(len(prompts), K, C, device), Hypotheses.empty(len(prompts), K, C, device)
    live.score_QK[:, 0] = 0.0                       # one root: until it has branched, the other beams are impossible
    state_QK = torch.zeros_like(live.length_QK)
    open_Q1 = torch.ones(len(prompts), 1, dtype=torch.bool, device=device)

    logp_QKV = log_softmax(tree.prefill()).expand(-1, K, -1)
    for depth in range(C):
        live, done, open_Q1, parent_QK = beam_step(
            live, done, open_Q1, logp_QKV, stopping.ends_UV[state_QK], depth, last=depth == C - 1,
            length_penalty=length_penalty, early_stopping=early_stopping)
        if depth == C - 1 or (_may_ask(device, depth) and not open_Q1.any()):
            break
        token_QK = live.ids_QKC[:, :, depth]
        state_QK = stopping.next_UV[state_QK.gather(1, parent_QK), token_QK]
        logp_QKV = log_softmax(tree.grow(token_QK, parent_QK))
    if done.score_QK.isinf().any():
        raise ValueError(f"fewer than {K} different completions of at most {C} tokens exist in this vocabulary")
    return done.completions()


def beam_step(live: Hypotheses, done: Hypotheses, open_Q1: Tensor, logp_QKV: Tensor, ends_QKV: Tensor, depth: int, *,
              last: bool, length_penalty: float, early_stopping: bool) -> tuple[Hypotheses, Hypotheses, Tensor, Tensor]:
    """One step of selection: the K best continuations of ``live`` that go on, ``done`` with those that ended here, whether
    each search is still open, and which beam each continuation came from (parent_QK)."""
    total_QKV = live.score_QK[:, :, None] + logp_QKV
    candidates, _ = _continuations(live, total_QKV, logp_QKV, ends_QKV, depth)
    finished_QK = open_Q1 & (candidates.stopped_QK | last)
    candidates.score_QK = (candidates.score_QK / (depth + 1) ** length_penalty).where(finished_QK, -torch.inf)
    done = done.best_with(candidates)

    live, parent_QK = _continuations(live, total_QKV.masked_fill(ends_QKV, -torch.inf), logp_QKV, ends_QKV, depth)
    best_Q1, worst_Q1 = live.score_QK[:, :1] / (depth + 1) ** length_penalty, done.score_QK[:, -1:]
    open_Q1 = open_Q1 & (worst_Q1.isinf() | ((best_Q1 > worst_Q1) & (not early_stopping)))
    return live, done, open_Q1, parent_QK


@torch.inference_mode()
def sample(model: CausalLM, prompts: Sequence[Sequence[int]], *, completions: int, max_new_tokens: int,
           stopping: Stopping, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           generator: torch.Generator | None = None) -> list[list[Completion]]:
    """K = ``completions`` independent draws for each prompt; ``temperature`` 0 is greedy decoding.

    ``top_k`` (0: all) and ``top_p`` cut the distribution and are for evaluation: what is trained on must be drawn from the
    whole of what is scored. Log-probs are those at ``temperature`` (at 1 when greedy), before any cut. ``generator`` lives on
    the model's device.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected more than 0 and at most 1, got {top_p}")
    K, C, device = completions, max_new_tokens, model.device
    tree, stopping = GrowingTree(model, _prompts(model, prompts, C), K, C), stopping.to(device)
    drawn = Hypotheses.empty(len(prompts), K, C, device)
    state_QK = torch.zeros_like(drawn.length_QK)

    logits_QKV = tree.prefill().expand(-1, K, -1)
    for depth in range(C):
        logp_QKV = log_softmax(logits_QKV, temperature or 1.0)
        token_QK = draw(_cut(logp_QKV, top_k, top_p), generator) if temperature else logp_QKV.argmax(dim=-1)
        drawn.append(token_QK, logp_QKV.gather(2, token_QK[:, :, None])[:, :, 0],
                     stopping.ends_UV[state_QK, token_QK], depth)
        if depth == C - 1 or (_may_ask(device, depth) and drawn.stopped_QK.all()):
            break
        state_QK = stopping.next_UV[state_QK, token_QK]
        logits_QKV = tree.grow(token_QK)
    return drawn.completions()


def draw(logp_QKV: Tensor, generator: torch.Generator | None) -> Tensor:
    """token_QK, each drawn from its own distribution."""
    return torch.multinomial(logp_QKV.exp().flatten(0, 1), 1, generator=generator).view(logp_QKV.shape[:2])


def _prompts(model: CausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Prompts:
    longest, limit = max(map(len, prompts), default=0), model.architecture.max_positions
    if longest + max_new_tokens > limit:
        raise ValueError(f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of "
                         f"{limit}: shorten the prompt or lower generation.max_new_tokens")
    return pad_prompts(prompts, device=model.device)


def _continuations(live: Hypotheses, total_QKV: Tensor, logp_QKV: Tensor, ends_QKV: Tensor,
                   depth: int) -> tuple[Hypotheses, Tensor]:
    """The K best of all K·V one-token continuations by ``total_QKV``, and the beam each came from (parent_QK)."""
    K, V = total_QKV.shape[1:]
    score_QK, place_QK = total_QKV.flatten(1).topk(K, dim=1)
    parent_QK = place_QK // V
    chosen = live.pick(parent_QK)
    chosen.score_QK = score_QK
    chosen.append(place_QK % V, logp_QKV.flatten(1).gather(1, place_QK), ends_QKV.flatten(1).gather(1, place_QK), depth)
    return chosen, parent_QK


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(dim=-1)


def _cut(logp_QKV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probs with all but the ``top_k`` likeliest, and all beyond cumulative probability ``top_p``, set to −inf. The
    likeliest token always stays."""
    if top_k:
        logp_QKV = logp_QKV.where(logp_QKV >= logp_QKV.topk(min(top_k, logp_QKV.shape[-1])).values[:, :, -1:], -torch.inf)
    if top_p < 1.0:
        sorted_QKV, order_QKV = logp_QKV.softmax(dim=-1).sort(dim=-1, descending=True)
        beyond_QKV = sorted_QKV.cumsum(dim=-1) - sorted_QKV >= top_p
        logp_QKV = logp_QKV.masked_fill(beyond_QKV.gather(2, order_QKV.argsort(dim=-1)), -torch.inf)
    return logp_QKV


def _may_ask(device: torch.device, depth: int) -> bool:
    return device.type == "cpu" or depth % ASK_EVERY == ASK_EVERY - 1
