"""drawing.py: smoothing, and what a picture needs."""

import builtins
import math
from statistics import fmean, median

import pytest

from minigrpo.reports.drawing import smooth, window_for
from minigrpo.reports.plots import plot_splits
from tests.run_folders import line


def test_the_window_is_odd_so_that_it_has_a_centre():
    assert all(window_for(count) % 2 for count in range(1, 300))


@pytest.mark.parametrize("middle", [fmean, median])
def test_smoothing_keeps_a_constant_and_the_length_and_skips_what_is_not_finite(middle):
    values = [2.0, math.nan, 2.0, 2.0, math.inf, 2.0]
    assert smooth(values, 3, middle) == [2.0] * 6
    assert math.isnan(smooth([math.nan], 1, middle)[0])


def test_a_window_of_one_changes_nothing():
    assert smooth([3.0, 1.0, 2.0], 1, fmean) == [3.0, 1.0, 2.0]


def test_missing_matplotlib_is_one_sentence_that_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"^pictures are drawn with matplotlib, .* pip install -e '\.\[plot\]'$"):
        plot_splits({"after": {"dev": line(60.0)}}, tmp_path / "splits.png")
