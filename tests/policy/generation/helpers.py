"""Small vocabularies, ragged prompts and comparisons of completions."""

import pytest
import torch

from minigrpo.policy.tokenizer import compile_stopping

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
