"""records.py: what a run wrote, read back."""

import math

import pytest

from minigrpo.reports.run_reader import read_run, series
from tests.run_folders import evaluation, line, rollout, sample, step, write_run


def test_steps_and_evaluations_are_told_apart(tmp_path):
    run = read_run(write_run(tmp_path / "run", metrics=[step(0), evaluation(0, 30.0), step(1), evaluation(1, 40.0),
                                                        evaluation(1, 10.0, "small")]))
    assert [record["step"] for record in run.steps] == [0, 1]
    assert {split: [record[f"{split}/strict"] for record in records] for split, records in run.evaluations.items()} == {
        "dev": [30.0, 40.0], "small": [10.0]}


def test_a_curve_is_in_steps_taken_and_percent(tmp_path):
    """An evaluation recorded with step 1 comes after two steps; the candidates of step 1 were written after one."""
    run = read_run(write_run(tmp_path / "run", metrics=[step(0, strict=0.25), step(1), evaluation(1, 40.0)]))
    assert run.curve("dev") == ([2], [40.0])
    assert run.curve("") == ([0, 1], [25.0, 50.0])


def test_seconds_are_those_of_all_phases_of_the_steps_so_far(tmp_path):
    run = read_run(write_run(tmp_path / "run", metrics=[step(0), evaluation(0, 30.0), step(1, **{"seconds/old": 0.5})]))
    assert run.seconds() == [0.0, 3.0, 6.5]


def test_what_was_not_finite_is_nan_and_what_is_not_there_too():
    values = series([{"kl": 0.5}, {"kl": None}, {}], "kl")
    assert values[0] == 0.5 and all(map(math.isnan, values[1:]))


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", metrics=[step(0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rew')
    assert len(read_run(folder).steps) == 1


def test_a_broken_line_is_named(tmp_path):
    folder = write_run(tmp_path / "run", metrics=[step(0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: expected a JSON object"):
        read_run(folder)


def test_a_folder_without_a_run_and_one_without_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="nothing to report yet"):
        read_run(write_run(tmp_path / "run"))


@pytest.mark.parametrize("parts", [
    {"warmup": [{"step": 0, "loss": 7.0, "grad_norm": 1.0}]}, {"summary": {"steps": 0, "before": {"dev": line(30.0)}}},
    {"evaluated": {"dev": line(30.0)}}])
def test_any_of_its_records_makes_a_run(tmp_path, parts):
    run = read_run(write_run(tmp_path / "run", **parts))
    assert not run.steps and (run.warmup or run.moments or run.evaluated)


@pytest.mark.parametrize("parts, complaint", [
    ({"metrics": [step(0), step(2)]}, "metrics.jsonl: expected the steps 0, 1, ... in order, got 2"),
    ({"warmup": [{"step": 1, "loss": 7.0}]}, "warmup.jsonl: expected the steps 0, 1, ... in order, got 1"),
    ({"metrics": [step(0), evaluation(1, 30.0)]}, "metrics.jsonl: expected evaluations of steps that are there, got 1"),
    ({"metrics": [step(0, **{"seconds/update": None})]}, "metrics.jsonl: expected seconds by phase, got {'generate': 2.0, "),
    ({"metrics": [step(0, kl="x")]}, "metrics.jsonl:1: expected a JSON object with all else (integer or fraction or true or "
                                     'false or null), got {"step": 0, "reward": 500.0'),
    ({"samples": [sample(0)]}, "samples.jsonl: expected candidates, and as many columns as cells in a row, got 0"),
    ({"samples": [sample(3, rollout(1.0, "SELECT 1", rows=[[1]]))]},
     "samples.jsonl: expected candidates, and as many columns as cells in a row, got 3"),
    ({"samples": [sample(3, rollout(1.0, None, rows="x"))]},
     "samples.jsonl:1: expected a JSON object with rollouts (list), got "),
    ({"summary": {"after": {"dev": line(1.0)}}}, "summary.json: expected splits before as after, got 'dev'"),
    ({"summary": {"before": {"dev": 3}}}, "summary.json: expected splits with n and of, got {'dev': 3}"),
    ({"evaluated": {"dev": line(1.0, interval={"strict": [1.0]})}},
     "eval/summary.json: expected strict (integer or fraction), ems (integer or fraction), rems (integer or fraction) and "
     "error_rate (integer or fraction) of a split, and intervals of two numbers, got {'n': 10")])
def test_what_no_run_wrote_is_one_sentence(tmp_path, parts, complaint):
    with pytest.raises(ValueError) as caught:
        read_run(write_run(tmp_path / "run", **parts))
    assert str(caught.value).startswith(f"{tmp_path}/run/{complaint}")


def test_a_sample_may_hold_any_number_that_a_database_gave(tmp_path):
    """SQLite has infinities, and JSON as Python writes it a word for them."""
    run = read_run(write_run(tmp_path / "run", metrics=[step(0)], samples=[sample(0, rollout(1.0, "SELECT 9e999, 1e300", rows=[
        [math.inf, 1e300]]))]))
    assert run.samples[0]["rollouts"][0]["execution"]["rows"] == [[math.inf, 1e300]]
