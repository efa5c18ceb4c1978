"""Tiny random checkpoints written by transformers, and the real model where it is present."""


import pytest
import torch
import transformers

from minigrpo.policy.files.weights import load_model

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()

SIZES = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, intermediate_size=48, max_position_embeddings=128, bos_token_id=1,
             eos_token_id=2, pad_token_id=0)
FAMILIES = {"llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
            "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)}


def spread_weights(model, seed=0):
    """Random weights large enough that every part moves the logits: norms near one, biases and matrices of order
    one."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if "norm" in name:
            parameter.data = parameter.data + 0.2 * noise
        elif parameter.dim() == 1:
            parameter.data = 0.3 * noise
        else:
            parameter.data = 1.5 * noise / parameter.shape[1] ** 0.5


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(family, **config) → (folder, the transformers model that wrote it, in evaluation mode).

    Its attention is the plain one of matrix products ("eager"): with the fused kernel that we use too, logits are
    equal bit for bit, and the comparison would say less.
    """
    made = {}

    def make(family="llama", **config):
        key = repr((family, sorted(config.items())))
        if key not in made:
            config_class, model_class = FAMILIES[family]
            model = model_class(config_class(**(SIZES | config), attn_implementation="eager"))
            model.eval().requires_grad_(False)
            spread_weights(model)
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            made[key] = folder, model
        return made[key]

    return make


@pytest.fixture(scope="session")
def pair(checkpoint):
    """pair(family, **config) → (our model, transformers' model) of one checkpoint, float32 on the CPU."""
    def make(family="llama", **config):
        folder, theirs = checkpoint(family, **config)
        return load_model(folder, dtype=torch.float32, device="cpu"), theirs

    return make
