"""The errors that end a program with one sentence instead of a traceback, and pieces of such sentences. All other errors are
bugs and keep their traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can mend: a config, a file, an argument, a module of their own. The message says what and where."""


class TaskError(RuntimeError):
    """The machinery that judges completions failed (a database server, say), not a completion: never a reward."""


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
