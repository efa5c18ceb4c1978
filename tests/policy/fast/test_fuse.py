"""A compiled model computes the same, and is not compiled for every size."""

import copy

import pytest
import torch

from minigrpo.policy.fast.fuse import fuse
from minigrpo.policy.generation.search import beam_search
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.tokenizer import compile_stopping
from minigrpo.policy.tree import pad_prompts
from tests.compiler import needs_compiler
from tests.policy.helpers import PROMPTS, ROOTED, assert_close, gradients, random_ids


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("prompts", [PROMPTS, ROOTED], ids=["no root", "root"])
def test_fused_operations_compute_the_same(trained, prompts):
    """In float32 a fused chain differs by roundings; generation, scoring and gradients go through it, any of them first."""
    model, (_, *completions) = trained
    work = pad_prompts(prompts), *completions
    settings = dict(completions=2, max_new_tokens=5, stopping=compile_stopping([b""] * 61, [2], []))
    compiled = copy.deepcopy(model)
    plain, found = gradients(model, *work), beam_search(model, prompts, **settings)
    fuse(compiled)
    fused = gradients(compiled, *work)
    for name in plain:
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-4, atol=1e-4 * float(plain[name].abs().max()))
    again = beam_search(compiled, prompts, **settings)
    assert [[c.ids for c in group] for group in again] == [[c.ids for c in group] for group in found]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("rooted", [False, True])
def test_a_fused_model_is_not_compiled_for_every_size_of_a_batch(pair, rooted):
    """In a run each batch has other numbers of questions, of tokens in prompts, in their root and in completions, and a warm-up
    has one completion a prompt, not K. Two sizes show what varies; for further ones nothing may be compiled."""
    plain = copy.deepcopy(pair("llama")[0])
    add_lora(plain, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
    for parameter in adapter_parameters(plain).values():
        parameter.data += 0.1
    model, graphs = copy.deepcopy(plain), []
    fuse(model)
    torch._dynamo.reset()                               # another test may have had this code compiled for such sizes
    torch._dynamo.utils.counters.clear()
    sizes = [(40, 9, 1, 4), (43, 7, 1, 6), (24, 8, 3, 5), (23, 12, 3, 9), (25, 11, 3, 7), (22, 5, 3, 12), (26, 14, 3, 6)]
    for Q, P, K, C in sizes:
        shared = random_ids(9 + Q % 7, seed=1).tolist() if rooted else []
        ids_QKC, prompts = random_ids(Q, K, C, seed=Q), pad_prompts([shared + own for own in random_ids(Q, P, seed=P).tolist()])
        work = prompts, ids_QKC, torch.ones_like(ids_QKC, dtype=torch.bool)
        found, expected = gradients(model, *work), gradients(plain, *work)
        for name in expected:
            assert_close(found[name], expected[name])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[4] == graphs[5] == graphs[6]
