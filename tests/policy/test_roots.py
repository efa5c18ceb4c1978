"""What prompts share is read once: for a batch's micro-batches, and for as long as a policy does not move."""

import pytest
import torch

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.generation.search import beam_search, sample
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.roots import KeptRoots, with_roots
from minigrpo.policy.tokenizer import compile_stopping
from minigrpo.policy.tree import pad_completions, pad_prompts
from tests.policy.helpers import random_ids

BYTES_A_TOKEN = 2 * 2 * 2 * 8 * 4           # keys and values, 2 layers, 2 heads of 8 numbers, float32


@pytest.fixture
def adapted(checkpoint):
    """A model whose adapters say something."""
    def make(family="llama"):
        model, draw = load_model(checkpoint(family)[0], dtype=torch.float32, device="cpu"), torch.Generator().manual_seed(0)
        add_lora(model, rank=3, alpha=6.0, generator=draw)
        for parameter in adapter_parameters(model).values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
        return model
    return make


@pytest.fixture
def readings(monkeypatch):
    """How many tokens a model reads, root by root."""
    def count(model):
        lengths, read = [], model.read
        monkeypatch.setattr(model, "read", lambda ids: lengths.append(len(ids)) or read(ids))
        return lengths
    return count


def ids(length, seed=0):
    return tuple(random_ids(length, seed=seed).tolist())


# ------------------------------------------------------------------------------------------------------- micro-batches
@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_of_one_root_leave_the_gradients_of_one_batch(adapted, checkpointing, readings):
    """Two roots of 33 and 40 tokens, two parts each: each root is read once, and all gradients add up."""
    model = adapted("qwen2").double()
    model.checkpointing = checkpointing
    prompts = [[*ids(length, seed=length), *own] for length in (33, 40) for own in ([1, 2], [3], [4, 5, 6], [7])]
    completions = [[[8, 9, q], [q]] for q in range(8)]
    weight_BC = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (completion_logprobs(model, pad_prompts(prompts), *pad_completions(completions)) * weight_BC).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}
    model.zero_grad()
    lengths = readings(model)
    parts = [(pad_prompts([prompts[q] for q in chosen]), chosen) for chosen in ([0, 1], [2, 3], [4, 5], [6, 7])]
    for root, (padded, chosen) in with_roots([(part[0], part) for part in parts], model):
        logp_BC = completion_logprobs(model, padded, *pad_completions([completions[q] for q in chosen]), root=root)
        (logp_BC * weight_BC.view(8, 2, 3)[chosen].flatten(0, 1)).sum().backward()
    assert lengths == [33, 40]
    for name, parameter in adapter_parameters(model).items():
        assert float((parameter.grad - expected[name]).abs().max()) <= 1e-12 * max(1, float(expected[name].abs().max())), name


# ----------------------------------------------------------------------------------------------------------- kept roots
def test_a_root_is_read_once_and_given_as_it_was_read(adapted, readings):
    model, kept = adapted(), KeptRoots()
    with torch.no_grad():
        expected = model.read(ids(40))
        lengths = readings(model)
        again = [kept.read(model, ids(40)) for _ in range(3)]
    assert lengths == [40] and kept.bytes == 40 * BYTES_A_TOKEN
    for root in again:
        assert all(a.equal(b) for ours, theirs in zip(root, expected, strict=True) for a, b in zip(ours, theirs, strict=True))


def test_the_latest_are_kept_within_the_limit(adapted, readings):
    """Room for 100 tokens: roots of 40, 50 and 60 never are there all three, and the one that was used longest ago makes room.
    One of 101 tokens is given, kept it is not, and nothing else is then either."""
    model, kept = adapted(), KeptRoots(100 * BYTES_A_TOKEN)
    lengths = readings(model)
    with torch.no_grad():
        for length, read, held in ((40, [40], 40), (50, [50], 90), (40, [], 90), (60, [60], 100), (40, [], 100), (50, [50], 90),
                                   (101, [101], 0), (101, [101], 0)):
            before = len(lengths)
            assert kept.read(model, ids(length))[0][0].shape == (1, 2, length, 8)
            assert (lengths[before:], kept.bytes) == (read, held * BYTES_A_TOKEN)


def test_the_beginning_of_a_kept_root_is_another_root(adapted, readings):
    """A run that goes on with nothing kept has to give the same bits."""
    model, kept = adapted(), KeptRoots()
    lengths = readings(model)
    with torch.no_grad():
        for length in (40, 39, 41, 40):
            kept.read(model, ids(41)[:length])
    assert lengths == [40, 39, 41]


@pytest.mark.parametrize("searched", [beam_search, sample])
def test_a_search_with_kept_roots_finds_the_same(adapted, readings, searched):
    model, kept = adapted(), KeptRoots()
    stopping = compile_stopping([b""] * 61, [2], [])
    batches = [[[*ids(40), *own] for own in owns] for owns in ([[3], [4, 5]], [[6, 7], [8]])]

    def found(prompts, **roots):
        draws = {"generator": torch.Generator().manual_seed(3)} if searched is sample else {}
        return searched(model, prompts, completions=2, max_new_tokens=6, stopping=stopping, **draws, **roots)

    expected = [found(prompts) for prompts in batches]
    lengths = readings(model)
    assert [found(prompts, roots=kept) for prompts in batches] == expected
    assert lengths == [40]
