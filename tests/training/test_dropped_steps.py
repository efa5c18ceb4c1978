"""dropped_steps.py: steps that were not finite, counted in a row."""

import pytest

from minigrpo.training.dropped_steps import MAX_DROPPED_IN_A_ROW, DroppedSteps, load_dropped


def see(dropped: DroppedSteps, faults: list[str]) -> DroppedSteps:
    for step, fault in enumerate(faults):
        dropped.see(step, fault)
    return dropped


def test_a_whole_step_starts_the_count_anew_and_the_first_fault_is_kept(capsys):
    dropped = see(DroppedSteps(), ["", "the loss", "the norm"])
    assert vars(dropped) == {"count": 2, "first": "step 1: the loss"}
    assert capsys.readouterr().err.count("moves nothing, something in it is not finite: ") == 2
    assert vars(see(dropped, [""])) == {"count": 0, "first": ""}


def test_five_in_a_row_are_too_many_and_a_resumed_run_may_try_five_more():
    dropped = see(DroppedSteps(), ["the loss"] * (MAX_DROPPED_IN_A_ROW - 1))
    dropped.check()
    with pytest.raises(FloatingPointError, match="^5 steps in a row moved nothing.*first in step 0: the loss"):
        see(dropped, ["the loss"]).check()
    resumed = load_dropped({**vars(dropped), "step": 7})
    assert resumed == dropped
    see(resumed, ["the loss"] * 4).check()
    with pytest.raises(FloatingPointError, match="^10 steps"):
        see(resumed, ["the loss"]).check()
