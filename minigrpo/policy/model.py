"""One decoder for Llama, Mistral, Gemma, Qwen2 and Qwen3, with Hugging Face's module names. Does not depend on text or search.

The differences between families are in ``Architecture``. Which token sees which is the caller's decision: ``visible_QTS``.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigrpo.common.shapes import check
from minigrpo.policy.architecture import Architecture
from minigrpo.policy.attention import Bias, attend, attention_biases, rotary_angles, rotate
from minigrpo.policy.cache import KeysValues, KVCache, LayerCache
from minigrpo.policy.fast.gate import recomputed
from minigrpo.policy.fast.products import Linear, linear
from minigrpo.policy.fast.stacked import project
from minigrpo.policy.tree import TreeVisibility, within_window

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class CausalLM(nn.Module):
    """The decoder and its output head. ``files.weights.load_model`` gives it weights, frozen, in evaluation mode."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.checkpointing = False              # keep only each layer's input and recompute the rest in the backward pass
        self.model = Decoder(architecture)
        if not architecture.tied:
            self.lm_head = Linear(architecture.width, architecture.vocabulary, bias=False)

    def forward(self, ids_QT: Tensor, *, positions_QT: Tensor | None = None,
                visible_QTS: Tensor | TreeVisibility | None = None, cache: KVCache | None = None,
                root: Sequence[KeysValues] | None = None) -> Tensor:
        """hidden_QTD after the final norm.

        Defaults are plain causal: positions are the ``cache``'s slots, and each token sees all tokens before it and itself.
        Every row of ``visible_QTS`` must see something; S is T, or the slots up to the cache's ``stop``. ``root``: keys and
        values, by layer, of L tokens before those of every row, as ``read`` gives them; then S is L more, and positions and
        visibility must be given.
        """
        return self._run(ids_QT, positions_QT, visible_QTS, cache, root, keep=False)[0]

    def read(self, ids: Sequence[int]) -> list[KeysValues]:
        """Keys and values of a plain sequence, by layer; of no tokens, no layers."""
        if not ids:
            return []
        return self._run(torch.tensor([ids], device=self.device), None, None, None, None, keep=True)[1]

    def _run(self, ids_QT: Tensor, positions_QT: Tensor | None, visible_QTS: Tensor | TreeVisibility | None,
             cache: KVCache | None, root: Sequence[KeysValues] | None, keep: bool) -> tuple[Tensor, list[KeysValues]]:
        (Q, T), S = ids_QT.shape, (cache.stop if cache else ids_QT.shape[1]) + (root[0][0].shape[2] if root else 0)
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
        return self.model(ids_QT, positions_QT, visible_QTS, cache, root, self.checkpointing, keep)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] → logits [..., V], in the weights' dtype."""
        return linear(hidden, self.model.embed_tokens.weight) if self.architecture.tied else project(hidden, self.lm_head)[0]

    @property
    def head(self) -> nn.Module:
        """The module that holds the output's weights."""
        return self.model.embed_tokens if self.architecture.tied else self.lm_head

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype


class Decoder(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embed_tokens = nn.Embedding(architecture.vocabulary, architecture.width)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))
        self.norm = RMSNorm(architecture.width, architecture)
        self.run_layer: Callable[..., tuple[Tensor, KeysValues]] = Layer.forward           # ``fast.fuse`` has it compiled

    def forward(self, ids_QT: Tensor, positions_QT: Tensor, visible_QTS: Tensor | TreeVisibility | None,
                cache: KVCache | None, root: Sequence[KeysValues] | None, checkpointing: bool,
                keep: bool) -> tuple[Tensor, list[KeysValues]]:
        """The last hidden states; or, to ``keep``, this call's keys and values by layer."""
        x_QTD = self.embed_tokens(ids_QT)
        if self.architecture.embedding_scale != 1.0:        # rounded to the weights' dtype, as Gemma was trained
            x_QTD = x_QTD * torch.tensor(self.architecture.embedding_scale, dtype=x_QTD.dtype)
        rotary = rotary_angles(self.architecture, positions_QT, x_QTD.dtype)
        bias = attention_biases(visible_QTS, self.architecture.heads // self.architecture.kv_heads, x_QTD.dtype)
        own = []
        for index, layer in enumerate(self.layers):
            before = root[index] if root else None
            if checkpointing and torch.is_grad_enabled():
                x_QTD, keys_values = checkpoint(self.run_layer, layer, x_QTD, rotary, bias, None, before, True,
                                                use_reentrant=False, preserve_rng_state=False)
            else:
                x_QTD, keys_values = self.run_layer(layer, x_QTD, rotary, bias, cache.layer(index) if cache else None, before,
                                                    False)
            own += [keys_values] if keep else []
        return x_QTD if keep else self.norm(x_QTD), own


class Layer(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(architecture.width, architecture)
        self.self_attn = Attention(architecture)
        self.post_attention_layernorm = RMSNorm(architecture.width, architecture)
        self.mlp = MLP(architecture)

    def forward(self, x_QTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Bias, cache: LayerCache | None,
                root: KeysValues | None, checkpointed: bool) -> tuple[Tensor, KeysValues]:
        """``checkpointed``: this whole call will be recomputed in the backward pass."""
        out_QTD, keys_values = self.self_attn(self.input_layernorm(x_QTD), rotary, bias, cache, root)
        x_QTD = x_QTD + out_QTD
        return x_QTD + self.mlp(self.post_attention_layernorm(x_QTD), checkpointed), keys_values


class Attention(nn.Module):
    of_one_input = (("q_proj", "k_proj", "v_proj"),)        # linear layers that ``project`` computes together

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

    def forward(self, x_QTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Bias, cache: LayerCache | None,
                root: KeysValues | None) -> tuple[Tensor, KeysValues]:
        query_QTNH, key_QTMH, value_QTMH = (
            projected.unflatten(-1, (-1, self.head_size))
            for projected in project(x_QTD, self.q_proj, self.k_proj, self.v_proj))
        query_QNTH = rotate(self.q_norm(query_QTNH), rotary).transpose(1, 2)
        key_QMSH = rotate(self.k_norm(key_QTMH), rotary).transpose(1, 2)
        if cache is None:
            value_QMSH = value_QTMH.contiguous().transpose(1, 2)        # a view would keep queries and keys for the gradient
        else:
            key_QMSH, value_QMSH = cache.write(key_QMSH, value_QTMH.transpose(1, 2))
        out_QNTH = attend(query_QNTH, key_QMSH, value_QMSH, bias, root)
        return project(out_QNTH.transpose(1, 2).flatten(2), self.o_proj)[0], (key_QMSH, value_QMSH)


class MLP(nn.Module):
    of_one_input = (("gate_proj", "up_proj"),)              # linear layers that ``project`` computes together

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        D, inner, bias = architecture.width, architecture.mlp_width, architecture.mlp_bias
        self.gate_proj = Linear(D, inner, bias=bias)
        self.up_proj = Linear(D, inner, bias=bias)
        self.down_proj = Linear(inner, D, bias=bias)
        self.activation = ACTIVATIONS[architecture.activation]

    def forward(self, x_QTD: Tensor, checkpointed: bool) -> Tensor:
        """down(activation(gate(x)) · up(x))."""
        gate, up = project(x_QTD, self.gate_proj, self.up_proj)
        product = self.activation(gate) * up
        with recomputed(product, lambda: self.activation(gate) * up, keep=checkpointed):
            return project(product, self.down_proj)[0]


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
