"""Groups → tensors: the one crossing. Knows rewards as numbers and completions as ids."""

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from minigrpo import config
from minigrpo.grpo import group_advantages
from minigrpo.metrics import Clock
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import reference
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tree import Prompts, pad_prompts
from minigrpo.rollout import Group
from minigrpo.shapes import check


@dataclass(frozen=True)
class Batch:
    """One step's data on the policy's device. B = Q · K is question-major.

    ``generation_logp_BC`` are the log-probs that the search saw: only ever compared with those of scoring.
    ``old_logp_BC`` is None when the batch is used for one update: then the update's own forward pass, detached, is the old
    policy. ``parts``: slices of questions, one forward and backward pass each; every pass over the batch takes the same
    ones, so that equal policies give equal bits.
    """

    prompts: Prompts
    ids_QKC: Tensor
    mask_QKC: Tensor
    advantage_QK: Tensor
    generation_logp_BC: Tensor
    ref_logp_BC: Tensor
    old_logp_BC: Tensor | None
    parts: tuple[slice, ...]
    temperature: float

    def __post_init__(self) -> None:
        Q, K, _ = self.ids_QKC.shape
        check(ids_QP=self.prompts.ids_QP, ids_QKC=self.ids_QKC, mask_QKC=self.mask_QKC, advantage_QK=self.advantage_QK,
              generation_logp_BC=self.generation_logp_BC, ref_logp_BC=self.ref_logp_BC, B=Q * K)

    def rows(self, part: slice) -> slice:
        """The sequences (of B) of a part's questions."""
        K = self.ids_QKC.shape[1]
        return slice(part.start * K, part.stop * K)


def make_batch(groups: Sequence[Group], model: CausalLM, grpo: config.GRPO, *, temperature: float, clock: Clock) -> Batch:
    """Pad, compute advantages within groups, and score the completions under the start policy.

    ``temperature`` is the one the completions were drawn at (1 for beams).
    """
    completions = [[rollout.completion for rollout in group.rollouts] for group in groups]
    depth = max(len(completion.ids) for group in completions for completion in group)

    def padded(field: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[[*getattr(completion, field), *[0] * (depth - len(completion.ids))] for completion in group]
                             for group in completions], dtype=dtype, device=model.device)

    ids_QKC, generation_logp_QKC = padded("ids", torch.long), padded("logprobs", torch.float32)
    length_QK = torch.tensor([[len(completion.ids) for completion in group] for group in completions], device=model.device)
    mask_QKC = torch.arange(depth, device=model.device) < length_QK[:, :, None]
    prompts = pad_prompts([group.prompt_ids for group in groups], device=model.device)
    reward_QK = torch.tensor([[rollout.reward.total for rollout in group.rollouts] for group in groups],
                             dtype=torch.float64)
    advantage_QK = group_advantages(reward_QK, scale=grpo.scale).to(model.device, torch.float32)

    slots = prompts.ids_QP.shape[1] + ids_QKC.shape[1] * depth
    size = max(1, grpo.micro_batch_tokens // slots)
    parts = tuple(slice(start, min(start + size, len(groups))) for start in range(0, len(groups), size))

    def scored() -> Tensor:
        with torch.no_grad():
            return torch.cat([completion_logprobs(model, prompts[part], ids_QKC[part], mask_QKC[part],
                                                  temperature=temperature) for part in parts])

    with clock("reference"), reference(model):
        ref_logp_BC = scored()
    old_logp_BC = None
    if grpo.updates_per_rollout > 1:
        with clock("old"):
            old_logp_BC = scored()
    return Batch(prompts, ids_QKC, mask_QKC, advantage_QK, generation_logp_QKC.flatten(0, 1), ref_logp_BC, old_logp_BC,
                 parts, temperature)
