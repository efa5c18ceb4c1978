"""Groups → tensors: advantages, padded ids, old and reference log-probs. Sees rewards as numbers and completions as ids."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

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
from minigrpo.policy.tree import Prompts, pad_completions, pad_prompts
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


def make_batch(groups: Sequence[Group], model: CausalLM, grpo: config.GRPO, *, temperature: float, clock: Clock) -> Batch:
    """Compute advantages within groups, lay the groups out in parts, and score them under the start policy.

    Groups of similar size share a part, as many as ``grpo.micro_batch_tokens`` tree slots hold (at least one), so that a short
    completion is not padded to the length of a long one.
    """
    if model.checkpointing:
        release(model)                          # memory is short: the next search makes its buffers anew
    reward_QK = torch.tensor([[rollout.verdict.reward for rollout in group.rollouts] for group in groups], dtype=torch.float64)
    exact_QK = group_advantages(reward_QK, scale=grpo.scale)
    advantage_QK = exact_QK.to(model.device, torch.promote_types(model.dtype, torch.float32))
    sizes = [(len(group.prompt_ids), max(len(rollout.completion.ids) for rollout in group.rollouts)) for group in groups]
    with scoring_explained(model, grpo.micro_batch_tokens):
        parts = [_make_part([groups[q] for q in chosen], advantage_QK[chosen], model, keep_old=grpo.updates_per_rollout > 1,
                            temperature=temperature, clock=clock)
                 for chosen in pack(sizes, len(groups[0].rollouts), grpo.micro_batch_tokens)]
    return Batch(tuple(parts), temperature, exact_QK)


def scoring_explained(model: CausalLM, micro_batch_tokens: int) -> AbstractContextManager[None]:
    """Within the block, running out of memory becomes a ``MemoryError`` that names the keys to lower."""
    checkpointing = "" if model.checkpointing else ", or set model.checkpointing = true"
    return memory_explained(model.device, f"scoring, in micro-batches of up to {micro_batch_tokens} tokens",
                            "lower grpo.micro_batch_tokens (down to one question a micro-batch), generation.completions or "
                            f"generation.max_new_tokens{checkpointing}")


def pack(sizes: Sequence[tuple[int, int]], branches: int, budget: int) -> list[list[int]]:
    """Group the indices of trees into micro-batches of at most ``budget`` padded slots, smallest first.

    ``sizes``: tokens of each tree's prompt and of its longest completion; ``branches``: K. A tree is never split.
    """
    parts: list[list[int]] = []
    for q in sorted(range(len(sizes)), key=lambda q: sum(sizes[q])):
        together = [*parts[-1], q] if parts else [q]
        longest_P, longest_C = (max(sizes[i][side] for i in together) for side in (0, 1))
        if parts and len(together) * (longest_P + branches * longest_C) <= budget:
            parts[-1] = together
        else:
            parts.append([q])
    return parts


def _make_part(groups: Sequence[Group], advantage_QK: Tensor, model: CausalLM, *, keep_old: bool, temperature: float,
               clock: Clock) -> Part:
    prompts = pad_prompts([group.prompt_ids for group in groups], device=model.device)
    completions = [[rollout.completion for rollout in group.rollouts] for group in groups]
    ids_QKC, mask_QKC = pad_completions([[completion.ids for completion in group] for group in completions],
                                        device=model.device)
    seen = [logprob for group in completions for completion in group for logprob in completion.logprobs]
    generation_logp_QKC = torch.zeros(mask_QKC.shape, device=model.device)
    generation_logp_QKC[mask_QKC] = torch.tensor(seen, device=model.device)

    @torch.no_grad()
    def scored() -> Tensor:
        return completion_logprobs(model, prompts, ids_QKC, mask_QKC, temperature=temperature)

    with clock("reference"), reference(model):
        ref_logp_BC = scored()
    with clock("old"):
        old_logp_BC = scored() if keep_old else None
    return Part(tuple(group.problem.id for group in groups), prompts, ids_QKC, mask_QKC, advantage_QK,
                generation_logp_QKC.flatten(0, 1), ref_logp_BC, old_logp_BC)
