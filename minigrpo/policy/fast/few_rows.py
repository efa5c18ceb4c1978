"""Attention under a mask, by matrix products where there are few query rows.

Replaces: ``F.scaled_dot_product_attention`` alone.
Faster because: its fused kernels share out work by head and by rows, never by keys. With few heads and rows most of a device
idles. Measured on one H100: 24 heads of 24 rows, 0.8 instead of 3.7 ms in 30 layers of 2,400 keys; 128 heads of 2 rows, 50
instead of 69 µs a layer of 704 keys (35 µs where torch.compile fuses what lies between the products).
Proved equal by: tests/policy/fast/test_few_rows.py::test_both_ways_give_the_same
"""

import torch.nn.functional as F
from torch import Tensor

MAX_ROWS, MAX_HEADS = 64, 128           # rows of one key head, key heads of all sequences


def masked_attention(query_QMGH: Tensor, key_QMSH: Tensor, value_QMSH: Tensor, bias: Tensor) -> Tensor:
    """out_QMGH: softmax(query · key / √H + bias) · value. ``bias`` [Q, 1, G, S] is 0 or −inf."""
    Q, M, G, H = query_QMGH.shape
    if G <= MAX_ROWS and Q * M <= MAX_HEADS:
        scores_QMGS = (query_QMGH * H ** -0.5) @ key_QMSH.transpose(2, 3) + bias
        return scores_QMGS.softmax(dim=-1) @ value_QMSH
    return F.scaled_dot_product_attention(query_QMGH, key_QMSH, value_QMSH, attn_mask=bias)
