"""A task without any SQL, one file and one row: it is trained, resumed, evaluated, asked and reported like the others."""

import json
import sys

import pytest

import eval as eval_recipe
import train as train_recipe
from minigrpo.common.clock import Clock
from minigrpo.config import load_config
from minigrpo.task.kinds import TASKS, make_task
from tests.task.arithmetic import Arithmetic, Sum

CONFIG = """
[task]
kind = "arithmetic"
[model]
path = "new"
[model.new]
vocabulary = 257
width = 32
heads = 2
mlp_width = 64
max_positions = 32
[warmup]
source = "arithmetic"
examples = 60
epochs = 2
batch = 12
learning_rate = 3e-3
[generation]
method = "sample"
completions = 3
max_new_tokens = 4
stop_strings = []
[grpo]
questions = 4
learning_rate = 1e-3
[evaluation]
report = ["test"]
[run]
steps = 2
evaluate_every = 1
sample_every = 1
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "arithmetic", Arithmetic)
    file = tmp_path / "arithmetic.toml"
    file.write_text(CONFIG + f'out = "{tmp_path}/run"\n')
    return file


def run(recipe, monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", [f"{recipe.__name__}.py", *map(str, words)])
    return recipe.main()


def test_it_is_trained_evaluated_asked_and_reported(config_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert run(train_recipe, monkeypatch, config_file, "--dry-run") == 0
    # 60 sums to train on, 20 of dev and 20 of test, and each brings its answer along.
    assert "100 known ones run and none failed" in capsys.readouterr().out
    assert run(train_recipe, monkeypatch, config_file) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["step", "evaluation"] * 2
    step = records[0]
    # 12 candidates a step: each is "ok" or "no_number", and these two shares are all there are.
    assert step["status/ok"] + step["status/no_number"] == pytest.approx(1.0) and "status/syntax" not in step
    assert {"strict", "terms/near", "seconds/execute"} <= step.keys() and "ems" not in step
    assert records[1]["split"] == "dev" and {"dev/strict", "dev/error_rate"} <= records[1].keys()
    rollouts = json.loads((out / "samples.jsonl").read_text().splitlines()[0])["rollouts"]
    assert len(rollouts) == 3 and {"text", "number", "status", "reward", "advantage"} <= rollouts[0].keys()
    assert sum(rollout["advantage"] for rollout in rollouts) == pytest.approx(0.0)
    rows = [json.loads(line) for line in (out / "after.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(20)) and {"number", "strict", "blind"} <= rows[0].keys()

    adapter = out / "checkpoints/step-000002"
    assert run(eval_recipe, monkeypatch, config_file, "--adapter", adapter, "--by-kind") == 0
    table = (out / "eval/table.md").read_text()
    assert "strict" in table and "EMS" not in table and "blind ceiling" in table
    capsys.readouterr()
    assert run(eval_recipe, monkeypatch, config_file, "--adapter", adapter, "--ask", "3+4") == 0
    said = capsys.readouterr().out
    assert "3+4" in said and "NUMBER" in said
    assert run(eval_recipe, monkeypatch, "--compare", out / "before.jsonl", out / "after.jsonl") == 0
    assert run(train_recipe, monkeypatch, config_file, "--report") == 0
    report = (out / "report.md").read_text()
    assert "NUMBER" in report and "advantage" in report and (out / "report-splits.png").exists()


def test_predictions_of_anybody_are_judged_by_the_task(config_file, tmp_path, monkeypatch):
    # Of the 20 sums 8+0 … 9+9, in order: the first is right (8), the second wrong (8+1 is 9), the third no number.
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text("".join(json.dumps({"split": "test", "index": i, "number": number}) + "\n"
                                   for i, number in enumerate(["8", "1", "eight"])))
    assert run(eval_recipe, monkeypatch, config_file, "--predictions", predictions, "--out", tmp_path / "out") == 0
    of = json.loads((tmp_path / "out/summary.json").read_text())["test"]
    assert (of["n"], of["of"], of["strict"], of["error_rate"]) == (3, 20, 33.33, 33.33)


def test_a_task_that_takes_no_questions_without_an_answer_says_so(config_file, monkeypatch, capsys):
    monkeypatch.delattr(Arithmetic, "pose")
    assert run(eval_recipe, monkeypatch, config_file, "--ask", "3+4") == 1
    assert capsys.readouterr().err == "eval.py: --ask: this task has no questions without an answer\n"


def test_a_record_is_read_back_as_the_verdict_that_was_written(config_file):
    task = make_task(load_config(config_file))
    for number in ("7", "eight", None):
        verdict, = task.judge([(Sum("dev/0", "dev", 0, "3+4", "7", "one digit"), number)], Clock())
        assert task.read_record(json.loads(json.dumps(task.record(verdict)))) == verdict
