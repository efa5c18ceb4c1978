"""One decoder for Llama, Mistral, Gemma, Qwen2 and Qwen3, with Hugging Face's module names. Knows no text and no search.

What differs between families is in ``Architecture``. Which token sees which is the caller's: ``visible_QTS``.
"""

import math
import weakref
from typing import NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from minigrpo.common.shapes import check
from minigrpo.policy.architecture import Architecture, RopeScaling
from minigrpo.policy.fast.onednn import Linear, linear
from minigrpo.policy.lora import project, stacks
from minigrpo.policy.tree import KVCache, LayerCache, TreeVisibility, within_window

# Fused attention kernels share out work by head and by rows, never by keys. Where there are so few of both, plain matrix
# products are faster: measured on one H100 with 24 heads of 24 rows (0.8 against 3.7 ms in 30 layers of 2,400 keys) and with
# 128 heads of 2 rows (50 against 69 µs a layer of 704 keys; 35 where torch.compile fuses what lies between them).
FEW_ROWS, FEW_HEADS = 64, 128


class CausalLM(nn.Module):
    """The decoder and its output head. Weights are made by ``weights.load_model``; frozen, in evaluation mode."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.kept: object = None                # search.py's: buffers and recorded steps of the last search
        self.checkpointing = False              # keep each layer's input alone and compute the rest again in the backward pass
        self.model = Decoder(architecture)
        if not architecture.tied:
            self.lm_head = Linear(architecture.width, architecture.vocabulary, bias=False)

    def forward(self, ids_QT: Tensor, *, positions_QT: Tensor | None = None,
                visible_QTS: Tensor | TreeVisibility | None = None, cache: KVCache | None = None) -> Tensor:
        """hidden_QTD after the final norm.

        Defaults are plain causal: positions are the ``cache``'s slots, and each token sees all before it and itself.
        Every row of ``visible_QTS`` must see something; S is T, or the cache's ``stop``.
        """
        (Q, T), S = ids_QT.shape, cache.stop if cache else ids_QT.shape[1]
        if positions_QT is None:
            positions_QT = (cache.slots_T if cache else torch.arange(T, device=ids_QT.device)).expand(Q, T)
        window = self.architecture.window
        if visible_QTS is None and (S > T or window is not None and S > window):
            positions_QS = torch.arange(S, device=ids_QT.device).expand(Q, S)
            visible_QTS = positions_QT[:, :, None] >= positions_QS[:, None, :]
            visible_QTS = within_window(visible_QTS, positions_QT, positions_QS, window)
        check(ids_QT=ids_QT, positions_QT=positions_QT)
        if isinstance(visible_QTS, Tensor):
            check(ids_QT=ids_QT, visible_QTS=visible_QTS, S=S)
        return self.model(ids_QT, positions_QT, visible_QTS, cache, self.checkpointing)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] → logits [..., V], in the weights' dtype."""
        return linear(hidden, self.head.weight) if self.architecture.tied else self.head(hidden)

    @property
    def head(self) -> nn.Module:
        """Where the output's weights are."""
        return self.model.embed_tokens if self.architecture.tied else self.lm_head

    def fuse(self) -> None:
        """Let torch.compile make few kernels, forward and backward, of all that a layer does between its matrix products. Each
        use is compiled for its first shapes and once more for any; CUDA needs a C compiler for it."""
        torch._dynamo.config.recompile_limit = 64       # prefill, decoding, scoring, updates: each for some kinds of shapes
        # What costs little is made again in the backward pass, though it be the operand of a product, as in ``MLP``.
        torch._functorch.config.ban_recompute_materialized_backward = False
        self.model.compute = torch.compile(Layer.forward)

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
        self.embed_tokens = nn.Embedding(architecture.vocabulary, architecture.width)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))
        self.norm = RMSNorm(architecture.width, architecture)
        self.compute = Layer.forward                        # ``fuse`` has it compiled

    def forward(self, ids_QT: Tensor, positions_QT: Tensor, visible_QTS: Tensor | TreeVisibility | None,
                cache: KVCache | None, checkpointing: bool) -> Tensor:
        x_QTD = self.embed_tokens(ids_QT)
        if self.architecture.embedding_scale != 1.0:        # rounded to the weights' dtype, as Gemma was trained
            x_QTD = x_QTD * torch.tensor(self.architecture.embedding_scale, dtype=x_QTD.dtype)
        rotary = rotary_angles(self.architecture, positions_QT, x_QTD.dtype)
        bias = attention_biases(visible_QTS, self.architecture.heads // self.architecture.kv_heads, x_QTD.dtype)
        if self.compute is not Layer.forward:
            stacks(self)                                    # the compiler could not move their weights
        for index, layer in enumerate(self.layers):
            if checkpointing and torch.is_grad_enabled():
                x_QTD = checkpoint(self.compute, layer, x_QTD, rotary, bias, None, True, use_reentrant=False,
                                   preserve_rng_state=False)
            else:
                x_QTD = self.compute(layer, x_QTD, rotary, bias, cache and cache.layer(index), False)
        return self.norm(x_QTD)


# ----------------------------------------------------------------------------------------------------------- attention
class TreeBias(NamedTuple):
    """The additive masks of a tree: the trunk's (None: plain causal), and of Q · K branches over trunk and branch."""

    trunk: Tensor | None
    branch: Tensor
    branches: int


Bias = Tensor | TreeBias | None                 # None: plain causal


def attention_biases(visible: Tensor | TreeVisibility | None, sharing: int, dtype: torch.dtype) -> Bias:
    """What ``attend`` adds to the scores. Made once for all layers."""
    if isinstance(visible, TreeVisibility):
        trunk = None if visible.trunk_QPP is None else additive(visible.trunk_QPP, sharing, dtype)
        return TreeBias(trunk, additive(visible.branch_QKCS.flatten(0, 1), sharing, dtype), visible.branch_QKCS.shape[1])
    return None if visible is None else additive(visible, sharing, dtype)


def additive(visible_QTS: Tensor, sharing: int, dtype: torch.dtype) -> Tensor:
    """[Q, 1, sharing · T, S]: 0 where visible, else −inf, once for each query head that shares keys with others. Rows lie at
    multiples of eight elements, or CUDA's kernel would copy it in every layer to have them so."""
    Q, T, S = visible_QTS.shape
    bias = torch.zeros(Q, sharing, T, -(-S // 8) * 8, dtype=dtype, device=visible_QTS.device)[..., :S]
    return bias.masked_fill_(~visible_QTS[:, None], -torch.inf).flatten(1, 2)[:, None]


def attend(query_QNTH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: Bias) -> Tensor:
    """out_QNTH: softmax(query · key / √H + bias) · value; N / M query heads in a row share a key head."""
    if isinstance(bias, TreeBias):
        return attend_tree(query_QNTH, key_QMSH, value_QMSH, bias)
    if bias is None:
        shared = query_QNTH.shape[1] != key_QMSH.shape[1]
        return F.scaled_dot_product_attention(query_QNTH, key_QMSH, value_QMSH, is_causal=True, enable_gqa=shared)
    # Heads that share keys become further rows of one query: the keys are read once for all of them, and any kernel can do it
    # (CUDA's own way of sharing takes no mask).
    M, (N, T) = key_QMSH.shape[1], query_QNTH.shape[1:3]
    query_QMRH = query_QNTH.unflatten(1, (M, N // M)).flatten(2, 3)
    if query_QMRH.shape[2] <= FEW_ROWS and len(query_QMRH) * M <= FEW_HEADS:
        scores_QMRS = (query_QMRH * query_QMRH.shape[-1] ** -0.5) @ key_QMSH.transpose(2, 3) + bias
        out_QMRH = scores_QMRS.softmax(dim=-1) @ value_QMSH
    else:
        out_QMRH = F.scaled_dot_product_attention(query_QMRH, key_QMSH, value_QMSH, attn_mask=bias)
    return out_QMRH.unflatten(2, (N // M, T)).flatten(1, 2)


def attend_tree(query_QNSH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: TreeBias) -> Tensor:
    """The trunk among itself; each branch as a sequence of its own, behind the trunk's keys and values."""
    (Q, N, _, _), M, K = query_QNSH.shape, key_QMSH.shape[1], bias.branches
    C = bias.branch.shape[2] // (N // M)
    P = bias.branch.shape[3] - C                            # not S − K · C, over which torch.compile stumbles where K varies
    sizes = [P, K * C]
    (query_QNPH, query_QNXH), (key_QMPH, key_QMXH), (value_QMPH, value_QMXH) = (
        x.split(sizes, dim=2) for x in (query_QNSH, key_QMSH, value_QMSH))

    def own(x_QMXH: Tensor) -> Tensor:
        return x_QMXH.unflatten(2, (K, C)).transpose(1, 2)

    def behind(trunk_QMPH: Tensor, x_QMXH: Tensor) -> Tensor:
        trunk_QKMPH = trunk_QMPH[:, None].expand(Q, K, M, P, -1)
        return torch.cat([trunk_QKMPH, own(x_QMXH)], dim=3).flatten(0, 1)

    out_QNPH = attend(query_QNPH, key_QMPH, value_QMPH, bias.trunk)
    out_BNCH = attend(own(query_QNXH).flatten(0, 1), behind(key_QMPH, key_QMXH), behind(value_QMPH, value_QMXH), bias.branch)
    return torch.cat([out_QNPH, out_BNCH.unflatten(0, (Q, K)).transpose(1, 2).flatten(2, 3)], dim=2)


class Layer(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(architecture.width, architecture)
        self.self_attn = Attention(architecture)
        self.post_attention_layernorm = RMSNorm(architecture.width, architecture)
        self.mlp = MLP(architecture)

    def forward(self, x_QTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Bias, cache: LayerCache | None,
                keep: bool) -> Tensor:
        """``keep``: for the backward pass, what is cheaply made again too."""
        x_QTD = x_QTD + self.self_attn(self.input_layernorm(x_QTD), rotary, bias, cache)
        return x_QTD + self.mlp(self.post_attention_layernorm(x_QTD), keep)


class Attention(nn.Module):
    of_one_input = (("q_proj", "k_proj", "v_proj"),)        # linear layers that can be computed together

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.head_size = architecture.head_size
        D, N, M, H = architecture.width, architecture.heads, architecture.kv_heads, architecture.head_size
        self.q_proj = Linear(D, N * H, bias=architecture.qkv_bias)
        self.k_proj = Linear(D, M * H, bias=architecture.qkv_bias)
        self.v_proj = Linear(D, M * H, bias=architecture.qkv_bias)
        self.o_proj = Linear(N * H, D, bias=architecture.output_bias)
        self.q_norm = RMSNorm(H, architecture) if architecture.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(H, architecture) if architecture.qk_norm else nn.Identity()
        self.rotate = Rotation()

    def forward(self, x_QTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Bias, cache: LayerCache | None) -> Tensor:
        query_QTNH, key_QTMH, value_QTMH = (
            projected.unflatten(-1, (-1, self.head_size))
            for projected in project(x_QTD, self.q_proj, self.k_proj, self.v_proj))
        query_QNTH = self.rotate(self.q_norm(query_QTNH), rotary).transpose(1, 2)
        key_QMSH = self.rotate(self.k_norm(key_QTMH), rotary).transpose(1, 2)
        if cache is None:
            value_QMSH = value_QTMH.contiguous().transpose(1, 2)        # a view would keep queries and keys for the gradient
        else:
            key_QMSH, value_QMSH = cache.write(key_QMSH, value_QTMH.transpose(1, 2))
        out_QNTH = attend(query_QNTH, key_QMSH, value_QMSH, bias)
        return self.o_proj(out_QNTH.transpose(1, 2).flatten(2))


class Rotation(nn.Module):
    """Turns the pairs (i, i + H/2) of each head by the position's angles: (a, b) → (a cos − b sin, b cos + a sin)."""

    def forward(self, x_QTNH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        cos_QTH, sin_QTH = rotary
        turned_QTNH = x_QTNH.roll(x_QTNH.shape[-1] // 2, dims=-1)
        return torch.addcmul(x_QTNH * cos_QTH[:, :, None], turned_QTNH, sin_QTH[:, :, None])


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class Gate(nn.Module):
    """activation(gate) · up."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.activation(gate) * up


class MLP(nn.Module):
    of_one_input = (("gate_proj", "up_proj"),)

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        D, inner, bias = architecture.width, architecture.mlp_width, architecture.mlp_bias
        self.gate_proj = Linear(D, inner, bias=bias)
        self.up_proj = Linear(D, inner, bias=bias)
        self.down_proj = Linear(inner, D, bias=bias)
        self.gate = Gate(architecture.activation)

    def forward(self, x_QTD: Tensor, keep: bool) -> Tensor:
        gate, up = project(x_QTD, self.gate_proj, self.up_proj)
        product = self.gate(gate, up)
        if keep or not torch.is_grad_enabled() or torch.compiler.is_compiling():        # the compiler sees to it by itself
            return self.down_proj(product)
        # Nothing is as wide as these three. Two are kept for the backward pass, the product is made from them once more.
        memory = weakref.ref(product.untyped_storage())
        with saved_tensors_hooks(lambda saved: saved.shape if saved.untyped_storage() is memory() else saved,
                                 lambda saved: saved if isinstance(saved, Tensor) else self.gate(gate, up).view(saved)):
            return self.down_proj(product)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · (offset + weight), in float32 (or wider) inside."""

    def __init__(self, size: int, architecture: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.offset = architecture.norm_eps, architecture.norm_offset

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = self.weight.to(wide) + self.offset if self.offset else self.weight.to(wide)
        return F.rms_norm(x.to(wide), self.weight.shape, scale, self.eps).to(x.dtype)


# ------------------------------------------------------------------------------------------------- rotary positions
def rotary_angles(architecture: Architecture, positions_QT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_QTH and sin_QTH of every position (arXiv 2104.09864), computed in float32; both halves of H alike, but that the
    first half's sines are negative, as ``Rotation`` needs them."""
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
