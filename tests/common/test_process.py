"""Signals, and how a program ends."""

import os
import signal

import pytest

from minigrpo.common.process import first_signal


def test_the_first_signal_is_noted_and_any_more_end_the_program():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, first_signal() as met:
        assert met == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert met == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")
    assert left.value.code == 130 and (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_first_signal_ends_the_program_where_that_is_wanted():
    with pytest.raises(SystemExit) as left, first_signal(lambda: True):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")
    assert left.value.code == 143
