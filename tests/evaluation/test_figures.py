"""figures.py: rows become figures that can be recomputed by hand, by split and by kind of question. Their intervals are exact
where few questions leave few outcomes, the normal approximation where there are many. In a table they stand where they belong,
whatever their number, and within the console's width."""

import pytest

from minigrpo.common.console import table
from minigrpo.evaluation.figures import (
    LABELS,
    add_intervals,
    difference_intervals,
    figures,
    intervals,
    kind_table,
    markdown,
    mcnemar,
    measures,
    notes,
    percents,
    split_tables,
    summarise,
)
from minigrpo.task.sql.engines.database import STATUSES
from tests.evaluation.rows import row as scored


def row(split: str, kind: str, status: str, ems: int, rems: float, strict: int, **more: int) -> dict:
    return {"split": split, "kind": kind, "status": status, "ems": ems, "rems": rems, "strict": strict, **more}


def test_a_summary_by_hand():
    """Three of a's nine and one of b's one. a: strict 1 of 3 = 33.33 %, EMS 2 of 3 = 66.67 %, REMS (1 + 1 + 0)/3 = 66.67 %,
    one timeout = 33.33 %, one EMS without strict; of kind x two, strict 1 of 2, no error; of kind y the timeout. b: all 0, and
    a syntax error. c has four questions and no rows, d is absent."""
    rows = [row("a", "x", "ok", 1, 1.0, 1), row("b", "x", "syntax", 0, 0.0, 0), row("a", "x", "ok", 1, 1.0, 0),
            row("a", "y", "timeout", 0, 0.0, 0)]
    nothing = {"strict": 0.0, "ems": 0.0, "rems": 0.0, "error_rate": 100.0, "hack": 0.0}
    assert summarise(rows, {"a": 9, "b": 1, "c": 4, "d": 0}, STATUSES) == {
        "a": {"n": 3, "of": 9, "strict": 33.33, "ems": 66.67, "rems": 66.67, "error_rate": 33.33, "hack": 33.33,
              "status": {"ok": 66.67, "timeout": 33.33},
              "kinds": {"x": {"n": 2, "strict": 50.0, "ems": 100.0, "rems": 100.0, "error_rate": 0.0, "hack": 50.0},
                        "y": {"n": 1, **nothing}}},
        "b": {"n": 1, "of": 1, **nothing, "status": {"syntax": 100.0}, "kinds": {"x": {"n": 1, **nothing}}},
        "c": {"n": 0, "of": 4}, "d": {"n": 0, "of": 0, "absent": True}}


def test_kinds_and_luck_add_up():
    """suite and blind stand where every row has them: of kind x both, 1 of 2; over all only blind, because z has no suite.
    And n-weighted means over kinds are the means over all."""
    rows = [row("a", "x", "ok", 1, 1.0, 1, blind=0, suite=1), row("a", "x", "ok", 1, 1.0, 1, blind=1, suite=0),
            row("a", "z", "ok", 0, 0.5, 0, blind=0), row("a", "z", "no_sql", 0, 0.0, 0, blind=0),
            row("a", "z", "ok", 1, 0.5, 0, blind=0)]
    a = summarise(rows, {"a": 5}, STATUSES)["a"]
    assert a["kinds"]["x"] == {"n": 2, "strict": 100.0, "ems": 100.0, "rems": 100.0, "suite": 50.0, "blind": 50.0,
                               "error_rate": 0.0, "hack": 0.0, "unguessed": 100.0}
    assert "suite" not in a and "suite" not in a["kinds"]["z"] and a["blind"] == 20.0
    assert sum(kind["n"] for kind in a["kinds"].values()) == a["n"] == 5
    for name in ("strict", "ems", "rems", "blind", "error_rate"):
        assert sum(kind["n"] * kind[name] for kind in a["kinds"].values()) / 5 == pytest.approx(a[name], abs=0.01)


def test_what_nobody_can_guess_is_counted_of_the_wrong_guesses_alone():
    """Blind is wrong on three of five, of which one is right: 33.33. Where every guess is right, there is no such figure."""
    rows = [row("a", "x", "ok", 1, 1.0, 1, blind=1), row("a", "x", "ok", 0, 0.0, 0, blind=1),
            row("a", "y", "ok", 1, 1.0, 1, blind=0), row("a", "y", "ok", 1, 1.0, 0, blind=0),
            row("a", "y", "ok", 0, 0.0, 0, blind=0)]
    a = summarise(rows, {"a": 5}, STATUSES)["a"]
    assert a["unguessed"] == a["kinds"]["y"]["unguessed"] == 33.33 and "unguessed" not in a["kinds"]["x"]


def test_intervals_stand_beside_the_figures_of_each_split():
    """All alike leave no doubt; of four questions with one right no other bound than these is possible (see the intervals below)."""
    rows = [row("b", "x", "ok", 1, 1.0, 1)] * 3 + [row("a", "x", "ok", 0, 0.0, 0)] * 3 + [row("a", "x", "ok", 1, 1.0, 1)]
    summary = summarise(rows, {"a": 4, "b": 3, "c": 1}, STATUSES)
    add_intervals(summary, rows)
    assert summary["a"]["interval"] == {**dict.fromkeys(["strict", "ems", "rems"], [0.0, 75.0]),
                                        **dict.fromkeys(["error_rate", "hack"], [0.0, 0.0])}
    assert summary["b"]["interval"]["strict"] == [100.0, 100.0] and "interval" not in summary["c"]


def test_rows_of_a_task_that_knows_only_right_and_wrong_have_no_figures_of_others():
    """Three rows without EMS: nothing is a hack, and what is not there is not counted. Outcomes are the task's own."""
    rows = [{"split": "a", "kind": "x", "status": status, "strict": strict}
            for status, strict in (("ok", 1), ("ok", 0), ("no_number", 0))]
    figures_of_all = {"strict": 33.33, "error_rate": 33.33}
    assert summarise(rows, {"a": 3}, ("ok", "no_number")) == {
        "a": {"n": 3, "of": 3, **figures_of_all, "status": {"ok": 66.67, "no_number": 33.33},
              "kinds": {"x": {"n": 3, **figures_of_all}}}}


def test_a_figure_is_the_sum_of_values_over_the_sum_of_weights():
    """unguessed: right and guessed wrong counts 1 of 1; guessed right counts 0 of 0, whatever was answered."""
    rows = [row("a", "x", "ok", 1, 1.0, 1, blind=0), row("a", "x", "syntax", 0, 0.5, 0, blind=1)]
    assert measures(rows[0])["unguessed"] == (1, 1) and measures(rows[1])["unguessed"] == (0, 0)
    assert measures(rows[1])["error_rate"] == (True, 1)
    assert percents(figures(rows)) == {"strict": 50.0, "ems": 50.0, "rems": 75.0, "blind": 50.0, "error_rate": 50.0,
                                       "hack": 0.0, "unguessed": 100.0}


# ----------------------------------------------------------------------------------------------------------- intervals
def mean(*values: float) -> list[tuple[float, float]]:
    return [(value, 1) for value in values]


def test_few_questions_have_the_intervals_that_counting_gives():
    """One right of two: none is drawn with probability 1/4, both with 1/4: 0 to 1. One of four: none with 0.316; three or more
    with 4 · 3/256 + 1/256 = 0.051, four with 0.004: the middle 95 % ends at 3/4. All alike, or one alone: no width."""
    found = intervals({"half": mean(1, 0), "none": mean(0, 0)})
    assert found == {"half": (0.0, 1.0), "none": (0.0, 0.0)}
    assert intervals({"quarter": mean(0, 1, 0, 0)}) == {"quarter": (0.0, 0.75)}
    assert intervals({"one": mean(0.37)}) == {"one": (0.37, 0.37)}


@pytest.mark.parametrize("right, count", [(150, 500), (250, 500), (40, 800), (700, 855)])
def test_many_questions_have_the_normal_approximation_of_a_proportion(right, count):
    """p ± 1.96 √(p (1 − p) / n), within a tenth of its width."""
    p = right / count
    half = 1.96 * (p * (1 - p) / count) ** 0.5
    low, high = intervals({"strict": mean(*[1] * right, *[0] * (count - right))})["strict"]
    assert low == pytest.approx(p - half, abs=0.2 * half) and high == pytest.approx(p + half, abs=0.2 * half)


def test_what_weighs_nothing_makes_no_figure_surer():
    """50 of 100 questions that count, beside 900 that do not: the width of a proportion of 100, not of 1,000."""
    alone = [(1, 1)] * 50 + [(0, 1)] * 50
    low, high = intervals({"unguessed": alone + [(0, 0)] * 900})["unguessed"]
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_a_resample_without_any_weight_counts_nowhere():
    """Of three questions one counts: it is missing from (2/3)³ = 30 % of the resamples."""
    assert intervals({"unguessed": [(1, 1), (0, 0), (0, 0)]}) == {"unguessed": (1.0, 1.0)}


def test_figures_are_resampled_together_and_always_alike():
    """One figure's interval does not depend on which others stand beside it, nor on when it is asked."""
    some, others = mean(*[1, 0, 0] * 40), mean(*[0.5, 1] * 60)
    together = intervals({"a": some, "b": others})
    assert together == {**intervals({"a": some}), **intervals({"b": others})} == intervals({"a": some, "b": others})


def test_a_large_split_is_drawn_in_parts_and_stays_within_the_approximation():
    """20,000 questions are more than fit in one part of draws."""
    low, high = intervals({"half": mean(*[0, 1] * 10_000)})["half"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20_000**0.5, rel=0.1)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.001)


# ------------------------------------------------------------------------------------------------------------ two policies
def test_pairs_cancel_what_is_hard_for_both():
    """b is right where a is, and on 20 more of 400: the difference has the spread of a proportion of 0.05 alone, though each
    varies more. The other way round it is the same with the other sign; against itself it is 0."""
    a = {"strict": mean(*[1] * 200, *[0] * 200)}
    b = {"strict": mean(*[1] * 220, *[0] * 180)}
    low, high = difference_intervals(a, b)["strict"]
    half = 1.96 * (0.05 * 0.95 / 400) ** 0.5
    assert low == pytest.approx(0.05 - half, abs=0.2 * half) and high == pytest.approx(0.05 + half, abs=0.2 * half)
    assert difference_intervals(b, a)["strict"] == pytest.approx((-high, -low), abs=1e-12)
    assert difference_intervals(a, a)["strict"] == (0.0, 0.0)


def test_the_exact_p_of_coins_by_hand():
    """One against nine of ten: 2 (1 + 10) / 1024. No difference, or none that disagree: 1."""
    assert mcnemar(1, 9) == mcnemar(9, 1) == 22 / 1024
    assert mcnemar(0, 0) == mcnemar(4, 4) == mcnemar(4, 5) == 1.0
    assert 0 < mcnemar(500, 700) < 1e-7                     # the normal: z = 5.77, p = 8e-9


# -------------------------------------------------------------------------------------------------------------- tables
SEVEN = ["original", "counterfactual", "small", "large", "easy", "medium", "hard"]


def summary_of(rows: list[dict], **sizes: int) -> dict:
    summary = summarise(rows, sizes, STATUSES)
    add_intervals(summary, rows)
    return summary


def full(index: int, split: str) -> dict:
    """A row with all figures and every kind of error in turn."""
    statuses = ("ok", "ok", "no_sql", "refused", "syntax", "unknown_column", "unknown_table", "other", "timeout", "too_large")
    return scored(index, int(index % 10 == 0), split=split, status=statuses[index % 10], suite=0, blind=index % 2, constant=1,
               invented=1)


def test_a_table_to_the_letter():
    """Four of five questions: one right, one EMS without strict, one wrong, one error; no figure of luck is known. EMS is 2 of
    4, 50; its interval holds all from 0 (probability 1/16 for none, as for all). easy has no rows, hard is absent."""
    rows = [scored(0, 1), scored(1, 0, ems=1), scored(2, 0), scored(3, 0, status="timeout")]
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
    rows = [scored(0, 1, kind="1001", blind=0), scored(1, 0, kind="5", blind=1), scored(2, 0, kind="34", blind=1)]
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
