"""Seconds by phase."""

from minigrpo.common.clock import Clock


def test_a_phase_entered_twice_adds_up_and_is_counted_when_it_fails():
    clock = Clock()
    try:
        with clock("a"):
            pass
        first = clock.seconds["a"]
        with clock("a"):
            raise KeyError
    except KeyError:
        pass
    assert clock.seconds["a"] > first > 0
    assert list(clock.metrics()) == ["seconds/a"]
