"""Adapters: against peft, the start policy, merging."""

import math

import peft
import pytest
import torch
from torch import nn

from minigrpo.policy.files.weights import load_model
from minigrpo.policy.lora import (
    TARGETS,
    LoRALinear,
    adapter_parameters,
    adapters,
    add_lora,
    freeze_reference,
    reference,
)
from tests.policy.helpers import difference, fill_B, generator, logits, merged_copy, random_ids


@pytest.fixture
def with_peft(checkpoint, fresh):
    """with_peft(rank, alpha, rank_stabilised, targets, filled) → (our model, peft's) with the same base and adapters."""
    def make(rank, alpha, rank_stabilised=False, targets=TARGETS, *, filled=True):
        _, plain = checkpoint("llama", attention_bias=True)
        theirs = type(plain)(plain.config)
        theirs.load_state_dict(plain.state_dict())
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(
            r=rank, lora_alpha=alpha, use_rslora=rank_stabilised, target_modules=list(targets))).eval()
        ours = fresh(filled=filled, rank=rank, alpha=alpha, rank_stabilised=rank_stabilised, targets=targets)
        named = dict(theirs.named_parameters())
        for name, parameter in adapter_parameters(ours).items():
            named[f"base_model.model.{name}.default.weight"].data = parameter.detach().clone()
        return ours, theirs

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_no_bit(checkpoint, fresh, dtype):
    """Against the same layers with the adapter off. A base whose matrices have no room for adapters may be multiplied by
    another kernel, so it may round otherwise."""
    base = load_model(checkpoint("llama", attention_bias=True)[0], dtype=dtype, device="cpu")
    model = fresh(dtype, filled=False)
    with reference(model):
        off = logits(model)
    assert logits(model).equal(off) and not logits(fresh(dtype)).equal(off)
    torch.testing.assert_close(off, logits(base))


def test_one_layer_by_hand():
    # W = [[1, 2]], A = [[1, 1], [0, 2]], B = [[3, 1]], scaling 0.5, x = (1, 2):
    # W x = 5; A x = (3, 4); B A x = 13; 5 + 0.5 · 13 = 11.5. Merged:
    # W + 0.5 · B A = [1, 2] + 0.5 · [3, 5] = [2.5, 4.5].
    base = nn.Linear(2, 1, bias=False)
    base.weight.data = torch.tensor([[1.0, 2.0]])
    layer = LoRALinear(base, rank=2, scaling=0.5, generator=generator())
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [11.5]
    assert layer.merged().weight.tolist() == [[2.5, 4.5]]
    assert base.weight.tolist() == [[1.0, 2.0]]


def test_scaling_is_alpha_over_rank_or_over_its_root(fresh):
    assert {layer.scaling for layer in adapters(fresh(rank=4, alpha=12.0)).values()} == {3.0}
    assert {layer.scaling for layer in adapters(fresh(rank=4, alpha=12.0, rank_stabilised=True)).values()} == {6.0}


@pytest.mark.parity
@pytest.mark.parametrize("filled", [True, False], ids=["moved", "new"])
@pytest.mark.parametrize("rank, alpha, rank_stabilised, targets", [
    (4, 8.0, False, TARGETS), (3, 8.0, True, TARGETS), (2, 5.0, False, ("q_proj", "down_proj")), (1, 1.0, True, ("o_proj",)),
    (8, 16.0, False, ("lm_head",))])
def test_outputs_and_gradients_equal_those_of_peft(with_peft, parity, rank, alpha, rank_stabilised, targets, filled):
    """Also of new adapters, where B = 0: the gradient of A is then zero, to both."""
    ours, theirs = with_peft(rank, alpha, rank_stabilised, targets, filled=filled)
    weight = torch.randn(2, 12, 61, generator=generator(1))
    out, expected = logits(ours), theirs(input_ids=random_ids(2, 12)).logits
    parity("adapters: logits", "peft", difference(out, expected), bound=1e-5, unit="of scale")
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    named = dict(theirs.named_parameters())
    for name, parameter in adapter_parameters(ours).items():
        grad = named[f"base_model.model.{name}.default.weight"].grad
        if not filled and name.endswith("lora_A"):
            assert not parameter.grad.any() and not grad.any(), name
        else:
            parity("adapters: gradients", "peft", difference(parameter.grad, grad), bound=1e-4, unit="of scale")


@pytest.mark.parity
def test_new_adapters_equal_those_of_peft_from_the_same_random_numbers(with_peft, parity):
    """``fresh`` draws from a generator of seed 0. peft, made to draw all its adapters again in the model's order after the
    same seed: A of every layer, and B zero."""
    ours, theirs = with_peft(3, 8.0, filled=False)
    torch.manual_seed(0)
    for name in adapters(ours):
        theirs.get_submodule(f"base_model.model.{name}").reset_lora_parameters("default", init_lora_weights=True)
    named = dict(theirs.named_parameters())
    for name, parameter in adapter_parameters(ours).items():
        drawn = named[f"base_model.model.{name}.default.weight"]
        if name.endswith("lora_A"):
            parity("adapters: A as first drawn", "peft", difference(parameter, drawn), bound=1e-6, unit="of scale")
        else:
            assert not parameter.any() and not drawn.any()


def test_a_is_drawn_as_nn_linear_draws_its_weights(fresh):
    # Uniform within ±1/√in_features: for 32 inputs ±0.177, mean 0, standard deviation 0.177/√3 = 0.102.
    layers = adapters(fresh(rank=32, targets=("q_proj",))).values()
    drawn = torch.cat([layer.lora_A.detach().flatten() for layer in layers])
    assert float(drawn.abs().max()) <= 1 / math.sqrt(32) and float(drawn.abs().max()) > 0.17
    assert abs(float(drawn.mean())) < 0.01 and abs(float(drawn.std()) - 0.102) < 0.005


def test_the_draw_depends_on_the_generator_alone(fresh):
    first, second = (adapter_parameters(fresh()) for _ in "ab")
    assert all(first[name].equal(second[name]) for name in first)


def test_only_the_adapters_move(checkpoint):
    model = load_model(checkpoint("llama", attention_bias=True)[0], dtype=torch.float32, device="cpu")
    model.requires_grad_(True)
    add_lora(model, rank=4, alpha=8.0, generator=generator())
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving == set(adapter_parameters(model)) and len(moving) == 2 * 7 * 2        # A and B, 7 targets, 2 layers
    assert all(name.endswith((".lora_A", ".lora_B")) for name in moving)
    logits(model).sum().backward()
    # With B = 0 the gradient of A is zero; the one of B is not: a layer that could never start to learn would be
    # caught.
    for layer in adapters(model).values():
        assert not layer.lora_A.grad.any() and layer.lora_B.grad.any()


def test_targets_that_name_no_layer_are_refused(checkpoint):
    model = load_model(checkpoint("llama")[0], dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="no linear layer named c_attn, self_attn"):
        add_lora(model, rank=2, alpha=2.0, targets=("q_proj", "c_attn", "self_attn"), generator=generator())


def test_a_target_is_a_name_or_the_end_of_one(checkpoint):
    """As in peft: whole parts between dots, so that "proj" is the end of none, nor "1.self_attn" a linear layer's."""
    def adapted(*targets):
        model = load_model(checkpoint("llama")[0], dtype=torch.float32, device="cpu")
        add_lora(model, rank=2, alpha=2.0, targets=targets, generator=generator())
        return list(adapters(model))

    everywhere = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    for targets in (["q_proj"], ["self_attn.q_proj"], everywhere, ["q_proj", *everywhere]):
        assert adapted(*targets) == everywhere
    assert adapted("1.self_attn.q_proj", "lm_head") == [everywhere[1], "lm_head"]
    with pytest.raises(ValueError, match="no linear layer named proj, 1.self_attn$"):
        adapted("q_proj", "proj", "1.self_attn")


def test_an_adapter_on_the_output_head(checkpoint):
    model = load_model(checkpoint("llama")[0], dtype=torch.float32, device="cpu")
    before = logits(model)
    add_lora(model, rank=2, alpha=2.0, targets=("lm_head",), generator=generator())
    assert logits(model).equal(before)
    fill_B(model)
    assert not logits(model).allclose(before)
    torch.testing.assert_close(logits(merged_copy(model)), logits(model), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- precision
def test_adapters_are_float32_beside_a_bfloat16_base(fresh):
    model = fresh(torch.bfloat16)
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_an_update_that_bfloat16_would_swallow_survives_in_the_adapter():
    # 1 − 2⁻¹² is 1 in bf16, whose 8 bits step by 2⁻⁸ there; the adapter's float32 holds it. With W = 1, A = 1 and
    # B = −1 + 2⁻¹² the merged weight, added in float32 and rounded once, is 2⁻¹². The unmerged layer rounds the
    # adapter's output to bf16, −1, before it joins W x = 1: 0.
    base = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    base.weight.data.fill_(1.0)
    layer = LoRALinear(base, rank=1, scaling=1.0, generator=generator())
    layer.lora_A.data.fill_(1.0)
    layer.lora_B.data.fill_(-1.0 + 2 ** -12)
    assert layer.lora_B.item() == -1.0 + 2 ** -12
    assert layer.merged().weight.item() == 2 ** -12
    assert layer(torch.ones(1, dtype=torch.bfloat16)).item() == 0.0


# --------------------------------------------------------------------------------------------------- the start policy
def test_reference_is_the_base_when_training_starts_from_nothing(checkpoint, fresh):
    base, model = load_model(checkpoint("llama", attention_bias=True)[0], dtype=torch.float32, device="cpu"), fresh()
    trained = logits(model)
    with reference(model):
        torch.testing.assert_close(logits(model), logits(base))
    assert logits(model).equal(trained)


def test_reference_is_the_frozen_adapter_when_training_starts_from_one(fresh):
    model = fresh()
    start = logits(model)
    freeze_reference(model)
    fill_B(model, seed=6)                       # training moves on
    now = logits(model)
    assert not now.allclose(start)
    with reference(model):
        assert logits(model).equal(start)
        assert not logits(model).requires_grad
    assert logits(model).equal(now) and logits(model).requires_grad


def test_in_place_steps_of_an_optimiser_move_the_policy_and_not_the_reference(fresh):
    model = fresh()
    freeze_reference(model)
    with reference(model):
        start = logits(model)
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=0.1)
    logits(model).square().mean().backward()
    optimizer.step()
    assert not logits(model).allclose(start)
    with reference(model):
        assert logits(model).equal(start)


def test_reference_ends_after_an_exception(fresh):
    model = fresh()
    trained = logits(model)
    with pytest.raises(RuntimeError, match="in the block"):
        with reference(model):
            raise RuntimeError("in the block")
    assert logits(model).equal(trained)


def test_reference_within_reference(fresh):
    model = fresh()
    trained = logits(model)
    with reference(model):
        start = logits(model)
        with reference(model):
            assert logits(model).equal(start)
        assert logits(model).equal(start)
    assert logits(model).equal(trained)


@pytest.mark.parity
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_merged_copy_equals_the_unmerged_model_and_leaves_it_alone(fresh, parity, rank_stabilised):
    model = fresh(rank_stabilised=rank_stabilised)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merged = merged_copy(model)
    assert not adapters(merged) and not any("lora" in name for name, _ in merged.named_parameters())
    parity("adapters: merged logits", "(unmerged)", difference(logits(merged), logits(model)), bound=1e-5, unit="of scale")
    assert len(adapters(model)) == 14
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parity
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_merged_copy_equals_peft_merged(with_peft, parity, rank_stabilised):
    ours, theirs = with_peft(4, 8.0, rank_stabilised)
    merged, expected = dict(merged_copy(ours).named_parameters()), dict(theirs.merge_and_unload().named_parameters())
    assert merged.keys() == expected.keys()
    for name, parameter in merged.items():
        parity("adapters: merged weights", "peft", difference(parameter, expected[name]), bound=1e-6, unit="of scale")


def test_merged_copy_shares_what_has_no_adapter(fresh):
    model = fresh(targets=("q_proj", "up_proj"))
    merged = merged_copy(model)
    ours, theirs = dict(model.named_parameters()), dict(merged.named_parameters())
    for name, parameter in theirs.items():
        adapted = name.endswith(("q_proj.weight", "up_proj.weight"))
        original = ours[name.replace(".weight", ".base.weight") if adapted else name] if "bias" not in name else None
        if original is not None:
            assert (parameter.data_ptr() == original.data_ptr()) == (not adapted), name


def test_merged_bfloat16_is_rounded_once(fresh):
    model = fresh(torch.bfloat16)
    layer = adapters(model)["model.layers.0.self_attn.q_proj"]
    exact = layer.base.weight.double() + (layer.lora_B.double() @ layer.lora_A.double()).detach() * layer.scaling
    # One rounding to 8 significant bits: at most half a step, 2⁻⁸ of the number, and float32's own error far below it.
    merged = merged_copy(model).model.layers[0].self_attn.q_proj.weight
    assert merged.dtype == torch.bfloat16
    assert float(((merged.double() - exact).abs() / exact.abs()).max()) <= 2 ** -8 * 1.01


def test_changing_the_adapter_later_does_not_change_the_merged_copy(fresh):
    model = fresh()
    merged = merged_copy(model)
    before = logits(merged)
    fill_B(model, seed=9)
    assert logits(merged).equal(before)
