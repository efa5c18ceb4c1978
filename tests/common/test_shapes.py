"""shapes.check: a tensor's name is its contract."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.common.shapes import check


def has(*shape):
    return SimpleNamespace(shape=shape)


@pytest.mark.parametrize("named", [
    dict(logp_BC=has(2, 3), advantage_B=has(2)),                    # equal letters, equal sizes
    dict(logp_BC=has(3, 3)),                                        # two letters may happen to have one size
    dict(logp_BC=has(2, 3), B=2, C=3),
    dict(B=2, logp_BC=has(2, 3)),                                   # an integer ties from either side
    dict(mean_Q1=has(4, 1), reward_QK=has(4, 12)),                  # an axis written 1 has size one
    dict(x_B1=has(1, 1), y_B=has(1)),
    dict(visible_SS=has(5, 5)),
    dict(old_ref_logp_BC=has(2, 3)),                                # only what follows the last underscore is axes
    dict(loss_=has()),                                              # no letters: a scalar
    dict(logp_BC=has(0, 3), advantage_B=has(0)),                    # an empty axis is an axis
    dict(logp_BC=torch.zeros(2, 3), advantage_B=np.zeros(2)),       # whatever has a shape
    {},
])
def test_names_that_hold_pass_in_silence(named):
    assert check(**named) is None


@pytest.mark.parametrize("named, sentence", [
    (dict(logp_BC=has(2, 3), advantage_B=has(4)), "advantage_B: expected [B] with B=2, got [4]"),
    (dict(advantage_B=has(4), logp_BC=has(2, 3)), "logp_BC: expected [B, C] with B=4, got [2, 3]"),       # first come
    (dict(logp_BC=has(2, 3), old_logp_BC=has(2, 4)), "old_logp_BC: expected [B, C] with B=2, C=3, got [2, 4]"),
    (dict(logp_BC=has(2, 3), old_logp_BC=has(3, 2)), "old_logp_BC: expected [B, C] with B=2, C=3, got [3, 2]"),
    (dict(logp_BC=has(2, 3), B=4), "logp_BC: expected [B, C] with B=4, got [2, 3]"),        # ties come first
    (dict(B=4, logp_BC=has(2, 3)), "logp_BC: expected [B, C] with B=4, got [2, 3]"),
    (dict(logp_BC=has(2, 3), C=0), "logp_BC: expected [B, C] with B=2, C=0, got [2, 3]"),
    (dict(logp_BC=has(6)), "logp_BC: expected [B, C], got [6]"),                    # a missing axis teaches no sizes
    (dict(logp_BC=has(2, 3, 4)), "logp_BC: expected [B, C], got [2, 3, 4]"),
    (dict(advantage_B=has()), "advantage_B: expected [B], got []"),
    (dict(loss_=has(1)), "loss_: expected [], got [1]"),
    (dict(mean_Q1=has(4, 2)), "mean_Q1: expected [Q, 1] with Q=4, got [4, 2]"),
    (dict(mean_1K=has(4, 2)), "mean_1K: expected [1, K], got [4, 2]"),
    (dict(visible_SS=has(5, 6)), "visible_SS: expected [S, S] with S=5, got [5, 6]"),
    (dict(a_B=has(2), b_B=has(2), c_B=has(3), d_B=has(2)), "c_B: expected [B] with B=2, got [3]"),     # all are read
    (dict(logp_BC=torch.zeros(2, 3), advantage_B=np.zeros(4)), "advantage_B: expected [B] with B=2, got [4]"),
])
def test_the_error_names_tensor_expected_axes_and_got(named, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check(**named)


def test_sizes_are_forgotten_between_calls():
    check(logp_BC=has(2, 3))
    check(logp_BC=has(4, 5))


letters = st.text("QKBPCS1", max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(letters, min_size=1, max_size=4), st.fixed_dictionaries({axis: st.integers(0, 9) for axis in "QKBPCS"}),
       st.data())
def test_one_wrong_size_or_one_axis_too_many_never_passes(names, table, data):
    """Shapes built from one table of sizes pass. Then one axis of one tensor grows, or it gets one more; the letters
    being tied by integers, no other tensor can be blamed for it."""
    shapes = [[table.get(axis, 1) for axis in axes] for axes in names]
    keys = [f"x{i}_{axes}" for i, axes in enumerate(names)]
    check(**{key: has(*shape) for key, shape in zip(keys, shapes)}, **table)

    victim = data.draw(st.sampled_from(range(len(names))))
    axis = data.draw(st.integers(0, len(shapes[victim])))
    if axis == len(shapes[victim]):
        shapes[victim].append(1)
    else:
        shapes[victim][axis] += 1
    with pytest.raises(ValueError, match=f"^{keys[victim]}: expected .*, got {re.escape(str(shapes[victim]))}$"):
        check(**{key: has(*shape) for key, shape in zip(keys, shapes)}, **table)
