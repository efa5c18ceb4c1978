"""Tokens drawn by uniform numbers."""

import pytest
import torch

from minigrpo.policy.fast.draw import draw


def test_rare_tokens_are_drawn_as_rarely_as_they_should_be():
    """A likely token, 1,000 tokens of probability 1e-9 each, and a likely one. Numbers that lie 1e-10 apart within the rare ones'
    share fall on each of these in turn; rounded to 24 bits, 6e-8 apart, they would fall on one in sixty."""
    p_V = torch.tensor([0.5, *[1e-9] * 1000, 0.5 - 1e-6], dtype=torch.float64)
    uniform_QK = 0.5 + (torch.arange(1000, dtype=torch.float64) + 0.5)[None] * 1e-9
    assert draw(p_V.log().expand(1, 1000, -1), uniform_QK).tolist() == [list(range(1, 1001))]


@pytest.mark.parametrize("vocabulary", [1, 5, 511, 512, 513, 3000])
def test_the_token_is_where_the_running_sum_passes_the_uniform_number(vocabulary):
    """The plain way: one running sum over the whole vocabulary. Some probabilities are 0 and are never drawn."""
    generator = torch.Generator().manual_seed(0)
    logits_QKV = 3 * torch.randn(2, 50, vocabulary, dtype=torch.float64, generator=generator)
    logits_QKV[:, :, 1::3] = -torch.inf
    logp_QKV, uniform_QK = logits_QKV.log_softmax(-1), torch.rand(2, 50, dtype=torch.float64, generator=generator)
    upto_QKV = logp_QKV.exp().cumsum(-1)
    expected_QK1 = torch.searchsorted(upto_QKV, uniform_QK[:, :, None] * upto_QKV[:, :, -1:], right=True)
    assert draw(logp_QKV, uniform_QK).equal(expected_QK1[:, :, 0])
