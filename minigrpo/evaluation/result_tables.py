"""The table of an evaluation: a split a column, and one split by kind of question.

A table is a list of rows of cells, the first being its head; it is shown as text (``console.table``) or as ``markdown``.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

from minigrpo.evaluation.figures import CEILINGS, LABELS

Cells = list[list[str]]
SPLITS_ABREAST = 7                              # in a table, within 100 columns


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


