"""run_reader.py: what a run wrote, read back."""

import json
import math

import pytest

from minigrpo.config import load_config
from minigrpo.reports.report import write_report
from minigrpo.reports.run_reader import read_run, series
from tests.run_folders import evaluation, line, older, rollout, sample, step, write_run


@pytest.mark.parametrize("written", [dict, older], ids=["by their kind", "of an older run"])
def test_steps_and_evaluations_are_told_apart(tmp_path, written):
    run = read_run(write_run(tmp_path / "run", metrics=list(map(written, [
        step(0), evaluation(0, 30.0), step(1), evaluation(1, 40.0), evaluation(1, 10.0, "small")]))))
    assert [record["step"] for record in run.steps] == [0, 1]
    assert {split: [record[f"{split}/strict"] for record in records] for split, records in run.evaluations.items()} == {
        "dev": [30.0, 40.0], "small": [10.0]}


@pytest.mark.parametrize("written", [dict, older], ids=["by their kind", "of an older run"])
def test_a_users_term_that_is_named_like_a_splits_figure_stays_a_term(tmp_path, written):
    """A term "mine/strict" is logged as "terms/mine/strict": it is no evaluation of a split "terms/mine"."""
    metrics = [step(0, **{"terms/mine/strict": 0.25}), step(1, **{"terms/mine/strict": 0.75}), evaluation(1, 40.0)]
    run = read_run(write_run(tmp_path / "run", metrics=list(map(written, metrics))))
    assert series(run.steps, "terms/mine/strict") == [0.25, 0.75]
    assert {split: [record["dev/strict"] for record in records] for split, records in run.evaluations.items()} == {"dev": [40.0]}
    assert run.curve("dev") == ([2], [40.0]) and run.costs() == [(6.0, 16, 40.0)]


def test_an_evaluation_says_its_split(tmp_path):
    """So its name may be any, even one that ends like a figure's."""
    run = read_run(write_run(tmp_path / "run", metrics=[step(0), evaluation(0, 40.0, "more/strict")]))
    assert list(run.evaluations) == ["more/strict"] and run.curve("more/strict") == ([1], [40.0])


def test_a_run_whose_reward_has_such_a_term_is_reported_with_its_own_splits_alone(train_recipe, small_toml, tmp_path,
                                                                                  monkeypatch):
    """The whole way: a reward of one's own, a step, an evaluation, their records, the report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named_like_a_split.py").write_text(
        "from minigrpo.task.reward import Reward\n\n\n"
        "def reward(question, sql, execution):\n    return Reward(float(len(sql or '')), {'mine/strict': 0.25})\n")
    out = tmp_path / "run"
    overrides = [f"run.out={out}", "run.steps=1", "run.evaluate_every=1", "reward.preset=named_like_a_split.reward"]
    assert train_recipe.train(load_config(small_toml, overrides)) == 0
    records = [json.loads(record) for record in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["step", "evaluation"] and records[1]["split"] == "dev"
    assert records[0]["terms/mine/strict"] == 0.25
    run = read_run(out)
    assert len(run.steps) == 1 and list(run.evaluations) == ["dev"]
    assert "terms/mine" not in write_report(out).read_text(encoding="utf-8").partition("## Samples")[0]


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
    ({"metrics": [step(0, kl="x")]}, "metrics.jsonl: expected a number, got {'kl': 'x'}"),
    ({"metrics": [step(0), evaluation(0, 1.0) | {"dev/strict": "x"}]},
     "metrics.jsonl: expected a number, got {'dev/strict': 'x'}"),
    ({"warmup": [{"step": 0, "loss": "x"}]}, "warmup.jsonl: expected a number, got {'loss': 'x'}"),
    ({"metrics": [step(0, kl=[1])]}, "metrics.jsonl:1: expected a JSON object with all else (integer or fraction or true or "
                                     'false or text or null), got {"kind": "step", "step": 0'),
    ({"metrics": [step(0), step(0, kind="look")]},
     "metrics.jsonl: expected the kind \"step\" or \"evaluation\", got 'look'"),
    ({"metrics": [step(0), evaluation(0, 1.0) | {"split": "test"}]},
     "metrics.jsonl: expected an evaluation's split and its strict, got {"),
    ({"metrics": [step(0), {"step": 0}]}, "metrics.jsonl: expected an evaluation's split and its strict, got {'step': 0}"),
    ({"samples": [sample(0)]}, "samples.jsonl: expected candidates, got 0"),
    ({"samples": [sample(3, rollout(1.0, "SELECT 1", rows=[[1]]))]},
     "samples.jsonl: expected as many columns as cells in a row, got ['n', 'name'], in the group of step 3"),
    ({"samples": [sample(0, rollout(1.0, "SELECT 1", "high"))]},
     "samples.jsonl: expected advantage (integer or fraction), got 'high'"),
    ({"samples": [sample(3, rollout(1.0, None, rows="x"))]},
     "samples.jsonl:1: expected a JSON object with rollouts (list), got "),
    ({"summary": {"after": {"dev": line(1.0)}}}, "summary.json: expected splits before as after, got 'dev'"),
    ({"summary": {"before": {"dev": 3}}}, "summary.json: expected splits with n and of, got {'dev': 3}"),
    ({"evaluated": {"dev": line(1.0, interval={"strict": [1.0]})}},
     "eval/summary.json: expected strict (integer or fraction), error_rate (integer or fraction), ems (integer or fraction) and "
     "rems (integer or fraction) of a split, and intervals of two numbers, got {'n': 10"),
    ({"evaluated": {"dev": line(1.0, ems="x")}}, "eval/summary.json: expected strict (integer or fraction), "),
    ({"evaluated": {"dev": {"n": 1, "of": 1, "strict": 1.0}}}, "eval/summary.json: expected strict (integer or fraction) and "
                                                              "error_rate (integer or fraction) of a split, ")])
def test_what_no_run_wrote_is_one_sentence(tmp_path, parts, complaint):
    with pytest.raises(ValueError) as caught:
        read_run(write_run(tmp_path / "run", **parts))
    assert str(caught.value).startswith(f"{tmp_path}/run/{complaint}")


def test_a_sample_may_hold_any_number_that_a_database_gave(tmp_path):
    """SQLite has infinities, and JSON as Python writes it a word for them."""
    run = read_run(write_run(tmp_path / "run", metrics=[step(0)], samples=[sample(0, rollout(1.0, "SELECT 9e999, 1e300", rows=[
        [math.inf, 1e300]]))]))
    candidate, = run.samples[0].candidates
    assert candidate.verdict.details.rows == ((math.inf, 1e300),)


def test_a_sample_is_read_back_with_the_advantages_that_are_in_it(tmp_path):
    """Groups of older runs have none."""
    run = read_run(write_run(tmp_path / "run", metrics=[step(0), step(1)], samples=[
        sample(0, rollout(1.0, "SELECT 1", -0.5), rollout(4.0, "SELECT 2", 0.5)), sample(1, rollout(1.0, "SELECT 1"))]))
    assert [[candidate.advantage for candidate in group.candidates] for group in run.samples] == [[-0.5, 0.5], [None]]
    first = run.samples[0].candidates[0]
    assert (first.text, first.verdict.extracted, first.verdict.reward, first.verdict.answer) == (
        "said SELECT 1", "SELECT 1", 1.0, "7 x")
