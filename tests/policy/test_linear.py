"""x Wᵀ + b by either library."""

import pytest
import torch
import torch.nn.functional as F

from minigrpo.policy.linear import Linear, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (1,), (7,), (2, 3), (0,), (2, 0)], ids=str)
def test_values_and_gradients_are_those_of_pytorch(rows, bias, dtype):
    x = torch.randn(*rows, 5, dtype=dtype, requires_grad=True)
    layer = Linear(5, 9, bias=bias, dtype=dtype)
    inputs = [x, *layer.parameters()]
    out, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(out, expected)
    for got, wanted in zip(torch.autograd.grad(out, inputs, weight), torch.autograd.grad(expected, inputs, weight)):
        torch.testing.assert_close(got, wanted)


def test_strided_inputs_and_weights_are_read_as_they_lie():
    x, weight = torch.randn(6, 10)[:, ::2], torch.randn(5, 7).T
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


def test_a_frozen_weight_gets_no_gradient():
    layer = Linear(5, 9).requires_grad_(False)
    layer(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
