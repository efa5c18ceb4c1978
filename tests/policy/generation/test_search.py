"""What beam search and sampling have in common: log-probs, stops, refusals, precision."""

import itertools
import math

import pytest
import torch

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.generation.search import beam_search, sample
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.stopping import compile_stopping
from minigrpo.policy.tree import pad_completions, pad_prompts
from tests.policy.generation.helpers import FAMILIES, SMALL, random_prompts, stop_at


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
