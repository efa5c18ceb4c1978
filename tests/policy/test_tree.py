"""Slots, positions and visibility of root, trunks and branches, by hand for a ragged example and as properties for random ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.policy.tree import (
    Prompts,
    common_beginning,
    pad_completions,
    pad_prompts,
    prompt_visibility,
    root_of,
    scoring_tree,
    within_window,
)

O, X = False, True


def ragged_example(window=None, root=()):
    """Two questions, K = 2, C = 2, T = 3. Question 0: after the root 2 tokens (the third slot is padding), branch 0 has two
    tokens, branch 1 one. Question 1: 3 tokens, branch 0 has one token, branch 1 two."""
    prompts = pad_prompts([[*root, 11, 12], [*root, 21, 22, 23]], root=len(root))
    ids_QKC = torch.tensor([[[1, 2], [3, 0]], [[4, 0], [5, 6]]])
    live_QKC = torch.tensor([[[X, X], [X, O]], [[X, O], [X, X]]])
    return scoring_tree(prompts, ids_QKC, live_QKC, window=window)


def slots_of(prompts, live_QKC):
    """The root's slots, then every slot of the sequence: (question or None for the root, branch or None, position, live)."""
    (Q, K, C), L, P, lengths = live_QKC.shape, len(prompts.root), prompts.ids_QP.shape[1], prompts.length_Q.tolist()
    return [*((None, None, s, True) for s in range(L)),
            *((q, None, s, s < lengths[q]) for q in range(Q) for s in range(L, P)),
            *((q, k, lengths[q] + c, bool(live_QKC[q, k, c])) for q in range(Q) for k in range(K) for c in range(C))]


def dense(tree, prompts):
    """visible_SS: all pairs of slots laid out, the root's first; what these see is no matter of the tree, so nothing here. In a
    plain causal trunk only live rows are of interest: padding sees itself."""
    (Q, K, C, _), L, P = tree.visible.branch_QKCS.shape, len(prompts.root), prompts.ids_QP.shape[1]
    Y, trunk_QYP = P - L, tree.visible.trunk_QYP
    if trunk_QYP is None:
        trunk_QYP = torch.ones(P, P, dtype=torch.bool).tril() & prompts.live_QP[:, :, None] | torch.eye(P, dtype=torch.bool)
    visible_SS = torch.zeros(L + len(tree.ids_1S[0]), L + len(tree.ids_1S[0]), dtype=torch.bool)
    for q in range(Q):
        trunk = slice(L + q * Y, L + (q + 1) * Y)
        visible_SS[trunk, :L], visible_SS[trunk, trunk] = trunk_QYP[q].split([L, Y], dim=-1)
        for k in range(K):
            own = slice(L + Q * Y + (q * K + k) * C, L + Q * Y + (q * K + k + 1) * C)
            visible_SS[own, :L], visible_SS[own, trunk], visible_SS[own, own] = tree.visible.branch_QKCS[q, k].split(
                [L, Y, C], dim=-1)
    return visible_SS


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


def test_prompt_visibility_by_hand():
    # Slot 2 of a prompt of two tokens is padding: it sees itself, nobody sees it.
    assert prompt_visibility(torch.tensor([[X, X, O]])).tolist() == [[[X, O, O],
                                                                     [X, X, O],
                                                                     [O, O, X]]]


def test_slots_and_positions_by_hand():
    # Trunks at slots 0 to 2 and 3 to 5, then four branches of depths 0 and 1. Positions of a branch are p_q + c: 2 and 3 for
    # the prompt of two, 3 and 4 for the prompt of three. Padding is 11 and 21, the prompts' first tokens.
    tree = ragged_example()
    assert tree.ids_1S.tolist() == [[11, 12, 11, 21, 22, 23, 1, 2, 3, 11, 4, 21, 5, 6]]
    assert tree.positions_1S.tolist() == [[0, 1, 2, 0, 1, 2, 2, 3, 2, 3, 3, 4, 3, 4]]


def test_a_root_moves_positions_and_is_no_part_of_the_sequence():
    # Two tokens (8, 9) before all that: positions move on by two, slots do not. Padding is 8, the prompts' first token.
    tree = ragged_example(root=(8, 9))
    assert tree.ids_1S.tolist() == [[11, 12, 8, 21, 22, 23, 1, 2, 3, 8, 4, 8, 5, 6]]
    assert tree.positions_1S.tolist() == [[2, 3, 4, 2, 3, 4, 4, 5, 4, 5, 5, 6, 5, 6]]
    assert tree.predictor_QKC.equal(ragged_example().predictor_QKC)


@pytest.mark.parametrize("prompts, beginning", [
    ([[1, 2, 3, 4], [1, 2, 9]], 2),
    ([[1, 2, 3], [1, 2, 3]], 2),                    # equal prompts: each keeps a token of its own
    ([[1, 2], [1, 2, 3]], 1),                       # the first is the beginning of the second
    ([[1], [1, 2, 3]], 0), ([[1, 2], [2, 2]], 0), ([[1, 2, 3]], 2), ([[1, 2, 3], [1, 2, 4], [1, 5]], 1)])
def test_the_longest_common_beginning_leaves_each_prompt_a_token(prompts, beginning):
    assert common_beginning(prompts) == beginning
    assert common_beginning(prompts[::-1]) == common_beginning(list(map(tuple, prompts))) == beginning


@pytest.mark.parametrize("count, shared, root", [(2, 32, 32), (2, 31, 0), (33, 1, 1), (5, 8, 8), (5, 7, 0), (1, 400, 0)])
def test_a_root_has_to_be_worth_it(count, shared, root):
    """It saves its slots for all prompts but one: at least 32."""
    prompts = [[7] * shared + [8 + q] for q in range(count)]
    assert root_of(prompts) == len(pad_prompts(prompts).root) == root


def test_predictors_by_hand():
    # c = 0 is predicted from the prompt's last token: slots 1 and 5. c = 1 from depth 0 of its branch: slots 6, 8, 10, 12.
    assert ragged_example().predictor_QKC.tolist() == [[[1, 6], [1, 8]], [[5, 10], [5, 12]]]


def test_visibility_by_hand():
    tree = ragged_example()
    assert tree.visible.trunk_QYP is None                   # plain causal
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
    assert visible.trunk_QYP[0].tolist() == [[X, O, O],
                                             [X, X, O],
                                             [O, O, X]]
    assert visible.branch_QKCS[0].tolist() == [[[O, X, O,  X, O],
                                                [O, O, O,  X, X]],
                                               [[O, X, O,  X, O],
                                                [O, O, O,  O, X]]]


def test_a_window_as_wide_as_the_prompt_leaves_the_trunk_plain():
    assert ragged_example(window=3).visible.trunk_QYP is None


def test_trunks_behind_a_root_by_hand():
    # Question 0 has two tokens behind the root of two: they see the root and what is before them; padding sees itself.
    visible = ragged_example(root=(8, 9)).visible
    assert visible.trunk_QYP[0].tolist() == [[X, X,  X, O, O],
                                             [X, X,  X, X, O],
                                             [O, O,  O, O, X]]
    assert visible.branch_QKCS[0, 0].tolist() == [[X, X,  X, X, O,  X, O],
                                                  [X, X,  X, X, O,  X, X]]


def test_a_window_shorter_than_the_root_by_hand():
    visible = ragged_example(root=(7, 8, 9), window=2).visible
    assert visible.trunk_QYP[0].tolist() == [[O, O, X,  X, O, O],
                                             [O, O, O,  X, X, O],
                                             [O, O, O,  O, O, X]]


def test_window_of_one_is_itself_and_no_window_changes_nothing():
    positions_QT = torch.arange(4).expand(1, 4)
    causal_QTS = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    assert within_window(causal_QTS, positions_QT, positions_QT, None).equal(causal_QTS)
    assert within_window(causal_QTS, positions_QT, positions_QT, 1).equal(torch.eye(4, dtype=torch.bool)[None])
    assert within_window(causal_QTS, positions_QT, positions_QT, 4).equal(causal_QTS)       # 3 away at most
    assert not within_window(causal_QTS, positions_QT, positions_QT, 3)[0, 3, 0]            # exactly a window away


@st.composite
def groups(draw, holes=False):
    """Prompts with a root of any length, live tokens (with ``holes`` not only at the ends of branches) and a window."""
    Q, K, C = (draw(st.integers(1, 3)) for _ in "QKC")
    root = draw(st.integers(0, 4)) if Q > 1 else 0
    lengths = draw(st.lists(st.integers(root + 1, root + 5), min_size=Q, max_size=Q))
    ends = draw(st.lists(st.integers(0, C), min_size=Q * K, max_size=Q * K))
    live_QKC = torch.arange(C) < torch.tensor(ends).view(Q, K, 1)
    if holes:
        live_QKC &= torch.tensor(draw(st.lists(st.booleans(), min_size=C, max_size=C)))
    return Prompts(torch.ones(Q, max(lengths), dtype=torch.long), torch.tensor(lengths), (1,) * root), live_QKC, draw(
        st.one_of(st.none(), st.integers(1, 6)))


@settings(max_examples=100, deadline=None)
@given(groups(holes=True))
def test_the_rule_pair_by_pair(group):
    """The rule read aloud, for every pair of slots: root, own trunk, own ancestors, itself; a window counts positions."""
    prompts, live_QKC, window = group
    tree = scoring_tree(prompts, live_QKC.long(), live_QKC, window=window)
    visible_SS, slots = dense(tree, prompts).tolist(), slots_of(prompts, live_QKC)
    L = len(prompts.root)
    assert tree.positions_1S[0].tolist() == [position for _, _, position, _ in slots[L:]]
    for i, (question_i, branch_i, position_i, live_i) in list(enumerate(slots))[L:]:
        for j, (question_j, branch_j, position_j, live_j) in enumerate(slots):
            related = question_j is None or question_i == question_j and branch_j in (None, branch_i)
            sees = live_i and live_j and related and 0 <= position_i - position_j < (window or 10 ** 9)
            assert visible_SS[i][j] == (sees or i == j), (i, j)


@settings(max_examples=50, deadline=None)
@given(groups())
def test_a_predictor_is_the_token_just_before_and_is_seen_by_what_it_predicts(group):
    prompts, live_QKC, _ = group
    tree = scoring_tree(prompts, live_QKC.long(), live_QKC)
    visible_SS, slots = dense(tree, prompts), slots_of(prompts, live_QKC)
    for q, k, c in live_QKC.nonzero().tolist():
        L, slot = len(prompts.root), slots.index((q, k, int(prompts.length_Q[q]) + c, True))
        predictor = L + int(tree.predictor_QKC[q, k, c])
        assert slots[predictor][2] == slots[slot][2] - 1
        assert visible_SS[slot, predictor]


def test_wrong_shapes_are_named():
    prompts = pad_prompts([[1], [2]])
    with pytest.raises(ValueError, match="live_QKC"):
        scoring_tree(prompts, torch.zeros(2, 3, 4, dtype=torch.long), torch.ones(2, 3, 5, dtype=torch.bool))
