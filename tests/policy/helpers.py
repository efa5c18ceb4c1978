"""Ids, models in small, and comparisons that several tests of the policy use."""

import copy
import math

import pytest
import torch

from minigrpo.policy.cache import KVCache
from minigrpo.policy.files.weights import create_model, load_model
from minigrpo.policy.generation.growing_tree import GrowingTree
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import TARGETS, adapter_parameters, adapters, add_lora
from minigrpo.policy.tree import pad_prompts

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", dict(tie_word_embeddings=True)),
    "llama biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "llama one kv head": ("llama", dict(num_key_value_heads=1)),
    "llama all kv heads": ("llama", dict(num_key_value_heads=4)),
    "llama wide heads": ("llama", dict(head_dim=16)),
    "llama gelu": ("llama", dict(hidden_act="gelu")),
    "llama gelu_new": ("llama", dict(hidden_act="gelu_new")),
    "llama eps": ("llama", dict(rms_norm_eps=0.5)),
    "llama theta": ("llama", dict(rope_theta=77.0)),
    "llama linear rope": ("llama", dict(rope_scaling=dict(rope_type="linear", factor=3.0))),
    # Old context 32, head 8, theta 50: wavelengths 2π·50^(i/4) = 6, 17, 44, 118: kept, between, and divided all occur.
    "llama llama3 rope": ("llama", dict(rope_scaling=LLAMA3, rope_theta=50.0)),
    "mistral, window 5": ("mistral", dict(sliding_window=5)),
    "mistral, window 1": ("mistral", dict(sliding_window=1)),
    "mistral, no window": ("mistral", dict(sliding_window=None)),
    "mistral tied, one kv head": ("mistral", dict(tie_word_embeddings=True, num_key_value_heads=1, sliding_window=7)),
    "gemma": ("gemma", {}),
    "gemma gelu": ("gemma", dict(hidden_act="gelu")),
    "gemma one kv head, wide heads": ("gemma", dict(num_key_value_heads=1, head_dim=24)),
    "gemma untied, biases": ("gemma", dict(tie_word_embeddings=False, attention_bias=True)),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen2 all kv heads, llama3 rope": ("qwen2", dict(num_key_value_heads=4, rope_scaling=LLAMA3, rope_theta=50.0)),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, linear rope": ("qwen3", dict(tie_word_embeddings=True, rope_scaling=dict(rope_type="linear", factor=3.0))),
    "qwen3 biases, wide heads": ("qwen3", dict(attention_bias=True, head_dim=12)),
}
EACH = pytest.mark.parametrize("family, config", CASES.values(), ids=CASES.keys())
PATHS = pytest.mark.parametrize("family, config", [CASES[name] for name in (
    "llama", "llama llama3 rope", "mistral, window 5", "gemma", "qwen2", "qwen3")])


def random_ids(*shape, seed=0, vocabulary=61):
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def apart(got, expected):
    """The largest difference, in units of the largest expected number."""
    assert got.shape == expected.shape and expected.isfinite().all()
    return float(((got - expected).abs().max() / expected.abs().max()).nan_to_num(math.inf))


def assert_close(got, expected, tolerance=1e-4):
    """float32 sums in another order differ by about 1e-6 of the largest number."""
    assert apart(got, expected) <= tolerance


OF_LOGITS = dict(bound=2e-5, unit="of scale")       # the largest logit's size; 1e-4 is asked, float32 can do this


def empty_cache(model, *, groups, slots):
    facts = model.architecture
    return KVCache.empty(layers=facts.layers, groups=groups, kv_heads=facts.kv_heads, slots=slots, head_size=facts.head_size,
                         dtype=model.dtype, device="cpu")


def in_pieces(model, ids_QT, pieces):
    """Hidden states of a sequence that comes in ``pieces`` of so many tokens, over a cache."""
    cache, found = empty_cache(model, groups=len(ids_QT), slots=ids_QT.shape[1]), []
    for piece in ids_QT.split(pieces, dim=1):
        cache.next(piece.shape[1])
        found.append(model(piece, cache=cache))
    return torch.cat(found, dim=1)


PROMPTS = [random_ids(n, seed=n).clamp(min=1).tolist() for n in (3, 8, 5)]
ROOTED = [random_ids(17, seed=2).clamp(min=1).tolist() + prompt for prompt in PROMPTS]     # they begin with the same 17
LIVE_QKC = torch.arange(6) < torch.tensor([[4, 6, 1], [6, 2, 3], [5, 6, 6]])[:, :, None]
IDS_QKC = random_ids(3, 3, 6, seed=9).clamp(min=1)


def scored_alone(theirs, prompts=PROMPTS):
    """The same by a plain causal pass over each prompt + completion alone."""
    rows = []
    for q, prompt in enumerate(prompts):
        for k, length in enumerate(LIVE_QKC[q].sum(-1).tolist()):
            sequence = torch.tensor([prompt + IDS_QKC[q, k, :length].tolist()])
            rows.append(theirs(input_ids=sequence).logits[0, len(prompt) - 1:-1])
    return torch.cat(rows)


# ------------------------------------------------------------------------------------ less memory, or fewer kernels, same result
def gradients(model, prompts, ids_QKC, mask_QKC):
    """Of Σ log-probs weighted unevenly, by parameter."""
    logp_BC = completion_logprobs(model, prompts, ids_QKC, mask_QKC)
    (logp_BC * torch.linspace(-1, 2, logp_BC.numel()).view_as(logp_BC)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(model, ids_QT=random_ids(2, 12)):
    return model.logits(model(ids_QT))


def difference(got, expected):
    """Of the largest number expected."""
    scale = float(expected.detach().abs().max())
    assert scale > 0
    return float((got - expected).detach().abs().max()) / scale


def fill_B(model, seed=5):
    """Adapters that do something: B random instead of zero."""
    draw = generator(seed)
    for layer in adapters(model).values():
        layer.lora_B.data = 0.3 * torch.randn(layer.lora_B.shape, generator=draw)


def load(folder, dtype=torch.float32):
    return load_model(folder, dtype=dtype, device="cpu")


# ------------------------------------------------------------------------------------------------------------- refusals
def refusal(call, *arguments, **options):
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    return str(error.value)


def logits_of(model):
    """Logits as such, of ids that every vocabulary here has; transformers' models wrap them."""
    out = model(random_ids(2, 12))
    return (model.logits(out) if isinstance(out, torch.Tensor) else out.logits).detach().float()


def assert_near(got, expected, tolerance=1e-5):
    assert difference(got, expected) <= tolerance


TEXTS = [f"Question: Where was {name}?\nSQL:\nSELECT Medal.location FROM Athlete WHERE name = '{name}'"
         for name in ("Ana", "Zoë")] * 3
SIZES = dict(vocabulary=300, layers=2, width=16, heads=4, mlp_width=24, max_positions=64)


def new_folder(folder, seed=0, **changed):
    folder.mkdir()
    create_model(folder, TEXTS, generator=torch.Generator().manual_seed(seed), **SIZES | changed)
    return folder


def merged_copy(model):
    """A copy of ``model`` whose adapters are merged into plain linear layers; everything else is shared, not copied."""
    shared = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared | {id(layer): layer.merged() for layer in adapters(model).values()})

ARGUMENTS = {"rank": 4, "alpha": 6.0, "targets": TARGETS, "rank_stabilised": False}


def with_adapter(folder, seed=0, **changes):
    model, draw = load(folder), torch.Generator().manual_seed(seed)
    add_lora(model, **(ARGUMENTS | changes), generator=draw)
    for parameter in adapter_parameters(model).values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return model


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def grown(model, theirs, prompts=PROMPTS):
    """Logits of branches that swap parents at random while they grow, and of each branch's history alone."""
    draw, (K, C), padded = torch.Generator().manual_seed(1), (4, 7), pad_prompts(prompts)
    tree = GrowingTree(model, len(prompts), max(map(len, prompts)), K, C, len(padded.root))
    histories = [[list(prompt) for _ in range(K)] for prompt in prompts]

    def alone():
        return torch.stack([theirs(input_ids=torch.tensor(group)).logits[:, -1] for group in histories])

    tree.load(padded, model.read(padded.root))
    yield tree.prefill(model).expand(-1, K, -1), alone()
    for depth in range(C):
        ids_QK = random_ids(3, K, seed=50 + depth).clamp(min=1)
        parent_QK = torch.randint(0, K, (3, K), generator=draw) if depth % 3 else None
        logits_QKV = tree.grow(model, ids_QK, parent_QK)
        for q, group in enumerate(histories):
            chosen = range(K) if parent_QK is None else parent_QK[q].tolist()
            histories[q] = [[*group[parent], int(ids_QK[q, k])] for k, parent in enumerate(chosen)]
        yield logits_QKV, alone()
