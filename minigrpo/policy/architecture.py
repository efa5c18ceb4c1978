"""A Hugging Face config.json → the few facts in which decoder families differ. Knows no tensors and no files.

One decoder (``model.py``) serves every family; a family is a row of ``FAMILIES``. What this decoder cannot do is refused
here, by name, before any weight is read.
"""

import math
from dataclasses import dataclass
from typing import Mapping

@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched for long contexts. ``kind`` "linear": all divided by ``factor``; "llama3": slow ones
    divided, fast ones kept, a ramp between (Llama 3.1), by wavelength against ``original_positions``."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class Architecture:
    """What ``model.py`` needs to know of a checkpoint. Sizes in elements; names follow the axis legend's meaning."""

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_positions: int
    activation: str                 # "silu" | "gelu_tanh" | "gelu"
    tied: bool                      # the output head is the embedding
    qkv_bias: bool = False
    output_bias: bool = False       # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False           # RMS norm of each query and key head (Qwen3)
    norm_offset: float = 0.0        # Gemma's norms multiply by 1 + weight
    embedding_scale: float = 1.0    # Gemma multiplies embeddings by √width
    window: int | None = None       # sliding window: only positions less than a window away are seen


# What sets a family apart from Llama, as a function of its config. Anything not listed here is refused by name.
FAMILIES = {
    "llama": lambda config: {
        "qkv_bias": config.get("attention_bias", False), "output_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False)},
    "mistral": lambda config: {"window": config.get("sliding_window", 4096)},       # an explicit null is no window
    "gemma": lambda config: {
        "norm_offset": 1.0, "embedding_scale": math.sqrt(config["hidden_size"]),
        "qkv_bias": config.get("attention_bias", False), "output_bias": config.get("attention_bias", False),
        # The first Gemma files say "gelu" in hidden_act and were trained with its tanh approximation.
        "activation": "gelu_tanh", "tied": config.get("tie_word_embeddings", True)},
    "qwen2": lambda config: {"qkv_bias": True},
    "qwen3": lambda config: {
        "qk_norm": True, "qkv_bias": config.get("attention_bias", False),
        "output_bias": config.get("attention_bias", False)},
}
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def read_architecture(config: Mapping, source: str = "config.json") -> Architecture:
    """Facts from a parsed config.json; ``source`` is named in errors.

    Raises ``ValueError`` that names the missing key, the unsupported family or the unsupported feature.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{source}: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    if family in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        raise ValueError(f"{source}: use_sliding_window (a window in some layers only) is not supported")
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        raise ValueError(f"{source}: activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    try:
        theta, scaling = _rope(config, source)
        facts = dict(
            family=family, vocabulary=config["vocab_size"], width=config["hidden_size"],
            layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_size=config.get("head_dim") or _divided(config["hidden_size"], config["num_attention_heads"], source),
            mlp_width=config["intermediate_size"], norm_eps=config["rms_norm_eps"], rope_theta=theta,
            rope_scaling=scaling, max_positions=config["max_position_embeddings"], activation=ACTIVATIONS[activation],
            tied=config.get("tie_word_embeddings", False))
    except KeyError as missing:
        raise ValueError(f"{source}: the key {missing} is missing") from None
    architecture = Architecture(**(facts | FAMILIES[family](config)))
    for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_size", "mlp_width", "max_positions"):
        if type(size := getattr(architecture, name)) is not int or size < 1:
            raise ValueError(f"{source}: the model's {name} must be a positive integer, got {size!r}")
    if architecture.heads % architecture.kv_heads:
        raise ValueError(f"{source}: {architecture.heads} attention heads cannot share "
                         f"{architecture.kv_heads} key/value heads evenly")
    return architecture


def _divided(width: object, heads: object, source: str) -> int:
    if type(width) is not int or type(heads) is not int or heads < 1:
        raise ValueError(f"{source}: hidden_size and num_attention_heads must be positive integers, got {width!r}, {heads!r}")
    return width // heads


def _rope(config: Mapping, source: str) -> tuple[float, RopeScaling | None]:
    """Both spellings: ``rope_theta`` beside ``rope_scaling``, and the newer ``rope_parameters`` that holds either."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return theta, RopeScaling("llama3", float(rope["factor"]), float(rope["low_freq_factor"]),
                                  float(rope["high_freq_factor"]), int(rope["original_max_position_embeddings"]))
    raise ValueError(f"{source}: rope scaling {kind!r} is not supported; supported: default, linear, llama3")
