"""The decoder against transformers on tiny random checkpoints, on each of its paths, and against itself."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.tree import pad_prompts, prompt_visibility, scoring_tree, within_window
from tests.policy.helpers import (
    EACH,
    IDS_QKC,
    LIVE_QKC,
    LLAMA3,
    OF_LOGITS,
    PATHS,
    PROMPTS,
    ROOTED,
    apart,
    gradients,
    grown,
    in_pieces,
    random_ids,
    scored_alone,
)


@pytest.mark.parity
@EACH
def test_logits_equal_those_of_transformers(pair, parity, family, config):
    ours, theirs = pair(family, **config)
    ids_QT = random_ids(3, 40)
    parity("logits, one pass", "transformers", apart(ours.logits(ours(ids_QT)), theirs(input_ids=ids_QT).logits), **OF_LOGITS)


@st.composite
def anything(draw):
    """Any family with any of the features that it has, in any combination: (family, what transformers' config is given)."""
    family, sharing = draw(st.sampled_from(["llama", "mistral", "gemma", "qwen2", "qwen3"])), draw(st.sampled_from([1, 2, 3]))
    kv_heads, size = draw(st.integers(1, 3)), draw(st.sampled_from([2, 8, 12]))
    config = dict(num_key_value_heads=kv_heads, num_attention_heads=kv_heads * sharing, head_dim=size,
                  hidden_size=kv_heads * sharing * draw(st.sampled_from([4, 8])), num_hidden_layers=draw(st.integers(1, 3)),
                  hidden_act=draw(st.sampled_from(["silu", "gelu", "gelu_new", "gelu_pytorch_tanh"])),
                  rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])), tie_word_embeddings=draw(st.booleans()),
                  rope_theta=draw(st.sampled_from([50.0, 1e4, 1e6])),
                  rope_scaling=draw(st.sampled_from([None, LLAMA3, dict(rope_type="linear", factor=3.0)])))
    if family == "mistral":
        config["sliding_window"] = draw(st.none() | st.integers(1, 20))
    if family in ("llama", "gemma", "qwen3"):
        config["attention_bias"] = draw(st.booleans())
    if family == "llama":
        config["mlp_bias"] = draw(st.booleans())
    return family, config


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(anything())
def test_features_go_together(pair, parity, drawn):
    family, config = drawn
    ours, theirs = pair(family, **config)
    ids_QT = random_ids(2, 17)
    expected_QTV = theirs(input_ids=ids_QT).logits
    parity("logits, one pass", "transformers", apart(ours.logits(ours(ids_QT)), expected_QTV), **OF_LOGITS)
    cached_QTV = ours.logits(in_pieces(ours, ids_QT, [9, 1, 7]))
    parity("logits, cached", "transformers", apart(cached_QTV, expected_QTV), **OF_LOGITS)


@pytest.mark.parametrize("family, config, plain", [
    ("llama", dict(hidden_act="gelu"), {}),
    ("llama", dict(rms_norm_eps=0.5), {}),
    ("llama", dict(rope_theta=77.0), {}),
    ("llama", dict(rope_scaling=dict(rope_type="linear", factor=3.0)), {}),
    ("llama", dict(rope_scaling=LLAMA3, rope_theta=50.0), dict(rope_theta=50.0)),
    ("mistral", dict(sliding_window=5), dict(sliding_window=None)),
])
def test_the_comparison_above_can_fail(pair, family, config, plain):
    """A setting that changes no tensor's name or shape could be ignored unnoticed, did it not move the logits by over
    1 %."""
    changed, same = (pair(family, **settings)[1](input_ids=random_ids(3, 40)).logits for settings in (config, plain))
    assert float((changed - same).abs().max()) > 1e-2 * float(same.abs().max())


@pytest.mark.parity
@EACH
def test_ragged_prompts_side_by_side_equal_transformers_masked_batch(pair, parity, family, config):
    """Right-padded on both sides; theirs is told of padding by its mask of ones and zeros."""
    model, theirs = pair(family, **config)
    prompts = pad_prompts([random_ids(n, seed=n).tolist() for n in (3, 17, 1, 9)])
    positions_QP = torch.arange(17).expand(4, 17)
    visible_QPP = within_window(prompt_visibility(prompts.live_QP), positions_QP, positions_QP, model.architecture.window)
    got = model.logits(model(prompts.ids_QP, visible_QTS=visible_QPP)[prompts.live_QP])
    expected = theirs(input_ids=prompts.ids_QP, attention_mask=prompts.live_QP.long()).logits[prompts.live_QP]
    parity("logits, ragged batch", "transformers", apart(got, expected), **OF_LOGITS)


def behind_root(model, prompts, ids_QKC, live_QKC):
    """Hidden states of trunks and branches, and their tree."""
    tree = scoring_tree(prompts, ids_QKC, live_QKC, window=model.architecture.window)
    root = model.read(prompts.root)
    return model(tree.ids_1S, positions_QT=tree.positions_1S, visible_QTS=tree.visible, root=root), tree


def scored_tree(model, ids_QKC, prompts=PROMPTS):
    """Logits that predict each live token of ragged completions to some prompts, all in one pass."""
    hidden_1SD, tree = behind_root(model, pad_prompts(prompts), ids_QKC, LIVE_QKC)
    assert hidden_1SD.isfinite().all()
    return model.logits(hidden_1SD[0, tree.predictor_QKC[LIVE_QKC]])


@pytest.mark.parity
@EACH
@pytest.mark.parametrize("prompts", [PROMPTS, ROOTED], ids=["no root", "root"])
def test_scoring_tree_equals_each_sequence_alone(pair, parity, family, config, prompts):
    model, theirs = pair(family, **config)
    got, expected = scored_tree(model, IDS_QKC, prompts), scored_alone(theirs, prompts)
    parity("logits, tree of completions", "transformers", apart(got, expected), **OF_LOGITS)


@pytest.mark.parity
@PATHS
def test_no_number_that_padding_could_hold_reaches_a_live_token(pair, parity, family, config):
    """No live token is 0, whose embedding is NaN here: were it in a padded slot, all would be NaN, as masked means 0 times.
    (In transformers it does: its padding has to be a number.) A tied head's logit 0 is NaN by itself and left out."""
    model, theirs = pair(family, **config)
    model = copy.deepcopy(model)
    model.model.embed_tokens.weight[0] = torch.nan
    pairs = [*((scored_tree(model, IDS_QKC * LIVE_QKC, prompts), scored_alone(theirs, prompts)) for prompts in (PROMPTS, ROOTED)),
             *grown(model, theirs), *grown(model, theirs, ROOTED)]
    for got, expected in pairs:
        parity("logits, NaN for padding", "transformers", apart(got[..., 1:], expected[..., 1:]), **OF_LOGITS)


def test_padding_is_its_prompts_first_token_once_more(pair):
    """In a branch it sees itself only, and what it says does not depend on where it stands: all padded slots of branches have
    one hidden state, the prompt's first."""
    model, _ = pair("llama")
    for prompts in map(pad_prompts, (PROMPTS, ROOTED)):
        hidden_1SD, _ = behind_root(model, prompts, IDS_QKC * LIVE_QKC, LIVE_QKC)
        hidden_QXD = hidden_1SD[0, -LIVE_QKC.numel():].unflatten(0, (3, -1))[:, :, None]      # the branches come last
        first_QD = torch.stack([model(prompts.ids_QP[q:q + 1, :1])[0, 0] for q in range(3)])
        for q, padding_X in enumerate(~LIVE_QKC.flatten(1)):
            torch.testing.assert_close(hidden_QXD[q, padding_X, 0], first_QD[q].expand(int(padding_X.sum()), -1))


@PATHS
@pytest.mark.parametrize("root", [[], [8, 9, 10] * 11])
def test_what_lies_in_padding_changes_no_live_bit(pair, family, config, root):
    """Other ids in the padding of trunk and branches: every live slot's hidden state is the same, bit for bit."""
    model, _ = pair(family, **config)
    prompts = pad_prompts([[*root, 5, 6], [*root, *random_ids(7).tolist()]])
    live_QKC = torch.arange(4) < torch.tensor([[4, 2], [1, 3]])[:, :, None]
    clean_QKC = random_ids(2, 2, 4, seed=3) * live_QKC

    def hidden(garbage):
        ids_QP = prompts.ids_QP.where(prompts.live_QP, garbage)
        hidden_1SD, _ = behind_root(model, replace(prompts, ids_QP=ids_QP), clean_QKC.where(live_QKC, garbage), live_QKC)
        return hidden_1SD[0, torch.cat([prompts.live_QP[:, len(root):].flatten(), live_QKC.flatten()])]

    assert hidden(0).equal(hidden(37))


@pytest.mark.parity
@pytest.mark.parametrize("layers", [2, 8])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2", "qwen3"])
def test_bfloat16_strays_from_float32_as_roundings_do_and_less_than_transformers(checkpoint, parity, tmp_path, family, layers):
    """A file in bfloat16, which keeps 8 bits: rounding errs by up to 2⁻⁸, and 2⁻⁸ / √3 · 0.74 = 0.0017 in the root of the
    mean square, the errors being even and the mantissas logarithmic. A layer rounds about 16 times in a row (norm,
    projection, three in the rotation, attention, weights, projection, sum; norm, gate, up, activation, product, down, sum),
    so √(16 · layers + 2) · 0.0017 would be the logits' error in units of their own size did nothing amplify it: 0.010 for 2
    layers and 0.019 for 8. Softmax does, as its scores are larger than 1: a factor of 2.5 was measured, 3 is allowed. Rotary
    angles rounded to bfloat16, in which 257 is 256, would be seen at once. Transformers rounds once more in each norm."""
    config = dict(max_position_embeddings=512, num_hidden_layers=layers)
    _, theirs = checkpoint(family, **config)
    copy.deepcopy(theirs).bfloat16().save_pretrained(tmp_path)
    exact, rounded = (type(theirs).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager").requires_grad_(False)
                      for dtype in (torch.float32, torch.bfloat16))
    ours, ids_QT = load_model(tmp_path, dtype=torch.bfloat16, device="cpu"), random_ids(2, 300)
    expected = exact(input_ids=ids_QT).logits
    got, also = ours.logits(ours(ids_QT)), rounded(input_ids=ids_QT).logits
    assert got.dtype == torch.bfloat16
    error, their_error = (float((x.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
                          for x in (got, also))
    parity("logits, bfloat16 from float32", "transformers", error, unit="of scale (root mean squares)",
           bound=3 * math.sqrt(16 * layers + 2) * 0.0017)
    assert error < 1.05 * their_error


def test_wrong_shapes_are_named(pair):
    model, _ = pair("llama")
    with pytest.raises(ValueError, match="visible_QTS"):
        model(random_ids(2, 5), visible_QTS=torch.ones(2, 5, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="positions_QT"):
        model(random_ids(2, 5), positions_QT=torch.arange(4).expand(2, 4))


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_equals_transformers(smollm2, parity):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager")
    ours = load_model(smollm2, dtype=torch.float32, device="cpu")
    ids_QT = random_ids(2, 64, vocabulary=49152)
    with torch.inference_mode():
        expected_QTV = theirs(input_ids=ids_QT).logits
        for got_QTV in (ours.logits(ours(ids_QT)), ours.logits(in_pieces(ours, ids_QT, [60, 1, 1, 1, 1]))):
            parity("logits, SmolLM2-135M", "transformers", apart(got_QTV, expected_QTV), bound=1e-4, unit="of scale")


def test_checkpointing_changes_no_bit_of_the_gradients(trained):
    model, work = trained
    plain = gradients(model, *work)
    model.checkpointing = True
    again = gradients(model, *work)
    assert plain.keys() == again.keys() and all(plain[name].equal(again[name]) for name in plain)
    assert any(gradient.any() for gradient in plain.values())
