"""picture.py: from a run's folder comes a small PNG file with the curve, and the group that tells the most."""

import sys

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from minigrpo.reports.run_reader import read_run
from minigrpo.task.sql.engines.database import Execution
from tests.benchmarks import picture
from tests.run_folders import evaluation, rollout, sample, step, write_run

WARMUP = {"step": 0, "loss": 7.0, "grad_norm": 2.0, "skipped": 0.0, "seconds/update": 1.0}
RIGHT = rollout(1101.0, "SELECT city FROM Shop WHERE name = 'A'", 1.41)
WRONG = rollout(1.0, "SELECT city FROM Shop WHERE name = 'B'", -0.61)
BROKEN = rollout(-100.0, "SELECT city FROM WHERE", -0.8, status="syntax", rows=[], columns=[])


def told(folder, *samples):
    """The group that is chosen of a run with these samples."""
    return picture.telling_group(read_run(write_run(folder, metrics=[step(0)], samples=samples)).samples)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", warmup=[WARMUP, WARMUP | {"step": 1, "strict": 30.0}],
                     metrics=[step(0), step(1), evaluation(1, 60.0), step(2), evaluation(2, 80.0)],
                     samples=[sample(0, RIGHT, WRONG), sample(1, RIGHT, WRONG, BROKEN), sample(2, WRONG, WRONG)])


def test_it_writes_a_small_png_with_all_its_colours(folder, tmp_path, monkeypatch):
    """At least 1,600 pixels wide, twice of what GitHub shows, and less than 150 kB; both curves, right and wrong are to be seen."""
    file = tmp_path / "assets/picture.png"
    monkeypatch.setattr(sys, "argv", ["picture", str(folder), str(file)])
    picture.main()
    assert file.stat().st_size < 150_000
    pixels = imread(file)[..., :3]
    assert pixels.shape[1] >= 1600
    for colour in (picture.BLUE, picture.SKY, picture.GREEN, picture.RED):
        assert (abs(pixels - to_rgb(colour)).max(axis=-1) < 0.05).sum() > 50, colour


def test_the_group_with_the_most_different_outcomes_is_shown(tmp_path):
    """Statuses first: a group with an error comes before one with three different rewards."""
    half = rollout(51.0, "SELECT city FROM Shop WHERE name = 'C'")
    groups = [sample(0, RIGHT, WRONG, half), sample(1, RIGHT, WRONG, BROKEN), sample(2, WRONG, WRONG)]
    assert told(tmp_path / "all", *groups).step == 1
    assert told(tmp_path / "two", groups[2], groups[0]).step == 0


def test_of_groups_that_tell_as_much_the_shortest_is_shown(tmp_path):
    longer = rollout(1.0, "SELECT city FROM Shop JOIN Town USING (town_id) WHERE name = 'B'")
    assert told(tmp_path / "run", sample(0, RIGHT, longer), sample(1, RIGHT, WRONG)).step == 1


def test_a_group_without_advantages_on_record_is_refused(tmp_path):
    run = write_run(tmp_path / "run", metrics=[step(0), evaluation(0, 60.0)], samples=[sample(0, rollout(1.0, "SELECT 1"))])
    with pytest.raises(ValueError, match="^the group of step 0 has no advantages on record: train anew for a picture$"):
        picture.draw(run, tmp_path / "picture.png")


def test_sql_is_wrapped_and_none_of_it_is_lost():
    """Words 1 to 3 are shared: they come first, and what follows in a line is the candidate's own."""
    words = [f"word{i}" for i in range(30)]
    lines = picture.sql_lines(" ".join(words), 3)
    assert all(len(common + own) <= picture.SQL_WIDTH for common, own in lines)
    assert " ".join(common + own for common, own in lines).split() == words
    assert " ".join(common for common, _ in lines).split() == words[:3]


@pytest.mark.parametrize("execution, shown", [
    (Execution("ok", ((7, "x"),)), "7"), (Execution("ok"), "no rows"), (Execution("syntax"), "syntax error"),
    (Execution("unknown_column"), "unknown column")])
def test_what_a_query_returned_is_a_cell_or_the_kind_of_its_error(execution, shown):
    assert picture.returned(execution) == shown
