"""The decoder against transformers on tiny random checkpoints, and against itself on its three paths; random weights."""

import math

import pytest
import torch

from minigrpo.policy.architecture import RopeScaling, read_architecture
from minigrpo.policy.model import CausalLM, initialise, stretched
from minigrpo.policy.search import GrowingTree
from minigrpo.policy.tree import KVCache, pad_prompts, scoring_tree
from minigrpo.policy.weights import load_model

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
    "llama eps": ("llama", dict(rms_norm_eps=0.5)),
    "llama theta": ("llama", dict(rope_theta=77.0)),
    "llama linear rope": ("llama", dict(rope_scaling=dict(rope_type="linear", factor=3.0))),
    # Old context 32, head 8, theta 50: wavelengths 2π·50^(i/4) = 6, 17, 44, 118: kept, between, and divided all occur.
    "llama llama3 rope": ("llama", dict(rope_scaling=LLAMA3, rope_theta=50.0)),
    "mistral, window 5": ("mistral", dict(sliding_window=5)),
    "mistral, no window": ("mistral", dict(sliding_window=None)),
    "gemma": ("gemma", {}),
    "gemma untied, biases": ("gemma", dict(tie_word_embeddings=False, attention_bias=True)),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", {}),
    "qwen3 biases, wide heads": ("qwen3", dict(attention_bias=True, head_dim=12)),
}
EACH = pytest.mark.parametrize("family, config", CASES.values(), ids=CASES.keys())
PATHS = pytest.mark.parametrize("family, config", [CASES[name] for name in (
    "llama", "llama llama3 rope", "mistral, window 5", "gemma", "qwen2", "qwen3")])


def random_ids(*shape, seed=0, vocabulary=61):
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got, expected, tolerance=1e-4):
    """Equal up to ``tolerance`` of the largest expected number: float32 sums in another order differ by about 1e-6 of
    it."""
    assert got.shape == expected.shape
    difference, scale = float((got - expected).abs().max()), float(expected.abs().max())
    assert difference <= tolerance * scale, f"{difference} on a scale of {scale}"


@EACH
def test_logits_equal_those_of_transformers(pair, family, config):
    ours, theirs = pair(family, **config)
    ids_QT = random_ids(3, 40)
    assert_close(ours.logits(ours(ids_QT)), theirs(input_ids=ids_QT).logits, 2e-5)


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


@PATHS
def test_token_by_token_with_a_cache_equals_one_pass(pair, family, config):
    model, _ = pair(family, **config)
    ids_QT, arch = random_ids(2, 12), model.architecture
    cache = KVCache.empty(layers=arch.layers, groups=2, kv_heads=arch.kv_heads, slots=12, head_size=arch.head_size,
                          dtype=torch.float32, device="cpu")
    pieces = []
    for piece in ids_QT.split([4, 1, 1, 3, 1, 1, 1], dim=1):
        cache.next(piece.shape[1])
        pieces.append(model(piece, cache=cache))
    assert_close(torch.cat(pieces, dim=1), model(ids_QT), 1e-5)


@PATHS
def test_scoring_tree_equals_each_sequence_alone(pair, family, config):
    """Ragged prompts and completions in one pass; the hidden state that predicts each token equals that of a plain
    causal pass over prompt + completion."""
    model, theirs = pair(family, **config)
    prompt_lengths, completion_lengths = [3, 8, 5], [[4, 6, 1], [6, 2, 3], [5, 6, 6]]
    prompts = [random_ids(n, seed=n).tolist() for n in prompt_lengths]
    ids_QKC, live_QKC = random_ids(3, 3, 6, seed=9), torch.arange(6) < torch.tensor(completion_lengths)[:, :, None]
    tree = scoring_tree(pad_prompts(prompts), ids_QKC, live_QKC, window=model.architecture.window)
    hidden_QSD = model(tree.ids_QS, positions_QT=tree.positions_QS, visible_QTS=tree.visible_QSS)
    assert hidden_QSD.isfinite().all()
    for q, prompt in enumerate(prompts):
        for k, length in enumerate(completion_lengths[q]):
            sequence = torch.tensor([prompt + ids_QKC[q, k, :length].tolist()])
            got = model.logits(hidden_QSD[q, tree.predictor_QKC[q, k, :length]])
            expected = theirs(input_ids=sequence).logits[0, len(prompt) - 1:-1]
            assert_close(got, expected, 2e-5)


@PATHS
def test_growing_tree_equals_each_sequence_alone_through_changes_of_parent(pair, family, config):
    """Branches that swap parents at random see the history they took over: their logits are those of that history."""
    model, theirs = pair(family, **config)
    prompts, draw = [random_ids(n, seed=n).tolist() for n in (2, 9, 5)], torch.Generator().manual_seed(1)
    K, C = 4, 7
    tree = GrowingTree(model, len(prompts), 9, K, C)
    histories = [[list(prompt) for _ in range(K)] for prompt in prompts]

    def expected():
        return torch.stack([theirs(input_ids=torch.tensor(group)).logits[:, -1] for group in histories])

    assert_close(tree.prefill(pad_prompts(prompts)).expand(-1, K, -1), expected(), 2e-5)
    for depth in range(C):
        ids_QK = random_ids(3, K, seed=50 + depth)
        parent_QK = torch.randint(0, K, (3, K), generator=draw) if depth % 3 else None
        logits_QKV = tree.grow(ids_QK, parent_QK)
        for q, group in enumerate(histories):
            chosen = range(K) if parent_QK is None else parent_QK[q].tolist()
            histories[q] = [[*group[parent], int(ids_QK[q, k])] for k, parent in enumerate(chosen)]
        assert_close(logits_QKV, expected(), 2e-5)


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
        live_QS = torch.cat([prompts.live_QP, live_QKC.transpose(1, 2).flatten(1)], dim=1)
        return model(tree.ids_QS, positions_QT=tree.positions_QS, visible_QTS=tree.visible_QSS)[live_QS]

    assert hidden(0).equal(hidden(37))


def test_what_an_earlier_search_left_in_a_tree_is_not_read(pair):
    """The cache holds NaN, every slot is in sight, the depth is at its end: prompts begin it anew. And room for longer prompts
    and for tokens to come changes nothing but the order of sums."""
    model, _ = pair("llama")
    prompts = pad_prompts([[1, 2, 3], [4]])
    used, clean, roomy = (GrowingTree(model, 2, trunk, 2, depth) for trunk, depth in ((3, 3), (3, 3), (8, 50)))
    for tensor in used.cache.keys + used.cache.values:
        tensor.fill_(torch.nan)
    used.visible_QKS.fill_(True)
    used.depth_1.fill_(2)
    for ids_QK in [None, random_ids(2, 2), random_ids(2, 2, seed=1)]:
        again, first, third = (tree.prefill(prompts) if ids_QK is None else tree.grow(ids_QK) for tree in (used, clean, roomy))
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


def test_bfloat16_stays_near_transformers_bfloat16(checkpoint):
    """bf16 keeps 8 bits, 0.4 % a rounding; over two layers both models stray from float32 by a few per cent of the
    scale."""
    for family in ("llama", "gemma"):
        folder, theirs = checkpoint(family)
        ours, ids_QT = load_model(folder, dtype=torch.bfloat16, device="cpu"), random_ids(2, 20)
        exact = theirs(input_ids=ids_QT).logits
        got = ours.logits(ours(ids_QT))
        assert got.dtype == torch.bfloat16
        assert_close(got.float(), exact, 0.05)


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
def test_smollm2_equals_transformers(smollm2):
    import transformers
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ours = load_model(smollm2, dtype=torch.float32, device="cpu")
    ids_QT = random_ids(2, 64, vocabulary=49152)
    with torch.inference_mode():
        assert_close(ours.logits(ours(ids_QT)), theirs(input_ids=ids_QT).logits)
