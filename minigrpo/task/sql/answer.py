"""A question with its known answer; and from rows to an answer's text to scores: the benchmark's EMS and REMS, and a strict
match. Needs no database or reward, and no file format.

EMS and REMS (arXiv 2506.06093) count only missing parts, so an output that lists everything satisfies them. ``strict`` and
``f1`` also count parts that do not belong there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from minigrpo.common.errors import UserError


@dataclass(frozen=True)
class Question:
    """``id`` is ``"split/index"``, and ``index`` the zero-based record in the split's file. ``answer``: the gold answer as
    published. ``database``: the name of the database that the question is asked of. ``kind``: the type of question, for
    breakdowns (in the benchmark, its template's number). ``gold_sql``: a known query, or None; GRPO reads it only with the
    reward "structural".
    """

    id: str
    split: str
    index: int
    text: str
    answer: str
    database: str
    kind: str
    gold_sql: str | None = None

    @property
    def solution(self) -> str | None:
        """What a model should write before a stop string: the known query without its end."""
        return None if self.gold_sql is None else self.gold_sql.rstrip("; \t\r\n")


# -------------------------------------------------------------------------------------------------------- rows → text
def render_cell(value: object) -> str:
    """One cell as answer text: NULL is ``None``, text stays as it is, numbers have no exponents and no trailing zeros.

    A boolean is 1 or 0, as a database stores it. Bytes are read as UTF-8, with U+FFFD for invalid ones. Dates and times are in
    ISO format.

    >>> [render_cell(value) for value in (None, " a", 3, 2.5, -0.0, 1e16, Decimal("2.0000"), Decimal("1E+2"))]
    ['None', ' a', '3', '2.5', '0', '10000000000000000', '2', '100']
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return _plain(Decimal(repr(value)))                 # repr: the shortest digits that give the same float
    if isinstance(value, Decimal):
        return _plain(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", errors="replace")
    return str(value)


def _plain(number: Decimal) -> str:
    """Fixed notation with all digits (``normalize()`` would round to 28 of them) but without trailing zeros."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def render_answer(rows: Iterable[Sequence[object]]) -> str:
    """Rows as answer text. One space joins the cells of a row, ``", "`` joins the rows; no rows give the empty text.

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
    """The stripped parts between commas, in order, with repetitions and empty parts. Blank text has no parts.

    >>> split_answer("Paris , Suva,")
    ['Paris', 'Suva', '']
    """
    return [part.strip() for part in text.split(",")] if text.strip() else []


def score_answer(gold: str, output: str) -> Score:
    """Compare an output with the gold answer, both as text.

    A gold part g is found if some output part p contains it as whole words: ``" g "`` in ``" p "``, case-sensitively. REMS is
    the share of gold parts that are found, rounded by Python's ``round(share, 2)`` as in the benchmark (half to even, of the
    binary float). EMS is 1 if all are found, before rounding. ``strict`` is 1 if the two *sets* of parts are equal. ``f1`` is
    the harmonic mean of precision and recall of the sets, by exact membership. An empty output scores 0 everywhere.

    ``UserError``: the gold answer has no parts. There is nothing to find, and an empty output must not be right.

    >>> score_answer("Paris, Suva", "Paris 2012, Paris")
    Score(ems=0, rems=0.5, strict=0, f1=0.5)
    """
    golds, outputs = split_answer(gold), split_answer(output)
    if not golds:
        raise UserError(f"the gold answer {gold!r} is empty: there is nothing to compare an output with")
    if not outputs:
        return Score(ems=0, rems=0.0, strict=0, f1=0.0)
    # Each gold part is searched once, in all output parts, not once for each pair: a megabyte of output takes milliseconds. No
    # part contains a comma, so a match cannot reach from one output part into the next.
    haystack = " " + " , ".join(outputs) + " "
    found = sum(f" {part} " in haystack for part in golds)
    gold_set, output_set = set(golds), set(outputs)
    f1 = 2 * len(gold_set & output_set) / (len(gold_set) + len(output_set))
    return Score(int(found == len(golds)), round(found / len(golds), 2), int(gold_set == output_set), f1)


def answer_excess(gold: str, output: str) -> float:
    """The share of an output that exceeds the gold answer's size, 0 … 1: 1 − gold / output, in words of the distinct parts.

    An output no larger than the gold answer gives 0, twice its size 1/2, a hundred times 99/100. It counts words, not parts,
    because the benchmark's rule finds an answer inside a part: a dump of the whole database can be one part.

    >>> [answer_excess("Paris, Suva", text) for text in ("Rome, Oslo", "Paris 2012, Suva 2016", "Paris, Paris", "")]
    [0.0, 0.5, 0.0, 0.0]
    """
    wanted, got = (sum(len(part.split()) for part in set(split_answer(text))) for text in (gold, output))
    return 1 - wanted / max(wanted, got)
