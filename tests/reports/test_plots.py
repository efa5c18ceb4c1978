"""plots.py: smoothing, and what is drawn is there, in its colours and sizes, read from the pixels and from the axes."""

import builtins
import math
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from minigrpo.experiments.definitions import compare_runs
from minigrpo.reports.plots import COLOURS, plot_curves, plot_splits, plot_warmup, smooth, window_for
from minigrpo.reports.run_reader import read_run
from tests.quick import rest_slow
from tests.run_folders import evaluation, line, step, write_run

SKY, BLUE = COLOURS[5], COLOURS[0]


def panel(figure: Figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def pixels(file: Path, colour: str) -> np.ndarray:
    """Where a picture has exactly this colour."""
    return np.all(np.abs(imread(file)[..., :3] - to_rgb(colour)) < 0.01, axis=-1)


def widths(file: Path, colour: str) -> list[int]:
    """The lengths of the horizontal runs of a colour that are longer than any sign of a legend, one a bar, from above."""
    found, before = [], 0
    for row in pixels(file, colour):
        count = int(row.sum())
        if count != before and count > 60:
            found.append(count)
        before = count
    return found


# ---------------------------------------------------------------------------------------------------------------- smooth
def test_the_window_is_odd_so_that_it_has_a_centre():
    assert all(window_for(count) % 2 for count in range(1, 300))


@pytest.mark.parametrize("middle", [fmean, median])
def test_smoothing_keeps_a_constant_and_the_length_and_skips_what_is_not_finite(middle):
    values = [2.0, math.nan, 2.0, 2.0, math.inf, 2.0]
    assert smooth(values, 3, middle) == [2.0] * 6
    assert math.isnan(smooth([math.nan], 1, middle)[0])


def test_a_window_of_one_changes_nothing():
    assert smooth([3.0, 1.0, 2.0], 1, fmean) == [3.0, 1.0, 2.0]


# ---------------------------------------------------------------------------------------------------------------- curves
def test_a_curve_for_everything_that_is_on_record(tmp_path, drawn):
    run = read_run(write_run(tmp_path / "run", metrics=[step(0), step(1), evaluation(1, 60.0)]))
    plot_curves(run, tmp_path / "curves.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        "Reward of the candidates", "Candidates that are right", "Greedy on dev", "Candidates that fail, by kind",
        "KL term against the start policy", "Length of the completions", "Zero spread, cut off", "Gradient before clipping",
        "Seconds of a step, by phase"]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn[0].axes)
    for colour in COLOURS[:3]:
        assert pixels(tmp_path / "curves.png", colour).sum() > 100, colour


def test_shares_are_in_percent_from_0_to_100(tmp_path, drawn):
    plot_curves(read_run(write_run(tmp_path / "run", metrics=[step(0), step(1)])), tmp_path / "curves.png")
    right = panel(drawn[0], "Candidates that are right")
    assert right.get_ylim() == (0, 100)
    assert {tuple(line.get_ydata()) for line in right.lines} == {(50.0, 50.0), (62.5, 62.5)}


@pytest.mark.slow
def test_without_evaluations_there_is_no_panel_for_them(tmp_path, drawn):
    plot_curves(read_run(write_run(tmp_path / "run", metrics=[step(0), step(1)])), tmp_path / "curves.png")
    assert len(drawn[0].axes) == 8 and all(axes.has_data() for axes in drawn[0].axes)


@pytest.mark.slow
def test_one_step_alone_can_be_seen(tmp_path):
    """A line through one point has no length: a mark stands there, in the colours of the first three lines."""
    plot_curves(read_run(write_run(tmp_path / "run", metrics=[step(0)])), tmp_path / "curves.png")
    for colour in COLOURS[:3]:
        assert pixels(tmp_path / "curves.png", colour).sum() > 100, colour


def test_errors_are_shown_together_and_by_kind_from_zero(tmp_path, drawn):
    """5 % and 7 % are 12 % in all, and the axis ends near that; a kind that never occurs has no line."""
    metrics = [step(0, error_rate=0.12, **{"status/syntax": 0.05, "status/other": 0.07})]
    plot_curves(read_run(write_run(tmp_path / "run", metrics=metrics)), tmp_path / "curves.png")
    failing = panel(drawn[0], "Candidates that fail, by kind")
    assert legend(failing) == ["all", "syntax", "other"]
    shown = {line.get_label(): list(line.get_ydata()) for line in failing.lines}
    assert (shown["all"], shown["syntax"], shown["other"]) == ([12.0], [5.0], [pytest.approx(7.0)])
    assert failing.get_ylim()[0] == 0 and 12 < failing.get_ylim()[1] < 15


def test_the_legend_of_the_seconds_says_where_they_go(tmp_path, drawn):
    """Two of three seconds, one of three; a phase of 1 in 300 is left out."""
    metrics = [step(0), step(1, **{"seconds/reward": 0.02})]
    metrics[0]["seconds/reward"] = 0.0
    plot_curves(read_run(write_run(tmp_path / "run", metrics=metrics)), tmp_path / "curves.png")
    assert legend(panel(drawn[0], "Seconds of a step, by phase")) == ["generate 66%", "update 33%"]


def test_what_is_not_finite_is_marked_at_its_step(tmp_path, drawn):
    plot_curves(read_run(write_run(tmp_path / "run", metrics=[step(0), step(1, grad_norm=None), step(2)])), tmp_path / "c.png")
    marks = {line.get_label(): list(line.get_xdata()) for line in panel(drawn[0], "Gradient before clipping").lines}
    assert marks["not finite"] == [1]
    assert "not finite" not in legend(panel(drawn[0], "KL term against the start policy"))


@pytest.mark.slow
def test_a_metric_that_is_never_finite_is_marked_at_every_step(tmp_path, drawn):
    plot_curves(read_run(write_run(tmp_path / "run", metrics=[step(0, kl=None), step(1, kl=None)])), tmp_path / "c.png")
    marks = {line.get_label(): list(line.get_xdata()) for line in panel(drawn[0], "KL term against the start policy").lines}
    assert marks["not finite"] == [0, 1]


def test_one_odd_step_bends_no_line_and_flattens_no_other(tmp_path, drawn):
    """40 steps of norm 0.5 and one of 50: the line stays at 0.5, and the axis ends at three times that."""
    metrics = [step(number, grad_norm=50.0 if number == 20 else 0.5) for number in range(41)]
    plot_curves(read_run(write_run(tmp_path / "run", metrics=metrics)), tmp_path / "curves.png")
    gradient = panel(drawn[0], "Gradient before clipping")
    assert gradient.get_ylim() == (0, 1.5)
    marks = {line.get_label(): line for line in gradient.lines}
    assert set(marks["norm"].get_ydata()) == {0.5}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", rest_slow([[-1e100, 0.5, 5e-324], [-3.0, None, 1e100], [0.0], [None]]))
def test_any_value_that_a_record_may_have_is_drawn(tmp_path, values):
    measured = [name for name in step(0) if name not in ("kind", "step") and not name.startswith("seconds/")]
    metrics = [step(number, **dict.fromkeys(measured, value)) for number, value in enumerate(values)]
    warmup = [{"step": number, "loss": value, "grad_norm": value} for number, value in enumerate(values)]
    run = read_run(write_run(tmp_path / "run", metrics=metrics, warmup=[*warmup, {"step": len(values)}]))
    plot_curves(run, tmp_path / "curves.png")
    plot_warmup(run, tmp_path / "warmup.png")


def test_a_run_stopped_in_the_warm_up_has_its_curves(tmp_path, drawn):
    warmup = [{"step": 0, "loss": 7.0, "grad_norm": 2.0, "skipped": 0.0}]
    plot_warmup(read_run(write_run(tmp_path / "run", warmup=warmup)), tmp_path / "warmup.png")
    assert len(drawn[0].axes) == 2 and pixels(tmp_path / "warmup.png", BLUE).sum() > 50
    warmup.append({"step": 1, "loss": 6.0, "grad_norm": 2.0, "skipped": 0.0, "strict": 10.0})
    looked = write_run(tmp_path / "looked", warmup=warmup)
    plot_warmup(read_run(looked), tmp_path / "looked.png")
    assert list(panel(drawn[1], "Warm-up: strict on dev").lines[-1].get_ydata()) == [10.0]


# ------------------------------------------------------------------------------------------------------------------ bars
def test_bars_are_as_long_as_their_figures(tmp_path):
    """strict 20 before and 60 after, the same in the two panels of a row: in the pixels after is three times before."""
    plot_splits({"before": {"dev": line(20.0)}, "after": {"dev": line(60.0)}}, tmp_path / "splits.png")
    before, after = widths(tmp_path / "splits.png", SKY)[0], widths(tmp_path / "splits.png", BLUE)[0]
    assert after == pytest.approx(3 * before, rel=0.05)


def test_an_interval_is_drawn_where_there_is_one(tmp_path, drawn):
    plot_splits({"after": {"dev": line(60.0, interval={"strict": [52.5, 66.0]})}}, tmp_path / "splits.png")
    strict, ems = drawn[0].axes[:2]
    assert [segment[:, 0].tolist() for segment in strict.collections[0].get_segments()] == [[52.5, 66.0]]
    assert not ems.collections


def test_the_blind_guess_stands_in_the_panel_of_strict_alone(tmp_path, drawn):
    plot_splits({"after": {"dev": line(60.0, blind=28.4)}}, tmp_path / "splits.png")
    assert [segment[:, 0].tolist() for segment in drawn[0].axes[0].collections[0].get_segments()] == [[28.4, 28.4]]
    assert not any(axes.collections for axes in drawn[0].axes[1:])


@pytest.mark.parametrize("value", [0, -1e100, 1e100])
def test_any_figure_that_a_summary_may_have_is_drawn(tmp_path, value):
    odd = line(value, blind=value, interval={"strict": [value, -value]})
    plot_splits({"before": {"dev": line(value)}, "after": {"dev": odd}}, tmp_path / "splits.png")


def test_an_empty_split_has_no_bar(tmp_path, drawn):
    plot_splits({"after": {"dev": line(60.0), "none": {"n": 0, "of": 0}}}, tmp_path / "splits.png")
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["dev"]


def test_a_figure_that_one_moment_lacks_has_no_panel(tmp_path, drawn):
    before = {name: value for name, value in line(20.0).items() if name != "ems"}
    plot_splits({"before": {"dev": before}, "after": {"dev": line(60.0)}}, tmp_path / "splits.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["strict", "REMS", "errors"]


# ------------------------------------------------------------------------------------------------------------ matplotlib
def test_a_users_text_is_never_mathematics(tmp_path):
    """"$x_$" is a mistake in matplotlib's mathematics and would end the drawing."""
    name = "_$x_$ <b>`a|b`"
    plot_splits({"after": {name: line(60.0)}}, tmp_path / "splits.png")
    run = write_run(tmp_path / "run", metrics=[step(0), evaluation(0, 1.0, name)])
    compare_runs({"$x_$": [read_run(run)]}, tmp_path)


def test_missing_matplotlib_is_one_sentence_that_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"^pictures are drawn with matplotlib, .* pip install -e '\.\[plot\]'$"):
        plot_splits({"after": {"dev": line(60.0)}}, tmp_path / "splits.png")
