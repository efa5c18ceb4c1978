"""What beam search and sampling have in common: log-probs, stops, refusals, precision. Sampling against exact probabilities and
transformers; greedy decoding."""

import itertools
import math
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.generation.search import beam_search, sample, staying
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.tokenizer import compile_stopping
from minigrpo.policy.tree import pad_completions, pad_prompts, root_of
from tests.policy.generation.helpers import FAMILIES, SMALL, assert_same, cut, left_padded, random_prompts, stop_at


@pytest.mark.parity
@pytest.mark.parametrize("family, config", FAMILIES)
@pytest.mark.parametrize("searched, temperature", [("beams", 1.0), ("samples", 0.8), ("samples", 1.7)])
@pytest.mark.parametrize("shared", [[], [1, 4, 9, 3, 3, 7, 0, 11]], ids=["no root", "root"])
def test_logprobs_equal_those_of_scoring_and_of_transformers(pair, parity, family, config, searched, temperature, shared):
    """Of every token that was returned, at the temperature at which it was drawn: by the search, by the pass that training
    scores it in, and by a plain pass of transformers over prompt and completion."""
    ours, theirs = pair(family, **config)
    prompts = [shared + prompt for prompt in random_prompts(6)]
    if searched == "beams":
        found = beam_search(ours, prompts, completions=4, max_new_tokens=6, stopping=stop_at(2, 5))
    else:
        found = sample(ours, prompts, completions=4, max_new_tokens=6, stopping=stop_at(2, 5), temperature=temperature,
                       generator=torch.Generator().manual_seed(0))
    ids_QKC, mask_QKC = pad_completions([[completion.ids for completion in group] for group in found])
    scored = completion_logprobs(ours, pad_prompts(prompts), ids_QKC, mask_QKC, temperature=temperature)
    returned = torch.tensor([logp for group in found for completion in group for logp in completion.logprobs])
    plain = torch.cat([logprobs_of_transformers(theirs, prompt, completion.ids, temperature)
                       for prompt, group in zip(prompts, found) for completion in group])
    for theirs_name, logp_T in (("(the scoring path)", scored[mask_QKC.flatten(0, 1)]), ("transformers", plain)):
        parity("log-probs of beams and samples", theirs_name, float((returned - logp_T).abs().max()), bound=1e-5,
               unit="nats", cases=len(returned))


def logprobs_of_transformers(model, prompt, ids, temperature):
    logits_TV = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1:-1] / temperature
    return logits_TV.log_softmax(-1)[range(len(ids)), list(ids)]


@pytest.mark.parametrize("family, config", FAMILIES)
@pytest.mark.parametrize("method", ["beams", "greedy"])
def test_prompts_that_begin_alike_find_what_each_finds_alone(pair, family, config, method):
    """They share twelve tokens; a window of four is shorter than that."""
    ours, _ = pair(family, **config)
    prompts = [random_prompts(1, 12, seed=3)[0] + prompt for prompt in random_prompts(5)]
    settings = dict(completions=3 if method == "beams" else 1, max_new_tokens=9, stopping=stop_at(2, 5))
    search = beam_search if method == "beams" else partial(sample, temperature=0.0)
    assert root_of(prompts) == 12
    assert_same(search(ours, prompts, **settings), [search(ours, [prompt], **settings)[0] for prompt in prompts])


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_who_stays_are_all_that_go_on_and_where_numbers_are_few_some_more(open_Q):
    """By halves: as few as a half, a quarter, ... of all can be, but two. Who is open stays."""
    going_on, halves = sum(open_Q), [len(open_Q) >> i for i in range(6)]
    assert staying(torch.tensor(open_Q), halves=False).tolist() == open_Q
    stays_Q = staying(torch.tensor(open_Q), halves=True).tolist()
    assert all(stays for goes_on, stays in zip(open_Q, stays_Q) if goes_on)
    assert sum(stays_Q) == min(width for width in halves if width >= max(going_on, min(2, len(open_Q))))


@pytest.mark.parametrize("method", ["beams", "greedy", "samples"])
def test_a_prompt_that_is_done_leaves_the_batch(pair, method):
    """A step has as many rows as there are prompts with a completion under way. (Of beams that cannot be seen from outside: one
    is open until no live beam can be better. But none is after its last step, and closed prompts do not come back.)"""
    ours, _ = pair("llama", **SMALL)
    prompts, rows, settings = random_prompts(8), [], dict(max_new_tokens=9, stopping=stop_at(2, 5))
    hook = ours.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        if method == "beams":
            found = beam_search(ours, prompts, completions=2, **settings)
        else:
            found = sample(ours, prompts, completions=2, temperature=0.0 if method == "greedy" else 1.0,
                           generator=torch.Generator().manual_seed(0), **settings)
    finally:
        hook.remove()
    longest = [max(len(completion.ids) for completion in group) for group in found]
    if method == "beams":
        assert rows == sorted(rows, reverse=True) and rows[0] == 8 and 1 <= rows[-1] < 8
    else:                                       # the token at c is computed for those who write more than c tokens
        assert rows == [8, *(sum(length > c for length in longest) for c in range(1, max(longest)))]
        assert len(set(rows)) > 2


@pytest.mark.parametrize("method", ["beams", "greedy", "samples"])
def test_stop_strings_equal_the_stop_ids_of_the_tokens_that_hold_them(pair, method):
    """Where a string lies inside single tokens only, stopping at it is stopping at those tokens."""
    ours, _ = pair("llama", **SMALL)
    token_bytes = [b"a", b"b", b"x;", b"c", b"d", b";", b"ab"] + [b"e"] * 6
    by_string, by_id = compile_stopping(token_bytes, [], [";"]), stop_at(2, 5)
    prompts, settings = random_prompts(8), dict(completions=3, max_new_tokens=7)

    def search(stopping):
        if method == "beams":
            return beam_search(ours, prompts, stopping=stopping, **settings)
        return sample(ours, prompts, stopping=stopping, temperature=0 if method == "greedy" else 1.0,
                      generator=torch.Generator().manual_seed(0), **settings)

    assert search(by_string) == search(by_id)
    assert any(c.stopped for group in search(by_id) for c in group)


def ends(ids, token_bytes, needle):
    return needle in b"".join(token_bytes[token] for token in ids)


@pytest.mark.parametrize("method", ["beams", "samples"])
def test_stop_strings_over_several_tokens(pair, method):
    """"ab" from a, b or from xa, bx: a completion is stopped exactly if the string is in its text, and was not before
    its last token. The automaton's state has to follow each beam through its changes of parent for that."""
    ours, _ = pair("llama", vocab_size=5, pad_token_id=None)
    token_bytes = [b"a", b"b", b"xa", b"bx", b"c"]
    stopping, prompts = compile_stopping(token_bytes, [], ["ab"]), random_prompts(20, vocabulary=5)
    if method == "beams":
        found = beam_search(ours, prompts, completions=6, max_new_tokens=6, stopping=stopping)
    else:
        found = sample(ours, prompts, completions=6, max_new_tokens=6, stopping=stopping,
                       generator=torch.Generator().manual_seed(0))
    stopped = [c.stopped for group in found for c in group]
    assert any(stopped) and not all(stopped)
    for completion in itertools.chain(*found):
        assert completion.stopped == ends(completion.ids, token_bytes, b"ab")
        assert not ends(completion.ids[:-1], token_bytes, b"ab")
        assert completion.stopped or len(completion.ids) == 6


def test_stop_strings_in_a_beam_as_wide_as_the_space(pair):
    """Brute force with the stop string "ab" over V = 3 tokens and C = 3: every sequence that ends with its first
    "ab"."""
    ours, theirs = pair("llama", vocab_size=3, pad_token_id=None)
    token_bytes = [b"a", b"b", b"c"]
    space = [ids for n in (1, 2, 3) for ids in itertools.product(range(3), repeat=n)
             if not ends(ids[:-1], token_bytes, b"ab") and (ends(ids, token_bytes, b"ab") or n == 3)]
    # "ab" itself, and the 27 sequences of three but for the three that begin with it: 25.
    assert len(space) == 25
    [group] = beam_search(ours, [[2, 1]], completions=25, max_new_tokens=3,
                          stopping=compile_stopping(token_bytes, [], ["ab"]))
    assert {c.ids for c in group} == set(space)
    assert {c.ids for c in group if c.stopped} == {ids for ids in space if ends(ids, token_bytes, b"ab")}


@pytest.mark.parametrize("search", [beam_search, sample])
def test_prompts_that_are_empty_or_too_long_are_refused(pair, search):
    ours, _ = pair("llama", **SMALL)                    # a context of 128
    settings = dict(completions=2, max_new_tokens=8, stopping=stop_at(2))
    assert len(search(ours, [[1] * 120], **settings)[0]) == 2
    with pytest.raises(ValueError, match="121 tokens and 8 new ones do not fit the model's context of 128"):
        search(ours, [[1], [1] * 121], **settings)
    with pytest.raises(ValueError, match="no tokens"):
        search(ours, [[1], []], **settings)


def test_bfloat16_models_search_in_float32(checkpoint):
    """Log-probs of a bf16 model are computed in float32: all 13 of them add up to one far better than bf16 could."""
    model = load_model(checkpoint("llama", **SMALL)[0], dtype=torch.bfloat16, device="cpu")
    [group] = beam_search(model, [[1, 3, 4]], completions=13, max_new_tokens=1, stopping=stop_at(2))
    assert sum(math.exp(c.logprobs[0]) for c in group) == pytest.approx(1.0, abs=1e-5)


# ---------------------------------------------------------------------------------------- sampling and greedy decoding
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
