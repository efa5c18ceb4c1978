"""plots.py: what is drawn is there, in its colours and sizes, read from the pixels of the files and from the axes."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from minigrpo.experiments.compare_runs import compare_runs
from minigrpo.reports.drawing import COLOURS
from minigrpo.reports.plots import plot_curves, plot_splits, plot_warmup
from minigrpo.reports.run_reader import read_run
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


def test_errors_are_stacked_up_to_the_error_rate(tmp_path, drawn):
    """5 % and 7 %: the second area stands on the first and ends at 12, and so does the axis."""
    metrics = [step(0, **{"status/syntax": 0.05, "status/other": 0.07})]
    plot_curves(read_run(write_run(tmp_path / "run", metrics=metrics)), tmp_path / "curves.png")
    failing = panel(drawn[0], "Candidates that fail, by kind")
    assert legend(failing) == ["syntax", "other"]
    assert failing.patches[1].get_data().values.tolist() == pytest.approx([12.0])
    assert failing.patches[1].get_data().baseline.tolist() == pytest.approx([5.0])
    assert failing.get_ylim() == (0, 12)


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
def test_a_metric_that_is_never_finite_says_so(tmp_path, drawn):
    plot_curves(read_run(write_run(tmp_path / "run", metrics=[step(0, kl=None), step(1, kl=None)])), tmp_path / "c.png")
    assert [text.get_text() for text in panel(drawn[0], "KL term against the start policy").texts] == ["no finite value"]


def test_one_odd_step_bends_no_line_and_hides_no_other(tmp_path, drawn):
    """40 steps of norm 0.5 and one of 50: the axis ends above the limit of 1, and an arrow says where and how far it went."""
    metrics = [step(number, grad_norm=50.0 if number == 20 else 0.5) for number in range(41)]
    plot_curves(read_run(write_run(tmp_path / "run", metrics=metrics)), tmp_path / "curves.png")
    gradient = panel(drawn[0], "Gradient before clipping")
    assert 1 < gradient.get_ylim()[1] < 1.5
    marks = {line.get_label(): line for line in gradient.lines}
    assert list(marks["up to 50"].get_xdata()) == [20]
    assert set(marks["norm"].get_ydata()) == {0.5}


@pytest.mark.slow
def test_a_limit_is_drawn_only_where_the_lines_come_near_it(tmp_path, drawn):
    for limit in (80, 384):
        toml = f"[generation]\nmax_new_tokens = {limit}\n"
        folder = write_run(tmp_path / str(limit), config=toml, metrics=[step(0), step(1)])
        plot_curves(read_run(folder), tmp_path / "curves.png")
    near, far = (legend(panel(figure, "Length of the completions")) for figure in drawn)
    assert near == ["mean", "longest", "max_new_tokens"] and far == ["mean", "longest"]


def test_a_run_stopped_in_the_warm_up_has_its_curves(tmp_path, drawn):
    warmup = [{"step": 0, "loss": 7.0, "grad_norm": 2.0, "skipped": 0.0}]
    plot_warmup(read_run(write_run(tmp_path / "run", warmup=warmup)), tmp_path / "warmup.png")
    assert len(drawn[0].axes) == 2 and pixels(tmp_path / "warmup.png", BLUE).sum() > 50
    warmup.append({"step": 1, "loss": 6.0, "grad_norm": 2.0, "skipped": 0.0, "strict": 10.0})
    looked = write_run(tmp_path / "looked", config="[warmup]\nstop_at = 35.0\n", warmup=warmup)
    plot_warmup(read_run(looked), tmp_path / "looked.png")
    assert legend(panel(drawn[1], "Warm-up: strict on dev")) == ["strict", "stop_at"]


# ------------------------------------------------------------------------------------------------------------------ bars
def test_bars_are_as_long_as_their_figures(tmp_path):
    """strict 20 before and 60 after, the same in the two panels of a row: in the pixels after is three times before."""
    plot_splits({"before": {"dev": line(20.0)}, "after": {"dev": line(60.0)}}, tmp_path / "splits.png")
    before, after = widths(tmp_path / "splits.png", SKY)[0], widths(tmp_path / "splits.png", BLUE)[0]
    assert after == pytest.approx(3 * before, rel=0.05)


def test_an_interval_is_drawn_where_there_is_one(tmp_path, drawn):
    plot_splits({"after": {"dev": line(60.0, interval={"strict": [52.5, 66.0]})}}, tmp_path / "splits.png")
    strict, ems = drawn[0].axes[:2]
    assert [list(stroke.get_xdata()) for stroke in strict.lines] == [[52.5, 66.0]] * 2 and not ems.lines


def test_the_blind_guess_stands_in_the_panel_of_strict_alone(tmp_path, drawn):
    plot_splits({"after": {"dev": line(60.0, blind=28.4)}}, tmp_path / "splits.png")
    assert [segment[:, 0].tolist() for segment in drawn[0].axes[0].collections[0].get_segments()] == [[28.4, 28.4]]
    assert not any(axes.collections for axes in drawn[0].axes[1:])


def test_an_empty_split_has_no_bar(tmp_path, drawn):
    plot_splits({"after": {"dev": line(60.0), "none": {"n": 0, "of": 0}}}, tmp_path / "splits.png")
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["dev"]


# ------------------------------------------------------------------------------------------------------------ matplotlib
def test_a_users_text_is_never_mathematics(tmp_path):
    """"$x_$" is a mistake in matplotlib's mathematics and would end the drawing."""
    name = "_$x_$ <b>`a|b`"
    plot_splits({"after": {name: line(60.0)}}, tmp_path / "splits.png")
    run = write_run(tmp_path / "run", metrics=[step(0), evaluation(0, 1.0, name)])
    compare_runs({"$x_$": [read_run(run)]}, tmp_path)
