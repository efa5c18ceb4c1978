"""A sequence in pieces over a cache is the sequence at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.policy.cache import KVCache
from tests.policy.helpers import EACH, OF_LOGITS, PATHS, apart, assert_close, in_pieces, random_ids


@pytest.mark.parity
@EACH
def test_token_by_token_with_a_cache_equals_one_pass(pair, parity, family, config):
    model, theirs = pair(family, **config)
    ids_QT = random_ids(2, 12)
    got = model.logits(in_pieces(model, ids_QT, [4, 1, 1, 3, 1, 1, 1]))
    parity("logits, cached", "transformers", apart(got, theirs(input_ids=ids_QT).logits), **OF_LOGITS)


@pytest.mark.slow
@pytest.mark.parity
@PATHS
def test_a_cache_changes_nothing_at_any_length_up_to_300(pair, parity, family, config):
    """One token at a time to 300, and for every length the whole of it at once, which ends in the same logits. Lengths on
    either side of all that kernels cut up by, 8 to 256, are among them; the windows are long left behind."""
    model, theirs = pair(family, **config | dict(max_position_embeddings=512))
    ids_QT = random_ids(1, 300)
    expected_QTV = theirs(input_ids=ids_QT).logits
    cached_QTV = model.logits(in_pieces(model, ids_QT, 1))
    at_once_QTV = model.logits(torch.cat([model(ids_QT[:, :length])[:, -1:] for length in range(1, 301)], dim=1))
    parity("logits, cached", "transformers", apart(cached_QTV, expected_QTV), cases=300, **OF_LOGITS)
    parity("logits, one pass", "transformers", apart(at_once_QTV, expected_QTV), cases=300, **OF_LOGITS)
    assert_close(cached_QTV, at_once_QTV, 1e-5)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_however_a_sequence_is_cut_up_it_is_the_same(pair, data):
    """Pieces of any lengths over a cache, with a window that may be shorter or longer than all of them."""
    model, _ = pair("mistral", sliding_window=data.draw(st.sampled_from([1, 5, 32])), tie_word_embeddings=True)
    pieces = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    ids_QT = random_ids(data.draw(st.integers(1, 3)), sum(pieces), seed=data.draw(st.integers(0, 9)))
    assert_close(in_pieces(model, ids_QT, pieces), model(ids_QT), 1e-5)


def test_cache_starts_at_zero_and_returns_what_is_filled():
    cache = KVCache.empty(layers=2, groups=1, kv_heads=1, slots=5, head_size=2, dtype=torch.float32, device="cpu")
    assert all(not tensor.any() for tensor in cache.keys + cache.values)
    assert cache.keys[0].data_ptr() != cache.keys[1].data_ptr() != cache.values[0].data_ptr()
    cache.next(2)
    cache.next(2)
    keys, values = cache.layer(1).write(torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 4.0))
    # Slots 2 and 3 were written, so the first four are returned; layer 0 and slot 4 stay zero.
    assert keys[0, 0, :, 0].tolist() == [0, 0, 3, 3] and values[0, 0, :, 0].tolist() == [0, 0, 4, 4]
    assert not cache.keys[0].any() and not cache.keys[1][:, :, 4].any()
