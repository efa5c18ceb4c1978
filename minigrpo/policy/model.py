"""One decoder for Llama, Mistral, Gemma, Qwen2 and Qwen3, with Hugging Face's module names. Knows no text and no search.

What differs between families is in ``Architecture``. Which token sees which is the caller's: ``visible_QTS``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigrpo.policy.architecture import Architecture, RopeScaling
from minigrpo.policy.lora import project
from minigrpo.policy.tree import KVCache, LayerCache, within_window
from minigrpo.shapes import check


class CausalLM(nn.Module):
    """The decoder and its output head. Weights are made by ``weights.load_model``; frozen, in evaluation mode."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.kept: object = None                # search.py's: buffers and recorded steps of the last search
        self.model = Decoder(architecture)
        if not architecture.tied:
            self.lm_head = nn.Linear(architecture.width, architecture.vocabulary, bias=False)

    def forward(self, ids_QT: Tensor, *, positions_QT: Tensor | None = None, visible_QTS: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """hidden_QTD after the final norm.

        Defaults are plain causal: positions are the ``cache``'s slots, and each token sees all before it and itself.
        Every row of ``visible_QTS`` must see something; S is T, or the cache's ``stop``.
        """
        (Q, T), S = ids_QT.shape, cache.stop if cache else ids_QT.shape[1]
        if positions_QT is None:
            positions_QT = (cache.slots_T if cache else torch.arange(T, device=ids_QT.device)).expand(Q, T)
        if visible_QTS is None:
            positions_QS = torch.arange(S, device=ids_QT.device).expand(Q, S)
            visible_QTS = positions_QT[:, :, None] >= positions_QS[:, None, :]
            visible_QTS = within_window(visible_QTS, positions_QT, positions_QS, self.architecture.window)
        check(ids_QT=ids_QT, positions_QT=positions_QT, visible_QTS=visible_QTS, S=S)
        return self.model(ids_QT, positions_QT, visible_QTS, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] → logits [..., V], in the weights' dtype."""
        return F.linear(hidden, self.model.embed_tokens.weight) if self.architecture.tied else self.lm_head(hidden)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype


def initialise(model: CausalLM, generator: torch.Generator) -> None:
    """Random weights for a model that is to be trained from nothing: norms 1, all else normal with σ = 0.7 / √D; what adds to
    the residual stream is smaller by √(2 · layers), as in GPT-2."""
    architecture = model.architecture
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            shrink = math.sqrt(2 * architecture.layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=0.7 / math.sqrt(architecture.width) / shrink, generator=generator)


class Decoder(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.checkpointing = False              # keep each layer's input alone and compute the rest again in the backward pass
        self.embed_tokens = nn.Embedding(architecture.vocabulary, architecture.width)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))
        self.norm = RMSNorm(architecture.width, architecture)

    def forward(self, ids_QT: Tensor, positions_QT: Tensor, visible_QTS: Tensor, cache: KVCache | None) -> Tensor:
        x_QTD = self.embed_tokens(ids_QT)
        if self.architecture.embedding_scale != 1.0:        # rounded to the weights' dtype, as Gemma was trained
            x_QTD = x_QTD * torch.tensor(self.architecture.embedding_scale, dtype=x_QTD.dtype)
        rotary = rotary_angles(self.architecture, positions_QT, x_QTD.dtype)
        bias = attention_bias(visible_QTS, self.architecture.heads // self.architecture.kv_heads, x_QTD.dtype)
        for index, layer in enumerate(self.layers):
            if self.checkpointing and torch.is_grad_enabled():
                x_QTD = checkpoint(layer, x_QTD, rotary, bias, None, use_reentrant=False, preserve_rng_state=False)
            else:
                x_QTD = layer(x_QTD, rotary, bias, cache and cache.layer(index))
        return self.norm(x_QTD)


def attention_bias(visible_QTS: Tensor, sharing: int, dtype: torch.dtype) -> Tensor:
    """[Q, 1, sharing · T, S]: 0 where visible, else −inf, once for each query head that shares keys with others.

    It is what the attention kernels make of a boolean mask, made once and not in every layer. Rows lie at multiples of eight
    elements, or CUDA's kernel would copy it in every layer to have them so.
    """
    Q, T, S = visible_QTS.shape
    bias = torch.zeros(Q, sharing, T, -(-S // 8) * 8, dtype=dtype, device=visible_QTS.device)[..., :S]
    return bias.masked_fill_(~visible_QTS[:, None], -torch.inf).flatten(1, 2)[:, None]


class Layer(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(architecture.width, architecture)
        self.self_attn = Attention(architecture)
        self.post_attention_layernorm = RMSNorm(architecture.width, architecture)
        self.mlp = MLP(architecture)

    def forward(self, x_QTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, cache: LayerCache | None) -> Tensor:
        x_QTD = x_QTD + self.self_attn(self.input_layernorm(x_QTD), rotary, bias, cache)
        return x_QTD + self.mlp(self.post_attention_layernorm(x_QTD))


class Attention(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.head_size = architecture.head_size
        D, N, M, H = architecture.width, architecture.heads, architecture.kv_heads, architecture.head_size
        self.q_proj = nn.Linear(D, N * H, bias=architecture.qkv_bias)
        self.k_proj = nn.Linear(D, M * H, bias=architecture.qkv_bias)
        self.v_proj = nn.Linear(D, M * H, bias=architecture.qkv_bias)
        self.o_proj = nn.Linear(N * H, D, bias=architecture.output_bias)
        self.q_norm = RMSNorm(H, architecture) if architecture.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(H, architecture) if architecture.qk_norm else nn.Identity()

    def forward(self, x_QTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, cache: LayerCache | None) -> Tensor:
        query_QTNH, key_QTMH, value_QTMH = (
            projected.unflatten(-1, (-1, self.head_size))
            for projected in project(x_QTD, self.q_proj, self.k_proj, self.v_proj))
        query_QNTH = rotate(self.q_norm(query_QTNH), rotary).transpose(1, 2)
        key_QMSH = rotate(self.k_norm(key_QTMH), rotary).transpose(1, 2)
        value_QMSH = value_QTMH.transpose(1, 2)
        if cache is not None:
            key_QMSH, value_QMSH = cache.write(key_QMSH, value_QMSH)
        # Heads that share keys become further rows of one query: the keys are read once for all of them, and any kernel can
        # do it (CUDA's own way of sharing takes no mask).
        out = F.scaled_dot_product_attention(query_QNTH.unflatten(1, (key_QMSH.shape[1], -1)).flatten(2, 3), key_QMSH,
                                             value_QMSH, attn_mask=bias)
        out_QNTH = out.unflatten(2, (-1, query_QNTH.shape[2])).flatten(1, 2)
        return self.o_proj(out_QNTH.transpose(1, 2).flatten(2))


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class MLP(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        D, inner, bias = architecture.width, architecture.mlp_width, architecture.mlp_bias
        self.gate_proj = nn.Linear(D, inner, bias=bias)
        self.up_proj = nn.Linear(D, inner, bias=bias)
        self.down_proj = nn.Linear(inner, D, bias=bias)
        self.activation = ACTIVATIONS[architecture.activation]

    def forward(self, x_QTD: Tensor) -> Tensor:
        gate, up = project(x_QTD, self.gate_proj, self.up_proj)
        return self.down_proj(self.activation(gate) * up)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · (offset + weight), in float32 (or wider) inside."""

    def __init__(self, size: int, architecture: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.offset = architecture.norm_eps, architecture.norm_offset

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide) + self.offset, self.eps).to(x.dtype)


# ------------------------------------------------------------------------------------------------- rotary positions
def rotary_angles(architecture: Architecture, positions_QT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_QTH and sin_QTH of every position (arXiv 2104.09864), computed in float32; both halves of H alike, but that the
    first half's sines are negative, as ``rotate`` needs them."""
    exponents = torch.arange(0, architecture.head_size, 2, device=positions_QT.device).float() / architecture.head_size
    frequencies = 1.0 / architecture.rope_theta ** exponents
    if architecture.rope_scaling is not None:
        frequencies = stretched(frequencies, architecture.rope_scaling)
    angles = positions_QT[:, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Rotary frequencies for longer contexts; "llama3" as in Llama 3.1: fast ones (short wavelengths) stay, slow ones are
    divided by the factor, those between are interpolated."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_positions * frequencies / (2 * torch.pi)           # full turns within the old context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotate(x_QTNH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + H/2) of each head by the position's angles: (a, b) → (a cos − b sin, b cos + a sin)."""
    cos_QTH, sin_QTH = rotary
    return torch.addcmul(x_QTNH * cos_QTH[:, :, None], x_QTNH.roll(x_QTNH.shape[-1] // 2, dims=-1), sin_QTH[:, :, None])
