"""intervals.py: exact where few questions leave few outcomes, the normal approximation where there are many."""

import pytest

from minigrpo.evaluation.intervals import difference_intervals, intervals, mcnemar


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
