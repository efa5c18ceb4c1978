"""Facts of every family from hand-written and published config.json contents, and refusals by name."""

import json
import math

import pytest
import torch
import transformers

from minigrpo.policy.architecture import FAMILIES, Architecture, RopeScaling, read_architecture
from minigrpo.policy.model import CausalLM
from tests.paths import DATA

CONFIGS = DATA / "configs"

BASE = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 160, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "hidden_act": "silu"}
# What BASE says, key by key; head_size = 64 / 8 = 8 and theta 10000 are Llama's own defaults.
LLAMA = dict(family="llama", vocabulary=100, width=64, layers=3, heads=8, kv_heads=2, head_size=8, mlp_width=160,
             norm_eps=1e-5, rope_theta=10_000.0, rope_scaling=None, max_positions=512, activation="silu", tied=False,
             qkv_bias=False, output_bias=False, mlp_bias=False, qk_norm=False, norm_offset=0.0, embedding_scale=1.0,
             window=None)
ROPE3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192}
CASES = {
    "llama as it is": ({}, {}),
    "biases": ({"attention_bias": True, "mlp_bias": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": True}),
    "tied": ({"tie_word_embeddings": True}, {"tied": True}),
    "no kv heads named: as many as heads": ({"num_key_value_heads": None}, {"kv_heads": 8}),
    "head_dim named": ({"head_dim": 16}, {"head_size": 16}),
    "head_dim null": ({"head_dim": None}, {"head_size": 8}),
    "theta beside": ({"rope_theta": 500_000}, {"rope_theta": 500_000.0}),
    "theta in rope_parameters": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
    "rope_scaling null": ({"rope_scaling": None, "rope_theta": 7.0}, {"rope_theta": 7.0}),
    "linear, old spelling": ({"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 9.0},
                             {"rope_scaling": RopeScaling("linear", 4.0), "rope_theta": 9.0}),
    "linear, new spelling": ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 9.0}},
                             {"rope_scaling": RopeScaling("linear", 4.0), "rope_theta": 9.0}),
    "llama3, old spelling": ({"rope_scaling": ROPE3, "rope_theta": 5e5},
                             {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), "rope_theta": 5e5}),
    # Without it, the old context is taken to be the one that the file has.
    "llama3, no old context": (
        {"rope_scaling": {key: value for key, value in ROPE3.items() if not key.startswith("original")}},
        {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 512)}),
    # Of two spellings in one file transformers takes the older.
    "both spellings": (
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "linear", "factor": 3}},
        {"rope_scaling": RopeScaling("linear", 2.0)}),
    "features that are there and off": (
        {"quantization_config": None, "partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * 3, "use_bias": False,
         "sliding_window": 4096, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, {}),
    "llama3, new spelling": ({"rope_parameters": ROPE3 | {"rope_theta": 5e5}},
                             {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), "rope_theta": 5e5}),
    "mistral with a window": ({"model_type": "mistral", "sliding_window": 4096}, {"family": "mistral", "window": 4096}),
    "mistral without": ({"model_type": "mistral", "sliding_window": None}, {"family": "mistral"}),
    # √64 = 8; a Gemma config.json that says nothing of tying is tied, and "gelu" there means its tanh approximation.
    "gemma": ({"model_type": "gemma", "hidden_act": "gelu", "head_dim": 16},
              {"family": "gemma", "norm_offset": 1.0, "embedding_scale": 8.0, "activation": "gelu_tanh", "tied": True,
               "head_size": 16}),
    "gemma, hidden_activation": (
        {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 4},
        {"family": "gemma", "norm_offset": 1.0, "embedding_scale": 8.0, "tied": True, "activation": "gelu_tanh",
         "head_size": 4}),
    "a Gemma that is no GELU": ({"model_type": "gemma", "head_dim": 4},
                                {"family": "gemma", "norm_offset": 1.0, "embedding_scale": 8.0, "tied": True, "head_size": 4}),
    "GELU as it is, but in Gemma": ({"hidden_act": "gelu"}, {"activation": "gelu"}),
    # Qwen2 always has biases on q, k, v and never on o, whatever its config says.
    "qwen2": ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096},
              {"family": "qwen2", "qkv_bias": True}),
    "qwen2, attention_bias": ({"model_type": "qwen2", "attention_bias": True}, {"family": "qwen2", "qkv_bias": True}),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, {"family": "qwen3", "qk_norm": True, "head_size": 32}),
}


@pytest.mark.parametrize("changes, facts", CASES.values(), ids=CASES.keys())
def test_facts(changes, facts):
    assert read_architecture(BASE | changes) == Architecture(**(LLAMA | facts))


def test_embedding_scale_is_the_root_of_the_width():
    assert read_architecture(BASE | {"model_type": "gemma", "hidden_size": 48}).embedding_scale == math.sqrt(48)


GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize("changes, sentence", [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: llama, mistral, gemma, qwen2, qwen3"),
    ({"model_type": "gemma2"}, "model_type 'gemma2' is not supported; supported: llama, mistral, gemma, qwen2, qwen3"),
    ({"model_type": None}, "model_type None is not supported; supported: llama, mistral, gemma, qwen2, qwen3"),
    ({"model_type": ["llama"]}, "model_type ['llama'] is not supported; supported: llama, mistral, gemma, qwen2, qwen3"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}},
     "rope scaling 'yarn' is not supported; supported: default, linear, llama3"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
     "rope scaling 'dynamic' is not supported; supported: default, linear, llama3"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
     "rope parameters must be one table for all layers, got {'full_attention': {'rope_theta': 1000000.0}}"),
    ({"rope_scaling": "linear"}, "rope parameters must be one table for all layers, got 'linear'"),
    ({"rope_scaling": {"type": "linear"}}, "the key 'factor' is missing"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "the key 'low_freq_factor' is missing"),
    ({"rope_scaling": ROPE3 | {"high_freq_factor": 1.0}}, "low_freq_factor must be below high_freq_factor, got 1.0"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported for llama, got 0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is not supported for llama, got 0.25"),
    ({"quantization_config": GPTQ}, "quantization_config is not supported for llama, got {'quant_method': 'gptq', 'bits': 4}"),
    ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is not supported for qwen2, got True"),
    ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window is not supported for qwen3, got True"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
     "layer_types other than full_attention are not supported, got ['full_attention', 'sliding_attention', 'full_attention']"),
    ({"model_type": "gemma", "use_bidirectional_attention": True},
     "use_bidirectional_attention is not supported for gemma, got True"),
    ({"model_type": "mistral", "attention_bias": True}, "attention_bias is not supported for mistral, got True"),
    ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias is not supported for qwen3, got True"),
    ({"qkv_bias": True}, "qkv_bias is not supported for llama, got True"),
    ({"attention_bias": "false"}, "attention_bias must be true or false, got 'false'"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, got None"),
    ({"hidden_act": "relu"}, "activation 'relu' is not supported, only silu, gelu, gelu_pytorch_tanh, gelu_new"),
    ({"hidden_act": ["silu"]}, "activation ['silu'] is not supported, only silu, gelu, gelu_pytorch_tanh, gelu_new"),
    ({"hidden_activation": "gelu"},
     "activation 'silu' and 'gelu' is not supported, only silu, gelu, gelu_pytorch_tanh, gelu_new"),
    ({"num_key_value_heads": 3}, "8 attention heads cannot share 3 key/value heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be a positive integer, got 0"),
    ({"hidden_size": 65}, "without head_dim, hidden_size 65 must be a multiple of num_attention_heads 8"),
    ({"hidden_size": 72}, "head_dim must be even, as rotary positions turn pairs, got 9"),
    ({"head_dim": 7}, "head_dim must be even, as rotary positions turn pairs, got 7"),
    ({"hidden_size": "64"}, "hidden_size must be a positive integer, got '64'"),
    ({"num_attention_heads": True}, "num_attention_heads must be a positive integer, got True"),
    ({"vocab_size": 100.0}, "vocab_size must be a positive integer, got 100.0"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a positive integer, got 0"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a positive number, got '1e-5'"),
    ({"rope_theta": -1.0}, "rope_theta must be a positive number, got -1.0"),
    ({"rope_theta": math.inf}, "rope_theta must be a positive number, got inf"),
    ({"rope_theta": 10**400}, "rope_theta must be a positive number, got 1" + 79 * "0"),        # no float is that large
    ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1,000, got 1000000"),
    ({"vocab_size": 2**20 + 1}, "vocab_size must be at most 1,048,576, got 1048577"),
    ({"head_dim": 2**40}, "head_dim must be at most 1,048,576, got 1099511627776"),
    ({"rope_parameters": {"rope_theta": None}}, "rope_theta must be a positive number, got None"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a positive number, got 0"),
])
def test_what_makes_no_model_here_is_one_sentence_with_the_place_and_the_files_own_name_of_it(changes, sentence):
    with pytest.raises(ValueError) as refusal:
        read_architecture(BASE | changes, "some/config.json")
    assert str(refusal.value) == f"some/config.json: {sentence}"


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                 "intermediate_size"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ValueError, match=f"config.json: the key '{key}' is missing"):
        read_architecture({name: value for name, value in BASE.items() if name != key})


# ----------------------------------------------------------------------------------------- the model that transformers makes
def both(config, folder):
    """Our model and transformers' of one config.json, without weights."""
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        ours = CausalLM(read_architecture(config))
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    return ours, theirs


def named_shapes(model):
    """A tied head is one parameter, under one name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def assert_the_same_model(ours, theirs):
    assert named_shapes(ours) == named_shapes(theirs)
    facts, config = ours.architecture, theirs.config
    assert (facts.norm_eps, facts.max_positions, facts.rope_theta) == (
        config.rms_norm_eps, config.max_position_embeddings, config.rope_parameters["rope_theta"])
    attention = theirs.model.layers[0].self_attn
    assert (facts.head_size, facts.window) == (attention.head_dim, getattr(attention, "sliding_window", None)
                                               or (config.sliding_window if facts.family == "mistral" else None))
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(ours.model.layers[0].mlp.activation(x), theirs.model.layers[0].mlp.act_fn(x))


# Parameters of the whole model, a tied head counted once: V · D for the embedding, again for a head of its own, D for the
# last norm, and per layer the attention's two D × (heads · size) and two D × (kv heads · size), the MLP's three D × inner
# and two norms of D; and what the family adds.
PUBLISHED = {
    # 256,000 · 3,072 = 786,432,000, tied. A layer: 4 · 3,072 · 4,096 = 50,331,648; 3 · 3,072 · 24,576 = 226,492,416; 6,144: in
    # all 276,830,208, 28 times 7,751,245,824. The last norm 3,072.
    "codegemma-7b": 8_537_680_896,
    # 2 · 32,000 · 4,096 = 262,144,000. A layer: 2 · 4,096² + 2 · 4,096 · 1,024 = 41,943,040; 3 · 4,096 · 14,336 =
    # 176,160,768; 8,192: in all 218,112,000, 32 times 6,979,584,000. And 4,096.
    "sqlcoder-7b": 7_241_732_096,
    # 2 · 32,016 · 4,096 = 262,275,072. A layer: 4 · 4,096² = 67,108,864; 3 · 4,096 · 11,008 = 135,266,304; 8,192: in all
    # 202,383,360, 32 times 6,476,267,520. And 4,096.
    "sqlcoder-7b-2": 6_738_546_688,
    # 2 · 32,016 · 8,192 = 524,550,144. A layer: 2 · 8,192² + 2 · 8,192 · 1,024 = 150,994,944; 3 · 8,192 · 28,672 =
    # 704,643,072; 16,384: in all 855,654,400, 80 times 68,452,352,000. And 8,192.
    "sqlcoder-70b-alpha": 68_976_910_336,
    # 151,936 · 896 = 136,134,656, tied. A layer: 2 · 896² + 2 · 896 · 128 = 1,835,008, with biases of 896 + 2 · 128 = 1,152;
    # 3 · 896 · 4,864 = 13,074,432; 1,792: in all 14,912,384, 24 times 357,897,216. And 896.
    "qwen2.5-coder-0.5b": 494_032_768,
    "qwen2.5-coder-1.5b": 1_543_714_304,
    "qwen2.5-coder-7b-instruct": 7_615_616_512,
    # 151,936 · 1,024 = 155,582,464, tied. A layer: 2 · 1,024 · 2,048 + 2 · 1,024 · 1,024 = 6,291,456, with two head norms of
    # 128; 3 · 1,024 · 3,072 = 9,437,184; 2,048: in all 15,730,944, 28 times 440,466,432. And 1,024.
    "qwen3-0.6b": 596_049_920,
    # 49,152 · 576 = 28,311,552, tied. A layer: 2 · 576² + 2 · 576 · 192 = 884,736; 3 · 576 · 1,536 = 2,654,208; 1,152: in all
    # 3,540,096, 30 times 106,202,880. And 576.
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_makes_the_model_that_transformers_makes_and_no_parameter_more(name, parity, tmp_path):
    ours, theirs = both(json.loads((CONFIGS / name / "config.json").read_text()), tmp_path)
    parity("names and shapes, published configs", "transformers", named_shapes(ours) != named_shapes(theirs), bound=0,
           cases=len(named_shapes(theirs)))
    assert_the_same_model(ours, theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_leaves_out_all_it_can_means_what_transformers_takes_it_to_mean(family, tmp_path):
    """32 heads, so that every default of key/value heads divides them."""
    kept = {key: BASE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    assert_the_same_model(*both(kept | {"model_type": family, "num_attention_heads": 32}, tmp_path))


@pytest.mark.parametrize("family, key", [("mistral", "sliding_window"), ("mistral", "head_dim"),
                                         ("llama", "num_key_value_heads"), ("qwen3", "num_key_value_heads")])
def test_null_is_not_the_same_as_absent(family, key, tmp_path):
    assert_the_same_model(*both(BASE | {"model_type": family, key: None}, tmp_path))
