"""Two evaluations of the same questions side by side: paired differences, their intervals, and an exact test.

Reads files only, so it does not depend on any model or task.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from minigrpo.common.console import table
from minigrpo.common.errors import UserError
from minigrpo.common.grouping import group_by
from minigrpo.common.strict_json import NUMBER, read_lines
from minigrpo.evaluation import figures
from minigrpo.evaluation.figures import CEILINGS, LABELS, OF_A_ROW, Cells, Row, mcnemar, percent, percents

asked = itemgetter("question", "gold")          # what makes two rows' question the same
ROW_FORM = {"split": str, "index": int, "question": str, "gold": str, "status": str, "strict": NUMBER}


def read_rows(place: Path, splits: Collection[str]) -> dict[str, Row]:
    """{"split/index": row} of an evaluation's folder, or of a file of rows; of ``splits`` only, where any are named.

    ``ValueError``: no such file, a line that is no row, a question given twice, no rows.
    """
    file = place / "rows.jsonl" if place.is_dir() else place
    rows: dict[str, Row] = {}
    if not file.is_file():
        raise UserError(f"--compare: there is no file {file}")
    for number, row in read_lines(file, ROW_FORM):
        question = f"{row['split']}/{row['index']}"
        if odd := [name for name in OF_A_ROW if name in row and not (type(row[name]) in (int, float) and 0 <= row[name] <= 1)]:
            raise UserError(f"{file}:{number}: expected {odd[0]} from 0 to 1, got {row[odd[0]]!r:.80}")
        if question in rows:
            raise UserError(f"{file}:{number}: {question:.80} is given a second time")
        if not splits or row["split"] in splits:
            rows[question] = row
    if not rows:
        raise UserError(f"--compare: {file} holds no rows" + (f" of {', '.join(splits)}" if splits else ""))
    return rows


def compare(a: Mapping[str, Row], b: Mapping[str, Row], names: tuple[object, object]) -> dict[str, dict[str, Any]]:
    """By split: each figure of both, its difference b − a and the interval of that, paired by question; and on how many
    questions both, only one or neither is strictly right, with McNemar's exact p.

    ``names`` are what an error calls the two: other questions, or other answers to them, are a ``ValueError``.
    """
    for these, those, (here, there) in ((a, b, names), (b, a, names[::-1])):
        if alone := [question for question in these if question not in those]:
            raise UserError(f"--compare: {there} has no row of {alone[0]}, which {here} has; --split names what both have")
    if other := [question for question in a if asked(a[question]) != asked(b[question])]:
        raise UserError(f"--compare: {other[0]} is not the same question in {names[0]} and {names[1]}")
    return {split: _compare_split(rows, [b[f"{split}/{row['index']}"] for row in rows])
            for split, rows in group_by(a.values(), itemgetter("split")).items()}


def _compare_split(a: Sequence[Row], b: Sequence[Row]) -> dict[str, Any]:
    found_a, found_b = figures.figures(a), figures.figures(b)
    both = [name for name in LABELS if name in found_a and name in found_b and name not in CEILINGS]
    found_a, found_b = ({name: found[name] for name in both} for found in (found_a, found_b))
    percent_a, percent_b, ends = percents(found_a), percents(found_b), figures.difference_intervals(found_a, found_b)
    right = [(bool(row_a["strict"]), bool(row_b["strict"])) for row_a, row_b in zip(a, b)]
    only_a, only_b = right.count((True, False)), right.count((False, True))
    return {"n": len(a), "figures": {name: {"a": percent_a[name], "b": percent_b[name],
                                            "difference": round(percent_b[name] - percent_a[name], 2),
                                            "interval": [round(100 * end, 2) for end in ends[name]]} for name in both},
            "strict": {"both": right.count((True, True)), "only_a": only_a, "only_b": only_b,
                       "neither": right.count((False, False)), "mcnemar_p": mcnemar(only_a, only_b)}}


def comparison_table(split: str, of: Mapping[str, Any]) -> Cells:
    return [[split, "A", "B", "B - A", "95 %"],
            *([LABELS[name].name, percent(found["a"]), percent(found["b"]), f"{found['difference']:+.1f}",
               "{:+.1f} to {:+.1f}".format(*found["interval"])] for name, found in of["figures"].items())]


def show_comparison(found: Mapping[str, Mapping[str, Any]], draw: Callable[[Cells], str] = table) -> str:
    counts = "both {both}, only A {only_a}, only B {only_b}, neither {neither}; p = {mcnemar_p:.2g}"
    return "\n\n".join(f"{draw(comparison_table(split, of))}\n\nstrict on {of['n']} questions: {counts.format(**of['strict'])}"
                       for split, of in found.items())
