"""Beam search and sampling over batches of ragged prompts: the public functions. Works on ids, not on text.

Each prompt is computed once; its K completions grow as branches of one tree over one cache. Everything that a step decides
stays in tensors, so that on CUDA a whole step, selection included, is one recorded graph; only "have all finished?" is asked
of the device, every few steps.
"""

from collections.abc import Sequence
from copy import copy
from functools import partial

import torch
from torch import Tensor

from minigrpo.common.errors import UserError
from minigrpo.policy.fast.head import draw, log_softmax
from minigrpo.policy.fast.replay import kept_search
from minigrpo.policy.fast.stacked import adapters_held
from minigrpo.policy.generation.beams import Beams, Completion, Hypotheses
from minigrpo.policy.generation.growing_tree import STRETCH, GrowingTree, to_front
from minigrpo.policy.lora import adapters
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import KeptRoots
from minigrpo.policy.tokenizer import Stopping
from minigrpo.policy.tree import pad_prompts, root_of

ASK_EVERY = 8          # steps between two looks at "all finished" on an accelerator, which has to wait for a look


@torch.inference_mode()
def beam_search(model: CausalLM, prompts: Sequence[Sequence[int]], *, completions: int, max_new_tokens: int,
                stopping: Stopping, length_penalty: float = 1.0, early_stopping: bool = False,
                roots: KeptRoots | None = None) -> list[list[Completion]]:
    """The K = ``completions`` best hypotheses of a beam K wide, best first, for each prompt (token ids).

    A hypothesis is scored Σ log-prob / length^``length_penalty``, its stop token counted; the rule is in ``beams``. What is
    still live at ``max_new_tokens`` is finished there, unstopped. ``roots``: where this policy's are kept while it does not
    move. ``UserError`` for a prompt that does not fit the context, and if fewer than K different completions exist.
    """
    make = partial(Beams, length_penalty=length_penalty, early_stopping=early_stopping)
    done = _search(make, model, prompts, completions, max_new_tokens, stopping, None, roots)
    if done.score_QK.isinf().any():
        raise UserError(f"fewer than {completions} different completions of at most {max_new_tokens} tokens exist in this "
                        "vocabulary")
    return done.completions()


@torch.inference_mode()
def sample(model: CausalLM, prompts: Sequence[Sequence[int]], *, completions: int, max_new_tokens: int,
           stopping: Stopping, temperature: float = 1.0, generator: torch.Generator | None = None,
           roots: KeptRoots | None = None) -> list[list[Completion]]:
    """K = ``completions`` independent draws for each prompt; ``temperature`` 0 is greedy decoding.

    Log-probs are those at ``temperature`` (at 1 when greedy). ``generator`` lives on the model's device. ``roots``: as in
    ``beam_search``. ``UserError`` for a prompt that does not fit the context.
    """
    make = partial(Draws, temperature=temperature)
    return _search(make, model, prompts, completions, max_new_tokens, stopping, generator, roots).completions()


def _search(make: "partial[Beams] | partial[Draws]", model: CausalLM, prompts: Sequence[Sequence[int]], completions: int,
            depth: int, stopping: Stopping, generator: torch.Generator | None, roots: KeptRoots | None) -> Hypotheses:
    """Begin, and step until all prompts are done. A prompt that is done leaves, at once or with others: see ``staying``."""
    longest, limit = max(map(len, prompts), default=0), model.architecture.max_positions
    shared = root_of(prompts)
    if longest + depth > limit:
        raise UserError(f"a prompt of {longest} tokens and {depth} new ones do not fit the model's context of "
                        f"{limit}: shorten the prompt or lower generation.max_new_tokens")

    with adapters_held(model):
        read = (*model.parameters(), *(tensor for layer in adapters(model).values() for tensor in layer.active or ()))
        kind = (make.func, *make.keywords.items(), len(prompts), completions, depth, stopping, *map(Tensor.data_ptr, read))
        kept = kept_search(model, model.device, kind,
                           make=lambda: make(GrowingTree(model, len(prompts), longest, completions, depth, shared), model,
                                             depth, stopping.to(model.device)),
                           fits=lambda search: search.tree.fits(longest, shared))
        search, tree, replay = kept.search, kept.search.tree, kept.replay
        if isinstance(search, Draws):
            search.uniform_QKC.uniform_(generator=generator)
        padded = pad_prompts(prompts, root=tree.root, multiple=STRETCH if replay.records else 1, device=model.device)
        width = tree.load(padded, (roots or KeptRoots(0)).read(model, padded.root))
        replay(type(search).begin, width, search, model)
        place_Q, left = torch.arange(len(prompts)), []
        for c in range(1, depth):
            if not replay.records or c % ASK_EVERY == 0:
                open_Q = search.open_Q().cpu()
                if not open_Q.any():
                    break
                stays_Q = staying(open_Q, halves=replay.records)
                if not stays_Q.all():
                    left.append((place_Q[~stays_Q], search.done.of(~stays_Q)))
                    place_Q, search = place_Q[stays_Q], search.narrowed(stays_Q.nonzero()[:, 0])
            replay(type(search).step, (len(place_Q), search.tree.reach(c - 1)), search, model)
        left.append((place_Q, search.done))
    order_Q = torch.cat([places for places, _ in left]).argsort()
    return Hypotheses(*(torch.cat(parts)[order_Q] for parts in zip(*(done for _, done in left))))


def staying(open_Q: Tensor, *, halves: bool) -> Tensor:
    """Which prompts stay in the batch: those that go on. With ``halves`` all stay, or a half, a quarter, ... of them, some
    that are done included: where steps are recorded, each number of prompts has recordings of its own.

    >>> staying(torch.tensor([True, False, False, True, False, False]), halves=True).tolist()
    [True, True, False, True, False, False]
    """
    if not halves:
        return open_Q
    width, fewest = len(open_Q), max(2, int(open_Q.sum()))          # one is compiled by itself, and no faster than two
    while width // 2 >= fewest:
        width //= 2
    return torch.zeros_like(open_Q).index_fill_(0, open_Q.int().argsort(descending=True, stable=True)[:width], True)


class Draws:
    """Sampling under way. All its tensors keep their place: ``begin`` and ``step`` can be recorded and replayed. So all that
    chance decides is drawn before the first step: one uniform number a token."""

    def __init__(self, tree: GrowingTree, model: CausalLM, depth: int, stopping: Stopping, *, temperature: float) -> None:
        (Q, K, _), device = tree.visible_QKS.shape, model.device
        self.tree, self.stopping, self.temperature = tree, stopping, temperature
        self.done = Hypotheses.empty(Q, K, depth, model.dtype, device)
        self.uniform_QKC = torch.zeros(Q, K, depth, dtype=torch.float64, device=device)     # 24 bits would miss rare tokens
        self.state_QK, self.token_QK = (torch.zeros(Q, K, dtype=torch.long, device=device) for _ in range(2))

    def select(self, logits_QKV: Tensor) -> None:
        """Draw a token for each completion, or take the likeliest, and append it."""
        depth_1, logp_QKV = self.tree.depth_1, log_softmax(logits_QKV, self.temperature or 1.0)
        self.token_QK.copy_(draw(logp_QKV, self.uniform_QKC.index_select(2, depth_1)[:, :, 0]) if self.temperature
                            else logp_QKV.argmax(dim=-1))
        self.done.append(self.token_QK, logp_QKV.gather(2, self.token_QK[:, :, None])[:, :, 0],
                         self.stopping.ends_UV[self.state_QK, self.token_QK], depth_1)
        self.state_QK.copy_(self.stopping.next_UV[self.state_QK, self.token_QK])

    def begin(self, model: CausalLM) -> None:
        self.done.clear()
        self.state_QK.zero_()
        self.select(self.tree.prefill(model).expand(-1, self.tree.branches, -1))

    def step(self, model: CausalLM) -> None:
        self.select(self.tree.grow(model, self.token_QK))

    def open_Q(self) -> Tensor:
        """Which prompts go on."""
        return ~self.done.stopped_QK.all(dim=1)

    def narrowed(self, rows_Q: Tensor) -> "Draws":
        """The draws for these prompts alone, which go on at the front of these tensors."""
        search = copy(self)
        search.tree, search.done = self.tree.narrowed(rows_Q), self.done.narrowed(rows_Q)
        search.uniform_QKC, search.state_QK, search.token_QK = (
            to_front(x_Q, rows_Q) for x_Q in (self.uniform_QKC, self.state_QK, self.token_QK))
        return search
