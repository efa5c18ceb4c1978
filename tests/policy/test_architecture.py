"""Facts of every family from hand-written config.json contents, and refusals by name."""

import math

import pytest

from minigrpo.policy.architecture import Architecture, RopeScaling, read_architecture

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
    "llama3, new spelling": ({"rope_parameters": ROPE3 | {"rope_theta": 5e5}},
                             {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), "rope_theta": 5e5}),
    "mistral with a window": ({"model_type": "mistral", "sliding_window": 4096}, {"family": "mistral", "window": 4096}),
    "mistral without": ({"model_type": "mistral", "sliding_window": None}, {"family": "mistral"}),
    # √64 = 8; a Gemma config.json that says nothing of tying is tied, and "gelu" there means its tanh approximation.
    "gemma": ({"model_type": "gemma", "hidden_act": "gelu", "head_dim": 16},
              {"family": "gemma", "norm_offset": 1.0, "embedding_scale": 8.0, "activation": "gelu_tanh", "tied": True,
               "head_size": 16}),
    "gemma, hidden_activation": (
        {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"family": "gemma", "norm_offset": 1.0, "embedding_scale": 8.0, "tied": True, "activation": "gelu_tanh"}),
    # Qwen2 always has biases on q, k, v and never on o, whatever its config says.
    "qwen2": ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096},
              {"family": "qwen2", "qkv_bias": True}),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, {"family": "qwen3", "qk_norm": True, "head_size": 32}),
}


@pytest.mark.parametrize("changes, facts", CASES.values(), ids=CASES.keys())
def test_facts(changes, facts):
    assert read_architecture(BASE | changes) == Architecture(**(LLAMA | facts))


def test_embedding_scale_is_the_root_of_the_width():
    assert read_architecture(BASE | {"model_type": "gemma", "hidden_size": 48}).embedding_scale == math.sqrt(48)


@pytest.mark.parametrize("changes, names", [
    ({"model_type": "gpt2"}, ["'gpt2'", "llama, mistral, gemma, qwen2, qwen3"]),
    ({"model_type": None}, ["None"]),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["'yarn'", "rope"]),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, ["'dynamic'", "rope"]),
    ({"hidden_act": "relu"}, ["'relu'", "silu"]),
    ({"model_type": "qwen2", "use_sliding_window": True}, ["use_sliding_window"]),
    ({"model_type": "qwen3", "use_sliding_window": True}, ["use_sliding_window"]),
    ({"num_key_value_heads": 3}, ["8 attention heads", "3 key/value heads"]),
    ({"rope_scaling": {"type": "linear"}}, ["'factor'", "missing"]),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["'low_freq_factor'", "missing"]),
])
def test_refusals_name_the_place_and_the_cause(changes, names):
    with pytest.raises(ValueError) as refusal:
        read_architecture(BASE | changes, "some/config.json")
    assert all(name in str(refusal.value) for name in ["some/config.json", *names]), str(refusal.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                 "intermediate_size", "rms_norm_eps", "max_position_embeddings"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ValueError, match=f"config.json: the key '{key}' is missing"):
        read_architecture({name: value for name, value in BASE.items() if name != key})
