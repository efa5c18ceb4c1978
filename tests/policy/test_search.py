"""Beam search against transformers and against brute force; sampling against exact probabilities."""

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import minigrpo.policy.search
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters, add_lora, reference
from minigrpo.policy.search import beam_search, draw, sample
from minigrpo.policy.stopping import compile_stopping
from minigrpo.policy.tree import pad_completions, pad_prompts

SMALL = dict(vocab_size=13)             # stops are frequent, and hypotheses of different lengths compete
FAMILIES = [("llama", SMALL), ("mistral", SMALL | dict(sliding_window=4)), ("gemma", SMALL)]


def stop_at(*stop_ids, vocabulary=13):
    return compile_stopping([b""] * vocabulary, stop_ids, [])


def random_prompts(count, length=None, seed=0, vocabulary=13):
    draw = torch.Generator().manual_seed(seed)
    lengths = [length or int(torch.randint(1, 9, (), generator=draw)) for _ in range(count)]
    return [torch.randint(0, vocabulary, (n,), generator=draw).tolist() for n in lengths]


def score(completion, length_penalty):
    return sum(completion.logprobs) / len(completion.ids) ** length_penalty


def cut(ids, stop_ids):
    """Up to and with the first stop id."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return tuple(ids[:end])


def assert_same(got, expected, tolerance=1e-4):
    """The same completions in the same order, log-probs equal up to float32 sums in another order."""
    for group, other in zip(got, expected, strict=True):
        assert [c.ids for c in group] == [c.ids for c in other]
        assert [c.stopped for c in group] == [c.stopped for c in other]
        for one, two in zip(group, other):
            assert one.logprobs == pytest.approx(two.logprobs, abs=tolerance)


# ---------------------------------------------------------------------------------------- beam search and transformers
def left_padded(prompts):
    """Ragged prompts as transformers wants them: ids and attention mask, padded on the left."""
    longest = max(map(len, prompts))
    return dict(inputs=torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
                attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]))


def beams_of_transformers(model, prompts, K, C, stop_ids, length_penalty, early_stopping):
    """[(ids with the stop token, score), …] a prompt, best first. One beam is to its ``generate`` greedy decoding, which
    scores nothing: named as the way to generate, its beam search takes one, too."""
    out = model.generate(**left_padded(prompts), num_beams=K, num_return_sequences=K, max_new_tokens=C, do_sample=False,
                         length_penalty=length_penalty, early_stopping=early_stopping, eos_token_id=list(stop_ids) or None,
                         pad_token_id=0, return_dict_in_generate=True, output_scores=True,
                         custom_generate=type(model)._beam_search)
    found = [(cut(ids[max(map(len, prompts)):], stop_ids), value) for ids, value in zip(
        out.sequences.tolist(), out.sequences_scores.tolist())]
    return [found[i:i + K] for i in range(0, len(found), K)]


def plain_beams(model, prompt, K, C, stop_ids, length_penalty, early_stopping):
    """The same rules with lists and without a cache, by a float64 model of transformers: [ids, …], and the least difference
    between two scores of which one was preferred. Where that is within rounding, float32 may prefer the other."""
    live, done, gaps = [(0.0, ())], [], []

    def best(found):
        found = sorted(found, reverse=True)
        gaps.extend(one[0] - two[0] for one, two in zip(found[K - 1:K], found[K:K + 1]))
        return found[:K]

    for length in range(1, C + 1):
        continued = []
        for total, ids in live:
            logp_V = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].log_softmax(-1)
            continued += [(total + logp, (*ids, token)) for token, logp in enumerate(logp_V.tolist())]
        ended = [found for found in best(continued) if length == C or found[1][-1] in stop_ids]
        done = best(done + [(total / length ** length_penalty, ids) for total, ids in ended])
        if length == C or (len(done) == K and early_stopping):
            break
        live = best(found for found in continued if found[1][-1] not in stop_ids)
        if len(done) == K:
            gaps.append(abs(live[0][0] / length ** length_penalty - done[-1][0]))
            if live[0][0] / length ** length_penalty <= done[-1][0]:
                break
    gaps.extend(one[0] - two[0] for one, two in zip(done, done[1:]))
    return [ids for _, ids in done], min(gaps)


ROUNDING = 1e-5             # of sums of some log-probs of one to ten nats in float32


def assert_same_beams(parity, theirs, prompts, got, expected, *settings):
    """Ids, their order, and scores in units of the score or, where it is less, of one nat. Where a prompt's beams are others,
    two scores that decided it must be one number but for rounding."""
    K, length_penalty = settings[0], settings[3]
    same = []
    for prompt, group, other in zip(prompts, got, expected, strict=True):
        if [completion.ids for completion in group] == [ids for ids, _ in other]:
            same.append((group, other))
        else:
            _, gap = plain_beams(copy.deepcopy(theirs).double(), prompt, *settings)
            parity("beam search: other sequences after a tie of scores", "(float64)", gap, bound=ROUNDING, unit="nats apart")
    parity(f"beam search, K = {K}: sequences", "transformers", 0, bound=0, cases=len(same))
    pairs = [(score(c, length_penalty), value) for group, other in same for c, (_, value) in zip(group, other, strict=True)]
    parity("beam search: scores", "transformers", max(abs(one - two) / max(1.0, abs(two)) for one, two in pairs),
           bound=ROUNDING, unit="of the score", cases=len(pairs))
    assert all(completion.stopped == (completion.ids[-1] in settings[2]) for group in got for completion in group)


@pytest.mark.parity
@pytest.mark.parametrize("family, K, C, stop_ids", [
    ("llama", 1, 7, (2,)), ("mistral", 1, 6, (2, 5, 7)), ("gemma", 2, 6, (2,)), ("qwen3", 2, 5, (2, 3, 4, 5, 6, 7)),
    ("mistral", 2, 7, ()), ("mistral", 4, 7, (2,)), ("qwen2", 4, 6, (2, 5, 7)), ("llama", 4, 7, ()), ("llama", 4, 1, (2,))])
def test_beams_equal_those_of_transformers(pair, parity, family, K, C, stop_ids):
    """Ten ragged prompts for each of 72 settings: 720 prompts."""
    config = SMALL | ({"sliding_window": 4} if family == "mistral" else {})
    ours, theirs = pair(family, **config)
    settings = itertools.product([0.0, 0.5, 1.0, 2.0], [False, True])
    for seed, (length_penalty, early_stopping) in enumerate(settings, 1000 * K + 100 * C):
        prompts = random_prompts(10, seed=seed)
        expected = beams_of_transformers(theirs, prompts, K, C, stop_ids, length_penalty, early_stopping)
        got = beam_search(ours, prompts, completions=K, max_new_tokens=C, stopping=stop_at(*stop_ids),
                          length_penalty=length_penalty, early_stopping=early_stopping)
        assert_same_beams(parity, theirs, prompts, got, expected, K, C, stop_ids, length_penalty, early_stopping)


def test_a_tie_in_float_arithmetic(pair):
    """One of the prompts above. Its second and third best hypotheses of four tokens, (1, 3, 2, 9) and (1, 3, 2, 5), are 1.3
    millionths of a nat apart, about what float32 rounds a sum near 5 by; the one that a beam two wide keeps leads to the
    completion that it returns second. Nothing but rounding is left to choose: transformers takes either, this prompt alone or
    padded among others."""
    ours, theirs = pair("mistral", **SMALL, sliding_window=4)
    prompt, settings = [2, 1, 6], (2, 7, (), 2.0, True)
    beams, gap = plain_beams(copy.deepcopy(theirs).double(), prompt, *settings)
    assert gap < 2e-6
    possible = [[(1, 3, 2, 2, 9, 5, 7), second] for second in [(1, 3, 2, 2, 9, 5, 12), (1, 3, 2, 5, 2, 1, 1)]]
    assert beams in possible
    for prompts in ([prompt], [prompt, [1] * 8]):
        found = beam_search(ours, prompts, completions=2, max_new_tokens=7, stopping=stop_at(), length_penalty=2.0)
        assert [completion.ids for completion in found[0]] in possible
        assert [ids for ids, _ in beams_of_transformers(theirs, prompts, *settings)[0]] in possible


def test_the_plain_beams_above_are_those_of_transformers(pair):
    """Else their ties would excuse anything: the same beams for 24 prompts, and hardly ever a tie among the decisions."""
    _, theirs = pair("llama", **SMALL)
    exact_model, prompts = copy.deepcopy(theirs).double(), random_prompts(6, seed=1)
    for settings in itertools.product([3], [6], [(2, 5)], [0.0, 1.0], [False, True]):
        plain = [plain_beams(exact_model, prompt, *settings) for prompt in prompts]
        expected = beams_of_transformers(theirs, prompts, *settings)
        assert [ids for ids, _ in plain] == [[ids for ids, _ in group] for group in expected]
        assert min(gap for _, gap in plain) > ROUNDING


@pytest.mark.parity
@pytest.mark.parametrize("K", [2, 4])
def test_among_exact_ties_beams_differ_in_the_names_of_tied_tokens_alone(pair, parity, K):
    """Tokens 7 and 9 are made twins of 6 and 8, with their embeddings and rows of the head: every hypothesis with one ties
    with that of its twin, and a search that can keep one of them keeps either. But for the twins' names all is equal."""
    ours, theirs = map(copy.deepcopy, pair("llama", **SMALL))
    for model, name in itertools.product((ours, theirs), ("model.embed_tokens", "lm_head")):
        weight_VD = model.get_submodule(name).weight.data
        weight_VD[[7, 9]] = weight_VD[[6, 8]]
    prompts, twins = random_prompts(50), {7: 6, 9: 8}
    expected = beams_of_transformers(theirs, prompts, K, 7, (2, 5), 1.0, False)
    got = beam_search(ours, prompts, completions=K, max_new_tokens=7, stopping=stop_at(2, 5))

    def named_alike(ids):
        return [twins.get(token, token) for token in ids]

    different = sum([named_alike(c.ids) for c in group] != [named_alike(ids) for ids, _ in other]
                    for group, other in zip(got, expected, strict=True))
    parity("beam search among exact ties: sequences", "transformers", different, bound=0,
           unit="different", cases=len(prompts))
    assert any(set(c.ids) & twins.keys() for group in got for c in group)


def test_the_settings_above_make_a_difference(pair):
    """Else the comparison would prove little: penalties, early stopping and widths each change some of these beams."""
    ours, _ = pair("mistral", **SMALL, sliding_window=4)
    prompts = random_prompts(20, length=4)

    def beams(K=4, **settings):
        found = beam_search(ours, prompts, completions=K, max_new_tokens=7, stopping=stop_at(2, 5), **settings)
        return [[completion.ids for completion in group[:2]] for group in found]

    plain = beams()
    assert beams(length_penalty=0.0) != plain and beams(length_penalty=2.0) != plain
    assert beams(early_stopping=True) != plain and beams(K=2) != plain


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


# ------------------------------------------------------------------------------------------------ beams and brute force
def all_completions(V, C, stop_ids):
    """Every sequence that ends with its first stop id, or has C tokens and none."""
    for length in range(1, C + 1):
        for ids in itertools.product(range(V), repeat=length):
            if not set(ids[:-1]) & set(stop_ids) and (ids[-1] in stop_ids or length == C):
                yield ids


def brute_force(model, prompt, V, C, stop_ids, length_penalty):
    """(score, ids) of every completion, best first, each scored by a plain pass of transformers."""
    found = []
    for ids in all_completions(V, C, stop_ids):
        logits = model(input_ids=torch.tensor([prompt + list(ids)])).logits[0, len(prompt) - 1:-1]
        logp = logits.log_softmax(-1)[range(len(ids)), list(ids)].sum()
        found.append((float(logp) / len(ids) ** length_penalty, ids))
    return sorted(found, reverse=True)


@pytest.mark.parity
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("V, C, stop_ids, space", [
    # Completions of V tokens of which v do not stop: v^c·(V − v) end at depth c + 1, and the last depth takes all V.
    (3, 3, (2,), 1 + 2 + 4 * 3), (4, 2, (1, 2), 2 + 2 * 4), (3, 2, (), 9)])
def test_a_beam_as_wide_as_the_space_equals_brute_force(pair, parity, V, C, stop_ids, space, length_penalty):
    ours, theirs = pair("llama", vocab_size=V, pad_token_id=None)
    for prompt in random_prompts(4, vocabulary=V):
        expected = brute_force(theirs, prompt, V, C, stop_ids, length_penalty)
        assert len(expected) == space
        [group] = beam_search(ours, [prompt], completions=space, max_new_tokens=C, length_penalty=length_penalty,
                              stopping=stop_at(*stop_ids, vocabulary=V))
        parity("beam as wide as the space: scores", "(brute force)",
               max(abs(score(c, length_penalty) - value) for c, (value, _) in zip(group, expected, strict=True)),
               bound=1e-5, unit="nats", cases=space)
        assert {c.ids for c in group} == {ids for _, ids in expected}
        assert [c.stopped for c in group] == [c.ids[-1] in stop_ids for c in group]


def test_more_completions_than_exist_are_refused(pair):
    # V = 3, C = 2, one stop: 1 + 2·3 = 7 completions. Without a stop and C = 1: 3.
    ours, _ = pair("llama", vocab_size=3, pad_token_id=None)
    for stop_ids, C, space in [((2,), 2, 7), ((), 1, 3)]:
        settings = dict(max_new_tokens=C, stopping=stop_at(*stop_ids, vocabulary=3))
        assert len(beam_search(ours, [[1], [0, 1]], completions=space, **settings)[1]) == space
        with pytest.raises(ValueError, match=f"fewer than {space + 1} different completions"):
            beam_search(ours, [[1], [0, 1]], completions=space + 1, **settings)


# -------------------------------------------------------------------------------------------------- properties of beams
@pytest.mark.parametrize("family, config", FAMILIES)
def test_ragged_prompts_in_one_batch_equal_each_alone(pair, family, config):
    ours, _ = pair(family, **config)
    prompts = random_prompts(12)
    settings = dict(completions=3, max_new_tokens=7, stopping=stop_at(2, 5), length_penalty=0.0)
    together = beam_search(ours, prompts, **settings)
    assert_same(together, [beam_search(ours, [prompt], **settings)[0] for prompt in prompts])
    assert len({len(c.ids) for group in together for c in group}) > 2           # some finished long before others


@pytest.mark.parity
@pytest.mark.parametrize("family, config", FAMILIES)
@pytest.mark.parametrize("searched, temperature", [("beams", 1.0), ("samples", 0.8), ("samples", 1.7)])
def test_logprobs_equal_those_of_scoring_and_of_transformers(pair, parity, family, config, searched, temperature):
    """Of every token that was returned, at the temperature at which it was drawn: by the search, by the pass that training
    scores it in, and by a plain pass of transformers over prompt and completion."""
    ours, theirs = pair(family, **config)
    prompts = random_prompts(6)
    if searched == "beams":
        found = beam_search(ours, prompts, completions=4, max_new_tokens=6, stopping=stop_at(2, 5))
    else:
        found = sample(ours, prompts, completions=4, max_new_tokens=6, stopping=stop_at(2, 5), temperature=temperature,
                       top_k=9, top_p=0.9, generator=torch.Generator().manual_seed(0))
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


def test_beams_of_a_prompt_are_different_and_best_first(pair):
    ours, _ = pair("llama", **SMALL)
    for length_penalty in (0.0, 1.0, 2.0):
        for group in beam_search(ours, random_prompts(10), completions=5, max_new_tokens=5, stopping=stop_at(2),
                                 length_penalty=length_penalty):
            assert len({c.ids for c in group}) == 5
            scores = [score(c, length_penalty) for c in group]
            assert scores == sorted(scores, reverse=True)


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
    parity("sampling, top-k, top-p: frequencies", "(exact probabilities)", -float(p_value.log10()), bound=4,
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
@pytest.mark.parametrize("top_k, top_p", [(1, 1.0), (4, 1.0), (99, 1.0), (0, 0.1), (0, 0.6), (0, 0.95), (5, 0.7)])
def test_cut_distributions(pair, parity, top_k, top_p):
    """4,000 draws of one token at temperature 1.5 against what transformers' warpers leave of its own logits. Log-probs stay
    those before the cut."""
    ours, theirs = pair("llama", **SMALL)
    prompt = [1, 3, 4]
    drawn = sample(ours, [prompt] * 200, completions=20, max_new_tokens=1, stopping=stop_at(2), temperature=1.5,
                   generator=torch.Generator().manual_seed(0), top_k=top_k, top_p=top_p)
    uncut = theirs(input_ids=torch.tensor([prompt])).logits[:, -1].double() / 1.5
    left = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k or 13)(None, uncut))
    probabilities = dict(enumerate(left[0].softmax(-1).tolist()))
    counts = Counter(c.ids[0] for group in drawn for c in group)
    if sum(p > 0 for p in probabilities.values()) == 1:
        assert [probabilities[token] for token in counts] == [1.0]
    else:
        assert_drawn_from(parity, counts, probabilities)
    for completion in itertools.chain(*drawn):
        assert completion.logprobs[0] == pytest.approx(float(uncut[0].log_softmax(-1)[completion.ids[0]]), abs=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("family, temperature, top_k, top_p", [
    ("llama", 1.0, 0, 1.0), ("qwen2", 0.6, 0, 1.0), ("gemma", 1.8, 0, 1.0), ("mistral", 1.5, 5, 1.0), ("qwen3", 1.5, 0, 0.7),
    ("llama", 1.3, 7, 0.8)])
def test_draws_equal_those_of_transformers_from_the_same_random_numbers(pair, parity, family, temperature, top_k, top_p):
    """One uniform number a token, drawn before the first: the token is where the running sum of what transformers' warpers leave
    passes it. Token by token, over ragged prompts, until each completion stops. Warpers that kept one token more, or a
    temperature at another place, would bend it."""
    ours, theirs = pair(family)
    prompts, stop_ids = random_prompts(10, vocabulary=61), (2, 5, 11, 40, 41)
    uniform_QKC = torch.empty(10, 4, 8, dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(3))
    warpers = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or 61), TopPLogitsWarper(top_p)]

    def drawn_alone(prompt, uniform_C):
        ids = list(prompt)
        for uniform in uniform_C:
            logits = theirs(input_ids=torch.tensor([ids])).logits[:, -1].double()
            for warper in warpers:
                logits = warper(None, logits)
            ids.append(int(torch.searchsorted(logits[0].softmax(-1).cumsum(-1), uniform, right=True)))
            if ids[-1] in stop_ids:
                break
        return tuple(ids[len(prompt):])

    expected = [drawn_alone(prompt, uniform_C) for prompt, group in zip(prompts, uniform_QKC) for uniform_C in group]
    found = sample(ours, prompts, completions=4, max_new_tokens=8, stopping=stop_at(*stop_ids, vocabulary=61),
                   temperature=temperature, top_k=top_k, top_p=top_p, generator=torch.Generator().manual_seed(3))
    got = [completion.ids for group in found for completion in group]
    assert any(len(ids) < 8 for ids in got)
    parity("greedy decoding and sampling: sequences", "transformers",
           sum(ids != other for ids, other in zip(got, expected, strict=True)), bound=0, unit="different", cases=len(got))


def test_rare_tokens_are_drawn_as_rarely_as_they_should_be():
    """A likely token, 1,000 tokens of probability 1e-9 each, and a likely one. Numbers that lie 1e-10 apart within the rare ones'
    share fall on each of these in turn; rounded to 24 bits, 6e-8 apart, they would fall on one in sixty."""
    p_V = torch.tensor([0.5, *[1e-9] * 1000, 0.5 - 1e-6], dtype=torch.float64)
    uniform_QK = 0.5 + (torch.arange(1000, dtype=torch.float64) + 0.5)[None] * 1e-9
    assert draw(p_V.log().expand(1, 1000, -1), uniform_QK).tolist() == [list(range(1, 1001))]


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


def test_bfloat16_models_search_in_float32(checkpoint):
    """Log-probs of a bf16 model are computed in float32: all 13 of them add up to one far better than bf16 could."""
    model = load_model(checkpoint("llama", **SMALL)[0], dtype=torch.bfloat16, device="cpu")
    [group] = beam_search(model, [[1, 3, 4]], completions=13, max_new_tokens=1, stopping=stop_at(2))
    assert sum(math.exp(c.logprobs[0]) for c in group) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_beams_equal_those_of_transformers(smollm2, parity):
    import transformers

    from minigrpo.policy.files.weights import load_policy
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    policy = load_policy(smollm2, dtype=torch.float32, device="cpu")
    texts = ["SELECT name FROM athletes WHERE", "The capital of France is", "def fibonacci(n):\n", "Q: 2 + 2 = ? A:"]
    prompts = [policy.tokenizer.encode(text) for text in texts]
    found = beam_search(policy.model, prompts, completions=4, max_new_tokens=12, stopping=policy.stopping)
    expected = beams_of_transformers(theirs, prompts, 4, 12, policy.tokenizer.stop_ids, 1.0, False)
    assert_same_beams(parity, theirs, prompts, found, expected, 4, 12, policy.tokenizer.stop_ids, 1.0, False)


# ------------------------------------------------------------------------------------------- a search kept for the next
@pytest.fixture
def keeping(monkeypatch):
    """As on CUDA, where recorded steps read the tensors of the first search: it is kept, though its steps are called."""
    class Keeping(minigrpo.policy.search.Replay):
        def __init__(self, device):
            super().__init__(device)
            self.records = True

        def __call__(self, step, shape):
            step()

    monkeypatch.setattr(minigrpo.policy.search, "Replay", Keeping)


@pytest.mark.parametrize("search, settings", [
    (beam_search, dict(length_penalty=0.5)), (beam_search, dict(early_stopping=True)), (sample, dict(temperature=0.0)),
    (sample, dict(temperature=1.3))])
def test_a_kept_search_finds_what_a_new_one_finds(pair, keeping, search, settings):
    """Three rounds of other prompts, shorter ones too, in the same tensors: nothing of a round reaches the next."""
    ours, _ = pair("llama", max_position_embeddings=256)
    used, fresh = copy.deepcopy(ours), copy.deepcopy(ours)
    stopping, kept = stop_at(2, 5, vocabulary=61), []
    for seed in range(3):
        prompts = [[5] * 20 + ids for ids in random_prompts(3, seed=seed, vocabulary=61)]
        rounds = []
        for model in (used, fresh):
            draws = {"generator": torch.Generator().manual_seed(seed)} if search is sample else {}
            rounds.append(search(model, prompts, completions=3, max_new_tokens=40, stopping=stopping, **settings, **draws))
        assert rounds[0] == rounds[1]
        kept.append(used.kept)
        fresh.kept = None
    assert kept[0] is kept[1] is kept[2]


def test_a_search_is_not_kept_for_what_it_does_not_fit(pair, keeping):
    """Other adapters in use, other settings, more prompts, longer ones, much shorter ones: each begins anew."""
    ours, _ = pair("llama", max_position_embeddings=256)
    model, stopping = copy.deepcopy(ours), stop_at(2, vocabulary=61)
    add_lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))

    def kept(prompts, **settings):
        beam_search(model, prompts, **(dict(completions=2, max_new_tokens=3, stopping=stopping) | settings))
        return model.kept

    usual = [[3] * 70, [4] * 3]
    first = kept(usual)
    assert kept(usual) is first and kept([[7] * 96, [4] * 3]) is first                  # room for 96 = 3 · 32
    for prompts, settings in (([[3] * 97, [4]], {}), ([[3] * 47, [4]], {}), ([[3] * 70], {}), (usual, {"max_new_tokens": 4}),
                              (usual, {"length_penalty": 2.0}), (usual, {"stopping": stop_at(2, vocabulary=61)})):
        first = kept(usual)
        assert kept(prompts, **settings) is not first
    first = kept(usual)
    with reference(model):
        assert kept(usual) is not first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_update_did_to_the_adapters_a_kept_search_sees(pair, keeping, dtype):
    """It reads them where they are, or copies in the base's dtype that are brought up to date: the next search of the same shape
    writes by the new ones."""
    ours, _ = pair("llama")
    model, stopping = copy.deepcopy(ours).to(dtype), stop_at(2, vocabulary=61)
    add_lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
    settings = dict(completions=2, max_new_tokens=5, stopping=stopping)
    before = beam_search(model, [[3, 4, 5]], **settings)
    for parameter in adapter_parameters(model).values():
        parameter.data += 0.5
    after = beam_search(model, [[3, 4, 5]], **settings)
    model.kept = None
    assert after == beam_search(model, [[3, 4, 5]], **settings) and after != before
