"""What runs on this machine, for tests that something is gone."""

import time
from collections.abc import Callable
from pathlib import Path


def command_lines() -> dict[int, str]:
    """Process id → command line, its words separated by NUL."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            pass                                            # it ended while we looked
    return found


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
