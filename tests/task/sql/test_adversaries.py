"""What each preset pays for SQL that ignores the question: bounds that follow from its weights, on real SQLite and real rows.

The tables: ``python -m tests.adversaries``.
"""

from itertools import combinations

import pytest
import torch

from minigrpo.grpo import group_advantages
from minigrpo.task.sql.reward import PRESETS
from tests.adversaries import CHEATS, ERROR, RIGHT, WRONG, Bench, athletes_bench, benchmark_bench, order_table, orders, table
from tests.paths import ROOT
from tests.temptabqa import BENCHMARK, WHY_GOLD, WITH_GOLD

GUESSES = {"the blind guess", "the blind guess, from a table"}
NO_TABLE = {"numbers 0..100", "numbers 0..100, Yes, No", "the same in one part", "a constant: 0..40, Yes, No, 1980..2024",
            "the blind guess", "the question's words"}
DUMPS = CHEATS.keys() - GUESSES - {"no rows", "the question's words"}


@pytest.fixture(scope="module", params=["athletes", "mini", "benchmark"])
def bench(request) -> Bench:
    if request.param == "athletes":
        return athletes_bench(104)                          # every kind of question several times
    if request.param == "mini":
        return benchmark_bench(ROOT / "tests/data/temptabqa_mini", "train")
    if not WITH_GOLD:
        pytest.skip(WHY_GOLD)
    return benchmark_bench(BENCHMARK, "original", 150)


@pytest.fixture(scope="module")
def athletes() -> Bench:
    return athletes_bench(104)


def test_there_are_questions_and_gold_sql_is_right(bench):
    assert len(bench.questions) >= 2
    assert all(terms["strict"] == terms["ems"] == 1 for terms in bench.terms[RIGHT])
    assert all(terms["rems"] == 0 and terms["runs"] == 1 for terms in bench.terms[WRONG])
    assert all(terms["error"] == 1 for terms in bench.terms[ERROR])


@pytest.mark.parametrize("preset, everything", [("paper", 1101), ("no_error_penalty", 1101), ("no_partial", 1001)])
def test_the_benchmarks_terms_pay_whoever_lists_the_answer_among_others_what_they_pay_gold_sql(bench, preset, everything):
    """REMS and EMS are 1 wherever all gold parts are found: 1 + 100 + 1000, or 1 + 1000."""
    assert set(bench.totals(preset, RIGHT)) == {everything}
    for cheat in CHEATS:
        for total, terms in zip(bench.totals(preset, cheat), bench.terms[cheat]):
            assert (total == everything) == (terms["ems"] == 1)


def test_under_the_papers_reward_a_dump_is_as_good_as_gold_nearly_always(athletes):
    """What is asked is about names, cities, years and small numbers of the athlete's, and all of these are in the dump; at
    least a third of the answers are numbers from 0 to 100 (10 of 26 kinds count, 4 tell an age or a span)."""
    share = {name: sum(terms["ems"] for terms in athletes.terms[name]) / len(athletes.questions) for name in CHEATS}
    assert share["all of the athlete, numbers, Yes, No"] > 0.9 and share["numbers 0..100"] > 1 / 3
    assert share["the question's words"] == share["no rows"] == 0


def test_no_dump_is_right_strictly_and_without_that_strict_pays_at_most_a_tenth(bench):
    """Without ``strict`` there remain 1 + 100 · F1 of 1101."""
    for dump in DUMPS:
        assert not any(terms["strict"] for terms in bench.terms[dump]), dump
        assert max(bench.totals("strict", dump)) < 101 and max(bench.totals("binary", dump)) == 0


def test_strict_still_prefers_a_dump_to_an_honest_wrong_query(athletes):
    """F1 of the numbers 0 to 100 on an answer that is one of them is 2 · 1 / (1 + 101): 1.96 points more than nothing, which
    at K = 2 is an advantage of 1."""
    cheat = "numbers 0..100"
    rows = [(dump, wrong) for dump, wrong, terms in zip(athletes.totals("strict", cheat), athletes.totals("strict", WRONG),
                                                       athletes.terms[cheat]) if terms["ems"]]
    assert rows and all(dump == pytest.approx(1 + 200 / 102) and wrong == 1 for dump, wrong in rows)
    dump, wrong = group_advantages(torch.tensor([rows[0]], dtype=torch.float64))[0].tolist()
    assert dump == pytest.approx(1, abs=2e-4) and wrong == pytest.approx(-1, abs=2e-4)


def test_concise_prefers_an_honest_wrong_query_to_whatever_is_more_than_twice_as_long_as_the_answer(bench):
    """Beyond half, excess costs more than the 50 points of partial credit: less than the 1 for running, which a wrong query of
    the answer's length keeps. It costs less than 100, so that running stays better than failing, at −100."""
    seen = 0
    for dump in DUMPS:
        for total, terms, wrong, mistaken in zip(bench.totals("concise", dump), bench.terms[dump],
                                                 bench.totals("concise", WRONG), bench.terms[WRONG]):
            if terms["runs"] and terms["excess"] > 0.5:
                assert -100 < total < 1
                assert mistaken["excess"] or total < wrong
                seen += 1
    assert seen > len(bench.questions)                      # most dumps are that long


def test_grounded_pays_sql_without_a_table_for_running_alone(bench):
    for cheat in NO_TABLE:
        assert set(bench.totals("grounded", cheat)) == {1.0}


def test_grounded_has_a_hole_a_table_that_is_read_and_ignored(bench):
    """SELECT 'x' FROM Athlete LIMIT 1 earns what "strict" pays for the guess 'x'."""
    assert bench.totals("grounded", "the blind guess, from a table") == bench.totals("strict", "the blind guess")


def test_structural_pays_sql_without_a_table_nothing_for_its_structure(bench):
    """So that a guess that is right earns 1101, and gold SQL, whose structure is its own, 40 points more."""
    for cheat in NO_TABLE:
        assert bench.totals("structural", cheat) == bench.totals("strict", cheat)
    assert set(bench.totals("structural", RIGHT)) == {1141.0}


def test_execution_only_tells_nothing_but_errors_apart(bench):
    for candidate, rows in bench.terms.items():
        assert bench.totals("execution_only", candidate) == [1.0 if terms["runs"] else -100.0 for terms in rows]


def test_where_an_error_costs_something_it_is_worse_than_whatever_runs(bench):
    for preset in [preset for preset in PRESETS if "error" in PRESETS[preset]]:
        failed, ran = ([total for name, rows in bench.terms.items() for total, terms in zip(bench.totals(preset, name), rows)
                        if terms["error"] == error] for error in (1.0, 0.0))
        assert max(failed) < min(ran), preset


def test_no_rows_and_errors_earn_nothing_for_an_answer(bench):
    answer = ("rems", "ems", "f1", "strict", "excess")
    for candidate in ("no rows", ERROR):
        assert all(terms[name] == 0 for terms in bench.terms[candidate] for name in answer)


# ---------------------------------------------------------------------------------------------------------------- K = 2
def advantages(bench: Bench, preset: str, candidates: tuple[str, ...]) -> torch.Tensor:
    totals = torch.tensor([bench.totals(preset, name) for name in candidates], dtype=torch.float64)
    return group_advantages(totals.T)


@pytest.mark.parametrize("preset", PRESETS)
def test_with_two_candidates_only_their_order_counts(athletes, preset):
    """The σ of x and y is |x − y| / 2, so with ε = 10⁻⁴ the better one's advantage is d / (d + 10⁻⁴) with d = |x − y| / 2:
    within 10⁻³ of 1 for every difference of a fifth and more, whatever the reward's scale; equal ones have 0."""
    seen = 0
    for first, second in combinations(athletes.terms, 2):
        totals = [torch.tensor(athletes.totals(preset, name), dtype=torch.float64) for name in (first, second)]
        order = (totals[0] - totals[1]).sign()
        counts = ((totals[0] - totals[1]).abs() >= 0.2) | (order == 0)
        advantage = advantages(athletes, preset, (first, second))
        assert torch.allclose(advantage[counts, 0], order[counts], rtol=0, atol=1e-3)
        assert torch.allclose(advantage[counts, 1], -order[counts], rtol=0, atol=1e-3)
        seen += int(order[counts].ne(0).sum())
    assert seen > 100


def test_the_error_penalty_does_nothing_with_two_candidates_and_something_with_three(athletes):
    """Without it an error, at 0, stays behind whatever runs, at 1: every pair has the same order, and so the same advantages
    but for ε. Of three, right, wrong and failed (1101, 1, −100), the advantages by hand are 767, −333 and −434 over 543.92;
    without the penalty (1101, 1, 0) they are 733.67, −366.33 and −367.33 over 518.78: a wrong query is then hardly better
    than an error."""
    assert orders(athletes, "paper") == orders(athletes, "no_error_penalty")
    for first, second in combinations(athletes.terms, 2):
        paper, without = (advantages(athletes, preset, (first, second)) for preset in ("paper", "no_error_penalty"))
        assert torch.allclose(paper, without, rtol=0, atol=1e-3)
    paper, without = (advantages(athletes, preset, (RIGHT, WRONG, ERROR))[0] for preset in ("paper", "no_error_penalty"))
    assert torch.allclose(paper, torch.tensor([767, -333, -434], dtype=torch.float64) / 543.92, atol=1e-4)
    assert torch.allclose(without, torch.tensor([733.67, -366.33, -367.33], dtype=torch.float64) / 518.78, atol=1e-4)


def test_all_other_presets_order_some_pair_differently(athletes):
    seen = {preset: orders(athletes, preset) for preset in PRESETS}
    alike = {(a, b) for a, b in combinations(PRESETS, 2) if seen[a] == seen[b]}
    assert alike == {("paper", "no_error_penalty")}


def test_the_tables_have_a_line_for_every_candidate_and_pair(athletes):
    """Under "binary" gold SQL earns 1, as much as itself in all rows, and more than the wrong query in all."""
    shown = table(athletes, ["binary"]).split("\n")
    assert len(shown) == 2 + len(athletes.terms) and shown[2] == "| gold SQL | 1 · 100 · 100 |"
    assert order_table(athletes, [(RIGHT, WRONG)], ["binary", "execution_only"]).split("\n")[2] == (
        "| gold SQL : honest, wrong | 100 : 0 | 0 : 0 |")
