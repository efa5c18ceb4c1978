"""Rows of an evaluation → its figures in percent, by split and by kind of question; their intervals; their tables. Does not
depend on any model or task.

A row is one question: ``split, index, kind, question, gold``, what was extracted, ``status, answer``, and its figures, which
are numbers from 0 to 1. A figure is a ratio of sums over questions, Σ value / Σ weight: a mean if all weights are 1.

Its 95 % confidence interval is the middle 95 % of its values on RESAMPLES sets of as many questions, drawn with replacement
(percentile bootstrap, Efron, 1979). Questions are taken to be independent. A figure on which all questions agree has an
interval of width 0. Axes: E resamples, Q questions, F figures.

A table is a list of rows of cells, the first being its head; it is shown as text (``console.table``) or as ``markdown``.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from minigrpo.common.device import generator
from minigrpo.common.grouping import group_by

RESAMPLES, LEVEL = 2000, 0.95
AT_ONCE = 2**22                                 # draws held at a time: 32 MB
SPLITS_ABREAST = 7                              # in a table, within 100 columns

Row = dict[str, Any]
Figures = Mapping[str, Sequence[tuple[float, float]]]       # (value, weight) of each question
Cells = list[list[str]]


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
    """What a row adds to each figure, as (value, weight)."""
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


# ----------------------------------------------------------------------------------------------------------- intervals
def intervals(found: Figures) -> dict[str, tuple[float, float]]:
    """{figure: (low, high)}. All figures have the same questions in the same order, at least one."""
    return _middle(found, _resampled(found))


def difference_intervals(a: Figures, b: Figures) -> dict[str, tuple[float, float]]:
    """Of each figure of ``b`` minus that of ``a``, paired: both have the same figures and questions, and each resample draws
    the same questions for both, so that the difficulty of a question cancels."""
    return _middle(a, _resampled(b) - _resampled(a))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value (McNemar, 1947): the probability of a difference this large if a fair coin decided, for each
    question that only one of the two got right, which one that was.

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    count = only_a + only_b
    tail = sum(math.comb(count, few) for few in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**count)


def _resampled(found: Figures) -> Tensor:
    """Each figure on each resample, [E, F]; NaN if no weight was drawn. The draws depend on the number of questions alone."""
    value_QF, weight_QF = torch.tensor(list(found.values()), dtype=torch.float64).permute(2, 1, 0)
    questions, draws, ratios = len(value_QF), generator(0, 0, "bootstrap"), []
    size = max(1, AT_ONCE // questions)
    for start in range(0, RESAMPLES, size):
        drawn_EQ = torch.randint(questions, (min(size, RESAMPLES - start), questions), generator=draws)
        times_EQ = torch.zeros(drawn_EQ.shape, dtype=torch.float64)
        times_EQ.scatter_add_(1, drawn_EQ, torch.ones(1, 1, dtype=torch.float64).expand_as(drawn_EQ))
        ratios.append((times_EQ @ value_QF) / (times_EQ @ weight_QF))
    return torch.cat(ratios)


def _middle(names: Figures, ratio_EF: Tensor) -> dict[str, tuple[float, float]]:
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low_F, high_F = torch.nanquantile(ratio_EF, ends, dim=0).tolist()
    return {name: (low, high) for name, low, high in zip(names, low_F, high_F)}


# -------------------------------------------------------------------------------------------------------------- tables
def notes(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """What the figures of a summary mean, at most 78 columns wide."""
    there = {name for of in summary.values() for name in of}
    said = [f"{label.name}: {label.note}." for name, label in LABELS.items() if label.note and name in there]
    return textwrap.fill(" ".join(["In percent; below a figure its 95 % interval (bootstrap over questions).", *said]), 78)


def markdown(cells: Cells) -> str:
    head, *rows = [[cell.strip().replace("|", "\\|") for cell in row] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows))


def percent(value: float) -> str:
    """At most four characters: 100 has no decimal."""
    return f"{value:.1f}" if round(value, 1) < 100 else "100"


def split_tables(summary: Mapping[str, Mapping[str, Any]]) -> list[Cells]:
    """Summaries of splits, with intervals, as tables of some splits each: a split a column, a figure a line."""
    splits = list(summary)
    return [_split_table({split: summary[split] for split in splits[start:start + SPLITS_ABREAST]})
            for start in range(0, len(splits), SPLITS_ABREAST)]


def _split_table(summary: Mapping[str, Mapping[str, Any]]) -> Cells:
    def line(label: str, cell: dict[str, str]) -> list[str]:
        return [label, *(cell.get(split, "") for split in summary)]

    cells = [["", *summary], line("questions", {split: _count(of) for split, of in summary.items()})]
    for name, label in LABELS.items():
        known = {split: of for split, of in summary.items() if name in of}
        if known:
            cells.append(line(label.name, {split: percent(of[name]) for split, of in known.items()}))
        if known and name not in CEILINGS:
            cells.append(line("", {split: "-".join(map(percent, of["interval"][name])) for split, of in known.items()}))
        if name == "error_rate":
            statuses = dict.fromkeys(status for of in known.values() for status in of["status"] if status != "ok")
            cells += [line(f"  {status}", {split: percent(of["status"].get(status, 0.0)) for split, of in known.items()})
                      for status in statuses]
    return cells


def _count(of: Mapping[str, Any]) -> str:
    return "absent" if "absent" in of else str(of["n"]) if of["n"] == of["of"] else f"{of['n']} of {of['of']}"


def kind_table(split: str, of: Mapping[str, Any]) -> Cells:
    """One split: a kind of question a line, its figures the columns; all together last."""
    shown = [name for name in LABELS if name in of]
    lines = {**{kind: of["kinds"][kind] for kind in sorted(of["kinds"], key=lambda kind: (len(kind) * kind.isdigit(), kind))},
             "all": of}
    return [[split, "n", *(LABELS[name].head for name in shown)],
            *([kind, str(some["n"]), *(percent(some[name]) if name in some else "" for name in shown)]
              for kind, some in lines.items())]
