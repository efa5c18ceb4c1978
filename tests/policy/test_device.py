"""The same tokens, log-probs and gradients on every device: rollout after rollout on what a search keeps, plain and fused,
against a model on the CPU that keeps nothing. On the CPU itself this is about what is kept; on CUDA about recorded graphs too.
"""

import pytest
import torch

from minigrpo.policy.fast.fuse import fuse
from minigrpo.policy.generation.search import beam_search, sample
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.tokenizer import compile_stopping
from minigrpo.policy.tree import pad_completions, pad_prompts

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WAYS = [pytest.param("cpu", False, id="cpu"), pytest.param("cuda", False, id="cuda", marks=needs_cuda),
        pytest.param("cuda", True, id="cuda-fused", marks=needs_cuda)]
FAMILIES = {"llama": {}, "gemma": {"num_key_value_heads": 1}, "qwen3": {}, "mistral": {"sliding_window": 7}}
STOPPING = compile_stopping([b""] * 61, [2], [])


def prompts_of(rollout: int) -> list[list[int]]:
    """Three prompts, as long as they may be on what the rollout before has kept, shorter, or longer."""
    draw = torch.Generator().manual_seed(rollout)
    lengths = ((9, 3, 6), (2, 8, 4), (9, 9, 1), (30, 5, 17), (12, 28, 3), (7, 2, 9))[rollout]
    return [torch.randint(3, 61, (length,), generator=draw).tolist() for length in lengths]


def search(model, rollout: int, method: str):
    settings = dict(completions=3, max_new_tokens=12, stopping=STOPPING)
    if method == "beam":
        return beam_search(model, prompts_of(rollout), **settings)
    return sample(model, prompts_of(rollout), **settings, temperature=0.8,
                  generator=torch.Generator(model.device).manual_seed(rollout))


@pytest.fixture
def make(pair):
    """make(family, device) → a model with adapters that change it, the same each time."""
    def build(family: str, device: str):
        model = pair(family, **FAMILIES[family])[0]
        add_lora(model, rank=4, alpha=8.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                 rank_stabilised=False, generator=torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(1)
        for parameter in adapter_parameters(model).values():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
        return model.to(device)

    return build


@pytest.mark.parametrize("device, fused", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_beams_of_rollout_after_rollout_are_those_of_a_search_of_its_own(make, family, device, fused):
    """Each rollout of one model on the device, against a model made anew on the CPU."""
    model = make(family, device)
    if fused:
        fuse(model)
    for rollout in range(6):
        found, expected = search(model, rollout, "beam"), search(make(family, "cpu"), rollout, "beam")
        assert [[one.ids for one in group] for group in found] == [[one.ids for one in group] for group in expected]
        for one, other in zip(sum(found, []), sum(expected, [])):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("device, fused", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_drawn_has_the_log_probs_that_scoring_sees(make, device, fused, dtype):
    """bfloat16 keeps 8 bits, and so do its logits; the difference is of one rounding or two of theirs."""
    model = make("llama", device).to(dtype)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.float()             # as adapters are in any model
    if fused:
        fuse(model)
    for rollout in range(4):
        groups = search(model, rollout, "sample")
        ids_QKC, mask_QKC = pad_completions([[one.ids for one in group] for group in groups], device=model.device)
        with torch.no_grad():
            logp_BC = completion_logprobs(model, pad_prompts(prompts_of(rollout), device=model.device), ids_QKC, mask_QKC,
                                          temperature=0.8)
        seen = [logp_C[:len(one.ids)].tolist() for logp_C, one in zip(logp_BC, sum(groups, []))]
        for one, logprobs in zip(sum(groups, []), seen):
            assert one.logprobs == pytest.approx(logprobs, abs=1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("device, fused", WAYS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_after_a_rollout_are_those_of_the_cpu(make, family, checkpointing, device, fused):
    """Twice, with a rollout between: what a search keeps is not what the gradient goes through."""
    model = make(family, device)
    model.checkpointing = checkpointing
    if fused:
        fuse(model)
    for rollout in (0, 3):
        groups = search(model, rollout, "beam")
        found, expected = (gradients(each, rollout, groups) for each in (model, make(family, "cpu")))
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name].cpu(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def gradients(model, rollout: int, groups) -> dict[str, torch.Tensor]:
    for parameter in adapter_parameters(model).values():
        parameter.grad = None
    ids_QKC, mask_QKC = pad_completions([[one.ids for one in group] for group in groups], device=model.device)
    weights_B1 = torch.linspace(-1, 1, mask_QKC.flatten(0, 1).shape[0], device=model.device)[:, None]
    logp_BC = completion_logprobs(model, pad_prompts(prompts_of(rollout), device=model.device), ids_QKC, mask_QKC)
    (logp_BC * weights_B1).sum().backward()
    return {name: parameter.grad for name, parameter in adapter_parameters(model).items()}
