"""records.py: what a run wrote, read back."""

import math

import pytest

from minigrpo.records import read_run, series

from .run_folders import evaluation, line, step, write_run


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
