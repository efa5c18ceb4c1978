"""Slots, positions and visibility of trunk and branches, by hand for a ragged example and as properties for random ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.policy.tree import Prompts, pad_completions, pad_prompts, scoring_tree, trunk_visibility, within_window

O, X = False, True


def ragged_example(window=None):
    """Two questions, K = 2, C = 2, P = 3. Question 0: prompt of 2 (slot 2 is padding), branch 0 has two tokens, branch
    1 one. Question 1: prompt of 3, branch 0 has one token, branch 1 two."""
    prompts = pad_prompts([[11, 12], [21, 22, 23]])
    ids_QKC = torch.tensor([[[1, 2], [3, 0]], [[4, 0], [5, 6]]])
    live_QKC = torch.tensor([[[X, X], [X, O]], [[X, O], [X, X]]])
    return scoring_tree(prompts, ids_QKC, live_QKC, window=window)


def dense(tree, live_QP):
    """visible_QSS: all pairs of slots laid out, other branches unseen. In a plain causal trunk only live rows are of interest."""
    branch_QKCS, (Q, P) = tree.visible.branch_QKCS, live_QP.shape
    K, C = branch_QKCS.shape[1:3]
    visible_QSS = torch.zeros(Q, P + K * C, P + K * C, dtype=torch.bool)
    causal_QPP = torch.ones(P, P, dtype=torch.bool).tril() & live_QP[:, :, None] | torch.eye(P, dtype=torch.bool)
    visible_QSS[:, :P, :P] = causal_QPP if tree.visible.trunk_QPP is None else tree.visible.trunk_QPP
    for k in range(K):
        slots = slice(P + k * C, P + (k + 1) * C)
        visible_QSS[:, slots, :P], visible_QSS[:, slots, slots] = branch_QKCS[:, k].split([P, C], dim=-1)
    return visible_QSS


def test_prompts_are_padded_on_the_right_each_with_its_first_token():
    prompts = pad_prompts([[5], [6, 7, 8]])
    assert prompts.ids_QP.tolist() == [[5, 5, 5], [6, 7, 8]]
    assert prompts.length_Q.tolist() == [1, 3]
    assert prompts.live_QP.tolist() == [[X, O, O], [X, X, X]]


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_a_prompt_without_tokens_is_refused(prompts):
    with pytest.raises(ValueError, match="no tokens"):
        pad_prompts(prompts)


def test_completions_are_padded_on_the_right_with_zeros():
    # The longest has three tokens, so C = 3. A token 0 is a token like any other: the mask counts, not the ids.
    ids_QKC, mask_QKC = pad_completions([[[5], [6, 0, 8]], [[], [0, 0]]])
    assert ids_QKC.tolist() == [[[5, 0, 0], [6, 0, 8]], [[0, 0, 0], [0, 0, 0]]]
    assert mask_QKC.tolist() == [[[X, O, O], [X, X, X]], [[O, O, O], [X, X, O]]]
    assert ids_QKC.dtype == torch.long and mask_QKC.dtype == torch.bool


def test_completions_without_any_token_have_no_slots():
    ids_QKC, mask_QKC = pad_completions([[[], []]])
    assert ids_QKC.shape == mask_QKC.shape == (1, 2, 0)


@given(st.data())
def test_what_is_under_the_mask_is_what_was_given(data):
    """Q × K lists in, the same lists out; behind each of them zeros; and no slot that nobody needs."""
    Q, K = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    completion = st.lists(st.integers(0, 9), max_size=5)
    completions = data.draw(st.lists(st.lists(completion, min_size=K, max_size=K), min_size=Q, max_size=Q))
    ids_QKC, mask_QKC = pad_completions(completions)
    assert [[ids_QKC[q, k, mask_QKC[q, k]].tolist() for k in range(K)] for q in range(Q)] == completions
    assert not ids_QKC[~mask_QKC].any() and ids_QKC.shape == (Q, K, max(len(ids) for group in completions for ids in group))
    assert not (mask_QKC[:, :, 1:] & ~mask_QKC[:, :, :-1]).any()           # padding is never before a token


def test_trunk_visibility_by_hand():
    # Slot 2 of a prompt of two tokens is padding: it sees itself, nobody sees it.
    assert trunk_visibility(torch.tensor([[X, X, O]])).tolist() == [[[X, O, O],
                                                                     [X, X, O],
                                                                     [O, O, X]]]


def test_slots_and_positions_by_hand():
    # Trunk slots 0..2, then branch 0 with depths 0 and 1, then branch 1. Positions of a branch are p_q + c: 2 and 3 for the
    # prompt of two, 3 and 4 for the prompt of three. Padding is 11 and 21, the prompts' first tokens.
    tree = ragged_example()
    assert tree.ids_QS.tolist() == [[11, 12, 11, 1, 2, 3, 11], [21, 22, 23, 4, 21, 5, 6]]
    assert tree.positions_QS.tolist() == [[0, 1, 2, 2, 3, 2, 3], [0, 1, 2, 3, 4, 3, 4]]


def test_predictors_by_hand():
    # c = 0 is predicted from the prompt's last token: slot 1 and slot 2. c = 1 from depth 0 of its branch: slots 3 and 5.
    assert ragged_example().predictor_QKC.tolist() == [[[1, 3], [1, 5]], [[2, 3], [2, 5]]]


def test_visibility_by_hand():
    tree = ragged_example()
    assert tree.visible.trunk_QPP is None                   # plain causal
    assert tree.visible.branch_QKCS.tolist() == [
        # trunk     own
        [[[X, X, O,  X, O],         # branch 0, depth 0: the prompt and itself
          [X, X, O,  X, X]],        # depth 1: its parent too
         [[X, X, O,  X, O],
          [O, O, O,  O, X]]],       # branch 1, depth 1 is padding: itself
        [[[X, X, X,  X, O],
          [O, O, O,  O, X]],
         [[X, X, X,  X, O],
          [X, X, X,  X, X]]]]


def test_a_window_of_two_by_hand():
    # Less than two positions away: itself and the position before. Question 0: depth 0 (position 2) sees prompt token
    # 1, depth 1 (position 3) sees depth 0 and no prompt.
    visible = ragged_example(window=2).visible
    assert visible.trunk_QPP[0].tolist() == [[X, O, O],
                                             [X, X, O],
                                             [O, O, X]]
    assert visible.branch_QKCS[0].tolist() == [[[O, X, O,  X, O],
                                                [O, O, O,  X, X]],
                                               [[O, X, O,  X, O],
                                                [O, O, O,  O, X]]]


def test_a_window_as_wide_as_the_prompt_leaves_the_trunk_plain():
    assert ragged_example(window=3).visible.trunk_QPP is None


def test_window_of_one_is_itself_and_no_window_changes_nothing():
    positions_QT = torch.arange(4).expand(1, 4)
    causal_QTS = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    assert within_window(causal_QTS, positions_QT, positions_QT, None).equal(causal_QTS)
    assert within_window(causal_QTS, positions_QT, positions_QT, 1).equal(torch.eye(4, dtype=torch.bool)[None])
    assert within_window(causal_QTS, positions_QT, positions_QT, 4).equal(causal_QTS)       # 3 away at most
    assert not within_window(causal_QTS, positions_QT, positions_QT, 3)[0, 3, 0]            # exactly a window away


@st.composite
def groups(draw, holes=False):
    """Prompts, live tokens (with ``holes`` not only at the ends of branches) and a window."""
    Q, K, C = (draw(st.integers(1, 3)) for _ in "QKC")
    lengths = draw(st.lists(st.integers(1, 5), min_size=Q, max_size=Q))
    ends = draw(st.lists(st.integers(0, C), min_size=Q * K, max_size=Q * K))
    live_QKC = torch.arange(C) < torch.tensor(ends).view(Q, K, 1)
    if holes:
        live_QKC &= torch.tensor(draw(st.lists(st.booleans(), min_size=C, max_size=C)))
    return Prompts(torch.ones(Q, max(lengths), dtype=torch.long), torch.tensor(lengths)), live_QKC, draw(
        st.one_of(st.none(), st.integers(1, 6)))


@settings(max_examples=100, deadline=None)
@given(groups(holes=True))
def test_the_rule_pair_by_pair(group):
    """The rule read aloud, for every pair of slots: trunk, own ancestors, itself; a window counts positions."""
    prompts, live_QKC, window = group
    (Q, K, C), P = live_QKC.shape, prompts.ids_QP.shape[1]
    tree = scoring_tree(prompts, live_QKC.long(), live_QKC, window=window)
    visible_QSS = dense(tree, prompts.live_QP)
    for q in range(Q):
        p = int(prompts.length_Q[q])
        slots = [("trunk", None, s, s < p) for s in range(P)]                      # kind, branch, position, live
        slots += [("branch", k, p + c, bool(live_QKC[q, k, c])) for k in range(K) for c in range(C)]
        for i, (_kind_i, branch_i, position_i, live_i) in enumerate(slots):
            for j, (kind_j, branch_j, position_j, live_j) in enumerate(slots):
                related = kind_j == "trunk" or branch_i == branch_j
                sees = live_i and live_j and related and 0 <= position_i - position_j < (window or 10 ** 9)
                assert bool(visible_QSS[q, i, j]) == (sees or i == j), (q, i, j)


@settings(max_examples=50, deadline=None)
@given(groups())
def test_a_predictor_is_the_token_just_before_and_is_seen_by_what_it_predicts(group):
    prompts, live_QKC, _ = group
    tree = scoring_tree(prompts, live_QKC.long(), live_QKC)
    P, C, visible_QSS = prompts.ids_QP.shape[1], live_QKC.shape[2], dense(tree, prompts.live_QP)
    for q, k, c in live_QKC.nonzero().tolist():
        slot, predictor = P + k * C + c, int(tree.predictor_QKC[q, k, c])
        assert tree.positions_QS[q, predictor] == tree.positions_QS[q, slot] - 1
        assert visible_QSS[q, slot, predictor]


def test_wrong_shapes_are_named():
    prompts = pad_prompts([[1], [2]])
    with pytest.raises(ValueError, match="live_QKC"):
        scoring_tree(prompts, torch.zeros(2, 3, 4, dtype=torch.long), torch.ones(2, 3, 5, dtype=torch.bool))
