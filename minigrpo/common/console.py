"""What the program prints: lines, progress bars, tables, untrusted text. The only file that writes to a terminal."""

import sys
import textwrap
from collections.abc import Mapping

from tqdm import tqdm

WIDTH, INDENT = 79, 12                          # columns: where the text beside a label ends, and where it begins


def say(text: str = "") -> None:
    """Print a line above the progress bar, if there is one."""
    tqdm.write(text)


def warn(text: str) -> None:
    """Print a line on stderr about a problem that does not end the program."""
    tqdm.write(text, file=sys.stderr)


def progress(total: int, description: str, *, initial: int = 0, leave: bool = True) -> tqdm:
    # A bar of width 0: older versions of tqdm trim a line to the terminal's width only if it has a bar.
    return tqdm(total=total, initial=initial, desc=f"{description} ", leave=leave, dynamic_ncols=True, smoothing=0.1,
                bar_format="{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}{bar:0}")


def headline(metrics: Mapping[str, float]) -> str:
    """The numbers to look at first, most important first, since a narrow terminal cuts the end.

    >>> headline({"reward": 312.5, "strict": 0.25, "kl": 0.00123, "error_rate": 0.5, "grad_norm": 0.8})
    'reward 312.5 strict 25% kl 0.0012 err 50% grad 0.8'
    """
    return (f"reward {metrics['reward']:.4g} strict {metrics['strict']:.0%} kl {metrics['kl']:.2g} "
            f"err {metrics['error_rate']:.0%} grad {metrics['grad_norm']:.2g}")


def printable(text: str) -> str:
    """``text`` on one line, with control characters shown as U+FFFD, so that it cannot command a terminal.

    >>> printable("two\\n lines \\x1b[2J")
    'two lines \ufffd[2J'
    """
    return _tame(" ".join(text.split()))


def verbatim(text: str) -> list[str]:
    """``text`` with its own line breaks and spaces, control characters shown as U+FFFD; a line that is wider than the console
    continues on an indented one.

    >>> verbatim("  id INT,\\n)\\n")
    ['      id INT,', '    )', '    ']
    """
    wrap = textwrap.TextWrapper(WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, drop_whitespace=False)
    return [shown for line in text.split("\n") for shown in wrap.wrap(_tame(line)) or [" " * 4]]


def _tame(line: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in line)


def labelled(label: str, text: str, most: int | None = None) -> list[str]:
    """A label and, beside it, ``text`` made printable, wrapped, and cut after ``most`` lines."""
    return textwrap.wrap(printable(text) or "nothing", WIDTH, initial_indent=f"  {label:<{INDENT - 2}}",
                         subsequent_indent=" " * INDENT, max_lines=most, placeholder=" …")


def table(rows: list[list[str]]) -> str:
    """Rows of cells as aligned text. The first row is the head; the first column is left-aligned.

    >>> print(table([["split", "n"], ["dev", "282"]]))
    split    n
    dev    282
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
                     for row in rows)
