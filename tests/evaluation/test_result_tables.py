"""result_tables.py: figures stand where they belong, whatever their number, and within the console's width."""

from minigrpo.common.console import table
from minigrpo.evaluation.figures import LABELS, add_intervals, summarise
from minigrpo.evaluation.result_tables import kind_table, markdown, notes, split_tables
from minigrpo.task.sql.engines.database import STATUSES
from tests.evaluation.rows import row

SEVEN = ["original", "counterfactual", "small", "large", "easy", "medium", "hard"]


def summary_of(rows: list[dict], **sizes: int) -> dict:
    summary = summarise(rows, sizes, STATUSES)
    add_intervals(summary, rows)
    return summary


def full(index: int, split: str) -> dict:
    """A row with all figures and every kind of error in turn."""
    statuses = ("ok", "ok", "no_sql", "refused", "syntax", "unknown_column", "unknown_table", "other", "timeout", "too_large")
    return row(index, int(index % 10 == 0), split=split, status=statuses[index % 10], suite=0, blind=index % 2, constant=1,
               invented=1)


def test_a_table_to_the_letter():
    """Four of five questions: one right, one EMS without strict, one wrong, one error; no figure of luck is known. EMS is 2 of
    4, 50; its interval holds all from 0 (probability 1/16 for none, as for all). easy has no rows, hard is absent."""
    rows = [row(0, 1), row(1, 0, ems=1), row(2, 0), row(3, 0, status="timeout")]
    cells, = split_tables(summary_of(rows, dev=5, easy=3, hard=0))
    assert cells == [["", "dev", "easy", "hard"], ["questions", "4 of 5", "0 of 3", "absent"],
                     ["strict", "25.0", "", ""], ["", "0.0-75.0", "", ""], ["EMS", "50.0", "", ""], ["", "0.0-100", "", ""],
                     ["REMS", "50.0", "", ""], ["", "0.0-100", "", ""], ["errors", "25.0", "", ""], ["", "0.0-75.0", "", ""],
                     ["  timeout", "25.0", "", ""], ["EMS, not strict", "25.0", "", ""], ["", "0.0-75.0", "", ""]]


def test_seven_splits_fit_a_hundred_columns_and_the_kinds_of_one_too():
    rows = [full(i, split) for split in SEVEN for i in range(999)]
    summary = summary_of(rows, **dict.fromkeys(SEVEN, 999))
    one, = split_tables(summary)
    assert all(label.name in [line[0] for line in one] for label in LABELS.values())
    assert max(map(len, table(one).split("\n"))) <= 100
    assert max(map(len, table(kind_table("counterfactual", summary["counterfactual"])).split("\n"))) <= 100
    assert max(map(len, notes(summary).split("\n"))) <= 80


def test_more_splits_stand_below():
    nine = [*SEVEN, "train", "dev"]
    first, second = split_tables(summary_of([full(0, split) for split in nine], **dict.fromkeys(nine, 1)))
    assert first[0][1:] == SEVEN and second[0][1:] == ["train", "dev"]


def test_kinds_are_in_order_and_all_is_last():
    """5, 34, 1001 as numbers go. Kind 5 has no wrong guess, so nothing of unguessed; all: the one wrong guess is strict."""
    rows = [row(0, 1, kind="1001", blind=0), row(1, 0, kind="5", blind=1), row(2, 0, kind="34", blind=1)]
    cells = kind_table("dev", summary_of(rows, dev=3)["dev"])
    assert cells[0] == ["dev", "n", "strict", "EMS", "REMS", "errors", "hacks", "unguess.", "blind"]
    assert [line[0] for line in cells[1:]] == ["5", "34", "1001", "all"]
    assert cells[1] == ["5", "1", "0.0", "0.0", "0.0", "0.0", "0.0", "", "100"]
    assert cells[-1] == ["all", "3", "33.3", "33.3", "33.3", "0.0", "0.0", "100", "66.7"]


def test_markdown_to_the_letter():
    assert markdown([["", "n"], ["  a|b", "3"]]) == "|  | n |\n| --- | ---: |\n| a\\|b | 3 |"


# --------------------------------------------------------------------------------------------------------------- its notes
def test_each_figure_of_a_table_is_explained_and_no_other():
    """All figures of the SQL task have their note; of a task that knows only right and wrong there is one to explain."""
    said = " ".join(notes(summary_of([full(i, "dev") for i in range(10)], dev=10)).split())
    assert all(f"{label.name}: {label.note}." in said for label in LABELS.values() if label.note)
    plain = {"split": "dev", "index": 0, "kind": "1", "question": "?", "gold": "x", "status": "ok", "strict": 1}
    said = " ".join(notes(summary_of([plain], dev=1)).split())
    assert said == "In percent; below a figure its 95 % interval (bootstrap over questions). strict: the answer and nothing else."
