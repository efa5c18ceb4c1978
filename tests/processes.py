"""What runs on this machine, for tests that something is gone."""

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
