"""Items by a key of theirs. Does not depend on what they are."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of each key; keys in order of appearance, and the items of a key too.

    >>> group_by(["b", "aa", "c"], len)
    {1: ['b', 'c'], 2: ['aa']}
    """
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
