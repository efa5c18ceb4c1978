"""A model made new: its random weights, its folder, and how others read it."""

import math

import pytest
import torch
import transformers

from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.new_model import initialise
from minigrpo.policy.model import CausalLM
from minigrpo.policy.policy import load_policy
from tests.policy.helpers import TEXTS, assert_near, contents, logits_of, new_folder, refusal


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


def test_a_new_model_is_a_policy_of_the_sizes_asked_for(new_model):
    policy = load_policy(new_model, dtype=torch.float32, device="cpu")
    architecture = policy.model.architecture
    assert (architecture.layers, architecture.width, architecture.heads, architecture.mlp_width) == (2, 16, 4, 24)
    assert architecture.max_positions == 64 and architecture.head_size == 16 // 4
    # The vocabulary is what the tokenizer has, at most the 300 asked for, and it stops at its one stop token, id 0.
    assert architecture.vocabulary == len(policy.tokenizer.token_bytes) == policy.tokenizer.rust.get_vocab_size() <= 300
    assert policy.tokenizer.stop_ids == (0,) and policy.stopping.ends_UV[0].nonzero().flatten().tolist() == [0]
    # Embedding V · D, which is the head too; per layer 4 D², 3 D · 24 and two norms; the last norm.
    parameters = architecture.vocabulary * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == parameters


def test_transformers_reads_a_new_model_and_its_tokenizer_alike(new_model):
    """As anybody would who is given the folder: no class named, no argument."""
    policy = load_policy(new_model, dtype=torch.float32, device="cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(new_model)
    words = transformers.AutoTokenizer.from_pretrained(new_model)
    assert type(theirs) is transformers.LlamaForCausalLM and theirs.dtype == torch.float32
    assert_near(logits_of(policy.model), logits_of(theirs))
    assert (words.eos_token, words.eos_token_id, words.model_max_length) == ("<eos>", 0, 64)
    assert len(words) == len(policy.tokenizer.token_bytes)
    for text in [*TEXTS, "  two  spaces\tnaïve 東京 🏃\n'it''s'", "a<eos>b"]:
        ids = policy.tokenizer.encode(text)
        assert words(text)["input_ids"] == ids
        assert words.decode(ids, skip_special_tokens=True) == policy.tokenizer.decode(ids)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_other_weights(tmp_path, new_model):
    again, other = (contents(new_folder(tmp_path / name, seed)) for name, seed in (("again", 0), ("other", 1)))
    assert again == contents(new_model)
    assert [name for name in again if again[name] != other[name]] == ["model.safetensors"]


@pytest.mark.parametrize("changed, sentence", [
    # Of width 18, four heads would use 16; of width 12, each would have 3; of 16, each of 32 would have half a number.
    ({"width": 18}, "the width 18 is no multiple of twice the 4 heads: rotary positions turn pairs"),
    ({"width": 12}, "the width 12 is no multiple of twice the 4 heads: rotary positions turn pairs"),
    ({"heads": 32}, "the width 16 is no multiple of twice the 32 heads: rotary positions turn pairs"),
    ({"heads": 0}, "the width 16 is no multiple of twice the 0 heads: rotary positions turn pairs"),
    ({"layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
    ({"mlp_width": 0}, "intermediate_size must be a positive integer, got 0"),
])
def test_sizes_that_make_no_model_are_one_sentence(tmp_path, changed, sentence):
    assert refusal(new_folder, tmp_path / "new", **changed) == f"model.new: {sentence}"
