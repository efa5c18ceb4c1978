"""A Hugging Face config.json → the few facts in which decoder families differ. Does not depend on files.

One decoder (``model.py``) serves every family. A feature that it lacks is refused here, by name, before any weight is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from minigrpo.common.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched for longer contexts. ``kind`` "linear": all are divided by ``factor``. "llama3", as in
    Llama 3.1: fast ones (short wavelengths) stay, slow ones are divided by the factor, those between are interpolated."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: float = 8192.0

    def stretch(self, frequencies: Tensor) -> Tensor:
        if self.kind == "linear":
            return frequencies / self.factor
        turns = self.original_positions * frequencies / (2 * math.pi)           # full turns within the old context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return keep * frequencies + (1 - keep) * frequencies / self.factor


@dataclass(frozen=True)
class Architecture:
    """What ``model.py`` needs to know about a checkpoint. Sizes are in elements."""

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


# The values of keys that a file leaves out, as transformers reads it (None: worked out from other keys), and those that differ
# in a family. A family that is not listed here is refused by name.
DEFAULTS: dict[str, object] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "max_position_embeddings": 32_768,
    "num_key_value_heads": None, "head_dim": None, "sliding_window": None, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "gemma": {"max_position_embeddings": 8192, "num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True,
              "hidden_act": "gelu_pytorch_tanh"},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# Keys that ask for another computation unless they are absent, null, false or 1. So do those of ``BIASES`` in families other
# than the ones named there.
UNSUPPORTED = ("quantization_config", "partial_rotary_factor", "use_sliding_window", "use_bidirectional_attention", "bias",
             "use_bias", "qkv_bias", "attn_logit_softcapping", "final_logit_softcapping")
BIASES = {"attention_bias": ("llama", "gemma", "qwen2", "qwen3"), "mlp_bias": ("llama",)}
CHECKS = {"a positive integer": lambda value: type(value) is int and value > 0,
         "a positive number": lambda value: type(value) in (int, float) and 0 < value < 1e30,
         "true or false": lambda value: type(value) is bool}
# Far beyond any model. Below these limits no size of a tensor overflows, and a decoder without weights fills no memory.
MAX_SIZES = {"num_hidden_layers": 1000, "vocab_size": 2**20, "hidden_size": 2**20, "intermediate_size": 2**20,
             "num_attention_heads": 2**20, "num_key_value_heads": 2**20, "head_dim": 2**20}


def read_architecture(config: Mapping, source: str = "config.json") -> Architecture:
    """Facts from a parsed config.json; ``source`` is named in errors.

    ``UserError`` that names the missing key, the unsupported family or feature, or the value that makes no model.
    """
    family = config.get("model_type")
    if family not in list(FAMILIES):
        raise UserError(f"{source}: model_type {family!r:.80} is not supported; supported: {', '.join(FAMILIES)}")
    facts: dict = DEFAULTS | FAMILIES[str(family)] | dict(config)
    rope = facts.get("rope_scaling") or facts.get("rope_parameters") or {}          # an older and a newer spelling
    _check(facts, "a positive integer", source, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
           "intermediate_size", "max_position_embeddings")
    _refuse_other_computations(family, facts, rope, source)
    width, heads = facts["hidden_size"], facts["num_attention_heads"]
    if facts["head_dim"] is None and width % heads:
        raise UserError(f"{source}: without head_dim, hidden_size {width} must be a multiple of num_attention_heads {heads}")
    worked_out = {"num_key_value_heads": heads, "head_dim": width // heads}
    facts |= {key: number for key, number in worked_out.items() if facts[key] is None}
    window = facts["sliding_window"] if family == "mistral" else None
    _check(facts, "a positive integer", source, *worked_out, *["sliding_window"] * (window is not None))
    _check(facts, "a positive number", source, "rms_norm_eps")
    _check(facts, "true or false", source, "tie_word_embeddings", "attention_bias", "mlp_bias")
    if heads % facts["num_key_value_heads"]:
        raise UserError(f"{source}: {heads} attention heads cannot share {facts['num_key_value_heads']} key/value heads")
    if facts["head_dim"] % 2:
        raise UserError(f"{source}: head_dim must be even, as rotary positions turn pairs, got {facts['head_dim']!r:.80}")
    theta, scaling = _rope(facts, rope, source)
    return Architecture(
        family=family, vocabulary=facts["vocab_size"], width=width, layers=facts["num_hidden_layers"], heads=heads,
        kv_heads=facts["num_key_value_heads"], head_size=facts["head_dim"], mlp_width=facts["intermediate_size"],
        norm_eps=float(facts["rms_norm_eps"]), rope_theta=theta, rope_scaling=scaling,
        max_positions=facts["max_position_embeddings"], activation=_activation(family, facts, source),
        tied=facts["tie_word_embeddings"], mlp_bias=facts["mlp_bias"],
        qkv_bias=family == "qwen2" or facts["attention_bias"], output_bias=family != "qwen2" and facts["attention_bias"],
        qk_norm=family == "qwen3", norm_offset=float(family == "gemma"),
        embedding_scale=math.sqrt(width) if family == "gemma" else 1.0, window=window)


def _check(table: Mapping, kind: str, source: str, *keys: str) -> None:
    for key in keys:
        if key not in table:
            raise UserError(f"{source}: the key {key!r} is missing")
        if not CHECKS[kind](table[key]):
            raise UserError(f"{source}: {key} must be {kind}, got {table[key]!r:.80}")
        if key in MAX_SIZES and table[key] > MAX_SIZES[key]:
            raise UserError(f"{source}: {key} must be at most {MAX_SIZES[key]:,}, got {table[key]!r:.80}")


def _refuse_other_computations(family: str, facts: Mapping, rope: object, source: str) -> None:
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(f"{source}: rope parameters must be one table for all layers, got {rope!r:.80}")
    for key in (*UNSUPPORTED, *(key for key, readers in BIASES.items() if family not in readers)):
        for value in (facts.get(key), rope.get(key)):
            if value not in (None, False, 1) or value is True:
                raise UserError(f"{source}: {key} is not supported for {family}, got {value!r:.80}")
    if (layers := facts.get("layer_types")) not in (None, ["full_attention"] * facts["num_hidden_layers"]):
        raise UserError(f"{source}: layer_types other than full_attention are not supported, got {layers!r:.80}")


def _activation(family: str, facts: Mapping, source: str) -> str:
    """The first Gemma files say "gelu", but were trained with its tanh approximation; later files name that in a second
    key."""
    known = ACTIVATIONS | ({"gelu": "gelu_tanh"} if family == "gemma" else {})
    names = [facts["hidden_act"], *filter(None, [facts.get("hidden_activation")])]
    meant = {known.get(str(name), "") for name in names}
    if len(meant) > 1 or "" in meant:
        raise UserError(f"{source}: activation {' and '.join(map(repr, names)):.80} is not supported, only "
                        f"{', '.join(known)}")
    return meant.pop()


def _rope(facts: Mapping, table: Mapping, source: str) -> tuple[float, RopeScaling | None]:
    rope = {"rope_theta": facts["rope_theta"], "original_max_position_embeddings": facts["max_position_embeddings"], **table}
    kind = rope.get("rope_type") or rope.get("type") or "default"           # rope_theta stands in the table or beside it
    stretches = {"default": [], "linear": ["factor"],
                 "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]}
    if kind not in list(stretches):
        raise UserError(f"{source}: rope scaling {kind!r:.80} is not supported; supported: {', '.join(stretches)}")
    _check(rope, "a positive number", source, "rope_theta", *stretches[kind])
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise UserError(f"{source}: low_freq_factor must be below high_freq_factor, got {rope['low_freq_factor']!r}")
    numbers = [float(rope[key]) for key in stretches[kind]]         # an integer may be too large for a tensor's arithmetic
    return float(rope["rope_theta"]), RopeScaling(kind, *numbers) if numbers else None
