"""Positions by differences; frequencies for longer contexts."""

import torch

from minigrpo.policy.architecture import RopeScaling
from minigrpo.policy.rotary import stretched
from tests.policy.helpers import assert_close, random_ids


def test_only_differences_of_positions_matter(pair):
    """Rotary attention: all positions moved by 50 give the same hidden states."""
    model, _ = pair("llama")
    ids_QT, positions_QT = random_ids(2, 9), torch.arange(9).expand(2, 9)
    causal_QTS = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    moved = model(ids_QT, positions_QT=positions_QT + 50, visible_QTS=causal_QTS)
    assert_close(moved, model(ids_QT), 1e-5)


def test_stretched_frequencies_by_hand():
    # Old context 100 positions. A frequency of 2π·5/100 turns 5 times in it: more than 4, kept. 0.5 turns: fewer than
    # 1, divided by 8. 2.5 turns lie half way from 1 to 4: half kept, half divided, 0.5 + 0.5 / 8 = 0.5625 of itself.
    turns = torch.tensor([5.0, 0.5, 2.5])
    frequencies = turns * 2 * torch.pi / 100
    got = stretched(frequencies, RopeScaling("llama3", 8.0, 1.0, 4.0, 100)) / frequencies
    torch.testing.assert_close(got, torch.tensor([1.0, 0.125, 0.5625]))
    torch.testing.assert_close(stretched(frequencies, RopeScaling("linear", 4.0)), frequencies / 4)
