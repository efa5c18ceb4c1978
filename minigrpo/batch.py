"""Groups → tensors: advantages, padded ids, old and reference log-probs. Sees rewards as numbers and completions as ids."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.device import memory_explained
from minigrpo.common.shapes import check, check_boolean
from minigrpo.grpo import group_advantages
from minigrpo.policy.fast.replay import release
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import reference
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import KeptRoots, with_roots
from minigrpo.policy.tree import MIN_SAVED, Prompts, common_beginning, pad_completions, pad_prompts, root_of
from minigrpo.rollout import Group


@dataclass(frozen=True)
class Part:
    """Some groups of a batch, padded among themselves: one forward and backward pass. B = Q · K is question-major.

    ``names`` are the questions' ids, for error messages. ``generation_logp_BC`` are the log-probs that the search saw, only
    ever compared with those of scoring. ``old_logp_BC`` is None when the batch is used for one update: then the update's own
    forward pass, detached, is the old policy. Every pass over a part has the same shapes, so that equal policies give equal
    bits.
    """

    names: tuple[str, ...]
    prompts: Prompts
    ids_QKC: Tensor
    mask_QKC: Tensor
    advantage_QK: Tensor
    generation_logp_BC: Tensor
    ref_logp_BC: Tensor
    old_logp_BC: Tensor | None

    def __post_init__(self) -> None:
        Q, K, _ = self.ids_QKC.shape
        check(ids_QP=self.prompts.ids_QP, length_Q=self.prompts.length_Q, ids_QKC=self.ids_QKC, mask_QKC=self.mask_QKC,
              advantage_QK=self.advantage_QK, generation_logp_BC=self.generation_logp_BC, ref_logp_BC=self.ref_logp_BC,
              old_logp_BC=self.ref_logp_BC if self.old_logp_BC is None else self.old_logp_BC, B=Q * K)
        check_boolean(mask_QKC=self.mask_QKC)

    @property
    def mask_BC(self) -> Tensor:
        return self.mask_QKC.flatten(0, 1)


@dataclass(frozen=True)
class Batch:
    """One step's data on the policy's device. ``temperature`` is the one the completions were drawn at (1 for beams);
    ``advantage_QK`` are all advantages in the order of the groups, on the CPU in float64, for the records."""

    parts: tuple[Part, ...]
    temperature: float
    advantage_QK: Tensor


def make_batch(groups: Sequence[Group], model: CausalLM, grpo: config.GRPO, *, temperature: float, clock: Clock,
               start_roots: KeptRoots | None = None) -> Batch:
    """Compute advantages within groups, lay the groups out in parts, and score them under the start policy, whose roots are
    kept in ``start_roots``.

    Groups of one root and of similar size share a part, as many as ``grpo.micro_batch_tokens`` slots hold (at least one): what
    their prompts share is computed once, and a short completion is not padded to the length of a long one.
    """
    if model.checkpointing:
        release(model)                          # memory is short: the next search makes its buffers anew
    reward_QK = torch.tensor([[rollout.verdict.reward for rollout in group.rollouts] for group in groups], dtype=torch.float64)
    exact_QK = group_advantages(reward_QK, scale=grpo.scale)
    advantage_QK = exact_QK.to(model.device, torch.promote_types(model.dtype, torch.float32))
    prompts = [group.prompt_ids for group in groups]
    longest = [max(len(rollout.completion.ids) for rollout in group.rollouts) for group in groups]
    laid = [_lay_out([groups[q] for q in chosen], root, advantage_QK[chosen], model.device)
            for root, chosen in pack(prompts, longest, len(groups[0].rollouts), grpo.micro_batch_tokens)]

    @torch.no_grad()
    def scored(roots: KeptRoots | None = None) -> list[Tensor]:
        return [completion_logprobs(model, *part, temperature=temperature, root=root)
                for root, part in with_roots([(part["prompts"], [part[name] for name in ("prompts", "ids_QKC", "mask_QKC")])
                                              for part in laid], model, roots)]

    with scoring_explained(model, grpo.micro_batch_tokens):
        with clock("reference"), reference(model):
            ref_logp = scored(start_roots)
        with clock("old"):
            old_logp = scored() if grpo.updates_per_rollout > 1 else [None] * len(laid)
    parts = (Part(**part, ref_logp_BC=ref_logp_BC, old_logp_BC=old_logp_BC)
             for part, ref_logp_BC, old_logp_BC in zip(laid, ref_logp, old_logp))
    return Batch(tuple(parts), temperature, exact_QK)


def scoring_explained(model: CausalLM, micro_batch_tokens: int) -> AbstractContextManager[None]:
    """Within the block, running out of memory becomes a ``MemoryError`` that names the keys to lower."""
    checkpointing = "" if model.checkpointing else ", or set model.checkpointing = true"
    return memory_explained(model.device, f"scoring, in micro-batches of up to {micro_batch_tokens} tokens",
                            "lower grpo.micro_batch_tokens (down to one question a micro-batch), generation.completions or "
                            f"generation.max_new_tokens{checkpointing}")


def pack(prompts: Sequence[Sequence[int]], longest: Sequence[int], branches: int,
         budget: int) -> list[tuple[int, list[int]]]:
    """Group the indices of trees into micro-batches of at most ``budget`` padded slots: trees of one root one after the other,
    smallest first. Each comes with L, the length of its root.

    ``longest``: tokens of each prompt's longest completion; ``branches``: K. A tree is never split.
    """
    parts: list[tuple[int, list[int]]] = []
    for alike in share_roots(prompts):
        root, here = root_of([prompts[q] for q in alike]), len(parts)
        for q in sorted(alike, key=lambda q: (len(prompts[q]) + longest[q], q)):
            together = [*parts[-1][1], q] if len(parts) > here else [q]
            trunk = max(len(prompts[i]) for i in together) - root
            slots = root + len(together) * (trunk + branches * max(longest[i] for i in together))
            if len(together) > 1 and slots <= budget:
                parts[-1] = root, together
            else:
                parts.append((root, [q]))
    return parts


def share_roots(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The prompts' indices in sets that save most slots: Σ ((n − 1) · L − ``MIN_SAVED``) over sets of n prompts with a root of
    L tokens. The prompts that are in no such set are together the last one.

    >>> share_roots([[1] * 50 + [2], [7, 8], [1] * 50 + [3], [7, 9]])
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(prompts)), key=lambda q: tuple(prompts[q]))        # prompts that begin alike are neighbours
    shared = [common_beginning([prompts[a], prompts[b]]) for a, b in pairwise(order)]
    best: list[tuple[int, list[list[int]]]] = [(0, [])]             # for the first 0, 1, ... of them: what is saved, the sets
    for end in range(1, len(order) + 1):
        ways = [best[end - 1]]
        for start, (saved, sets) in enumerate(best[:end - 1]):
            more = (end - start - 1) * min(shared[start:end - 1]) - MIN_SAVED
            ways.append((saved + more, [*sets, order[start:end]]))
        best.append(max(ways, key=itemgetter(0)))
    sets = best[-1][1]
    return [*sets, *filter(None, [[q for q in order if not any(q in members for members in sets)]])]


def _lay_out(groups: Sequence[Group], root: int, advantage_QK: Tensor, device: torch.device) -> dict[str, Any]:
    """The fields of a ``Part`` but for the log-probs of scoring."""
    prompts = pad_prompts([group.prompt_ids for group in groups], root=root, device=device)
    completions = [[rollout.completion for rollout in group.rollouts] for group in groups]
    ids_QKC, mask_QKC = pad_completions([[completion.ids for completion in group] for group in completions], device=device)
    seen = [logprob for group in completions for completion in group for logprob in completion.logprobs]
    generation_logp_QKC = torch.zeros(mask_QKC.shape, device=device)
    generation_logp_QKC[mask_QKC] = torch.tensor(seen, device=device)
    return {"names": tuple(group.problem.id for group in groups), "prompts": prompts, "ids_QKC": ids_QKC, "mask_QKC": mask_QKC,
            "advantage_QK": advantage_QK, "generation_logp_BC": generation_logp_QKC.flatten(0, 1)}
