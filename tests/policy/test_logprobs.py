"""Log-probs of completions against a plain forward pass of transformers, their gradient against plain autograd."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.logprobs import completion_logprobs, token_logprobs
from minigrpo.policy.lora import adapter_parameters, adapters, add_lora
from minigrpo.policy.tree import pad_completions, pad_prompts

FAMILIES = pytest.mark.parametrize("family, config", [
    ("llama", {}), ("llama", dict(tie_word_embeddings=True)), ("mistral", dict(sliding_window=5)), ("gemma", {}),
    ("qwen2", {}), ("qwen3", {})])
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [13]]
LENGTHS = torch.tensor([[4, 6], [6, 2], [1, 5]])
MASK = torch.arange(6) < LENGTHS[:, :, None]
IDS = torch.randint(0, 61, (3, 2, 6), generator=torch.Generator().manual_seed(0)) * MASK


def plain(logits_of, temperature=1.0):
    """The same by the plain way: each prompt + completion alone, log-softmax of all logits, shifted by one, zeros
    behind."""
    rows = []
    for q, prompt in enumerate(PROMPTS):
        for k in range(2):
            completion = IDS[q, k, :LENGTHS[q, k]].tolist()
            logits_TV = logits_of(torch.tensor([prompt + completion]))[0, len(prompt) - 1:-1].float() / temperature
            logp_T = logits_TV.log_softmax(-1)[range(len(completion)), completion]
            rows.append(torch.cat([logp_T, logp_T.new_zeros(6 - len(completion))]))
    return torch.stack(rows)


@pytest.mark.parity
@FAMILIES
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_those_of_transformers(pair, parity, family, config, temperature):
    ours, theirs = pair(family, **config)
    got = completion_logprobs(ours, pad_prompts(PROMPTS), IDS, MASK, temperature=temperature)
    assert got.shape == (6, 6) and got.dtype == torch.float32
    expected = plain(lambda ids: theirs(input_ids=ids).logits, temperature)
    assert not got[~MASK.flatten(0, 1)].any()
    parity("log-probs of completions", "transformers", (got - expected).abs().max() / expected.abs().max(), bound=2e-5,
           unit="of scale", cases=24)


def test_they_are_probabilities(pair):
    """Over all 13 · 13 completions of two tokens the probabilities add up to one."""
    model, _ = pair("llama", vocab_size=13, eos_token_id=2)
    ids_QKC = torch.cartesian_prod(torch.arange(13), torch.arange(13))[None]
    logp_BC = completion_logprobs(model, pad_prompts([[1, 2, 3]]), ids_QKC, torch.ones_like(ids_QKC, dtype=torch.bool))
    torch.testing.assert_close(logp_BC.sum(1).exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("chunk", [1, 2, 7, 23, 24, 25, 1000])
def test_chunk_does_not_matter(pair, chunk):
    model, _ = pair("llama")                    # 24 live tokens: 4 + 6 + 6 + 2 + 1 + 5
    whole = completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK)
    torch.testing.assert_close(completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK, chunk=chunk), whole,
                               rtol=1e-5, atol=1e-6)


def test_masked_positions_are_zero_and_what_they_hold_does_not_matter(pair):
    model, _ = pair("llama")
    got = completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK)
    assert (got[~MASK.flatten(0, 1)] == 0).all() and (got[MASK.flatten(0, 1)] < 0).all()
    assert completion_logprobs(model, pad_prompts(PROMPTS), IDS.where(MASK, 37), MASK).equal(got)


def test_order_of_groups_and_of_branches_does_not_matter(pair):
    model, _ = pair("llama")
    got = completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK).view(3, 2, 6)
    turned = completion_logprobs(model, pad_prompts(PROMPTS[::-1]), IDS.flip(0, 1), MASK.flip(0, 1)).view(3, 2, 6)
    torch.testing.assert_close(turned.flip(0, 1), got, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_lengths_side_by_side_equal_each_alone(pair, data):
    """Q prompts of any lengths with K completions of any lengths, empty ones among them, through a window of five: as many
    log-probs as tokens, each as if its prompt and completion were all there is, and zeros behind."""
    model, _ = pair("mistral", sliding_window=5)
    Q, K = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    tokens = st.integers(0, 60)
    prompts = data.draw(st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=Q, max_size=Q))
    group = st.lists(st.lists(tokens, max_size=9), min_size=K, max_size=K)
    completions = data.draw(st.lists(group, min_size=Q, max_size=Q))
    got = completion_logprobs(model, pad_prompts(prompts), *pad_completions(completions))
    assert got.shape == (Q * K, max(len(ids) for group in completions for ids in group))
    for row, (q, k) in zip(got, itertools.product(range(Q), range(K))):
        ids = completions[q][k]
        alone = completion_logprobs(model, pad_prompts(prompts[q:q + 1]), *pad_completions([[ids]]))[0]
        torch.testing.assert_close(row[:len(ids)], alone, rtol=1e-5, atol=1e-5)
        assert not row[len(ids):].any()


def test_groups_of_micro_batches_equal_the_whole_batch(pair):
    model, _ = pair("llama")
    whole = completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK)
    parts = [completion_logprobs(model, pad_prompts(PROMPTS[i:i + 1]), IDS[i:i + 1], MASK[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- gradient
@pytest.fixture
def adapted(checkpoint):
    def make(family, **config):
        model, draw = load_model(checkpoint(family, **config)[0], dtype=torch.float32, device="cpu"), torch.Generator()
        add_lora(model, rank=3, alpha=6.0, generator=draw.manual_seed(0))
        for layer in adapters(model).values():
            layer.lora_B.data = 0.3 * torch.randn(layer.lora_B.shape, generator=draw)
        return model

    return make


def gradients(model, logp_BC, weight_BC):
    model.zero_grad()
    (logp_BC * weight_BC).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}


@FAMILIES
def test_gradients_equal_plain_autograd(adapted, family, config):
    model = adapted(family, **config)
    weight_BC = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    logp_BC = completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK, temperature=0.7, chunk=5)
    got = gradients(model, logp_BC, weight_BC)
    expected = gradients(model, plain(lambda ids: model.logits(model(ids)), 0.7), weight_BC)
    for name in expected:
        scale = float(expected[name].abs().max())
        assert scale > 0 and float((got[name] - expected[name]).abs().max()) <= 1e-4 * scale, name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_root_gives_the_log_probs_and_gradients_of_none(adapted, data):
    """In float64, for any family: prompts that share any number of tokens, completions of any lengths, empty ones among them,
    and a window shorter or longer than what is shared. A root of any length up to that changes the order of sums alone."""
    family, config = data.draw(st.sampled_from([("llama", {}), ("gemma", {}), ("qwen2", {}), ("qwen3", {}), *(
        ("mistral", dict(sliding_window=window)) for window in (1, 4, 9, 30))]))
    model = adapted(family, **config).double()
    Q, K, tokens = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 8)), st.integers(0, 60)
    shared = data.draw(st.lists(tokens, max_size=20))
    prompts = [shared + own for own in data.draw(st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=Q, max_size=Q))]
    group = st.lists(st.lists(tokens, max_size=5), min_size=K, max_size=K)
    ids_QKC, mask_QKC = pad_completions(data.draw(st.lists(group, min_size=Q, max_size=Q)))
    weight_BC = torch.randn(Q * K, ids_QKC.shape[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for root in (0, data.draw(st.integers(0, len(shared)))):
        logp_BC = completion_logprobs(model, pad_prompts(prompts, root=root), ids_QKC, mask_QKC)
        found.append({"log-probs": logp_BC.detach(), **gradients(model, logp_BC, weight_BC)})
    for name, expected in found[0].items():
        largest = max([1.0, *expected.abs().flatten().tolist()])
        assert all(apart <= 1e-12 * largest for apart in (found[1][name] - expected).abs().flatten().tolist()), name


def test_masked_positions_give_no_gradient(adapted):
    """A weight, however large, on masked positions changes no bit of the gradient."""
    model, mask_BC = adapted("llama"), MASK.flatten(0, 1)
    weight_BC = torch.ones(6, 6)
    one, other = (gradients(model, completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK), w)
                  for w in (weight_BC, weight_BC.where(mask_BC, 1e6)))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_wholly_masked_branch_equals_its_absence(adapted):
    model = adapted("llama")
    masked = MASK.clone()
    masked[:, 1] = False
    got = completion_logprobs(model, pad_prompts(PROMPTS), IDS, masked).view(3, 2, 6)
    alone = completion_logprobs(model, pad_prompts(PROMPTS), IDS[:, :1], MASK[:, :1])
    assert not got[:, 1].any()
    torch.testing.assert_close(got[:, 0], alone, rtol=1e-5, atol=1e-5)


def test_all_masked_is_zero_with_zero_gradient(adapted):
    """A micro-batch without a live token adds nothing and does not stop the backward pass."""
    model = adapted("llama")
    logp_BC = completion_logprobs(model, pad_prompts(PROMPTS), IDS, torch.zeros_like(MASK))
    assert logp_BC.shape == (6, 6) and not logp_BC.any()
    assert not any(grad.any() for grad in gradients(model, logp_BC, torch.ones(6, 6)).values())


def test_float64_model_is_scored_in_float64(checkpoint):
    folder, theirs = checkpoint("llama")
    model = load_model(folder, dtype=torch.float64, device="cpu")
    got = completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), plain(lambda ids: theirs(input_ids=ids).logits), rtol=1e-4, atol=1e-4)


def test_bfloat16_model_is_scored_in_float32(checkpoint):
    model = load_model(checkpoint("llama")[0], dtype=torch.bfloat16, device="cpu")
    assert completion_logprobs(model, pad_prompts(PROMPTS), IDS, MASK).dtype == torch.float32


@pytest.mark.slow
def test_what_bfloat16_costs_smollm2(smollm2):
    """Its logits are near 26, where bfloat16 has steps of 0.125. Measured over six gold queries, mean error of a log-prob: the
    head's rounding alone 0.013, all else 0.022, both 0.026. So a head in float32 would take away a sixth. Half as much again
    is allowed."""
    from minigrpo.policy.policy import load_policy
    narrow = load_policy(smollm2, dtype=torch.bfloat16, device="cpu")
    wide = load_model(smollm2, dtype=torch.float32, device="cpu")
    text = ("Tables:\nAthlete(athlete_id, name)\nTournament(tournament_id, athlete_id, name)\nQuestion: How many gold medals "
            "has Lin Dan won?\nSQL:\nSELECT COUNT(*) FROM Medal m JOIN Format f ON m.format_id = f.format_id "
            "JOIN Tournament t ON f.tournament_id = t.tournament_id JOIN Athlete a ON t.athlete_id = a.athlete_id "
            "WHERE a.name = 'Lin Dan' AND m.type = 'MedalGold'")
    *prompt, last = narrow.tokenizer.encode(text)
    ids_QT, ids_T = torch.tensor([prompt]), torch.tensor([*prompt[1:], last])
    with torch.inference_mode():
        hidden_TD = narrow.model(ids_QT)[0]
        both = token_logprobs(narrow.model, hidden_TD, ids_T, 1.0)
        body = token_logprobs(wide, hidden_TD.float(), ids_T, 1.0)
        exact = token_logprobs(wide, wide(ids_QT)[0], ids_T, 1.0)
    assert 0.005 < (both - body).abs().mean() < 0.02
    assert (body - exact).abs().mean() < 0.033 and (both - exact).abs().mean() < 0.039


@pytest.mark.parametrize("ids_shape, mask_shape, name", [
    ((3, 2, 6), (3, 2, 5), "mask_QKC"), ((2, 2, 6), (2, 2, 6), "ids_QKC")])
def test_wrong_shapes_are_named(pair, ids_shape, mask_shape, name):
    with pytest.raises(ValueError, match=name):
        completion_logprobs(pair("llama")[0], pad_prompts(PROMPTS), torch.zeros(ids_shape, dtype=torch.long),
                            torch.ones(mask_shape, dtype=torch.bool))
