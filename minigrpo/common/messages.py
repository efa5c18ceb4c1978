"""Pieces of one-sentence errors: a name that is not known, a text from a file. Does not depend on anything else."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """How a sentence about a name that is none begins.

    >>> unknown("split", "trian", ["train", "dev"]), unknown("split", "x", ["dev"])
    ("unknown split 'trian' (did you mean 'train'?)", "unknown split 'x'")
    """
    near = get_close_matches(name[:80], known, n=1)
    return f"unknown {what} {name!r:.80}" + (f" (did you mean {near[0]!r}?)" if near else "")


def shown(text: str) -> str:
    """A text from a file for an error to speak of: short, and on one line."""
    return repr(text)[1:-1][:120]
