"""warmup.py: one step of maximum likelihood, against cross-entropy written out and torch's autograd."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minigrpo.config import GRPO
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.model import CausalLM
from minigrpo.training.warmup import supervised_update
from tests.test_update import adapted, snapshot

# Prompts and completions of very different lengths, a completion of one token among them: 1 + 9 + 4 + 2 = 16 tokens.
EXAMPLES = [([5, 6, 7], [8]), ([*range(40, 70)], [*range(100, 109)]), ([9], [10, 11, 12, 10]), ([*range(20, 32)], [1, 2])]


def exact(folder: Path) -> CausalLM:
    """In float64, all of whose weights move: what is left of a difference is one of the formulas."""
    return load_model(folder, dtype=torch.float64, device="cpu").requires_grad_(True)


def supervised(model, examples=EXAMPLES, *, micro_batch_tokens=8192, max_grad_norm=1e9):
    """(gradient by name, report) of one step of SGD with a rate of 1; the model is put back."""
    start = snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    report = supervised_update(model, optimizer, examples, GRPO(micro_batch_tokens=micro_batch_tokens, max_grad_norm=max_grad_norm)).metrics
    moved = {name: start[name] - now for name, now in snapshot(model).items()}
    model.load_state_dict(start)
    return moved, report


def cross_entropy(model, examples):
    """The mean of −log p over all completion tokens by torch's own cross_entropy, a plain causal pass for each example alone:
    the token at place i is predicted from i − 1, the first of a completion from the last of its prompt."""
    total = torch.zeros((), dtype=model.dtype)
    for prompt, completion in examples:
        logits = model.logits(model(torch.tensor([[*prompt, *completion]])))[0]
        total = total + F.cross_entropy(logits[len(prompt) - 1:-1], torch.tensor(completion), reduction="sum")
    return total / sum(len(completion) for _, completion in examples)


@pytest.mark.parametrize("tokens", [1, 20, 45, 8192])
def test_a_supervised_step_is_cross_entropy_by_hand_however_it_is_cut_up(sql_model, tokens):
    """Alone, two together, all but the longest, all: the same loss and the same gradient for every weight."""
    model = exact(sql_model)
    moved, report = supervised(model, micro_batch_tokens=tokens)
    loss = cross_entropy(model, EXAMPLES)
    assert report["loss"] == pytest.approx(loss.item(), rel=1e-9) and report["skipped"] == 0.0
    named = dict(model.named_parameters())
    expected = torch.autograd.grad(loss, list(named.values()))
    assert report["grad_norm"] == pytest.approx(sum(gradient.square().sum().item() for gradient in expected) ** 0.5)
    for name, gradient in zip(named, expected):
        assert gradient.any()
        torch.testing.assert_close(moved[name], gradient, rtol=1e-6, atol=1e-9)


def test_a_supervised_step_weighs_tokens_and_not_examples(sql_model):
    """An example of nine tokens counts nine times what one of one token does: both together are (9 a + 1 b) / 10."""
    model = exact(sql_model)
    short, long = EXAMPLES[:2]
    losses = [supervised(model, examples)[1]["loss"] for examples in ([long], [short], [long, short], [short, long])]
    assert losses[2] == pytest.approx((9 * losses[0] + losses[1]) / 10) == losses[3]
    twice, once = supervised(model, [*EXAMPLES, *EXAMPLES]), supervised(model, EXAMPLES)
    assert twice[1]["loss"] == pytest.approx(once[1]["loss"])
    assert all(torch.allclose(twice[0][name], once[0][name], atol=1e-12) for name in once[0])


def test_a_supervised_step_through_adapters_moves_nothing_else(sql_model):
    """The gradient is that of the same loss; what is frozen has none."""
    model = adapted(sql_model)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    before, named = snapshot(model), adapter_parameters(model)
    optimizer = torch.optim.SGD(named.values(), lr=1.0)
    expected = torch.autograd.grad(cross_entropy(model, EXAMPLES), list(named.values()))
    supervised_update(model, optimizer, EXAMPLES, GRPO(micro_batch_tokens=1, max_grad_norm=1e9))
    for (name, parameter), gradient in zip(named.items(), expected):
        torch.testing.assert_close(before[name] - parameter, gradient, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items() if name not in named)


def test_a_supervised_step_is_clipped_and_drops_what_is_not_finite(sql_model):
    """SGD with a rate of 1 moves by the clipped gradient, whose norm is the limit; the report has what it was."""
    model = exact(sql_model)
    moved, report = supervised(model, max_grad_norm=0.01)
    assert sum(tensor.square().sum().item() for tensor in moved.values()) ** 0.5 == pytest.approx(0.01, rel=1e-3)
    assert report["grad_norm"] > 0.01
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    moved, report = supervised(model)
    assert report["skipped"] == 1.0 and all(not tensor.nan_to_num().any() for tensor in moved.values())


def test_a_supervised_step_leaves_no_gradient_to_the_next(sql_model):
    """The second of two equal steps with a rate of 0 has the same gradient as the first, not twice it."""
    model = exact(sql_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    first, second = (supervised_update(model, optimizer, EXAMPLES, GRPO(micro_batch_tokens=1)) for _ in range(2))
    assert first == second and all(parameter.grad is None for parameter in model.parameters())
