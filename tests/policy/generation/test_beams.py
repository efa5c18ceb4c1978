"""Beam search against transformers and against brute force; hypotheses by hand."""

import copy
import itertools

import pytest
import torch

from minigrpo.policy.generation.beams import Completion, Hypotheses
from minigrpo.policy.generation.search import beam_search
from tests.policy.generation.helpers import FAMILIES, SMALL, assert_same, cut, left_padded, random_prompts, score, stop_at


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


def test_beams_of_a_prompt_are_different_and_best_first(pair):
    ours, _ = pair("llama", **SMALL)
    for length_penalty in (0.0, 1.0, 2.0):
        for group in beam_search(ours, random_prompts(10), completions=5, max_new_tokens=5, stopping=stop_at(2),
                                 length_penalty=length_penalty):
            assert len({c.ids for c in group}) == 5
            scores = [score(c, length_penalty) for c in group]
            assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_beams_equal_those_of_transformers(smollm2, parity):
    import transformers

    from minigrpo.policy.policy import load_policy
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    policy = load_policy(smollm2, dtype=torch.float32, device="cpu")
    texts = ["SELECT name FROM athletes WHERE", "The capital of France is", "def fibonacci(n):\n", "Q: 2 + 2 = ? A:"]
    prompts = [policy.tokenizer.encode(text) for text in texts]
    found = beam_search(policy.model, prompts, completions=4, max_new_tokens=12, stopping=policy.stopping)
    expected = beams_of_transformers(theirs, prompts, 4, 12, policy.tokenizer.stop_ids, 1.0, False)
    assert_same_beams(parity, theirs, prompts, found, expected, 4, 12, policy.tokenizer.stop_ids, 1.0, False)


# -------------------------------------------------------------------------------------- completions under way, by hand
def two(scores):
    """One prompt, two hypotheses of up to three tokens, with these scores."""
    hypotheses = Hypotheses.empty(1, 2, 3, torch.float32, torch.device("cpu"))
    hypotheses.score_QK.copy_(torch.tensor([scores]))
    return hypotheses


def append(hypotheses, depth, ids, logp, ends):
    hypotheses.append(torch.tensor([ids]), torch.tensor([logp]), torch.tensor([ends]), torch.tensor([depth]))


def test_a_hypothesis_that_has_ended_stays_as_it_is():
    grown = two([0.0, 0.0])
    append(grown, 0, [5, 6], [-1.0, -2.0], [False, True])
    append(grown, 1, [7, 8], [-3.0, -4.0], [False, False])
    assert grown.completions() == [[Completion((5, 7), (-1.0, -3.0), False), Completion((6,), (-2.0,), True)]]
    grown.clear()
    assert grown.completions() == [[Completion((), (), False)] * 2] and grown.score_QK.isneginf().all()


def test_the_best_of_both_come_best_first():
    first, second = two([-1.0, -4.0]), two([-3.0, -torch.inf])
    append(first, 0, [1, 2], [-1.0, -1.0], [True, True])
    append(second, 0, [3, 4], [-1.0, -1.0], [True, True])
    best = first.best_with(second)
    assert best.score_QK.tolist() == [[-1.0, -3.0]] and best.ids_QKC[0, :, 0].tolist() == [1, 3]


def test_scores_of_a_bfloat16_model_are_float32():
    assert Hypotheses.empty(1, 1, 1, torch.bfloat16, torch.device("cpu")).score_QK.dtype == torch.float32


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_log_probs_that_are_not_finite_become_nobodys_completion(odd):
    grown = two([0.0, 0.0])
    append(grown, 0, [5, 6], [-1.0, odd], [False, False])
    with pytest.raises(ValueError, match="log-probs are not finite"):
        grown.completions()
