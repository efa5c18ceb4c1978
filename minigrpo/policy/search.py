"""Beam search and sampling over batches of ragged prompts. Knows ids, not text: what ends a completion is an automaton.

Each prompt is computed once; its K completions grow as branches of one tree over one cache. No cache is ever moved: a beam
that changes parent changes which earlier branch slots it sees, a row of booleans. Everything that a step decides stays in
tensors of fixed shape and place, so that on CUDA a whole step, selection included, is one recorded graph; only "have all
finished?" is asked of the device, every few steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.common.errors import UserError
from minigrpo.policy.fast.replay import Replay
from minigrpo.policy.logprobs import log_softmax
from minigrpo.policy.lora import active_tensors, adapters_held
from minigrpo.policy.model import CausalLM
from minigrpo.policy.stopping import Stopping
from minigrpo.policy.tree import KVCache, Prompts, causal_visibility, pad_prompts, within_window

ASK_EVERY = 8          # steps between two looks at "all finished" on an accelerator, which has to wait for a look
STRETCH = 32           # tokens: what a prompt's room is rounded up to, and the depths that attend over equally many slots
BLOCK = 512            # of a vocabulary, to draw from


@dataclass(frozen=True)
class Completion:
    """One finished completion. ``ids`` include the stop token; ``logprobs``, one a token, are those of the distribution it
    was searched or drawn in; ``stopped`` is False where ``max_new_tokens`` cut it off."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class GrowingTree:
    """The tree while it grows: the cache, and what each branch sees. Depth c writes the K slots from P + c·K on.

    All tensors keep their place and shape, and where a token goes is read from one of them (``depth_1``), so that a step can
    be recorded once and replayed. ``reach`` says how many slots it attends over, a few more than are in use.
    """

    def __init__(self, model: CausalLM, groups: int, longest: int, branches: int, depth: int) -> None:
        """``longest``: tokens of the longest prompt, for which the trunk has room, up to a whole stretch."""
        trunk = -(-longest // STRETCH) * STRETCH
        arch, device, slots = model.architecture, model.device, trunk + branches * depth
        self.model, self.trunk, self.branches = model, trunk, branches
        self.cache = KVCache.empty(layers=arch.layers, groups=groups, kv_heads=arch.kv_heads, slots=slots,
                                   head_size=arch.head_size, dtype=model.dtype, device=device)
        self.ids_QP = torch.zeros(groups, trunk, dtype=torch.long, device=device)
        self.length_Q = torch.zeros(groups, dtype=torch.long, device=device)
        self.visible_QKS = torch.zeros(groups, branches, slots, dtype=torch.bool, device=device)
        self.positions_QS = torch.zeros(groups, slots, dtype=torch.long, device=device)
        self.depth_1 = torch.zeros(1, dtype=torch.long, device=device)              # tokens grown so far
        self.branch_K = torch.arange(branches, device=device)
        self.eye_KK = torch.eye(branches, dtype=torch.bool, device=device)

    def load(self, prompts: Prompts) -> int:
        """Take these prompts, for ``prefill`` to begin with; how many slots it will compute, padding too."""
        P = prompts.ids_QP.shape[1]
        self.prompts = Prompts(self.ids_QP[:, :P], self.length_Q)
        self.prompts.ids_QP.copy_(prompts.ids_QP)
        self.prompts.length_Q.copy_(prompts.length_Q)
        return P

    def prefill(self) -> Tensor:
        """Begin anew with the prompts; logits_Q1V that predict the first token, from trunk slot p_q − 1."""
        (Q, P), device, prompts = self.prompts.ids_QP.shape, self.prompts.ids_QP.device, self.prompts
        self.cache.clear()
        self.cache.next(P)
        depth_S = torch.arange(self.positions_QS.shape[1] - self.trunk, device=device) // self.branches
        self.positions_QS[:, :self.trunk] = torch.arange(self.trunk, device=device)
        self.positions_QS[:, self.trunk:] = prompts.length_Q[:, None] + depth_S
        self.visible_QKS.zero_()
        self.visible_QKS[:, :, :P] = prompts.live_QP[:, None]
        self.depth_1.zero_()
        hidden_QPD = self.model(prompts.ids_QP, visible_QTS=causal_visibility(prompts.live_QP, self.model.architecture.window),
                                cache=self.cache)
        self.reach(0)
        return self.model.logits(hidden_QPD[torch.arange(Q, device=device), prompts.length_Q - 1])[:, None]

    def has_room(self, longest: int) -> bool:
        """For a prompt of so many tokens, and not so much that most of it would be read in vain."""
        return self.trunk // 2 <= longest <= self.trunk

    def reach(self, depth: int) -> int:
        """Attend over all slots up to ``depth``'s and those of its stretch."""
        stretches = depth // STRETCH + 1
        self.cache.stop = min(self.trunk + self.branches * STRETCH * stretches, self.positions_QS.shape[1])
        return self.cache.stop

    def grow(self, ids_QK: Tensor, parent_QK: Tensor | None = None) -> Tensor:
        """Add one token to every branch, branch k continuing branch ``parent_QK[q, k]`` (None: itself); logits_QKV."""
        stop, slots_K = self.cache.stop, self.trunk + self.depth_1 * self.branches + self.branch_K
        if parent_QK is not None:
            self.visible_QKS.copy_(self.visible_QKS.gather(1, parent_QK[:, :, None].expand_as(self.visible_QKS)))
        self.visible_QKS.index_copy_(2, slots_K, self.eye_KK.expand(len(ids_QK), -1, -1))
        positions_QK = self.positions_QS.index_select(1, slots_K)
        visible_QKS = within_window(self.visible_QKS[:, :, :stop], positions_QK, self.positions_QS[:, :stop],
                                    self.model.architecture.window)
        self.cache.slots_T = slots_K
        hidden_QKD = self.model(ids_QK, positions_QT=positions_QK, visible_QTS=visible_QKS, cache=self.cache)
        self.depth_1 += 1
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
    def empty(cls, groups: int, count: int, depth: int, model: CausalLM) -> "Hypotheses":
        device, dtype = model.device, torch.promote_types(model.dtype, torch.float32)
        return cls(torch.zeros(groups, count, depth, dtype=torch.long, device=device),
                   torch.zeros(groups, count, depth, dtype=dtype, device=device),
                   torch.zeros(groups, count, dtype=torch.long, device=device),
                   torch.full((groups, count), -torch.inf, dtype=dtype, device=device),
                   torch.zeros(groups, count, dtype=torch.bool, device=device))

    def set(self, other: "Hypotheses") -> None:
        """Take on the other's values, in place."""
        for name in self.__dataclass_fields__:
            getattr(self, name).copy_(getattr(other, name))

    def pick(self, index_QK: Tensor) -> "Hypotheses":
        wide_QKC = index_QK[:, :, None].expand(*index_QK.shape, self.ids_QKC.shape[2])
        return Hypotheses(self.ids_QKC.gather(1, wide_QKC), self.logp_QKC.gather(1, wide_QKC),
                          self.length_QK.gather(1, index_QK), self.score_QK.gather(1, index_QK),
                          self.stopped_QK.gather(1, index_QK))

    def append(self, ids_QK: Tensor, logp_QK: Tensor, ends_QK: Tensor, depth_1: Tensor) -> None:
        """Put one token a hypothesis at ``depth_1``, in place; a hypothesis that had ended stays as it is."""
        live_QK = ~self.stopped_QK
        self.ids_QKC.index_copy_(2, depth_1, ids_QK.where(live_QK, 0)[:, :, None])
        self.logp_QKC.index_copy_(2, depth_1, logp_QK.where(live_QK, 0.0)[:, :, None])
        self.length_QK += live_QK
        self.stopped_QK |= ends_QK

    def best_with(self, other: "Hypotheses") -> "Hypotheses":
        """The best-scored of both, as many as there are here, best first."""
        both = Hypotheses(*(torch.cat([getattr(self, name), getattr(other, name)], dim=1)
                            for name in self.__dataclass_fields__))
        return both.pick(both.score_QK.topk(self.score_QK.shape[1], dim=1).indices)

    def completions(self) -> list[list[Completion]]:
        """Off the device. Log-probs that are not finite come from a broken model and must not become anybody's answer."""
        if not self.logp_QKC.isfinite().all():
            raise UserError("the model's log-probs are not finite: its weights, or the adapter's, hold NaN or inf")
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
    settings = dict(length_penalty=length_penalty, early_stopping=early_stopping)
    done = _search(Beams, model, prompts, completions, max_new_tokens, stopping, settings, None)
    if done.score_QK.isinf().any():
        raise UserError(f"fewer than {completions} different completions of at most {max_new_tokens} tokens exist in this "
                         "vocabulary")
    return done.completions()


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
        raise UserError(f"top_p: expected more than 0 and at most 1, got {top_p}")
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    return _search(Draws, model, prompts, completions, max_new_tokens, stopping, settings, generator).completions()


# --------------------------------------------------------------------------------------------------------------- steps
class Beams:
    """A beam search under way. All its tensors keep their place: ``begin`` and ``step`` can be recorded and replayed."""

    def __init__(self, tree: GrowingTree, depth: int, stopping: Stopping, *, length_penalty: float,
                 early_stopping: bool) -> None:
        (Q, K, _), device = tree.visible_QKS.shape, tree.visible_QKS.device
        self.tree, self.stopping, self.early_stopping = tree, stopping, early_stopping
        self.live, self.done, self.blank = (Hypotheses.empty(Q, K, depth, tree.model) for _ in range(3))
        self.open_Q1 = torch.ones(Q, 1, dtype=torch.bool, device=device)
        self.state_QK, self.token_QK, self.parent_QK = (torch.zeros(Q, K, dtype=torch.long, device=device) for _ in range(3))
        self.divisor_C = torch.tensor([(c + 1.0) ** length_penalty for c in range(depth)], dtype=torch.float64)
        self.divisor_C = self.divisor_C.to(device, self.live.score_QK.dtype)

    def begin(self) -> None:
        self.live.set(self.blank)
        self.done.set(self.blank)
        self.live.score_QK[:, 0] = 0.0              # one root: until it has branched, the other beams are impossible
        self.open_Q1.fill_(True)
        self.state_QK.zero_()
        self._select(log_softmax(self.tree.prefill()).expand(-1, self.tree.branches, -1))

    def step(self) -> None:
        self._select(log_softmax(self.tree.grow(self.token_QK, self.parent_QK)))

    def over(self) -> bool:
        return not self.open_Q1.any()

    def found(self) -> Hypotheses:
        return self.done

    def _select(self, logp_QKV: Tensor) -> None:
        """The K best continuations of ``live`` that go on, and ``done`` with those that ended here."""
        ends_QKV, depth_1 = self.stopping.ends_UV[self.state_QK], self.tree.depth_1
        total_QKV, divisor_1 = self.live.score_QK[:, :, None] + logp_QKV, self.divisor_C[depth_1]
        candidates, _ = _continuations(self.live, total_QKV, logp_QKV, ends_QKV, depth_1)
        finished_QK = self.open_Q1 & (candidates.stopped_QK | (depth_1 == len(self.divisor_C) - 1))
        candidates.score_QK = (candidates.score_QK / divisor_1).where(finished_QK, -torch.inf)
        self.done.set(self.done.best_with(candidates))

        live, parent_QK = _continuations(self.live, total_QKV.masked_fill(ends_QKV, -torch.inf), logp_QKV, ends_QKV, depth_1)
        best_Q1, worst_Q1 = live.score_QK[:, :1] / divisor_1, self.done.score_QK[:, -1:]
        self.open_Q1 &= worst_Q1.isinf() | ((best_Q1 > worst_Q1) & (not self.early_stopping))
        self.live.set(live)
        self.parent_QK.copy_(parent_QK)
        self.token_QK.copy_(live.ids_QKC.index_select(2, depth_1)[:, :, 0])
        self.state_QK.copy_(self.stopping.next_UV[self.state_QK.gather(1, parent_QK), self.token_QK])


class Draws:
    """Sampling under way, or greedy decoding. All its tensors keep their place: ``begin`` and ``step`` can be replayed."""

    def __init__(self, tree: GrowingTree, depth: int, stopping: Stopping, *, temperature: float, top_k: int,
                 top_p: float) -> None:
        (Q, K, _), device = tree.visible_QKS.shape, tree.visible_QKS.device
        self.tree, self.stopping = tree, stopping
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.drawn, self.blank = (Hypotheses.empty(Q, K, depth, tree.model) for _ in range(2))
        self.uniform_QKC = torch.zeros(Q, K, depth, dtype=torch.float64, device=device)     # 24 bits would miss rare tokens
        self.state_QK, self.token_QK = (torch.zeros(Q, K, dtype=torch.long, device=device) for _ in range(2))

    def toss(self, generator: torch.Generator | None) -> None:
        """All that chance decides, before the first step."""
        self.uniform_QKC.uniform_(generator=generator)

    def begin(self) -> None:
        self.drawn.set(self.blank)
        self.state_QK.zero_()
        self._select(self.tree.prefill().expand(-1, self.tree.branches, -1))

    def step(self) -> None:
        self._select(self.tree.grow(self.token_QK))

    def over(self) -> bool:
        return bool(self.drawn.stopped_QK.all())

    def found(self) -> Hypotheses:
        return self.drawn

    def _select(self, logits_QKV: Tensor) -> None:
        depth_1, logp_QKV = self.tree.depth_1, log_softmax(logits_QKV, self.temperature or 1.0)
        if self.temperature:
            uniform_QK = self.uniform_QKC.index_select(2, depth_1)[:, :, 0]
            self.token_QK.copy_(draw(_cut(logp_QKV, self.top_k, self.top_p), uniform_QK))
        else:
            self.token_QK.copy_(logp_QKV.argmax(dim=-1))
        self.drawn.append(self.token_QK, logp_QKV.gather(2, self.token_QK[:, :, None])[:, :, 0],
                          self.stopping.ends_UV[self.state_QK, self.token_QK], depth_1)
        self.state_QK.copy_(self.stopping.next_UV[self.state_QK, self.token_QK])


def draw(logp_QKV: Tensor, uniform_QK: Tensor) -> Tensor:
    """token_QK: where the running sum of the probabilities passes uniform · their sum. In float64; over blocks first, then
    within one, because a running sum along a whole vocabulary is slow wherever it is made."""
    V = logp_QKV.shape[-1]
    p_QKNB = F.pad(logp_QKV.exp(), (0, -V % BLOCK)).unflatten(-1, (-1, BLOCK))
    mass_QKN = p_QKNB.sum(dim=-1, dtype=torch.float64)
    upto_QKN = mass_QKN.cumsum(dim=-1)
    goal_QK1 = uniform_QK[:, :, None] * upto_QKN[:, :, -1:]
    block_QK1 = torch.searchsorted(upto_QKN, goal_QK1, right=True).clamp(max=upto_QKN.shape[2] - 1)     # NaN: beyond all
    goal_QK1 = goal_QK1 - (upto_QKN - mass_QKN).gather(2, block_QK1)
    p_QKB = p_QKNB.gather(2, block_QK1[:, :, :, None].expand(-1, -1, -1, BLOCK))[:, :, 0]
    place_QK1 = torch.searchsorted(p_QKB.cumsum(dim=-1, dtype=torch.float64), goal_QK1, right=True)
    return (block_QK1 * BLOCK + place_QK1)[:, :, 0].clamp(max=V - 1)


# ---------------------------------------------------------------------------------------------------------- one search
@dataclass
class Kept:
    """A search with its tree and, on CUDA, its recorded steps, for the next one of the same kind: a recorded step reads these
    very tensors, ``reads`` among them (the weights and adapters in use)."""

    kind: tuple[object, ...]
    reads: tuple[int, ...]
    search: Beams | Draws
    replay: Replay


def _search(kind: type[Beams] | type[Draws], model: CausalLM, prompts: Sequence[Sequence[int]], completions: int, depth: int,
            stopping: Stopping, settings: dict[str, float], generator: torch.Generator | None) -> Hypotheses:
    """Begin, and step until all is over."""
    longest, limit = max(map(len, prompts), default=0), model.architecture.max_positions
    if longest + depth > limit:
        raise UserError(f"a prompt of {longest} tokens and {depth} new ones do not fit the model's context of "
                         f"{limit}: shorten the prompt or lower generation.max_new_tokens")
    with adapters_held(model):
        kept = _kept(kind, model, len(prompts), longest, completions, depth, stopping, settings)
        search, tree, replay = kept.search, kept.search.tree, kept.replay
        if isinstance(search, Draws):
            search.toss(generator)
        replay(search.begin, tree.load(pad_prompts(prompts, multiple=STRETCH if replay.records else 1, device=model.device)))
        for c in range(1, depth):
            if (not replay.records or c % ASK_EVERY == 0) and search.over():
                break
            replay(search.step, tree.reach(c - 1))
    return search.found()


def _kept(kind: type[Beams] | type[Draws], model: CausalLM, groups: int, longest: int, completions: int, depth: int,
          stopping: Stopping, settings: dict[str, float]) -> Kept:
    """The last search, if it was of this kind and has room for the prompts; else a new one in its place."""
    what = (kind, groups, completions, depth, stopping, *settings.items())
    reads = tuple(tensor.data_ptr() for tensor in (*model.parameters(), *active_tensors(model)))
    if (kept := model.kept) and (kept.kind, kept.reads) == (what, reads) and kept.search.tree.has_room(longest):
        return kept
    model.kept = None                               # its memory is needed for the next
    tree = GrowingTree(model, groups, longest, completions, depth)
    search = kind(tree, depth, stopping.to(model.device), **settings)
    kept = Kept(what, reads, search, Replay(model.device))
    if kept.replay.records:                         # else there is nothing to gain by it
        model.kept = kept
    return kept


def _continuations(live: Hypotheses, total_QKV: Tensor, logp_QKV: Tensor, ends_QKV: Tensor,
                   depth_1: Tensor) -> tuple[Hypotheses, Tensor]:
    """The K best of all K·V one-token continuations by ``total_QKV``, and the beam each came from (parent_QK)."""
    K, V = total_QKV.shape[1:]
    score_QK, place_QK = total_QKV.flatten(1).topk(K, dim=1)
    parent_QK = place_QK // V
    chosen = live.pick(parent_QK)
    chosen.score_QK = score_QK
    chosen.append(place_QK % V, logp_QKV.flatten(1).gather(1, place_QK), ends_QKV.flatten(1).gather(1, place_QK), depth_1)
    return chosen, parent_QK


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
