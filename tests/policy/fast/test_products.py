"""x Wᵀ + b by either library; attention of few rows by matrix products, of many by the kernel of PyTorch: the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from minigrpo.policy.fast.products import (
    MAX_FEW_ROWS,
    MAX_HEADS,
    MAX_ROWS,
    MIN_WEIGHT_ELEMENTS,
    Linear,
    linear,
    masked_attention,
)

OUT, IN = 600, 500                                              # a weight that is large enough for oneDNN
assert OUT * IN > MIN_WEIGHT_ELEMENTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (1,), (7,), (2, 3), (0,), (2, 0), (MAX_FEW_ROWS,), (MAX_FEW_ROWS + 1,)], ids=str)
def test_values_and_gradients_are_those_of_pytorch(rows, bias, dtype):
    x = torch.randn(*rows, IN, dtype=dtype, requires_grad=True)
    layer = Linear(IN, OUT, bias=bias, dtype=dtype)
    inputs = [x, *layer.parameters()]
    out, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    for got, wanted in zip(torch.autograd.grad(out, inputs, weight), torch.autograd.grad(expected, inputs, weight)):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_strided_inputs_and_weights_are_read_as_they_lie():
    x, weight = torch.randn(6, 2 * IN)[:, ::2], torch.randn(IN, OUT).T
    torch.testing.assert_close(linear(x, weight), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_either_library_gives_the_same():
    """A weight too small for oneDNN, and the same rows within one that is large enough."""
    x, weight = torch.randn(7, IN), torch.randn(OUT, IN)
    assert weight[:100].numel() < MIN_WEIGHT_ELEMENTS
    torch.testing.assert_close(linear(x, weight)[:, :100], linear(x, weight[:100]), rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient():
    layer = Linear(IN, OUT).requires_grad_(False)
    layer(torch.randn(3, IN, requires_grad=True)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None


# ----------------------------------------------------------------------------------------------- attention of few rows
@pytest.mark.parametrize("groups, heads, rows", [(1, 2, 1), (2, 3, MAX_ROWS), (2, 3, MAX_ROWS + 1), (1, MAX_HEADS, 2),
                                                 (1, MAX_HEADS + 1, 2)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_both_ways_give_the_same(groups, heads, rows, dtype, tolerance):
    """On either side of both limits, under a mask in which every row sees something: values and gradients."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(groups, heads, length, 8, dtype=dtype, generator=draw).requires_grad_()
                         for length in (rows, 20, 20))
    hidden = torch.rand(groups, 1, rows, 20, generator=draw) < 0.5
    hidden[..., 0] = False
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)
    found = []
    for attention in (masked_attention, lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)):
        out = attention(query, key, value, bias)
        found.append([out, *torch.autograd.grad(out.cos().sum(), (query, key, value))])
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
