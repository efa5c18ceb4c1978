"""Sampling against exact probabilities and transformers; greedy decoding."""

from collections import Counter

import pytest
import torch
from transformers import TemperatureLogitsWarper

from minigrpo.policy.generation.search import beam_search, sample
from tests.policy.generation.helpers import FAMILIES, SMALL, assert_same, cut, left_padded, random_prompts, stop_at


@pytest.mark.parity
@pytest.mark.parametrize("stop_ids", [(2,), (2, 5, 7)])
def test_one_beam_is_greedy(pair, parity, stop_ids):
    """Greedy decoding takes the likeliest token until that is a stop. So does a beam one wide without a length
    penalty: a longer hypothesis can then only score worse than the finished one, and the search ends with it."""
    ours, theirs = pair("llama", **SMALL)
    prompts = random_prompts(40)
    out = theirs.generate(**left_padded(prompts), do_sample=False, max_new_tokens=6, eos_token_id=list(stop_ids),
                          pad_token_id=stop_ids[0])
    expected = [cut(ids[max(map(len, prompts)):], stop_ids) for ids in out.tolist()]
    greedy = sample(ours, prompts, completions=2, max_new_tokens=6, stopping=stop_at(*stop_ids), temperature=0)
    beam = beam_search(ours, prompts, completions=1, max_new_tokens=6, stopping=stop_at(*stop_ids), length_penalty=0.0)
    different = sum([c.ids for c in [*drawn, *searched]] != [ids] * 3
                    for drawn, searched, ids in zip(greedy, beam, expected, strict=True))
    parity("greedy decoding and sampling: sequences", "transformers", different, bound=0, unit="different", cases=len(prompts))


# ------------------------------------------------------------------------------------------------------------ sampling
def assert_drawn_from(parity, counts, probabilities):
    """Pearson's χ² = Σ (n − Np)² / Np over the cells with an expectation of five or more (the rest pooled into one) is not so
    large that draws from ``probabilities`` would come out worse once in 10,000 times (p = Q(df / 2, χ² / 2) > 1e-4), and
    cells of probability 0 are empty. The seed is fixed and so is χ²: it passes always or never, and a right program had a
    chance of 1 in 1,000 to fail any of the ten such tests on the day that they were written."""
    N = sum(counts.values())
    assert all(probabilities[cell] > 0 for cell in counts), "a token was drawn that cannot be"
    large = [(counts[cell], N * p) for cell, p in probabilities.items() if N * p >= 5]
    rest = (N - sum(n for n, _ in large), N - sum(e for _, e in large))
    cells = large + [rest] * (rest[1] >= 5)
    chi2, freedom = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    p_value = torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(chi2 / 2).double())
    parity("sampling: frequencies", "(exact probabilities)", -float(p_value.log10()), bound=4,
           unit="= −log10 p", cases=N)


def exact(model, prompt, temperature=1.0):
    """Probabilities of the next token by transformers' logits."""
    return (model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_of_two_tokens_are_their_probabilities(pair, parity, temperature):
    """10,000 draws of two tokens: joint frequencies against p(a)·p(b | a), where a stop (id 2) ends after one."""
    ours, theirs = pair("llama", vocab_size=5, pad_token_id=None)
    prompt = [1, 3, 4]
    drawn = sample(ours, [prompt] * 500, completions=20, max_new_tokens=2, stopping=stop_at(2, vocabulary=5),
                   temperature=temperature, generator=torch.Generator().manual_seed(0))
    first = exact(theirs, prompt, temperature)
    probabilities = {(2,): float(first[2])}
    for a in (0, 1, 3, 4):
        second = exact(theirs, prompt + [a], temperature)
        probabilities |= {(a, b): float(first[a] * second[b]) for b in range(5)}
    assert_drawn_from(parity, Counter(c.ids for group in drawn for c in group), probabilities)


@pytest.mark.parity
@pytest.mark.parametrize("family, temperature", [
    ("llama", 1.0), ("qwen2", 0.6), ("gemma", 1.8), ("mistral", 1.5), ("qwen3", 1.5), ("llama", 1.3)])
def test_draws_equal_those_of_transformers_from_the_same_random_numbers(pair, parity, family, temperature):
    """One uniform number a token, drawn before the first: the token is where the running sum of what transformers' warper leaves
    passes it. Token by token, over ragged prompts, until each completion stops. A temperature at another place
    would bend it."""
    ours, theirs = pair(family)
    prompts, stop_ids = random_prompts(10, vocabulary=61), (2, 5, 11, 40, 41)
    uniform_QKC = torch.empty(10, 4, 8, dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(3))
    warper = TemperatureLogitsWarper(temperature)

    def drawn_alone(prompt, uniform_C):
        ids = list(prompt)
        for uniform in uniform_C:
            logits = theirs(input_ids=torch.tensor([ids])).logits[:, -1].double()
            ids.append(int(torch.searchsorted(warper(None, logits)[0].softmax(-1).cumsum(-1), uniform, right=True)))
            if ids[-1] in stop_ids:
                break
        return tuple(ids[len(prompt):])

    expected = [drawn_alone(prompt, uniform_C) for prompt, group in zip(prompts, uniform_QKC) for uniform_C in group]
    found = sample(ours, prompts, completions=4, max_new_tokens=8, stopping=stop_at(*stop_ids, vocabulary=61),
                   temperature=temperature, generator=torch.Generator().manual_seed(3))
    got = [completion.ids for group in found for completion in group]
    assert any(len(ids) < 8 for ids in got)
    parity("greedy decoding and sampling: sequences", "transformers",
           sum(ids != other for ids, other in zip(got, expected, strict=True)), bound=0, unit="different", cases=len(got))


def test_greedy_logprobs_are_those_at_temperature_one(pair):
    ours, theirs = pair("llama", **SMALL)
    [[completion]] = sample(ours, [[1, 3, 4]], completions=1, max_new_tokens=1, stopping=stop_at(2), temperature=0)
    assert completion.logprobs[0] == pytest.approx(float(exact(theirs, [1, 3, 4]).max().log()), abs=1e-4)


def draws(model, prompts, seed=0, **settings):
    settings = dict(completions=4, max_new_tokens=6, stopping=stop_at(2)) | settings
    return sample(model, prompts, generator=torch.Generator().manual_seed(seed), **settings)


def test_the_generator_alone_decides(pair):
    ours, _ = pair("llama", **SMALL)
    prompts = random_prompts(5)
    torch.manual_seed(1)
    first = draws(ours, prompts)
    torch.manual_seed(2)
    assert draws(ours, prompts) == first
    assert draws(ours, prompts, seed=1) != first


def test_draws_of_a_group_are_not_copies(pair):
    ours, _ = pair("llama", **SMALL)
    drawn = draws(ours, random_prompts(5), completions=8, temperature=2.0)
    assert all(len({c.ids for c in group}) > 1 for group in drawn)


def test_a_finished_row_does_not_touch_the_others(pair):
    """Stop id 2 ends some completions and not others. The same draws without any stop, cut at their first 2: whatever a
    finished row goes on drawing, every completion is the same."""
    ours, _ = pair("llama", **SMALL)
    prompts = random_prompts(6)
    stopping, never = draws(ours, prompts, max_new_tokens=8), draws(ours, prompts, max_new_tokens=8, stopping=stop_at())
    assert [[c.ids for c in group] for group in stopping] == [[cut(c.ids, (2,)) for c in group] for group in never]
    lengths = [len(c.ids) for group in stopping for c in group]
    assert min(lengths) < max(lengths) == 8
    for group, other in zip(stopping, never):
        for one, two in zip(group, other):
            assert one.logprobs == two.logprobs[:len(one.ids)]
            assert one.stopped == (one.ids[-1] == 2)


def test_ragged_prompts_greedy_in_one_batch_equal_each_alone(pair):
    for family, config in FAMILIES:
        ours, _ = pair(family, **config)
        prompts = random_prompts(10)
        settings = dict(completions=1, max_new_tokens=6, stopping=stop_at(2), temperature=0)
        assert_same(sample(ours, prompts, **settings), [sample(ours, [p], **settings)[0] for p in prompts])
