"""Attention of few rows by matrix products, of many by PyTorch's kernel: the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from minigrpo.policy.fast.few_rows import MAX_HEADS, MAX_ROWS, masked_attention


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
