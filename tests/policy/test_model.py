"""The decoder against transformers on tiny random checkpoints, on each of its paths, and against itself; random weights."""

import copy
import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.planning.memory import Alive
from minigrpo.policy.architecture import RopeScaling, read_architecture
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.model import MLP, CausalLM, initialise, stretched
from minigrpo.policy.search import GrowingTree, beam_search
from minigrpo.policy.stopping import compile_stopping
from minigrpo.policy.tree import KVCache, pad_prompts, scoring_tree, trunk_visibility, within_window
from tests.compiler import needs_compiler

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", dict(tie_word_embeddings=True)),
    "llama biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "llama one kv head": ("llama", dict(num_key_value_heads=1)),
    "llama all kv heads": ("llama", dict(num_key_value_heads=4)),
    "llama wide heads": ("llama", dict(head_dim=16)),
    "llama gelu": ("llama", dict(hidden_act="gelu")),
    "llama gelu_new": ("llama", dict(hidden_act="gelu_new")),
    "llama eps": ("llama", dict(rms_norm_eps=0.5)),
    "llama theta": ("llama", dict(rope_theta=77.0)),
    "llama linear rope": ("llama", dict(rope_scaling=dict(rope_type="linear", factor=3.0))),
    # Old context 32, head 8, theta 50: wavelengths 2π·50^(i/4) = 6, 17, 44, 118: kept, between, and divided all occur.
    "llama llama3 rope": ("llama", dict(rope_scaling=LLAMA3, rope_theta=50.0)),
    "mistral, window 5": ("mistral", dict(sliding_window=5)),
    "mistral, window 1": ("mistral", dict(sliding_window=1)),
    "mistral, no window": ("mistral", dict(sliding_window=None)),
    "mistral tied, one kv head": ("mistral", dict(tie_word_embeddings=True, num_key_value_heads=1, sliding_window=7)),
    "gemma": ("gemma", {}),
    "gemma gelu": ("gemma", dict(hidden_act="gelu")),
    "gemma one kv head, wide heads": ("gemma", dict(num_key_value_heads=1, head_dim=24)),
    "gemma untied, biases": ("gemma", dict(tie_word_embeddings=False, attention_bias=True)),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen2 all kv heads, llama3 rope": ("qwen2", dict(num_key_value_heads=4, rope_scaling=LLAMA3, rope_theta=50.0)),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, linear rope": ("qwen3", dict(tie_word_embeddings=True, rope_scaling=dict(rope_type="linear", factor=3.0))),
    "qwen3 biases, wide heads": ("qwen3", dict(attention_bias=True, head_dim=12)),
}
EACH = pytest.mark.parametrize("family, config", CASES.values(), ids=CASES.keys())
PATHS = pytest.mark.parametrize("family, config", [CASES[name] for name in (
    "llama", "llama llama3 rope", "mistral, window 5", "gemma", "qwen2", "qwen3")])


def random_ids(*shape, seed=0, vocabulary=61):
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def apart(got, expected):
    """The largest difference, in units of the largest expected number."""
    assert got.shape == expected.shape and expected.isfinite().all()
    return float(((got - expected).abs().max() / expected.abs().max()).nan_to_num(math.inf))


def assert_close(got, expected, tolerance=1e-4):
    """float32 sums in another order differ by about 1e-6 of the largest number."""
    assert apart(got, expected) <= tolerance


OF_LOGITS = dict(bound=2e-5, unit="of scale")       # the largest logit's size; 1e-4 is asked, float32 can do this


def empty_cache(model, *, groups, slots):
    facts = model.architecture
    return KVCache.empty(layers=facts.layers, groups=groups, kv_heads=facts.kv_heads, slots=slots, head_size=facts.head_size,
                         dtype=model.dtype, device="cpu")


def in_pieces(model, ids_QT, pieces):
    """Hidden states of a sequence that comes in ``pieces`` of so many tokens, over a cache."""
    cache, found = empty_cache(model, groups=len(ids_QT), slots=ids_QT.shape[1]), []
    for piece in ids_QT.split(pieces, dim=1):
        cache.next(piece.shape[1])
        found.append(model(piece, cache=cache))
    return torch.cat(found, dim=1)


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
def test_token_by_token_with_a_cache_equals_one_pass(pair, parity, family, config):
    model, theirs = pair(family, **config)
    ids_QT = random_ids(2, 12)
    got = model.logits(in_pieces(model, ids_QT, [4, 1, 1, 3, 1, 1, 1]))
    parity("logits, cached", "transformers", apart(got, theirs(input_ids=ids_QT).logits), **OF_LOGITS)


@pytest.mark.parity
@PATHS
def test_a_cache_changes_nothing_at_any_length_up_to_300(pair, parity, family, config):
    """One token at a time to 300, and for every length the whole of it at once, which ends in the same logits. Lengths on
    either side of all that kernels cut up by, 8 to 256, are among them; the windows are long left behind."""
    model, theirs = pair(family, **config | dict(max_position_embeddings=512))
    ids_QT = random_ids(1, 300)
    expected_QTV = theirs(input_ids=ids_QT).logits
    cached_QTV = model.logits(in_pieces(model, ids_QT, 1))
    at_once_QTV = model.logits(torch.cat([model(ids_QT[:, :length])[:, -1:] for length in range(1, 301)], dim=1))
    parity("logits, cached", "transformers", apart(cached_QTV, expected_QTV), cases=300, **OF_LOGITS)
    parity("logits, one pass", "transformers", apart(at_once_QTV, expected_QTV), cases=300, **OF_LOGITS)
    assert_close(cached_QTV, at_once_QTV, 1e-5)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_however_a_sequence_is_cut_up_it_is_the_same(pair, data):
    """Pieces of any lengths over a cache, with a window that may be shorter or longer than all of them."""
    model, _ = pair("mistral", sliding_window=data.draw(st.sampled_from([1, 5, 32])), tie_word_embeddings=True)
    pieces = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    ids_QT = random_ids(data.draw(st.integers(1, 3)), sum(pieces), seed=data.draw(st.integers(0, 9)))
    assert_close(in_pieces(model, ids_QT, pieces), model(ids_QT), 1e-5)


@pytest.mark.parity
@EACH
def test_ragged_prompts_side_by_side_equal_transformers_masked_batch(pair, parity, family, config):
    """Right-padded on both sides; theirs is told of padding by its mask of ones and zeros."""
    model, theirs = pair(family, **config)
    prompts = pad_prompts([random_ids(n, seed=n).tolist() for n in (3, 17, 1, 9)])
    positions_QP = torch.arange(17).expand(4, 17)
    visible_QPP = within_window(trunk_visibility(prompts.live_QP), positions_QP, positions_QP, model.architecture.window)
    got = model.logits(model(prompts.ids_QP, visible_QTS=visible_QPP)[prompts.live_QP])
    expected = theirs(input_ids=prompts.ids_QP, attention_mask=prompts.live_QP.long()).logits[prompts.live_QP]
    parity("logits, ragged batch", "transformers", apart(got, expected), **OF_LOGITS)


PROMPTS = [random_ids(n, seed=n).clamp(min=1).tolist() for n in (3, 8, 5)]
LIVE_QKC = torch.arange(6) < torch.tensor([[4, 6, 1], [6, 2, 3], [5, 6, 6]])[:, :, None]
IDS_QKC = random_ids(3, 3, 6, seed=9).clamp(min=1)


def scored_tree(model, ids_QKC):
    """Logits that predict each live token of ragged completions to ``PROMPTS``, all in one pass."""
    tree = scoring_tree(pad_prompts(PROMPTS), ids_QKC, LIVE_QKC, window=model.architecture.window)
    hidden_QSD = model(tree.ids_QS, positions_QT=tree.positions_QS, visible_QTS=tree.visible)
    assert hidden_QSD.isfinite().all()
    places = LIVE_QKC.nonzero(as_tuple=True)
    return model.logits(hidden_QSD[places[0], tree.predictor_QKC[places]])


def scored_alone(theirs):
    """The same by a plain causal pass over each prompt + completion alone."""
    rows = []
    for q, prompt in enumerate(PROMPTS):
        for k, length in enumerate(LIVE_QKC[q].sum(-1).tolist()):
            sequence = torch.tensor([prompt + IDS_QKC[q, k, :length].tolist()])
            rows.append(theirs(input_ids=sequence).logits[0, len(prompt) - 1:-1])
    return torch.cat(rows)


@pytest.mark.parity
@EACH
def test_scoring_tree_equals_each_sequence_alone(pair, parity, family, config):
    model, theirs = pair(family, **config)
    got, expected = scored_tree(model, IDS_QKC), scored_alone(theirs)
    parity("logits, tree of completions", "transformers", apart(got, expected), **OF_LOGITS)


def grown(model, theirs):
    """Logits of branches that swap parents at random while they grow, and of each branch's history alone."""
    draw, (K, C) = torch.Generator().manual_seed(1), (4, 7)
    tree = GrowingTree(model, len(PROMPTS), 8, K, C)
    histories = [[list(prompt) for _ in range(K)] for prompt in PROMPTS]

    def alone():
        return torch.stack([theirs(input_ids=torch.tensor(group)).logits[:, -1] for group in histories])

    tree.load(pad_prompts(PROMPTS))
    yield tree.prefill().expand(-1, K, -1), alone()
    for depth in range(C):
        ids_QK = random_ids(3, K, seed=50 + depth).clamp(min=1)
        parent_QK = torch.randint(0, K, (3, K), generator=draw) if depth % 3 else None
        logits_QKV = tree.grow(ids_QK, parent_QK)
        for q, group in enumerate(histories):
            chosen = range(K) if parent_QK is None else parent_QK[q].tolist()
            histories[q] = [[*group[parent], int(ids_QK[q, k])] for k, parent in enumerate(chosen)]
        yield logits_QKV, alone()


@pytest.mark.parity
@EACH
def test_growing_tree_equals_each_sequence_alone_through_changes_of_parent(pair, parity, family, config):
    """Each branch sees the history that it took over."""
    for got_QKV, expected_QKV in grown(*pair(family, **config)):
        parity("logits, growing tree", "transformers", apart(got_QKV, expected_QKV), **OF_LOGITS)


@pytest.mark.parity
@PATHS
def test_no_number_that_padding_could_hold_reaches_a_live_token(pair, parity, family, config):
    """No live token is 0, whose embedding is NaN here: were it in a padded slot, all would be NaN, as masked means 0 times.
    (In transformers it does: its padding has to be a number.) A tied head's logit 0 is NaN by itself and left out."""
    model, theirs = pair(family, **config)
    model = copy.deepcopy(model)
    model.model.embed_tokens.weight[0] = torch.nan
    pairs = [(scored_tree(model, IDS_QKC * LIVE_QKC), scored_alone(theirs)), *grown(model, theirs)]
    for got, expected in pairs:
        parity("logits, NaN for padding", "transformers", apart(got[..., 1:], expected[..., 1:]), **OF_LOGITS)


def test_padding_is_its_prompts_first_token_once_more(pair):
    """In a branch it sees itself only, and what it says does not depend on where it stands: all padded slots of branches have
    one hidden state, the prompt's first."""
    model, _ = pair("llama")
    prompts = pad_prompts(PROMPTS)
    tree = scoring_tree(prompts, IDS_QKC * LIVE_QKC, LIVE_QKC)
    hidden_QSD = model(tree.ids_QS, positions_QT=tree.positions_QS, visible_QTS=tree.visible)
    padding_QS = torch.cat([torch.zeros_like(prompts.live_QP), ~LIVE_QKC.flatten(1)], dim=1)
    torch.testing.assert_close(hidden_QSD[padding_QS], hidden_QSD[:, :1].expand_as(hidden_QSD)[padding_QS])


@PATHS
def test_what_lies_in_padding_changes_no_live_bit(pair, family, config):
    """Other ids in the padding of trunk and branches: every live slot's hidden state is the same, bit for bit."""
    model, _ = pair(family, **config)
    prompts = pad_prompts([[5, 6], random_ids(7).tolist()])
    live_QKC = torch.arange(4) < torch.tensor([[4, 2], [1, 3]])[:, :, None]
    clean_QKC = random_ids(2, 2, 4, seed=3) * live_QKC

    def hidden(garbage):
        ids_QP = prompts.ids_QP.where(prompts.live_QP, garbage)
        tree = scoring_tree(type(prompts)(ids_QP, prompts.length_Q), clean_QKC.where(live_QKC, garbage), live_QKC,
                            window=model.architecture.window)
        live_QS = torch.cat([prompts.live_QP, live_QKC.flatten(1)], dim=1)
        return model(tree.ids_QS, positions_QT=tree.positions_QS, visible_QTS=tree.visible)[live_QS]

    assert hidden(0).equal(hidden(37))


def test_what_an_earlier_search_left_in_a_tree_is_not_read(pair):
    """The cache holds NaN, every slot is in sight, the depth is at its end: prompts begin it anew. And room for longer prompts
    and for tokens to come changes nothing but the order of sums."""
    model, _ = pair("llama")
    prompts = pad_prompts([[1, 2, 3], [4]])
    used, clean, roomy = (GrowingTree(model, 2, longest, 2, depth) for longest, depth in ((3, 3), (3, 3), (40, 50)))
    for tensor in used.cache.keys + used.cache.values:
        tensor.fill_(torch.nan)
    used.visible_QKS.fill_(True)
    used.depth_1.fill_(2)
    for tree in (used, clean, roomy):
        tree.load(prompts)
    for ids_QK in [None, random_ids(2, 2), random_ids(2, 2, seed=1)]:
        again, first, third = (tree.prefill() if ids_QK is None else tree.grow(ids_QK) for tree in (used, clean, roomy))
        assert again.equal(first)
        assert_close(third, first, 1e-5)


def test_growing_attends_over_whole_stretches_of_depth(pair):
    """Prompts have 32 slots of room, 2 branches: a stretch of 32 depths has 64 slots. Depths 0 … 31 attend over 96, 32 … 63
    over 160, and the last stretch ends with the tree, at 32 + 2 · 70 = 172."""
    model, _ = pair("llama")
    tree = GrowingTree(model, 1, 32, 2, 70)
    assert [tree.reach(depth) for depth in (0, 31, 32, 63, 64, 69)] == [96, 96, 160, 160, 172, 172]
    assert [tree.has_room(longest) for longest in (15, 16, 32, 33)] == [False, True, True, False]


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_heads_that_share_keys_equal_heads_with_a_copy_each(pair, kv_heads, window):
    """Of 4 query heads each 4 / M in a row share one: copying every key and value head so often changes nothing. Lengths on
    either side of 8, to which masks are padded; and one token at a time, which asks of all slots there are."""
    shared, _ = pair("mistral", num_key_value_heads=kv_heads, sliding_window=window)
    apart, _ = pair("mistral", num_key_value_heads=4, sliding_window=window)
    weights = {name: tensor.unflatten(0, (kv_heads, -1)).repeat_interleave(4 // kv_heads, dim=0).flatten(0, 1)
               if name.endswith(("k_proj.weight", "v_proj.weight")) else tensor
               for name, tensor in shared.state_dict().items()}
    apart = CausalLM(apart.architecture).requires_grad_(False)
    apart.load_state_dict(weights)
    for length in (1, 7, 8, 9):
        assert_close(shared(random_ids(2, length)), apart(random_ids(2, length)), 1e-5)
    caches = [KVCache.empty(layers=2, groups=2, kv_heads=heads, slots=9, head_size=8, dtype=torch.float32, device="cpu")
              for heads in (kv_heads, 4)]
    for token_Q1 in random_ids(2, 9).split(1, dim=1):
        for cache in caches:
            cache.next(1)
        assert_close(*(model(token_Q1, cache=cache) for model, cache in zip((shared, apart), caches)), 1e-5)


def test_causal_a_later_token_changes_nothing_before_it(pair):
    model, _ = pair("llama")
    ids_QT = random_ids(1, 10)
    other_QT = ids_QT.clone()
    other_QT[0, 6] = (other_QT[0, 6] + 1) % 61
    before, after = model(ids_QT), model(other_QT)
    assert before[:, :6].equal(after[:, :6]) and not before[:, 6].allclose(after[:, 6])


def test_only_differences_of_positions_matter(pair):
    """Rotary attention: all positions moved by 50 give the same hidden states."""
    model, _ = pair("llama")
    ids_QT, positions_QT = random_ids(2, 9), torch.arange(9).expand(2, 9)
    causal_QTS = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    moved = model(ids_QT, positions_QT=positions_QT + 50, visible_QTS=causal_QTS)
    assert_close(moved, model(ids_QT), 1e-5)


def test_stretched_frequencies_by_hand():
    # Old context 100 positions. A frequency of 2π·5/100 turns 5 times in it: more than 4, kept. 0.5 turns: fewer than
    # 1, divided by 8. 2.5 turns lie half way from 1 to 4: half kept, half divided, 0.5 + 0.5 / 8 = 0.5625 of itself.
    turns = torch.tensor([5.0, 0.5, 2.5])
    frequencies = turns * 2 * torch.pi / 100
    got = stretched(frequencies, RopeScaling("llama3", 8.0, 1.0, 4.0, 100)) / frequencies
    torch.testing.assert_close(got, torch.tensor([1.0, 0.125, 0.5625]))
    torch.testing.assert_close(stretched(frequencies, RopeScaling("linear", 4.0)), frequencies / 4)


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


# ------------------------------------------------------------------------------------------------------- random weights
def fresh(seed=0, **config):
    """A Llama of D = 64 and 3 layers whose weights are drawn."""
    sizes = dict(model_type="llama", vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                 rms_norm_eps=1e-5, num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True)
    model = CausalLM(read_architecture(sizes | config))
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def test_random_weights_spread_as_documented():
    """σ = 0.7 / √64 = 0.0875; o_proj and down_proj, which add to the residual stream, have 1 / √(2 · 3) of that, 0.0357.

    n draws give σ with an error of σ / √(2n), and their mean one of σ / √n. The smallest tensor has n = 64 · 64: 1.1 % and
    1.6 % of σ. Five of either are allowed: less than one chance in a million a tensor, and the seed is fixed.
    """
    for tied in (True, False):
        for name, parameter in fresh(tie_word_embeddings=tied).named_parameters():
            if "norm" in name:
                assert parameter.eq(1).all(), name
                continue
            sigma = 0.7 / 8 / (math.sqrt(6) if name.split(".")[-2] in ("o_proj", "down_proj") else 1)
            n = parameter.numel()
            assert abs(float(parameter.detach().std()) / sigma - 1) < 5 / math.sqrt(2 * n), name
            assert abs(float(parameter.detach().mean())) < 5 * sigma / math.sqrt(n), name


def test_random_weights_are_normal():
    # Of a normal variable 68.3 % lie within one σ, 95.4 % within two, 99.7 % within three; of a uniform one of the same σ
    # 57.7 %, all and all. The embedding has 300 · 64 draws: the errors of these shares are 0.34, 0.15 and 0.04 points.
    drawn = fresh().model.embed_tokens.weight.detach() / 0.0875
    for within, share, error in [(1, 0.6827, 0.0034), (2, 0.9545, 0.0015), (3, 0.9973, 0.0004)]:
        assert abs(float((drawn.abs() < within).float().mean()) - share) < 5 * error


def test_random_weights_are_the_generators_and_no_two_tensors_are_alike():
    one, same, other = (dict(fresh(seed).named_parameters()) for seed in (0, 0, 1))
    for name in one:
        assert one[name].equal(same[name]) and ("norm" in name or not one[name].equal(other[name])), name
    layers = [one[f"model.layers.{i}.mlp.{part}.weight"] for i in range(3) for part in ("gate_proj", "up_proj")]
    assert not any(layers[i].equal(layers[j]) for i in range(6) for j in range(i))


def test_random_weights_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    model = CausalLM(fresh().architecture)
    torch.set_rng_state(before)                                            # torch's own constructors draw from it
    initialise(model, torch.Generator().manual_seed(0))
    assert torch.get_rng_state().equal(before)


def test_what_a_layer_adds_is_smaller_the_more_layers_there_are():
    """√(2 · layers): with twelve instead of three, weights that add to the residual stream are half as large, others the
    same."""
    few, many = ({name: float(parameter.detach().std()) for name, parameter in fresh(num_hidden_layers=n).named_parameters()
                  if "norm" not in name} for n in (3, 12))
    for name, std in few.items():
        expected = 2.0 if name.split(".")[-2] in ("o_proj", "down_proj") else 1.0
        assert abs(std / many[name] / expected - 1) < 0.08, name              # five errors of 1.1 % each, and both have one


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


# ------------------------------------------------------------------------------------ less memory, or fewer kernels, same result
def gradients(model, prompts, ids_QKC, mask_QKC):
    """Of Σ log-probs weighted unevenly, by parameter."""
    logp_BC = completion_logprobs(model, prompts, ids_QKC, mask_QKC)
    (logp_BC * torch.linspace(-1, 2, logp_BC.numel()).view_as(logp_BC)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


@pytest.fixture(params=["adapters", "all weights"])
def trained(request, pair):
    """A model, what moves in it, and some completions."""
    model = copy.deepcopy(pair("gemma")[0])
    if request.param == "adapters":
        add_lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
        for parameter in adapter_parameters(model).values():
            parameter.data += 0.1
    else:
        model.requires_grad_(True)
    return model, (pad_prompts(PROMPTS), IDS_QKC, LIVE_QKC)


def test_checkpointing_changes_no_bit_of_the_gradients(trained):
    model, work = trained
    plain = gradients(model, *work)
    model.checkpointing = True
    again = gradients(model, *work)
    assert plain.keys() == again.keys() and all(plain[name].equal(again[name]) for name in plain)
    assert any(gradient.any() for gradient in plain.values())


def test_what_the_mlp_makes_once_more_changes_no_bit_of_the_gradients(trained, monkeypatch):
    """The product of gate and up projection is not kept for the backward pass; keeping it gives the same gradients."""
    model, work = trained
    made_again = gradients(model, *work)
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, keep: forward(self, x, True))
    kept = gradients(model, *work)
    assert all(kept[name].equal(made_again[name]) for name in kept)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_product_of_gate_and_up_is_kept_by_nobody(pair, checkpointing):
    """An MLP 64 times as wide as the model: what a layer keeps is measured in tensors of that width, [T, inner]. Gate, its
    activation and up are three; all else is small. With checkpointing a layer keeps its input, 1/64 of one."""
    model = copy.deepcopy(pair("gemma", intermediate_size=64 * 32, num_hidden_layers=4)[0])
    add_lora(model, rank=1, alpha=1.0, generator=torch.Generator().manual_seed(0))
    model.checkpointing, ids_QT = checkpointing, random_ids(2, 64)
    unit = 2 * 64 * 64 * 32 * 4
    with Alive() as alive:
        with torch.no_grad():
            model(ids_QT)                               # from now on the weights are known to have been there before
        before = alive.now
        hidden_QTD = model(ids_QT)
        kept = (alive.now - before) / unit
        hidden_QTD.sum().backward()
    if checkpointing:
        assert kept < 0.5
    else:
        assert 4 * 3 <= kept < 4 * 3.6


@pytest.mark.slow
@needs_compiler
def test_fused_operations_compute_the_same(trained):
    """In float32 a fused chain differs by roundings; generation, scoring and gradients go through it, any of them first."""
    model, work = trained
    settings = dict(completions=2, max_new_tokens=5, stopping=compile_stopping([b""] * 61, [2], []))
    compiled = copy.deepcopy(model)
    plain, found = gradients(model, *work), beam_search(model, PROMPTS, **settings)
    compiled.fuse()
    fused = gradients(compiled, *work)
    for name in plain:
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-4, atol=1e-4 * float(plain[name].abs().max()))
    again = beam_search(compiled, PROMPTS, **settings)
    assert [[c.ids for c in group] for group in again] == [[c.ids for c in group] for group in found]


@pytest.mark.slow
@needs_compiler
def test_a_fused_model_is_not_compiled_for_every_size_of_a_batch(pair):
    """In a run each batch has other numbers of questions, of tokens in prompts and of tokens in completions, and a warm-up has
    one completion a prompt, not K. Two sizes show what varies; for further ones nothing may be compiled."""
    plain = copy.deepcopy(pair("llama")[0])
    add_lora(plain, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
    for parameter in adapter_parameters(plain).values():
        parameter.data += 0.1
    model, graphs = copy.deepcopy(plain), []
    model.fuse()
    torch._dynamo.utils.counters.clear()
    sizes = [(40, 9, 1, 4), (43, 7, 1, 6), (24, 8, 3, 5), (23, 12, 3, 9), (25, 11, 3, 7), (22, 5, 3, 12), (26, 14, 3, 6)]
    for Q, P, K, C in sizes:
        ids_QKC, prompts = random_ids(Q, K, C, seed=Q), pad_prompts(random_ids(Q, P, seed=P).tolist())
        work = prompts, ids_QKC, torch.ones_like(ids_QKC, dtype=torch.bool)
        found, expected = gradients(model, *work), gradients(plain, *work)
        for name in expected:
            assert_close(found[name], expected[name])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[4] == graphs[5] == graphs[6]
