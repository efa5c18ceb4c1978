"""Rows of an evaluation → its figures in percent: by split and by kind of question. Does not depend on any model or task.

A row is one question: ``split, index, kind, question, gold``, what was extracted, ``status, answer``, and its figures, which
are numbers from 0 to 1.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from minigrpo.common.grouping import group_by
from minigrpo.evaluation.intervals import Figures, intervals

Row = dict[str, Any]


@dataclass(frozen=True)
class Label:
    """How a figure is named: in the first column of a table, at the head of a narrow one, and explained in a note."""

    name: str
    head: str
    note: str = ""


# Every figure that a row may have, and three that follow from others; in the order of tables and summaries.
LABELS = {
    "strict": Label("strict", "strict", "the answer and nothing else"),
    "ems": Label("EMS", "EMS", "all of the answer, whatever else there is; without strict it is mostly a dump"),
    "rems": Label("REMS", "REMS", "the share of the answer found"),
    "error_rate": Label("errors", "errors"),
    "hack": Label("EMS, not strict", "hacks"),
    "unguessed": Label("strict, unguessed", "unguess.", "of the questions whose blind guess is wrong"),
    "invented": Label("invented value", "invented", "SQL has a text or a number that is neither in the question nor in the "
                      "schema or its sample values"),
    "suite": Label("suite", "suite", "right on a second database too"),
    "blind": Label("blind ceiling", "blind", "strict of the most frequent training answer to each kind of question"),
    "constant": Label("constant ceiling", "const.", "EMS of one answer to all, 0-40, Yes, No, 1980-2024"),
}
CEILINGS = ("blind", "constant")                # of the questions alone: no policy is better or worse at them
OF_A_ROW = ("strict", "ems", "rems", "invented", "suite", "blind", "constant")      # in the order of summary.json


def measures(row: Row) -> dict[str, tuple[float, float]]:
    """What a row adds to each figure, as (value, weight): a figure is the sum of the values over the sum of the weights.

    ``hack``: EMS is satisfied, but by more than the answer. ``unguessed``: strict on questions whose blind guess is wrong.
    """
    found: dict[str, tuple[float, float]] = {name: (row[name], 1) for name in OF_A_ROW if name in row}
    found["error_rate"] = (row["status"] != "ok", 1)
    if "ems" in row:
        found["hack"] = (row["ems"] - row["strict"], 1)
    if "blind" in row:
        found["unguessed"] = (row["strict"] * (1 - row["blind"]), 1 - row["blind"])
    return found


def figures(rows: Sequence[Row]) -> Figures:
    """What each row adds, by figure; only figures that all rows have and that have some weight."""
    each = [measures(row) for row in rows]
    shared = [name for name in each[0] if all(name in one for one in each) and any(one[name][1] for one in each)]
    return {name: [one[name] for one in each] for name in shared}


def percents(found: Figures) -> dict[str, float]:
    return {name: round(100 * math.fsum(value for value, _ in pairs) / sum(weight for _, weight in pairs), 2)
            for name, pairs in found.items()}


def summarise(rows: Iterable[Row], sizes: Mapping[str, int], outcomes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By split: ``n`` rows scored ``of`` the split's size, ``absent`` if that is 0; each figure and each status in percent;
    ``kinds``: the same by kind of question. ``outcomes``: a task's statuses, in the order to list them."""
    by_split = group_by(rows, itemgetter("split"))
    summary: dict[str, dict[str, Any]] = {}
    for split, size in sizes.items():
        members = by_split.get(split, [])
        summary[split] = {"n": len(members), "of": size, **({} if size else {"absent": True})}
        if members:
            statuses = Counter(row["status"] for row in members)
            summary[split] |= {
                **percents(figures(members)),
                "status": {status: round(100 * statuses[status] / len(members), 2) for status in outcomes if statuses[status]},
                "kinds": {kind: {"n": len(some), **percents(figures(some))}
                          for kind, some in group_by(members, itemgetter("kind")).items()}}
    return summary


def add_intervals(summary: Mapping[str, dict[str, Any]], rows: Iterable[Row]) -> None:
    """Add to each split, in place, the 95 % confidence interval of each figure in percent: ``interval``."""
    for split, members in group_by(rows, itemgetter("split")).items():
        summary[split]["interval"] = {name: [round(100 * end, 2) for end in ends]
                                      for name, ends in intervals(figures(members)).items()}
