"""Layers of one input computed together: against the plain formula and against each alone."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from minigrpo.policy.fast.stacked import Stack, adapters_held, backward_op, forward_op, held_op, project, stack_of
from minigrpo.policy.files.weights import base_parameters, load_model
from minigrpo.policy.lora import LoRALinear, adapter_parameters, add_lora
from tests.policy.helpers import generator, logits


def adapted_layers(biases=(True, False, True), ranks=(1, 3, 2), dtype=torch.float64):
    """Three frozen layers 5 → 4, 6, 3 with adapters of different rank and scaling."""
    draw = torch.Generator().manual_seed(0)
    layers = []
    for i, (bias, rank, out) in enumerate(zip(biases, ranks, (4, 6, 3))):
        base = nn.Linear(5, out, bias=bias, dtype=dtype)
        layer = LoRALinear(base, rank, scaling=0.7 + i, generator=draw)
        layer.lora_B.data.normal_(generator=draw)
        layers.append(layer)
    return layers


def test_layers_projected_together_are_each_its_formula_with_its_gradients():
    """Values against W x + b + s B A x written out, gradients against float64 finite differences (gradcheck), of the input too."""
    layers = adapted_layers()
    Stack(layers)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for layer, out in zip(layers, project(x, *layers)):
        expected = layer.base(x) + layer.scaling * (x @ layer.lora_A.T @ layer.lora_B.T)
        torch.testing.assert_close(out, expected)
    halves = [half for layer in layers for half in (layer.lora_A, layer.lora_B)]
    assert torch.autograd.gradcheck(lambda x, *_: tuple(project(x, *layers)), (x, *halves))


def test_an_output_that_nobody_uses_leaves_its_adapter_without_a_gradient_of_its_own():
    layers = adapted_layers()
    Stack(layers)
    x = torch.randn(2, 5, dtype=torch.float64)
    project(x, *layers)[1].sum().backward()
    assert layers[1].lora_B.grad.any() and not layers[0].lora_B.grad.any() and not layers[2].lora_A.grad.any()


def test_plain_layers_and_adapters_that_are_off_may_stand_between():
    """A plain layer has no adapter, one within reference() none that counts."""
    adapted, other, _ = adapted_layers(dtype=torch.float32)
    plain, x = nn.Linear(5, 2), torch.randn(4, 5)
    other.active = None
    outs = project(x, plain, adapted, other)
    assert outs[0].equal(plain(x)) and outs[1].equal(adapted(x))
    torch.testing.assert_close(outs[2], other.base(x))


def test_held_adapters_are_copied_once_and_the_copies_keep_their_place():
    layer = adapted_layers(dtype=torch.bfloat16)[0]
    holder, x = nn.Sequential(layer), torch.randn(3, 5).bfloat16()
    free = project(x, layer)[0]
    places = stack_of(layer).whole.data_ptr(), stack_of(layer).B.data_ptr()
    with adapters_held(holder):
        held = project(x, layer)[0]
        layer.lora_B.data += 1.0
        assert project(x, layer)[0].equal(held)                             # they were said not to change within the block
    torch.testing.assert_close(held, free, rtol=0.02, atol=0.01)
    changed = project(x, layer)[0]
    assert not changed.equal(free)
    with adapters_held(holder):
        torch.testing.assert_close(project(x, layer)[0], changed, rtol=0.02, atol=0.01)
        assert (stack_of(layer).whole.data_ptr(), stack_of(layer).B.data_ptr()) == places


def test_siblings_held_compute_what_they_compute_freely():
    together, _ = joined_layers()
    x = torch.randn(4, 5, dtype=torch.float64)
    free = project(x, *together)
    with adapters_held(nn.ModuleList(together)):
        assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(project(x, *together), free))
        together[2].active = None                               # only by whom hold() asked before: the copies stay
        assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(project(x, *together), free))


def joined_layers(dtype=torch.float64):
    """An adapted layer, a plain one and two more adapted ones, as siblings of one input; the same ones apart."""
    together = adapted_layers(dtype=dtype)
    together.insert(1, nn.Linear(5, 3, dtype=dtype).requires_grad_(False))
    apart = copy.deepcopy(together)
    Stack(together)
    return together, apart


def test_siblings_compute_together_what_they_compute_apart():
    together, apart = joined_layers()
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator(3))
    results = []
    for layers in together, apart:
        mine = x.clone().requires_grad_()
        outs = project(mine, *layers)
        sum((out * torch.arange(1.0, 1 + out.numel()).view_as(out).cos()).sum() for out in outs).backward()
        halves = [half for layer in layers if isinstance(layer, LoRALinear) for half in (layer.lora_A, layer.lora_B)]
        results.append([*outs, mine.grad, *(half.grad for half in halves)])
    assert all(stack_of(layer) is stack_of(together[0]) for layer in together if isinstance(layer, LoRALinear))
    assert len(results[0]) == len(results[1]) == 4 + 1 + 6
    for joined, single in zip(*results):
        assert joined.shape == single.shape and torch.allclose(joined, single, rtol=1e-12, atol=1e-12)
    # Each of them alone, the plain one too, gives its part of what all give.
    for layer, out in zip(together, results[0]):
        assert torch.allclose(layer(x), out, rtol=1e-12, atol=1e-12)


def test_siblings_of_which_one_is_off_give_its_base_alone():
    together, _ = joined_layers()
    x = torch.randn(4, 5, dtype=torch.float64)
    before = project(x, *together)
    together[2].active = None
    outs = project(x, *together)
    assert torch.allclose(outs[2], together[2].base(x), rtol=1e-12) and not outs[2].equal(before[2])
    assert all(outs[i].equal(before[i]) for i in (0, 1, 3))
    outs[2].sum().backward()
    assert together[2].lora_B.grad is None and not together[0].lora_B.grad.any()


def test_adapters_changed_before_their_gradient_is_taken_are_an_error():
    layer = adapted_layers()[0]
    out, = project(torch.randn(4, 5, dtype=torch.float64), layer)
    with torch.no_grad():
        layer.lora_B.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_model_moved_to_another_dtype_takes_its_weights_along():
    together, apart = joined_layers(torch.float32)
    x = torch.randn(4, 5)
    expected = project(x, *together)
    moved = nn.ModuleList(together).double()
    assert all(torch.allclose(out.float(), then, atol=1e-6) for out, then in zip(project(x.double(), *moved), expected))
    assert together[0].stack.layers == tuple(together)


def test_weights_lie_in_one_place_and_keep_their_values(checkpoint, fresh):
    plain = load_model(checkpoint("llama", attention_bias=True)[0], dtype=torch.float32, device="cpu")
    model = fresh()
    attention = model.model.layers[0].self_attn
    stack = stack_of(attention.q_proj)
    assert stack_of(attention.k_proj) is stack and stack_of(attention.v_proj) is stack and stack_of(attention.o_proj) is not stack
    assert attention.v_proj.base.weight.untyped_storage().data_ptr() == stack.weight.untyped_storage().data_ptr()
    bases = base_parameters(model)
    assert all(bases[name].equal(parameter) for name, parameter in plain.named_parameters())


def test_weights_laid_together_within_a_search_can_be_trained_through_afterwards(fresh):
    model = fresh().double()                                    # parted; the next pass lays them together again
    with torch.inference_mode():
        logits(model)
    logits(model).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter_parameters(model).values())


@pytest.mark.parametrize("rows", [3, 100])
def test_what_the_compiler_is_told_of_an_operator_is_so(rows):
    """Shapes and strides, for few rows and many, with a weight that is large enough for oneDNN."""
    draw = generator()
    x, weight = torch.randn(rows, 600, generator=draw), torch.randn(508, 600, generator=draw)
    A, Bs = torch.randn(8, 600, generator=draw), [torch.randn(250, 4, generator=draw), torch.randn(258, 4, generator=draw)]
    held = x, torch.cat([weight, A]), None, torch.randn(508, 8, generator=draw)
    adapted = x, weight, None, A, Bs, [0, 250], [0.5, 2.0]
    y, low = forward_op(*adapted)
    for op, inputs in ((held_op, held), (forward_op, adapted), (backward_op, (y, x, low, weight, *adapted[3:]))):
        torch.library.opcheck(op, inputs, test_utils="test_faketensor")


# ------------------------------------------------------------------------------------------------------------ one of several
class Products(TorchDispatchMode):
    """Notes the number of outputs of every matrix product."""

    def __init__(self):
        super().__init__()
        self.widths = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._schema.name.split("::")[1] in ("mm", "addmm", "addmm_", "linear"):
            self.widths.append(out.shape[-1])
        return out


def test_a_layer_alone_computes_no_product_for_its_siblings():
    """Three layers of 4, 6 and 3 outputs with ranks 1, 3 and 2. The second alone: products of 6 outputs, and of its rank."""
    layers = adapted_layers()
    Stack(layers)
    x = torch.randn(2, 5, dtype=torch.float64)
    with Products() as products:
        layers[1](x)
    assert sorted(products.widths) == [3, 6, 6]
    with Products() as products:
        project(x, layers[1])                           # asked for by itself, it is not its siblings' product either
    assert sorted(products.widths) == [3, 6, 6]
    with Products() as products:
        project(x, *layers)
    assert 4 + 6 + 3 in products.widths


@pytest.mark.parametrize("dtype, digits", [(torch.float64, 52), (torch.float32, 23), (torch.bfloat16, 7)])
def test_a_layer_alone_computes_its_slice_of_the_stack(dtype, digits):
    """Up to rounding. The stack adds s B A x to W x in the product's accumulator; the layer alone rounds both before it adds
    them. So each of a few sums is off by up to one unit in the last of ``digits`` binary places of the largest number."""
    draw = generator(1)
    layers = [LoRALinear(nn.Linear(64, out, dtype=dtype), 4, scaling=2.0, generator=draw) for out in (24, 8, 8)]
    for layer in layers:
        layer.lora_B.data.normal_(generator=draw)
    x = torch.randn(50, 64, generator=draw).to(dtype)
    apart = [layer(x) for layer in layers]
    Stack(layers)
    for one, part in zip(apart, project(x, *layers)):
        assert one.dtype == part.dtype == dtype
        assert float((one - part).abs().max()) <= 4 * 2.0 ** -digits * float(part.abs().max())
    layers[0].active = None
    assert layers[0](x).equal(layers[0].base(x))


def test_a_layer_alone_has_the_gradient_of_its_slice():
    layers = adapted_layers()
    x = torch.randn(3, 5, dtype=torch.float64, generator=generator(2), requires_grad=True)
    wanted = [x, layers[1].lora_A, layers[1].lora_B]
    alone = torch.autograd.grad(layers[1](x).cos().sum(), wanted)
    Stack(layers)
    together = torch.autograd.grad(project(x, *layers)[1].cos().sum(), wanted)
    assert all(torch.allclose(*pair, rtol=1e-12, atol=1e-12) for pair in zip(alone, together))


def test_adapters_of_a_model_know_which_layers_read_the_same_input(checkpoint):
    """q, k and v together, gate and up together, whichever of them are adapted; o and down by themselves."""
    model = load_model(checkpoint("llama")[0], dtype=torch.float32, device="cpu")
    add_lora(model, rank=2, alpha=4.0, targets=("q_proj", "v_proj", "up_proj", "o_proj"), generator=generator())
    layer = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert attention.q_proj.siblings == attention.v_proj.siblings == (attention.q_proj, attention.k_proj, attention.v_proj)
    assert mlp.up_proj.siblings == (mlp.gate_proj, mlp.up_proj) and attention.o_proj.siblings == (attention.o_proj,)
