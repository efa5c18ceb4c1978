"""The table of what equals what: each comparison with a tool we did not write is asserted and remembered in one line.

``python -m pytest -m parity`` prints it, as Markdown, behind the tests that made it.
"""

from importlib.metadata import version
from typing import NamedTuple

import pytest

Rows = dict[tuple[str, str, str], "Row"]
ROWS = pytest.StashKey[Rows]()


class Row(NamedTuple):
    """``cases`` comparisons, of which the furthest apart differed by ``largest``; ``bound`` is the widest allowed."""

    cases: int
    largest: float
    bound: float


class Parity:
    """``parity("logits", "transformers", difference, bound=1e-4, unit="of scale")``: fails unless difference <= bound."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __call__(self, part: str, reference: str, difference: float, *, bound: float, unit: str = "", cases: int = 1) -> None:
        """``reference``: a package, named with its version in the table, or a few words in brackets, "(brute force)".
        ``bound`` 0 and a difference of 0 or 1: equal or not."""
        row = self.rows.get((part, reference, unit), Row(0, 0.0, bound))
        self.rows[part, reference, unit] = Row(row.cases + cases, max(row.largest, float(difference)), max(row.bound, bound))
        assert difference <= bound, f"{part}: differs from {reference} by {float(difference):.3g} {unit}, more than {bound:.3g}"


def table(rows: Rows) -> str:
    """
    >>> print(table({("ids", "(by hand)", ""): Row(3, 0.0, 0.0), ("logits", "(by hand)", "of scale"): Row(2, 1.24e-6, 1e-4)}))
    | part | reference | cases | largest difference | allowed |
    |---|---|---|---|---|
    | ids | by hand | 3 | none | none |
    | logits | by hand | 2 | 1.2e-06 of scale | 1.0e-04 |
    """
    lines = ["| part | reference | cases | largest difference | allowed |", "|---|---|---|---|---|"]
    for (part, reference, unit), row in rows.items():
        name = reference.strip("()") if reference.startswith("(") else f"{reference} {version(reference)}"
        largest, bound = (f"{number:.1e}" if number else "none" for number in (row.largest, row.bound))
        lines.append(f"| {part} | {name} | {row.cases:,} | {f'{largest} {unit}'.strip() if row.largest else largest} | {bound} |")
    return "\n".join(lines)
