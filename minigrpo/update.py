"""One optimiser step on one batch: forward, loss, backward, clip, step. Knows no text and no database."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from minigrpo import config
from minigrpo.batch import Batch, Part, pack, scoring_explained
from minigrpo.common.clock import Clock, Metrics
from minigrpo.common.console import warn
from minigrpo.grpo import grpo_loss, normaliser
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tree import pad_completions, pad_prompts

# Steps in a row that may be dropped. What is dropped moves nothing, so they are different batches on the very same weights:
# one may have been unlucky, but where five are broken the weights are, and no further batch would mend them.
PATIENCE = 5


def make_optimizer(model: CausalLM, grpo: config.GRPO) -> torch.optim.AdamW:
    """AdamW over the adapters (float32, state included); nothing else of the model moves."""
    return torch.optim.AdamW(adapter_parameters(model).values(), lr=grpo.learning_rate, weight_decay=grpo.weight_decay)


def update(model: CausalLM, optimizer: torch.optim.Optimizer, batch: Batch, grpo: config.GRPO, *, length: int,
           clock: Clock, faults: list[str] | None = None) -> Metrics:
    """One step. ``length``: the constant of the "constant" aggregation, ``max_new_tokens``.

    Micro-batches add up to the whole batch, because each divides by the whole batch's normaliser. Where the loss or a gradient
    is not finite, the gradient is dropped (``skipped`` is 1; where it first was, is added to ``faults``): the adapters never
    absorb a NaN. ``logp_gap_mean`` and ``logp_gap_max`` compare what the search saw with what scoring sees.
    """
    total = sum(normaliser(part.mask_BC, mode=grpo.aggregation, length=length) for part in batch.parts)
    tokens = sum(part.mask_BC.sum() for part in batch.parts).clamp(min=1)
    sums = dict.fromkeys(("loss", "objective", "kl", "ratio_drift", "clip_ratio"), 0.0)
    gaps, scored = [], []
    with clock("update"), scoring_explained(model, grpo.micro_batch_tokens):
        for part in batch.parts:
            logp_BC = completion_logprobs(model, part.prompts, part.ids_QKC, part.mask_QKC, temperature=batch.temperature)
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
        moved = _step(model, optimizer, grpo.max_grad_norm, report["loss"], lambda: _completion_at_fault(scored), faults)
        return {**report, "ratio": 1.0 + report["ratio_drift"], **moved,
                "logp_gap_mean": sum(mean.item() for mean, _ in gaps), "logp_gap_max": max(most.item() for _, most in gaps)}


def supervised_update(model: CausalLM, optimizer: torch.optim.Optimizer,
                      examples: Sequence[tuple[Sequence[int], Sequence[int]]], *, micro_batch_tokens: int,
                      max_grad_norm: float, faults: list[str] | None = None) -> Metrics:
    """One step of maximum likelihood on (prompt ids, completion ids), by the same pass that scores rollouts: a group with one
    completion. ``loss`` is the mean of −log p over all completion tokens of the examples, however they are cut up; where it or
    a gradient is not finite, see ``update``."""
    tokens, loss, scored = sum(len(completion) for _, completion in examples), 0.0, {}
    with scoring_explained(model, micro_batch_tokens):
        for chosen in pack([(len(prompt), len(completion)) for prompt, completion in examples], 1, micro_batch_tokens):
            prompts = pad_prompts([examples[i][0] for i in chosen], device=model.device)
            ids_Q1C, mask_Q1C = pad_completions([[examples[i][1]] for i in chosen], device=model.device)
            logp_BC = completion_logprobs(model, prompts, ids_Q1C, mask_Q1C)
            part = -logp_BC.sum() / tokens
            part.backward()
            scored |= zip(chosen, logp_BC.detach())
            loss += part.item()

        def at_fault() -> str:
            broken = [i for i, logp_C in sorted(scored.items()) if not logp_C.isfinite().all()]
            return f"the log-probs of example {broken[0] + 1} of {len(examples)}" if broken else ""

        return {"loss": loss, **_step(model, optimizer, max_grad_norm, loss, at_fault, faults)}


def _step(model: CausalLM, optimizer: torch.optim.Optimizer, max_grad_norm: float, loss: float,
          at_fault: Callable[[], str], faults: list[str] | None) -> Metrics:
    """Clip and move, or drop and say why: ``at_fault`` names the completion, if it is one."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm_1 = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = norm_1.item()
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        clip_grads_with_norm_(parameters, max_grad_norm, norm_1)
        optimizer.step()
    elif faults is not None:
        faults.append(at_fault() or ("the loss" if not math.isfinite(loss) else _gradient_at_fault(model)))
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norm, "skipped": float(not finite)}


# ------------------------------------------------------------------------------------------------------- what is not finite
@dataclass
class Dropped:
    """The newest steps in a row that were dropped: how many they are, and where it began."""

    count: int = 0
    first: str = ""

    def see(self, step: int, faults: Sequence[str]) -> None:
        """What was not finite in a step; nothing: it was a whole one, and the count begins anew."""
        if not faults:
            self.count, self.first = 0, ""
            return
        self.count, self.first = self.count + 1, self.first or f"step {step}: {faults[0]}"
        warn(f"step {step} moves nothing, something in it is not finite: {faults[0]}")

    def enough(self) -> bool:
        """After every ``PATIENCE`` of them: who resumes may try as many again."""
        return self.count > 0 and self.count % PATIENCE == 0

    def check(self) -> None:
        """``FloatingPointError`` where it is enough."""
        if self.enough():
            raise FloatingPointError(f"{self.count} steps in a row moved nothing, since something in them was not finite, "
                                     f"first in {self.first}; what was learned until then is saved")


DROPPED = {"count": int, "first": str}          # as a state has it


def load_dropped(facts: Mapping[str, object]) -> Dropped:
    """The inverse of ``vars``; what else a file may say is left out."""
    return Dropped(**{name: facts[name] for name in DROPPED})


def _completion_at_fault(scored: Sequence[tuple[Part, Tensor, Tensor]]) -> str:
    """The first completion with something that is not finite, and what; none: ""."""
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
    """The gradient that broke first: the backward pass goes from the last parameter to the first."""
    broken = [name for name, parameter in model.named_parameters()
              if parameter.grad is not None and not parameter.grad.isfinite().all()]
    return f"the gradient of {broken[-1]}" if broken else "the norm of all gradients"


# ------------------------------------------------------------------------------------------------- the optimiser's state
def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as named tensors: "<parameter>/exp_avg", ..."""
    return {f"{name}/{key}": tensor for name, parameter in parameters.items()
            for key, tensor in optimizer.state.get(parameter, {}).items()}


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; moments live where their parameter does, step counts on the CPU. What has not
    moved yet has no state."""
    for name, parameter in parameters.items():
        if state := {key.removeprefix(f"{name}/"): tensor.to("cpu" if tensor.ndim == 0 else parameter.device)
                     for key, tensor in tensors.items() if key.startswith(f"{name}/")}:
            optimizer.state[parameter] = state
