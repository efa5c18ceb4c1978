"""Items by a key."""

from minigrpo.common.grouping import group_by


def test_keys_and_items_keep_their_order_and_none_is_a_key_like_any_other():
    # The candidates of a group by their SQL: the second and the fourth have none.
    assert list(group_by([("b", 1), (None, 2), ("a", 3), (None, 4), ("b", 5)], lambda pair: pair[0]).items()) == [
        ("b", [("b", 1), ("b", 5)]), (None, [(None, 2), (None, 4)]), ("a", [("a", 3)])]


def test_an_iterator_is_read_once_and_nothing_gives_nothing():
    assert group_by(iter(range(5)), lambda number: number % 2) == {0: [0, 2, 4], 1: [1, 3]}
    assert group_by([], len) == {}
