"""A small model made new: random weights and a tokenizer trained on some texts, as a folder like any other."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from minigrpo.common.errors import UserError
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.weights import write_model
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tokenizer import EOS, train_bpe


def create_model(folder: Path, texts: Iterable[str], *, vocabulary: int, layers: int, width: int, heads: int, mlp_width: int,
                 max_positions: int, generator: torch.Generator) -> None:
    """Write a small Llama with random weights and a BPE trained on ``texts``. ``UserError`` for sizes that make no model."""
    if heads < 1 or width % (2 * heads):
        raise UserError(f"model.new: the width {width} is no multiple of twice the {heads} heads: rotary positions turn "
                         f"pairs")
    tokenizer = train_bpe(texts, vocabulary)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "model_max_length": max_positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(),
              "hidden_size": width, "intermediate_size": mlp_width, "num_hidden_layers": layers, "hidden_act": "silu",
              "num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": max_positions, "tie_word_embeddings": True,
              "eos_token_id": tokenizer.token_to_id(EOS)}
    model = CausalLM(read_architecture(config, "model.new"))
    initialise(model, generator)
    write_model(model, folder, config)


def initialise(model: CausalLM, generator: torch.Generator) -> None:
    """Random weights for a model that is trained from nothing: norms are 1, all else is normal with σ = 0.7 / √D, and smaller
    by √(2 · layers), as in GPT-2, where it adds to the residual stream."""
    architecture = model.architecture
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            shrink = math.sqrt(2 * architecture.layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=0.7 / math.sqrt(architecture.width) / shrink, generator=generator)
