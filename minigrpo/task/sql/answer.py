"""Rows → answer text → score: the benchmark's EMS and REMS, and a strict match. Knows no database and no reward.

EMS and REMS (arXiv 2506.06093) look only at what is missing, so an output that lists everything satisfies them;
``strict`` and ``f1`` also count what is too much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from minigrpo.common.errors import UserError


# -------------------------------------------------------------------------------------------------------- rows → text
def render_cell(value: object) -> str:
    """One cell as answer text: NULL is ``None``, text stays as it is, numbers lose trailing zeros and exponents.

    A boolean is 1 or 0, as a database stores it; bytes are UTF-8 (what is not becomes U+FFFD); dates and times are ISO.

    >>> [render_cell(value) for value in (None, " a", 3, 2.5, -0.0, 1e16, Decimal("2.0000"), Decimal("1E+2"))]
    ['None', ' a', '3', '2.5', '0', '10000000000000000', '2', '100']
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return _plain(Decimal(repr(value)))                 # repr: the shortest digits that give this float back
    if isinstance(value, Decimal):
        return _plain(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", errors="replace")
    return str(value)


def _plain(number: Decimal) -> str:
    """Fixed notation, every digit kept (``normalize()`` would round to 28 of them), without trailing zeros."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def render_answer(rows: Iterable[Sequence[object]]) -> str:
    """Rows as answer text: the cells of a row joined by one space, the rows by ``", "``; no rows give the empty text.

    >>> render_answer([("Paris", 2012), ("Suva", None)])
    'Paris 2012, Suva None'
    """
    return ", ".join(" ".join(render_cell(value) for value in row) for row in rows)


# -------------------------------------------------------------------------------------------------------- text → score
@dataclass(frozen=True)
class Score:
    """``ems``, ``strict``: 0 or 1; ``rems``: 0 … 1 in hundredths; ``f1``: 0 … 1, not rounded."""

    ems: int
    rems: float
    strict: int
    f1: float


def split_answer(text: str) -> list[str]:
    """The parts between commas, stripped, in order, repetitions and empty parts kept; blank text has no parts.

    >>> split_answer("Paris , Suva,")
    ['Paris', 'Suva', '']
    """
    return [part.strip() for part in text.split(",")] if text.strip() else []


def score_answer(gold: str, output: str) -> Score:
    """Compare an output with the gold answer, both as text.

    A gold part g is found if some output part p has it as whole words: ``" g "`` inside ``" p "``, case-sensitively.
    REMS is the share of gold parts found, rounded by Python's ``round(share, 2)`` as in the benchmark (half to even, of
    the binary float); EMS is 1 if all are found, decided before rounding. ``strict`` is equality of the two *sets* of
    parts, ``f1`` the harmonic mean of precision and recall between them, by exact membership. An empty output earns
    nothing.

    Raises ValueError for a gold answer without parts: there is nothing to find, and an empty output must not be right.

    >>> score_answer("Paris, Suva", "Paris 2012, Paris")
    Score(ems=0, rems=0.5, strict=0, f1=0.5)
    """
    golds, outputs = split_answer(gold), split_answer(output)
    if not golds:
        raise UserError(f"the gold answer {gold!r} is empty: there is nothing to compare an output with")
    if not outputs:
        return Score(ems=0, rems=0.0, strict=0, f1=0.0)
    found = _count_found(golds, outputs)
    gold_set, output_set = set(golds), set(outputs)
    f1 = 2 * len(gold_set & output_set) / (len(gold_set) + len(output_set))
    return Score(int(found == len(golds)), round(found / len(golds), 2), int(gold_set == output_set), f1)


def answer_excess(gold: str, output: str) -> float:
    """How much of an output is more than the gold answer has, 0 … 1: 1 − gold / output, in words of different parts.

    Nothing beyond the gold answer's size is 0, twice its size 1/2, a hundred times 99/100. Words, not parts: the benchmark's
    rule finds an answer within a part, so that a whole dump can be one part.

    >>> [answer_excess("Paris, Suva", text) for text in ("Rome, Oslo", "Paris 2012, Suva 2016", "Paris, Paris", "")]
    [0.0, 0.5, 0.0, 0.0]
    """
    wanted, got = (sum(len(part.split()) for part in set(split_answer(text))) for text in (gold, output))
    return 1 - wanted / max(wanted, got)


def _count_found(golds: list[str], outputs: list[str]) -> int:
    """How many gold parts stand as whole words in some output part.

    One search through one text for each gold part, not one for each pair: no part contains a comma, so a match cannot
    reach from one output part into the next. A megabyte of output costs milliseconds.
    """
    haystack = " " + " , ".join(outputs) + " "
    return sum(f" {gold} " in haystack for gold in golds)
