"""How a program ends: its exit status, the one sentence for an error, and signals."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from minigrpo.common.console import say
from minigrpo.common.errors import TaskError, UserError


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
