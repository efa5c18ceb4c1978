"""One optimiser step on one batch: forward, loss, backward, clip, step. Does not depend on any text or task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from minigrpo import config
from minigrpo.batch import Batch, Part, scoring_explained
from minigrpo.common.clock import Clock, Metrics
from minigrpo.grpo import grpo_loss, normaliser
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import with_roots


def make_optimizer(model: CausalLM, grpo: config.GRPO) -> torch.optim.AdamW:
    """AdamW over the adapters (float32, state included); nothing else of the model moves."""
    return torch.optim.AdamW(adapter_parameters(model).values(), lr=grpo.learning_rate, weight_decay=grpo.weight_decay)


@dataclass(frozen=True)
class Update:
    """What an optimiser step reports. ``fault``: what was not finite, so that the step was dropped; else empty."""

    metrics: Metrics
    fault: str


def update(model: CausalLM, optimizer: torch.optim.Optimizer, batch: Batch, grpo: config.GRPO, *, length: int,
           clock: Clock) -> Update:
    """One step. ``length``: the constant of the "constant" aggregation, ``max_new_tokens``.

    Micro-batches add up to the whole batch, because each divides by the whole batch's normaliser. If the loss or a gradient is
    not finite, the step is dropped (``skipped`` is 1): the adapters never absorb a NaN. ``logp_gap_mean`` and ``logp_gap_max``
    compare the log-probs that the search saw with those of scoring.
    """
    total = sum(normaliser(part.mask_BC, mode=grpo.aggregation, length=length) for part in batch.parts)
    tokens = torch.stack([part.mask_BC.sum() for part in batch.parts]).sum().clamp(min=1)
    sums = dict.fromkeys(("loss", "objective", "kl", "ratio_drift", "clip_ratio"), torch.zeros((), device=model.device))
    gaps, scored = [], []
    with clock("update"), scoring_explained(model, grpo.micro_batch_tokens):
        for root, part in with_roots([(part.prompts, part) for part in batch.parts], model):
            logp_BC = completion_logprobs(model, part.prompts, part.ids_QKC, part.mask_QKC, temperature=batch.temperature,
                                          root=root)
            old_logp_BC = logp_BC.detach() if part.old_logp_BC is None else part.old_logp_BC
            loss, metrics = grpo_loss(
                logp_BC, old_logp_BC, part.ref_logp_BC, part.advantage_QK.flatten(), part.mask_BC,
                clip_low=grpo.clip_low, clip_high=grpo.clip_high, kl_coef=grpo.kl_coef, kl_estimator=grpo.kl_estimator,
                aggregation=grpo.aggregation, length=length, total=total)
            loss.backward()
            scored.append((part, logp_BC.detach(), old_logp_BC))
            share = part.mask_BC.sum() / tokens                     # of the batch's tokens, for the means over tokens
            weighted = {name: metrics[name] * share for name in ("ratio_drift", "clip_ratio")}
            for name, value in {"loss": loss.detach(), **metrics, **weighted}.items():
                sums[name] = sums[name] + value
            gap_BC = (old_logp_BC - part.generation_logp_BC).abs().where(part.mask_BC, 0.0)
            gaps.append((gap_BC.sum() / tokens, F.pad(gap_BC.flatten(), (0, 1)).max()))     # a batch without a token: 0
        report = {name: value.item() for name, value in sums.items()}
        moved = move(model, optimizer, grpo.max_grad_norm, report["loss"], lambda: _completion_at_fault(scored))
        return Update({**report, "ratio": 1.0 + report["ratio_drift"], **moved.metrics,
                       "logp_gap_mean": sum(mean.item() for mean, _ in gaps),
                       "logp_gap_max": max(largest.item() for _, largest in gaps)}, moved.fault)


def move(model: CausalLM, optimizer: torch.optim.Optimizer, max_grad_norm: float, loss: float,
         completion_at_fault: Callable[[], str]) -> Update:
    """Clip the gradients and take the optimiser's step, or drop the step and say what was not finite.

    ``completion_at_fault`` names the completion in which it began, or is empty if it began in the gradient.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm_1 = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm, fault = norm_1.item(), ""
    if math.isfinite(norm) and math.isfinite(loss):
        clip_grads_with_norm_(parameters, max_grad_norm, norm_1)
        optimizer.step()
    else:
        fault = completion_at_fault() or ("the loss" if not math.isfinite(loss) else _gradient_at_fault(model))
    optimizer.zero_grad(set_to_none=True)
    return Update({"grad_norm": norm, "skipped": float(bool(fault))}, fault)


def _completion_at_fault(scored: Sequence[tuple[Part, Tensor, Tensor]]) -> str:
    """The first completion with a value that is not finite, and which value; or ""."""
    for part, logp_BC, old_logp_BC in scored:
        K = part.ids_QKC.shape[1]
        for what, values_BC in (("the advantage", part.advantage_QK.flatten()[:, None].expand_as(logp_BC)),
                                ("the reference's log-probs", part.ref_logp_BC), ("the log-probs", logp_BC),
                                ("the ratio", (logp_BC - old_logp_BC).exp()),
                                ("the KL", (part.ref_logp_BC - logp_BC).exp())):
            for b in (~values_BC.isfinite() & part.mask_BC).any(dim=-1).nonzero().flatten().tolist()[:1]:
                return f"{what} of completion {b % K + 1} of {K} of {part.names[b // K]}"
    return ""


def _gradient_at_fault(model: CausalLM) -> str:
    """The gradient that broke first: the backward pass runs from the last parameter to the first."""
    broken = [name for name, parameter in model.named_parameters()
              if parameter.grad is not None and not parameter.grad.isfinite().all()]
    return f"the gradient of {broken[-1]}" if broken else "the norm of all gradients"
