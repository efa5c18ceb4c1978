"""Branches that change parents while they grow, against each history alone; what a used tree leaves behind."""

import pytest
import torch

from minigrpo.policy.generation.growing_tree import GrowingTree
from minigrpo.policy.tree import pad_prompts, root_of
from tests.policy.helpers import EACH, OF_LOGITS, PROMPTS, ROOTED, apart, assert_close, grown, random_ids


@pytest.mark.parity
@EACH
@pytest.mark.parametrize("prompts", [PROMPTS, ROOTED], ids=["no root", "root"])
def test_growing_tree_equals_each_sequence_alone_through_changes_of_parent(pair, parity, family, config, prompts):
    """Each branch sees the history that it took over."""
    for got_QKV, expected_QKV in grown(*pair(family, **config), prompts):
        parity("logits, growing tree", "transformers", apart(got_QKV, expected_QKV), **OF_LOGITS)


def test_what_an_earlier_search_left_in_a_tree_is_not_read(pair):
    """The cache holds NaN, every slot is in sight, the depth is at its end: prompts begin it anew. And room for longer prompts
    and for tokens to come changes nothing but the order of sums."""
    model, _ = pair("llama")
    prompts = pad_prompts([[1, 2, 3], [4]])
    used, clean, roomy = (GrowingTree(model, 2, longest, 2, depth) for longest, depth in ((3, 3), (3, 3), (40, 50)))
    for tensor in used.cache.keys + used.cache.values:
        tensor.fill_(torch.nan)
    used.visible_QKS.fill_(True)
    used.depth_1.fill_(2)
    for tree in (used, clean, roomy):
        tree.load(prompts, root=[])
    for ids_QK in [None, random_ids(2, 2), random_ids(2, 2, seed=1)]:
        again, first, third = (tree.prefill(model) if ids_QK is None else tree.grow(model, ids_QK) for tree in (used, clean, roomy))
        assert again.equal(first)
        assert_close(third, first, 1e-5)


def test_growing_attends_over_whole_stretches_of_depth(pair):
    """Prompts have 32 slots of room, 2 branches: a stretch of 32 depths has 64 slots. Depths 0 … 31 attend over 96, 32 … 63
    over 160, and the last stretch ends with the tree, at 32 + 2 · 70 = 172."""
    model, _ = pair("llama")
    tree = GrowingTree(model, 1, 32, 2, 70)
    assert [tree.reach(depth) for depth in (0, 31, 32, 63, 64, 69)] == [96, 96, 160, 160, 172, 172]
    assert [tree.fits(longest, 0) for longest in (1, 32, 33)] == [True, True, False]
    assert [GrowingTree(model, 1, 96, 2, 70).fits(longest, 0) for longest in (32, 33, 96)] == [False, True, True]


def test_a_tree_fits_prompts_that_share_its_root_or_more(pair):
    """A root of 40 and room for 32 more. Prompts that share fewer tokens cannot use it, and such that share more compute what is
    left as part of their trunks."""
    tree = GrowingTree(pair("llama")[0], 2, 50, 1, 1, root=40)
    assert [tree.fits(60, root) for root in (39, 40, 45)] == [False, True, True]
    assert [tree.fits(longest, 40) for longest in (41, 72, 73)] == [True, True, False]


@pytest.mark.parametrize("window", [None, 5, 20, 60])
def test_any_root_up_to_all_that_the_prompts_share_gives_the_same(pair, window):
    """They share 44 tokens. Roots of 1 token to all of these, a window shorter and longer than they are."""
    model, _ = pair("mistral", sliding_window=window)
    shared = random_ids(44, seed=3).tolist()
    prompts, tokens = [[*shared, 1, 2, 3], [*shared, 4], [*shared, 5, 6, 7, 8]], random_ids(5, 3, 2, seed=4)

    def logits(root):
        tree = GrowingTree(model, 3, 48, 2, 6, root)
        tree.load(pad_prompts(prompts, root=root), model.read(shared[:root]))
        return torch.cat([tree.prefill(model), *(tree.grow(model, ids_QK, ids_QK % 2) for ids_QK in tokens)], dim=1)

    assert root_of(prompts) == 44
    for root in (1, 7, 43, 44):
        assert_close(logits(root), logits(0), 1e-5)
