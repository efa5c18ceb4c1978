"""Draw tokens from log-probs and uniform numbers.

Replaces: ``searchsorted`` on the running sum of the probabilities along the whole vocabulary.
Faster because: a running sum along a whole vocabulary is slow on every device. Here it runs over the sums of blocks first,
then within one block.
Proved equal by: tests/policy/fast/test_draw.py::test_the_token_is_where_the_running_sum_passes_the_uniform_number
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512                             # tokens


def draw(logp_QKV: Tensor, uniform_QK: Tensor) -> Tensor:
    """token_QK: where the running sum of the probabilities passes uniform · their sum, in float64.

    I blocks of J = ``BLOCK`` tokens make up the vocabulary.
    """
    V = logp_QKV.shape[-1]
    p_QKIJ = F.pad(logp_QKV.exp(), (0, -V % BLOCK)).unflatten(-1, (-1, BLOCK))
    mass_QKI = p_QKIJ.sum(dim=-1, dtype=torch.float64)
    upto_QKI = mass_QKI.cumsum(dim=-1)
    goal_QK1 = uniform_QK[:, :, None] * upto_QKI[:, :, -1:]
    block_QK1 = torch.searchsorted(upto_QKI, goal_QK1, right=True).clamp(max=upto_QKI.shape[2] - 1)     # NaN: beyond all
    goal_QK1 = goal_QK1 - (upto_QKI - mass_QKI).gather(2, block_QK1)
    p_QKJ = p_QKIJ.gather(2, block_QK1[:, :, :, None].expand(-1, -1, -1, BLOCK))[:, :, 0]
    place_QK1 = torch.searchsorted(p_QKJ.cumsum(dim=-1, dtype=torch.float64), goal_QK1, right=True)
    return (block_QK1 * BLOCK + place_QK1)[:, :, 0].clamp(max=V - 1)
