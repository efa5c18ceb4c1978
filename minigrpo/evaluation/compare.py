"""Evaluations side by side: the table of splits, by kind of question, and two policies on the same questions. Runs no SQL.

A table is a list of rows of cells, the first being its head; it is shown as text (``metrics.table``) or as ``markdown``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from minigrpo.common.console import table
from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import NUMBER, read_lines
from minigrpo.evaluation.evaluate import MEANS, Row, figures, group_rows, percents
from minigrpo.evaluation.intervals import difference_intervals, mcnemar

Cells = list[list[str]]

# Figure → its label, and its head where columns are narrow.
FIGURES = {"strict": ("strict", "strict"), "ems": ("EMS", "EMS"), "rems": ("REMS", "REMS"),
           "error_rate": ("errors", "errors"), "hack": ("EMS, not strict", "hacks"),
           "unguessed": ("strict, unguessed", "unguess."), "invented": ("invented value", "invented"),
           "suite": ("suite", "suite"), "blind": ("blind ceiling", "blind"), "constant": ("constant ceiling", "const.")}
CEILINGS = ("blind", "constant")                # of the questions alone: nothing that a policy is better or worse at
ABREAST = 7                                     # splits in a table, within 100 columns
NOTES = """In percent; below a figure its 95 % interval (bootstrap over questions).
strict: the answer and nothing else. EMS: all of the answer, whatever else there
is; without strict it is mostly a dump. REMS: the share of the answer found.
strict, unguessed: of the questions whose blind guess is wrong. invented value:
SQL has a text or a number that neither question nor schema has, nor its sample
values. suite: right on a second database too. blind ceiling: strict of the most
frequent training answer to each kind of question. constant ceiling: EMS of one
answer to all, 0-40, Yes, No, 1980-2024."""


def markdown(cells: Cells) -> str:
    head, *rows = [[cell.strip().replace("|", "\\|") for cell in row] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows))


def percent(value: float) -> str:
    """At most four characters: 100 has no decimal."""
    return f"{value:.1f}" if round(value, 1) < 100 else "100"


# ------------------------------------------------------------------------------------------------------------ one policy
def split_tables(summary: Mapping[str, Mapping]) -> list[Cells]:
    """Summaries of splits, with intervals, as tables of some splits each: a split a column, a figure a line."""
    splits = list(summary)
    return [_split_table({split: summary[split] for split in splits[start:start + ABREAST]})
            for start in range(0, len(splits), ABREAST)]


def _split_table(summary: Mapping[str, Mapping]) -> Cells:
    def line(label: str, cell: dict[str, str]) -> list[str]:
        return [label, *(cell.get(split, "") for split in summary)]

    cells = [["", *summary], line("questions", {split: _count(of) for split, of in summary.items()})]
    for name, (label, _) in FIGURES.items():
        known = {split: of for split, of in summary.items() if name in of}
        if known:
            cells.append(line(label, {split: percent(of[name]) for split, of in known.items()}))
        if known and name not in CEILINGS:
            cells.append(line("", {split: "-".join(map(percent, of["interval"][name])) for split, of in known.items()}))
        if name == "error_rate":
            statuses = dict.fromkeys(status for of in known.values() for status in of["status"] if status != "ok")
            cells += [line(f"  {status}", {split: percent(of["status"].get(status, 0.0)) for split, of in known.items()})
                      for status in statuses]
    return cells


def _count(of: Mapping) -> str:
    return "absent" if "absent" in of else str(of["n"]) if of["n"] == of["of"] else f"{of['n']} of {of['of']}"


def kind_table(split: str, of: Mapping) -> Cells:
    """One split: a kind of question a line, its figures the columns; all together last."""
    shown = [name for name in FIGURES if name in of]
    lines = {**{kind: of["kinds"][kind] for kind in sorted(of["kinds"], key=lambda kind: (len(kind) * kind.isdigit(), kind))},
             "all": of}
    return [[split, "n", *(FIGURES[name][1] for name in shown)],
            *([kind, str(some["n"]), *(percent(some[name]) if name in some else "" for name in shown)]
              for kind, some in lines.items())]


# ---------------------------------------------------------------------------------------------------------- two policies
ROW = {"split": str, "index": int, "question": str, "gold": str, "status": str, "ems": NUMBER, "strict": NUMBER}


def read_rows(place: Path, splits: Collection[str]) -> dict[str, Row]:
    """{"split/index": row} of an evaluation's folder, or of a file of rows; of ``splits`` only, where any are named.

    ``ValueError``: no such file, a line that is no row, a question given twice, no rows.
    """
    file, rows = place / "rows.jsonl" if place.is_dir() else place, {}
    if not file.is_file():
        raise UserError(f"--compare: there is no file {file}")
    for number, row in read_lines(file, ROW):
        place = f"{row['split']}/{row['index']}"
        if odd := [name for name in MEANS if name in row and not (type(row[name]) in (int, float) and 0 <= row[name] <= 1)]:
            raise UserError(f"{file}:{number}: expected {odd[0]} from 0 to 1, got {row[odd[0]]!r:.80}")
        if place in rows:
            raise UserError(f"{file}:{number}: {place:.80} is given a second time")
        if not splits or row["split"] in splits:
            rows[place] = row
    if not rows:
        raise UserError(f"--compare: {file} holds no rows" + (f" of {', '.join(splits)}" if splits else ""))
    return rows


def asked(row: Row) -> tuple[object, object]:
    """What makes two rows' question the same."""
    return row["question"], row["gold"]


def compare(a: Mapping[str, Row], b: Mapping[str, Row], names: tuple[object, object]) -> dict[str, dict]:
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
            for split, rows in group_rows(a.values(), "split").items()}


def _compare_split(a: Sequence[Row], b: Sequence[Row]) -> dict:
    found_a, found_b = figures(a), figures(b)
    both = [name for name in FIGURES if name in found_a and name in found_b and name not in CEILINGS]
    found_a, found_b = ({name: found[name] for name in both} for found in (found_a, found_b))
    percent_a, percent_b, ends = percents(found_a), percents(found_b), difference_intervals(found_a, found_b)
    right = [(bool(row_a["strict"]), bool(row_b["strict"])) for row_a, row_b in zip(a, b)]
    only_a, only_b = right.count((True, False)), right.count((False, True))
    return {"n": len(a), "figures": {name: {"a": percent_a[name], "b": percent_b[name],
                                            "difference": round(percent_b[name] - percent_a[name], 2),
                                            "interval": [round(100 * end, 2) for end in ends[name]]} for name in both},
            "strict": {"both": right.count((True, True)), "only_a": only_a, "only_b": only_b,
                       "neither": right.count((False, False)), "mcnemar_p": mcnemar(only_a, only_b)}}


def comparison_table(split: str, of: Mapping) -> Cells:
    return [[split, "A", "B", "B - A", "95 %"],
            *([FIGURES[name][0], percent(found["a"]), percent(found["b"]), f"{found['difference']:+.1f}",
               "{:+.1f} to {:+.1f}".format(*found["interval"])] for name, found in of["figures"].items())]


def show_counts(of: Mapping) -> str:
    counts = of["strict"]
    return (f"strict on {of['n']} questions: both {counts['both']}, only A {counts['only_a']}, only B {counts['only_b']}, "
            f"neither {counts['neither']}; p = {counts['mcnemar_p']:.2g}")


def show_comparison(found: Mapping[str, Mapping], draw: Callable[[Cells], str] = table) -> str:
    return "\n\n".join(f"{draw(comparison_table(split, of))}\n\n{show_counts(of)}" for split, of in found.items())
