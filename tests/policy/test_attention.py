"""Heads that share keys, and that nobody sees what comes later; positions by differences; frequencies for longer contexts."""

import pytest
import torch

from minigrpo.policy.architecture import RopeScaling
from minigrpo.policy.cache import KVCache
from minigrpo.policy.model import CausalLM
from tests.policy.helpers import assert_close, random_ids


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_heads_that_share_keys_equal_heads_with_a_copy_each(pair, kv_heads, window):
    """Of 4 query heads each 4 / M in a row share one: copying every key and value head so often changes nothing. Lengths on
    either side of 8, to which masks are padded; and one token at a time, which asks of all slots there are."""
    shared, _ = pair("mistral", num_key_value_heads=kv_heads, sliding_window=window)
    apart, _ = pair("mistral", num_key_value_heads=4, sliding_window=window)
    weights = {name: tensor.unflatten(0, (kv_heads, -1)).repeat_interleave(4 // kv_heads, dim=0).flatten(0, 1)
               if name.endswith(("k_proj.weight", "v_proj.weight")) else tensor
               for name, tensor in shared.state_dict().items()}
    apart = CausalLM(apart.architecture).requires_grad_(False)
    apart.load_state_dict(weights)
    for length in (1, 7, 8, 9):
        assert_close(shared(random_ids(2, length)), apart(random_ids(2, length)), 1e-5)
    caches = [KVCache.empty(layers=2, groups=2, kv_heads=heads, slots=9, head_size=8, dtype=torch.float32, device="cpu")
              for heads in (kv_heads, 4)]
    for token_Q1 in random_ids(2, 9).split(1, dim=1):
        for cache in caches:
            cache.next(1)
        assert_close(*(model(token_Q1, cache=cache) for model, cache in zip((shared, apart), caches)), 1e-5)


def test_causal_a_later_token_changes_nothing_before_it(pair):
    model, _ = pair("llama")
    ids_QT = random_ids(1, 10)
    other_QT = ids_QT.clone()
    other_QT[0, 6] = (other_QT[0, 6] + 1) % 61
    before, after = model(ids_QT), model(other_QT)
    assert before[:, :6].equal(after[:, :6]) and not before[:, 6].allclose(after[:, 6])


# ---------------------------------------------------------------------------------------------------- rotary positions
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
    got = RopeScaling("llama3", 8.0, 1.0, 4.0, 100).stretch(frequencies) / frequencies
    torch.testing.assert_close(got, torch.tensor([1.0, 0.125, 0.5625]))
    torch.testing.assert_close(RopeScaling("linear", 4.0).stretch(frequencies), frequencies / 4)
