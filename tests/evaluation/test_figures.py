"""figures.py: rows become figures that can be recomputed by hand, by split and by kind of question."""

import pytest

from minigrpo.evaluation.figures import add_intervals, figures, measures, percents, summarise
from minigrpo.task.sql.engines.database import STATUSES


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
    """All alike leave no doubt; of four questions with one right no other bound than these is possible (test_intervals.py)."""
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
