"""Tiny random checkpoints written by transformers, and the real model where it is present."""


import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.lora import (
    adapter_parameters,
    add_lora,
)
from minigrpo.policy.tree import pad_prompts
from tests.policy.helpers import IDS_QKC, LIVE_QKC, PROMPTS, fill_B, generator

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


@pytest.fixture
def fresh(checkpoint):
    """fresh(dtype, filled, **arguments of add_lora) → a newly loaded tiny Llama with adapters."""
    def make(dtype=torch.float32, filled=True, *, rank=4, alpha=8.0, **arguments):
        model = load_model(checkpoint("llama", attention_bias=True)[0], dtype=dtype, device="cpu")
        add_lora(model, rank=rank, alpha=alpha, generator=generator(), **arguments)
        if filled:
            fill_B(model)
        return model

    return make


@pytest.fixture
def copy_of(checkpoint, tmp_path):
    """copy_of(family, edit, **config) → a folder of its own whose tensors ``edit`` may change in place."""
    def make(edit=None, family="llama", **config):
        folder, _ = checkpoint(family, **config)
        tensors = load_file(folder / "model.safetensors")
        if edit:
            edit(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return tmp_path

    return make
