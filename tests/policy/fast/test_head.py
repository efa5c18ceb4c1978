"""The output head's log-probs and their slope, against plain autograd and TRL; tokens drawn by uniform numbers."""

from types import SimpleNamespace

import pytest
import torch

from minigrpo.policy.fast.head import draw, log_softmax
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.logprobs import token_logprobs


def test_one_token_by_hand():
    """Logits 2·(0, ln 2, ln 4) at temperature 2: probabilities 1/7, 2/7, 4/7."""
    model = SimpleNamespace(head=torch.nn.Linear(3, 3, bias=False).requires_grad_(False))
    model.head.weight.copy_(torch.eye(3))
    hidden_TD = 2 * torch.tensor([[1.0, 2.0, 4.0]]).log().expand(3, 3)
    got = token_logprobs(model, hidden_TD, torch.tensor([0, 1, 2]), 2.0)
    torch.testing.assert_close(got.exp(), torch.tensor([1 / 7, 2 / 7, 4 / 7]))


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_head_and_one_that_learns_agree(pair, tied):
    """One has its slope worked out with the log-probs, the other is plain autograd behind a checkpoint: the same log-probs, the
    same gradient of the hidden states, in float64, and the second has one of its weights."""
    model = pair("llama", tie_word_embeddings=tied)[0].double()
    draw = torch.Generator().manual_seed(3)
    hidden_TD = torch.randn(7, model.architecture.width, generator=draw, dtype=torch.float64).requires_grad_()
    ids_T, grad_T = torch.randint(0, 61, (7,), generator=draw), torch.randn(7, generator=draw, dtype=torch.float64)
    found = []
    for learns in (False, True):
        model.head.weight.requires_grad_(learns)
        logp_T = token_logprobs(model, hidden_TD, ids_T, 0.7)
        wanted = [hidden_TD, model.head.weight][:1 + learns]
        found.append((logp_T.detach(), *torch.autograd.grad(logp_T, wanted, grad_T)))
    torch.testing.assert_close(found[0], found[1][:2], rtol=1e-12, atol=1e-14)
    assert found[1][2].abs().max() > 0


# ------------------------------------------------------------------------------------------------------------- bfloat16
def at_the_head(folder, dtype):
    """(model, hidden states of 300 tokens of unit variance, their ids)."""
    model, draw = load_model(folder, dtype=dtype, device="cpu"), torch.Generator().manual_seed(0)
    return model, torch.randn(300, 32, generator=draw).to(dtype).requires_grad_(), torch.randint(0, 61, (300,), generator=draw)


@pytest.mark.parity
@pytest.mark.parametrize("dtype, of_gradients", [(torch.float32, 1e-5), (torch.bfloat16, 2 ** -7)])
def test_the_head_is_trls(checkpoint, parity, dtype, of_gradients):
    """By default both round logits to the weights' dtype and do all that comes behind in float32 (TRL's cast_lm_head_to_fp32
    would not). Gradients of hidden states are bfloat16 themselves where those are: up to two roundings of 2⁻⁸ apart."""
    from trl.kernels import ChunkedLogProbFunction

    model, hidden_TD, ids_T = at_the_head(checkpoint("llama")[0], dtype)
    got_T = token_logprobs(model, hidden_TD, ids_T, 0.7)
    expected_T, *_ = ChunkedLogProbFunction.apply(hidden_TD, model.lm_head.weight, None, ids_T, 0.7, 7, None, 1.0,
                                                  ("log_probs",))
    name = str(dtype).removeprefix("torch.")
    parity("head's log-probs", "trl", ((got_T - expected_T).abs().max() / expected_T.abs().max()).item(), bound=1e-5,
           unit="of scale", cases=300)
    got_TD, expected_TD = (torch.autograd.grad(logp_T.sum(), hidden_TD)[0].float() for logp_T in (got_T, expected_T))
    parity(f"head's gradient, {name}", "trl", (got_TD - expected_TD).abs().max() / expected_TD.abs().max(), bound=of_gradients,
           unit="of scale", cases=300)


def test_what_a_bfloat16_head_costs_is_the_rounding_of_its_logits(checkpoint):
    """8 bits: a logit l is off by at most 2⁻⁸ |l|, log Σ exp of them by at most their largest error, so a log-prob by at most
    2⁻⁷ times the largest logit. A head that returned float32 would be off by far less than an eighth of that."""
    model, hidden_TD, ids_T = at_the_head(checkpoint("llama")[0], torch.bfloat16)
    logits_TV = hidden_TD.double() @ model.lm_head.weight.double().T
    exact_T = logits_TV.log_softmax(-1).gather(1, ids_T[:, None])[:, 0]
    error_T = (token_logprobs(model, hidden_TD, ids_T, 1.0) - exact_T).abs()
    assert (error_T <= 2 ** -7 * logits_TV.abs().amax(-1)).all() and error_T.max() > 2 ** -10 * logits_TV.abs().max()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype, wide", [(torch.bfloat16, torch.float32), (torch.float32, torch.float32),
                                         (torch.float64, torch.float64)])
def test_log_softmax_is_that_of_logits_cast_first(dtype, wide, temperature):
    logits = 5 * torch.randn(7, 61, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert log_softmax(logits, temperature).equal((logits.to(wide) / temperature).log_softmax(-1))


# --------------------------------------------------------------------------------------------------------------- draws
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
