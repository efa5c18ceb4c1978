"""Whole optimiser steps, gradient by gradient, against the same steps written with transformers, peft and torch's AdamW.

In float64, where rounding is far below every bound: what is left of a difference is a fault.
"""

import copy
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from minigrpo.batch import make_batch
from minigrpo.common.clock import Clock, Metrics
from minigrpo.config import GRPO
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.lora import TARGETS, adapter_parameters, add_lora, freeze_reference
from minigrpo.policy.model import CausalLM
from minigrpo.rollout import Group
from minigrpo.training.warmup import supervised_update
from minigrpo.update import make_optimizer, update
from tests.policy.conftest import SIZES, spread_weights
from tests.quick import rest_slow
from tests.test_update import make_groups
from tests.training.test_supervised_update import EXAMPLES

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]        # transformers' own

RATE, LENGTH = 1e-2, 8                          # of AdamW; of "constant" aggregation
RANK, ALPHA = 3, 6.0
REWARDS = {2: [[-100.0, 1101.0], [1.0, 1.0], [1.0, 51.0]], 4: [[-100.0, 1.0, 51.0, 1101.0], [1.0, 1.0, -100.0, 1.0]]}
WHOLE, ALONE = 100_000, 1                       # micro_batch_tokens: all groups together, each by itself


class Steps(NamedTuple):
    """What optimiser steps left: of each its (clipped) gradients by name and its report, and the parameters at the end."""

    gradients: list[dict[str, Tensor]]
    reports: list[Metrics]
    parameters: dict[str, Tensor]


def write_llama(folder: Path) -> Path:
    """A Llama whose heads share keys, its vocabulary large enough for the groups' ids."""
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | dict(vocab_size=200)))
    spread_weights(plain)
    plain.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


def plain_model(folder: Path) -> transformers.PreTrainedModel:
    """The decoder of transformers. Its norm computes in float32 whatever the model is in: torch's own takes its place."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    norms = {name: module for name, module in model.named_modules() if name.endswith("norm")}
    for name, module in norms.items():
        norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
        norm.weight = module.weight
        model.set_submodule(name, norm)
    assert len(norms) == 2 * 2 + 1
    return model


def twins(folder: Path) -> tuple[CausalLM, peft.PeftModel]:
    """Our model and peft's with the same weights and adapters, whose B is not zero any more."""
    ours, draw = load_model(folder, dtype=torch.float64, device="cpu"), torch.Generator().manual_seed(0)
    add_lora(ours, rank=RANK, alpha=ALPHA, generator=draw)
    theirs = peft.get_peft_model(plain_model(folder), peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS)))
    for name, parameter in adapter_parameters(ours).items():
        if name.endswith("lora_B"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        theirs.get_parameter(f"base_model.model.{name}.default.weight").data = parameter.detach().clone()
    return ours, theirs.eval()


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """The model, its trainable weights shifted in their order by the same draws for both twins: away from its reference."""
    draw = torch.Generator().manual_seed(seed)
    for _, parameter in sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return model


def by_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("base_model.model.").replace(".default.weight", ""): tensor for name, tensor in tensors.items()}


def recording(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]) -> list[dict[str, Tensor]]:
    """A list to which every step of the optimiser adds the gradients it was given."""
    gradients = []
    optimizer.register_step_pre_hook(lambda *_: gradients.append(
        {name: parameter.grad.detach().clone() for name, parameter in named.items()}))
    return gradients


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest |ours − theirs| of a tensor in units of its largest |theirs|, of all tensors the worst."""
    assert ours.keys() == theirs.keys() and all(tensor.any() for tensor in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in theirs)


# ------------------------------------------------------------------------------------------------------------------ GRPO
def our_steps(model: CausalLM, rollouts: list[list[Group]], grpo: GRPO, temperature: float) -> Steps:
    named, optimizer = adapter_parameters(model), make_optimizer(model, grpo)
    gradients, reports = recording(optimizer, named), []
    for groups in rollouts:
        batch = make_batch(groups, model, grpo, temperature=temperature, clock=Clock())
        for _ in range(grpo.updates_per_rollout):
            reports.append(update(model, optimizer, batch, grpo, length=LENGTH, clock=Clock()).metrics)
    return Steps(gradients, reports, {name: parameter.detach() for name, parameter in named.items()})


def plain_logprobs(model: nn.Module, groups: list[Group], temperature: float) -> list[Tensor]:
    """log p of each completion's tokens, one sequence at a time; three empty places stand left of every second one."""
    logps = []
    for group in groups:
        for rollout in group.rollouts:
            empty, completion = 3 * (len(logps) % 2), rollout.completion.ids
            ids = torch.tensor([[0] * empty + [*group.prompt_ids, *completion]])
            seen = torch.arange(ids.shape[1])[None] >= empty
            logits = model(input_ids=ids, attention_mask=seen.long(), use_cache=False,
                           position_ids=(seen.cumsum(-1) - 1).clamp(min=0)).logits[0, -len(completion) - 1:-1]
            logps.append((logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1))
    return logps


def plain_loss(new: list[Tensor], old: list[Tensor], ref: list[Tensor], advantages: list[float], grpo: GRPO) -> Tensor:
    terms = []
    for now, before, start, advantage in zip(new, old, ref, advantages, strict=True):
        ratio, away = torch.exp(now - before), start - now
        surrogate = torch.min(ratio * advantage, torch.clamp(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high) * advantage)
        kl = torch.exp(away) - away - 1 if grpo.kl_estimator == "k3" else away ** 2 / 2
        terms.append(grpo.kl_coef * kl - surrogate)
    if grpo.aggregation == "sequence":
        return torch.stack([term.mean() for term in terms]).mean()
    return torch.cat(terms).mean() if grpo.aggregation == "token" else torch.cat(terms).sum() / (len(terms) * LENGTH)


def plain_steps(model: nn.Module, start: nn.Module, rollouts: list[list[Group]], grpo: GRPO, temperature: float) -> Steps:
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=grpo.learning_rate, weight_decay=grpo.weight_decay)
    gradients, reports = recording(optimizer, named), []
    for groups in rollouts:
        advantages = []
        for group in groups:
            rewards = [rollout.verdict.reward for rollout in group.rollouts]
            spread = pstdev(rewards) + 1e-4 if grpo.scale == "group" else 1.0
            advantages += [(reward - fmean(rewards)) / spread for reward in rewards]
        with torch.no_grad():
            old, ref = (plain_logprobs(policy, groups, temperature) for policy in (model, start))
        for _ in range(grpo.updates_per_rollout):
            loss = plain_loss(plain_logprobs(model, groups, temperature), old, ref, advantages, grpo)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(named.values(), grpo.max_grad_norm)
            optimizer.step()
            reports.append({"loss": loss.item(), "grad_norm": norm.item()})
    return Steps([by_our_names(step) for step in gradients], reports,
                 by_our_names({name: parameter.detach() for name, parameter in named.items()}))


# K = 2 and 4 with and without KL, with one update and with two, in every aggregation.
CASES = [(2 if (kl_coef > 0) == (updates == 2) else 4,
          dict(aggregation=aggregation, kl_coef=kl_coef, updates_per_rollout=updates))
         for aggregation in ("sequence", "token", "constant") for kl_coef in (0.0, 0.3) for updates in (1, 2)]
CASES += [(4, dict(kl_coef=0.3, kl_estimator="k2")), (2, dict(kl_coef=0.3, weight_decay=0.1)), (4, dict(scale="none"))]


@pytest.mark.parametrize("K, variant", rest_slow(CASES[::-1], 4), ids=str)
def test_steps_equal_plain_transformers_peft_and_autograd(parity, folder, K, variant):
    """Two rollouts, so that the second step finds moments in the optimiser and a policy that moved. With one update each the
    gradient is clipped to a hundredth or so; with two it is not, and the narrow clip of the ratio acts in the second."""
    twice = variant.get("updates_per_rollout") == 2
    grpo = GRPO(learning_rate=RATE, clip_low=0.02, clip_high=0.05, max_grad_norm=1e9 if twice else 0.05, **variant)
    temperature = 1.0 if K == 2 else 0.7
    rollouts = [make_groups(REWARDS[K], seed) for seed in (0, 1)]
    ours, theirs = twins(folder)
    freeze_reference(ours)
    start = copy.deepcopy(theirs)
    begin = copy.deepcopy(moved(ours))
    expected = plain_steps(moved(theirs), start, rollouts, grpo, temperature)

    assert all((report["grad_norm"] > grpo.max_grad_norm) != twice for report in expected.reports)
    for tokens in (ALONE, 60, WHOLE):
        got = our_steps(copy.deepcopy(ours), rollouts, replace(grpo, micro_batch_tokens=tokens), temperature)
        assert len(got.gradients) == len(expected.gradients) == 2 * grpo.updates_per_rollout
        for step, report in enumerate(got.reports):
            assert (report["ratio"] != 1 and report["clip_ratio"] > 0) == (twice and step % 2 == 1)
            assert report["loss"] == pytest.approx(expected.reports[step]["loss"], rel=1e-6, abs=1e-7)
            assert report["grad_norm"] == pytest.approx(expected.reports[step]["grad_norm"], rel=1e-6)
            parity("step: gradients of all adapters", "peft", difference(got.gradients[step], expected.gradients[step]),
                   bound=1e-6, unit="of scale")
        changes = [float((got.parameters[name] - now).abs().max()) / RATE for name, now in expected.parameters.items()]
        parity("step: parameters after 2 or 4 steps of AdamW", "peft", max(changes), bound=1e-3, unit="learning rates")
        for name, parameter in adapter_parameters(begin).items():
            assert (got.parameters[name] - parameter).abs().max() > RATE / 2, f"{name} did not move"


# -------------------------------------------------------------------------------------------------------- maximum likelihood
def labelled(examples: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """All examples in one batch, padded on the right; prompts and padding are labelled −100."""
    longest = max(len(prompt) + len(completion) for prompt, completion in examples)
    rows = [(prompt + completion, [-100] * len(prompt) + completion) for prompt, completion in examples]
    return {"input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])}


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e9])
@pytest.mark.parametrize("adapted", [False, True], ids=["all weights", "adapters"])
def test_supervised_steps_equal_transformers_own_loss(parity, folder, adapted, max_grad_norm):
    """Three steps by transformers' causal language model loss, which takes its log-softmax in float32: 6e-8 is what it can
    tell apart."""
    steps = [EXAMPLES, EXAMPLES[1:], EXAMPLES[:2]]
    ours, theirs = twins(folder) if adapted else (load_model(folder, dtype=torch.float64, device="cpu"), plain_model(folder))
    our_named = adapter_parameters(ours) if adapted else dict(ours.requires_grad_(True).named_parameters())
    their_named = by_our_names({name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad})
    optimizer, plain = (torch.optim.AdamW(named.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
                        for named in (our_named, their_named))
    got, expected = recording(optimizer, our_named), recording(plain, their_named)
    for tokens, examples in zip((ALONE, 45, WHOLE), steps):
        loss = theirs(**labelled(examples), use_cache=False).loss
        plain.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(their_named.values(), max_grad_norm)
        plain.step()
        report = supervised_update(ours, optimizer, examples, GRPO(micro_batch_tokens=tokens, max_grad_norm=max_grad_norm)).metrics
        parity("warm-up: loss", "transformers", abs(report["loss"] / loss.item() - 1), bound=1e-6, unit="relative")
        parity("warm-up: gradients", "transformers", difference(got[-1], expected[-1]), bound=1e-6, unit="of scale")
    changes = max(float((our_named[name] - now).detach().abs().max()) / RATE for name, now in their_named.items())
    parity("warm-up: parameters after 3 steps of AdamW", "transformers", changes, bound=1e-3, unit="learning rates")
