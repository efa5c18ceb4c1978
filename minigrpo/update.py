"""One optimiser step on one batch: forward, loss, backward, clip, step. Knows no text and no database."""

import math
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo import config
from minigrpo.batch import Batch, pack, scoring_explained
from minigrpo.grpo import grpo_loss, normaliser
from minigrpo.metrics import Clock, Metrics
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tree import pad_completions, pad_prompts


def make_optimizer(model: CausalLM, grpo: config.GRPO) -> torch.optim.AdamW:
    """AdamW over the adapters (float32, state included); nothing else of the model moves."""
    return torch.optim.AdamW(adapter_parameters(model).values(), lr=grpo.learning_rate, weight_decay=grpo.weight_decay)


def update(model: CausalLM, optimizer: torch.optim.Optimizer, batch: Batch, grpo: config.GRPO, *, length: int,
           clock: Clock) -> Metrics:
    """One step. ``length``: the constant of the "constant" aggregation, ``max_new_tokens``.

    Micro-batches add up to the whole batch, because each divides by the whole batch's normaliser. A gradient that is not
    finite is dropped (``skipped`` is 1): the adapters never absorb a NaN. ``logp_gap_mean`` and ``logp_gap_max`` compare
    what the search saw with what scoring sees.
    """
    total = sum(normaliser(part.mask_BC, mode=grpo.aggregation, length=length) for part in batch.parts)
    tokens = sum(part.mask_BC.sum() for part in batch.parts).clamp(min=1)
    sums = dict.fromkeys(("loss", "objective", "kl", "ratio_drift", "clip_ratio"), 0.0)
    gaps = []
    with clock("update"), scoring_explained(model, grpo.micro_batch_tokens):
        for part in batch.parts:
            logp_BC = completion_logprobs(model, part.prompts, part.ids_QKC, part.mask_QKC, temperature=batch.temperature)
            old_logp_BC = logp_BC.detach() if part.old_logp_BC is None else part.old_logp_BC
            loss, metrics = grpo_loss(
                logp_BC, old_logp_BC, part.ref_logp_BC, part.advantage_QK.flatten(), part.mask_BC,
                clip_low=grpo.clip_low, clip_high=grpo.clip_high, kl_coef=grpo.kl_coef, kl_estimator=grpo.kl_estimator,
                aggregation=grpo.aggregation, length=length, total=total)
            loss.backward()
            share = part.mask_BC.sum() / tokens                     # of the batch's tokens, for the means over tokens
            weighted = {name: metrics[name] * share for name in ("ratio_drift", "clip_ratio")}
            for name, value in {"loss": loss.detach(), **metrics, **weighted}.items():
                sums[name] = sums[name] + value
            gap_BC = (old_logp_BC - part.generation_logp_BC).abs().where(part.mask_BC, 0.0)
            gaps.append((gap_BC.sum() / tokens, F.pad(gap_BC.flatten(), (0, 1)).max()))     # a batch without a token: 0
        report = {name: value.item() for name, value in sums.items()}
        return {**report, "ratio": 1.0 + report["ratio_drift"], **_step(optimizer, grpo.max_grad_norm),
                "logp_gap_mean": sum(mean.item() for mean, _ in gaps), "logp_gap_max": max(most.item() for _, most in gaps)}


def supervised_update(model: CausalLM, optimizer: torch.optim.Optimizer,
                      examples: Sequence[tuple[Sequence[int], Sequence[int]]], *, micro_batch_tokens: int,
                      max_grad_norm: float) -> Metrics:
    """One step of maximum likelihood on (prompt ids, completion ids), by the same pass that scores rollouts: a group with one
    completion. ``loss`` is the mean of −log p over all completion tokens of the examples, however they are cut up."""
    tokens, loss = sum(len(completion) for _, completion in examples), 0.0
    with scoring_explained(model, micro_batch_tokens):
        for chosen in pack([(len(prompt), len(completion)) for prompt, completion in examples], 1, micro_batch_tokens):
            prompts = pad_prompts([examples[i][0] for i in chosen], device=model.device)
            ids_Q1C, mask_Q1C = pad_completions([[examples[i][1]] for i in chosen], device=model.device)
            part = -completion_logprobs(model, prompts, ids_Q1C, mask_Q1C).sum() / tokens
            part.backward()
            loss += part.item()
        return {"loss": loss, **_step(optimizer, max_grad_norm)}


def _step(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> Metrics:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    finite = math.isfinite(norm)
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norm, "skipped": float(not finite)}


# ------------------------------------------------------------------------------------------------- the optimiser's state
def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as named tensors: "<parameter>/exp_avg", ..."""
    return {f"{name}/{key}": tensor for name, parameter in parameters.items()
            for key, tensor in optimizer.state.get(parameter, {}).items()}


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; moments live where their parameter does, step counts on the CPU."""
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            key.removeprefix(f"{name}/"): tensor.to("cpu" if tensor.ndim == 0 else parameter.device)
            for key, tensor in tensors.items() if key.startswith(f"{name}/")}
