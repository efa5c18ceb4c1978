"""How a program ends: signals, the status it leaves, and the one sentence for what its user can mend."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from minigrpo.common.console import say
from minigrpo.common.errors import TaskError, UserError


def exit_status(program: str, recipe: Callable[[], int]) -> int:
    """Run a recipe. What is the user's to mend, the machine's or the database's, or numbers that broke, is one sentence on
    stderr and status 1, not a traceback; Ctrl-C is 130 and SIGTERM 143."""
    exit_on_signals()
    try:
        return recipe()
    except (UserError, OSError, MemoryError, FloatingPointError, TaskError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def exit_on_signals() -> None:
    """SIGTERM and Ctrl-C end the program as an error does, so that what is open gets closed."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:           # as in a script's background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def first_signal(at_once: Callable[[], bool] = lambda: False) -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM is but noted in the list, so that a step can be finished, unless it is to
    end the program ``at_once``, as any more do (``SystemExit``). Ctrl-C stays ignored where it is."""
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
