"""How a program ends: with one sentence for an error that is no bug, its exit status, and signals. All other errors are bugs
and keep their traceback."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType

from minigrpo.common.console import say


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


def exit_status(program: str, recipe: Callable[[], int]) -> int:
    """Run a recipe. An error that the user can mend, or that comes from the machine, a database or broken numbers, is printed
    as one sentence on stderr with status 1. Any other exception is a bug and keeps its traceback. Ctrl-C is 130, SIGTERM 143.
    """
    # As an error does, a signal raises, so that everything open is closed. Ctrl-C stays ignored in a script's background.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return recipe()
    except (UserError, OSError, MemoryError, FloatingPointError, TaskError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextmanager
def first_signal(at_once: Callable[[], bool] = lambda: False) -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM is recorded in the list, so that the current step can finish. A second one,
    or the first while ``at_once()``, exits (``SystemExit``). Ctrl-C stays ignored where it was ignored before."""
    met: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if met or at_once():
            sys.exit(128 + number)
        met.append(number)
        say("stopping after this step (again: at once) ...")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
              if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield met
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
