"""The reward: each preset worked out in words, and what no execution may ever change."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.task.database import STATUSES, Execution
from minigrpo.task.questions import Question
from minigrpo.task.reward import PRESETS, make_reward

QUESTION = Question("mini/0", "mini", 0, "Which formats?", "Team, Singles", "original", "3")
ERRORS = [status for status in STATUSES if status != "ok"]


def ok(*cells: object) -> Execution:
    """An execution whose rows have one cell each."""
    return Execution("ok", rows=tuple((cell,) for cell in cells), columns=("c",))


@pytest.mark.parametrize(("cells", "paper", "strict"), [
    # Everything, and no more: 1 + 100·1 + 1000·1 in both.
    (("Singles", "Team"), 1101.0, 1101.0),
    # One of two. Paper: 1 + 100·0.5. Strict: 1 + 100·F1 with F1 = 2·1/(2+1).
    (("Team",), 51.0, 1 + 200 / 3),
    # Both and two more. Paper subtracts nothing: 1101. Strict: 1 + 100·F1 with F1 = 2·2/(2+4).
    (("Team", "Singles", "a", "b"), 1101.0, 1 + 200 / 3),
    # It runs and is wrong, or returns nothing: 1 for running.
    (("Doubles",), 1.0, 1.0),
    ((), 1.0, 1.0),
])
def test_presets(cells: tuple[object, ...], paper: float, strict: float) -> None:
    assert make_reward("paper")(QUESTION, "SELECT 1", ok(*cells)).total == pytest.approx(paper)
    assert make_reward("strict")(QUESTION, "SELECT 1", ok(*cells)).total == pytest.approx(strict)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("status", ERRORS)
def test_any_error_costs_a_hundred_and_earns_nothing(preset: str, status: str) -> None:
    reward = make_reward(preset)(QUESTION, None, Execution(status, error="no"))
    assert reward.total == -100.0
    assert reward.terms == {"error": 1.0, "runs": 0.0, "rems": 0.0, "ems": 0.0, "f1": 0.0, "strict": 0.0}


def test_terms_are_unweighted_and_the_same_for_every_preset() -> None:
    # "Team" of {Team, Singles}: half is found; F1 = 2·1/(2+1).
    expected = {"error": 0.0, "runs": 1.0, "rems": 0.5, "ems": 0.0, "f1": pytest.approx(2 / 3), "strict": 0.0}
    for preset in PRESETS:
        assert make_reward(preset)(QUESTION, "SELECT 1", ok("Team")).terms == expected


def test_an_unknown_preset_names_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown reward 'stric' .did you mean 'strict'.*: the presets are paper"):
        make_reward("stric")


cells = st.lists(st.sampled_from(["Team", "Singles", "Doubles", "1", ""]), max_size=6)


@given(cells, st.sampled_from(sorted(PRESETS)), st.randoms())
def test_order_of_rows_and_text_of_sql_change_nothing(values: list[str], preset: str, random: Random) -> None:
    reward = make_reward(preset)
    first = reward(QUESTION, "SELECT 1", ok(*values))
    random.shuffle(values)
    assert reward(QUESTION, "SELECT 2", ok(*values)) == first


@given(cells, st.sampled_from(sorted(PRESETS)))
def test_the_total_is_the_weighted_sum_and_an_error_is_always_worst(values: list[str], preset: str) -> None:
    reward = make_reward(preset)(QUESTION, "SELECT 1", ok(*values))
    assert reward.total == pytest.approx(sum(weight * reward.terms[term] for term, weight in PRESETS[preset].items()))
    assert all(0.0 <= value <= 1.0 for value in reward.terms.values())
    assert reward.terms["error"] + reward.terms["runs"] == 1.0
    assert -100.0 < 1.0 <= reward.total <= 1101.0


@given(cells)
def test_a_dump_never_pays_under_strict(values: list[str]) -> None:
    dump = [str(number) for number in range(101)]                        # none of them is in the answer
    before, after = (make_reward("strict")(QUESTION, "SELECT 1", ok(*rows)).total for rows in (values, values + dump))
    assert after <= before
