"""configs/quickstart.toml from nothing to its table, cut short; and the border between warm-up and GRPO, on real parts.

That it *learns* is a matter of minutes and seeds: README and issue say what was measured. Here: that all of it is there, that
it repeats itself on either engine, and that it can be stopped anywhere and go on.
"""

import json
import os
import pty
import re
import resource
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest
import torch

import minigrpo.training.warmup
from minigrpo.config import load_config
from minigrpo.policy.files.weights import load_tensors
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.answer import render_answer
from minigrpo.task.sql.engines.database import run_all
from minigrpo.training.folder import checkpoints
from tests.mariadb_server import needs_mariadb
from tests.paths import MINI, ROOT

QUICKSTART = ROOT / "configs/quickstart.toml"
SHORT = ("warmup.stop_at=0", "warmup.examples=96", "warmup.epochs=3", "model.new.width=32", "model.new.mlp_width=64",
         "run.steps=2", "run.save_every=4", "run.evaluate_every=2", "run.sample_every=0", "run.threads=1", "grpo.questions=2",
         "evaluation.questions=12", 'evaluation.report=["dev"]', "generation.max_new_tokens=24")      # 9 steps of warm-up


@pytest.fixture(scope="module")
def run(train_recipe, tmp_path_factory) -> Callable[..., Path]:
    """``run("grpo.questions=1", resume=True, out=folder)``: one short quickstart in this process; its folder."""
    def call(*overrides: str, out: Path | None = None, resume: bool = False) -> Path:
        out = out or tmp_path_factory.mktemp("run") / "run"
        assert train_recipe.train(load_config(QUICKSTART, [*SHORT, f"run.out={out}", *overrides]), resume=resume) == 0
        return out
    return call


@pytest.fixture(scope="module")
def whole(run) -> Path:
    return run()


def records(file: Path) -> list[dict]:
    """Without seconds and memory, the two things that may differ from one run to the next."""
    return [{key: value for key, value in json.loads(line).items() if not key.startswith(("seconds", "memory/"))}
            for line in file.read_text(encoding="utf-8").splitlines()]


def assert_same(ours: Path, theirs: Path) -> None:
    """The same model to start from, the same records and report, the same bits at the end."""
    for name in ("warmup.jsonl", "metrics.jsonl", "before.jsonl", "after.jsonl"):
        assert records(ours / name) == records(theirs / name), name
    assert (ours / "summary.json").read_bytes() == (theirs / "summary.json").read_bytes()
    for name in ("new/model.safetensors", "new/tokenizer.json", "base/model.safetensors", "base/config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "state.json"):
        assert (checkpoints(ours)[-1] / name).read_bytes() == (checkpoints(theirs)[-1] / name).read_bytes(), name


def test_it_leaves_a_model_an_adapter_and_a_report(whole):
    assert {path.name for path in whole.iterdir()} == {
        "config.toml", "lock", "new", "warmup.jsonl", "base", "metrics.jsonl", "samples.jsonl", "checkpoints", "summary.json",
        "before.jsonl", "after.jsonl"}                      # no state of the warm-up is left behind
    assert [record["step"] for record in records(whole / "warmup.jsonl")] == list(range(9))     # 96 · 3 / 32
    new, base = (load_tensors(whole / name / "model.safetensors") for name in ("new", "base"))
    assert new.keys() == base.keys() and not any(torch.equal(new[name], base[name]) for name in new)
    adapter = json.loads((checkpoints(whole)[-1] / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(whole / "base")
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 2
    for moment in ("before", "after"):
        figures, rows = summary[moment]["dev"], records(whole / f"{moment}.jsonl")
        assert figures["n"] == figures["of"] == len(rows) == 260                # 26 kinds, 10 each
        assert figures["strict"] == round(100 * sum(row["strict"] for row in rows) / 260, 2)
        assert figures["error_rate"] == round(100 * sum(row["status"] != "ok" for row in rows) / 260, 2)
        assert {"ems", "rems", "suite", "blind"} <= figures.keys() and len(figures["kinds"]) == 26
        assert figures["suite"] <= figures["strict"] and all(row["suite"] <= row["strict"] for row in rows)
    first = next(record for record in records(whole / "metrics.jsonl") if "kl" in record)
    assert (first["step"], first["kl"], first["ratio"]) == (0, 0.0, 1.0)        # the warmed-up base is the reference


@pytest.mark.slow
@needs_mariadb
def test_mariadb_judges_the_same_and_goes_the_same_way(run):
    """The first looks of the warm-up are equal to the last digit. Then a half-taught model writes what one engine alone takes
    for SQL, GROUP BY x DESC (MariaDB), and the runs part: not in what they reach, nor in what any SQL gives that runs on both."""
    ours, theirs = (run(f"database.engine={engine}", "warmup.stop_at=5", "warmup.examples=1600", "warmup.epochs=5", "run.steps=5",
                        "model.new.width=96", "model.new.mlp_width=256", "evaluation.questions=0", "grpo.questions=4",
                        "generation.max_new_tokens=80", "warmup.look_every=20") for engine in ("sqlite", "mariadb"))
    assert records(ours / "warmup.jsonl")[:20] == records(theirs / "warmup.jsonl")[:20]
    sqls = sorted({row["sql"] for out in (ours, theirs) for moment in ("before", "after")
                   for row in records(out / f"{moment}.jsonl") if row["sql"]})
    judged = []
    for engine in ("sqlite", "mariadb"):
        cfg = load_config(QUICKSTART, [f"database.engine={engine}"])
        with make_task(cfg) as task:
            judged.append(run_all(task.database, [(sql, "original") for sql in sqls], 4))
    on_both = [(a, b) for a, b in zip(*judged) if a.ok and b.ok]
    assert len(on_both) > len(sqls) / 2
    assert all({render_answer([row]) for row in a.rows} == {render_answer([row]) for row in b.rows} for a, b in on_both)
    for moment in ("before", "after"):
        ends = [json.loads((out / "summary.json").read_text())[moment]["dev"]["strict"] for out in (ours, theirs)]
        assert abs(ends[0] - ends[1]) < 8, (moment, ends)


@pytest.mark.slow
def test_gold_sql_too_long_to_be_written_is_counted(run, capsys):
    """24 tokens are fewer than any gold SQL has but that of easy/born and easy/entered; 80 are enough for all."""
    for tokens, said in ((24, True), (80, False)):
        run(f"generation.max_new_tokens={tokens}", "run.steps=0", "warmup.epochs=1", "evaluation.report=[]")
        assert ("they are longer\nthan generation.max_new_tokens = 24" in capsys.readouterr().out) == said


@pytest.mark.slow
def test_another_seed_is_another_model(run, whole):
    other = run("run.seed=1", "run.steps=0", "evaluation.report=[]")
    ours, theirs = (load_tensors(out / "new/model.safetensors") for out in (other, whole))
    assert not torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])


# ---------------------------------------------------------------------------------------------------------- the border
@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 6, 9])
def test_stopped_in_the_warm_up_it_goes_on(run, whole, monkeypatch, tmp_path, call):
    """Before the first state is kept (every 4 steps), after it, and in the last step."""
    original, calls = minigrpo.training.warmup.supervised_update, iter(range(1, 100))

    def interrupted(*args: object, **options: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(minigrpo.training.warmup, "supervised_update", interrupted)
        run(out=tmp_path / "run")
    assert not (tmp_path / "run/base").exists()
    assert_same(run(out=tmp_path / "run", resume=True), whole)


@pytest.mark.slow
def test_stopped_after_it_nothing_is_made_twice(train_recipe, run, whole, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_recipe, "collect", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(out=tmp_path / "run")
    made = {file: file.stat().st_mtime_ns for name in ("new", "base") for file in (tmp_path / "run" / name).iterdir()}
    assert_same(run(out=tmp_path / "run", resume=True), whole)
    assert {file: file.stat().st_mtime_ns for file in made} == made


def test_what_is_half_made_is_no_run_to_start_over_in(train_recipe, cli, run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_recipe, "load_start", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(out=tmp_path / "run")
    ended = cli(train_recipe, *(f"--set={override}" for override in SHORT), "--set", f"run.out={tmp_path / 'run'}",
                config=QUICKSTART)
    assert ended.status == 1 and "already holds a run" in ended.err


@pytest.mark.slow
def test_a_start_that_failed_leaves_nothing_behind(train_recipe, cli, run, whole, tmp_path):
    """A context too short shows when the examples are encoded: the new model is there by then, and is of no use."""
    out = tmp_path / "run"
    ended = cli(train_recipe, *(f"--set={override}" for override in (*SHORT, f"run.out={out}", "model.new.max_positions=100")),
                config=QUICKSTART)
    assert ended.status == 1 and (out / "new").exists()
    assert_same(run(out=out), whole)


def test_more_steps_are_reported_anew(run, whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    run("run.steps=3", out=out, resume=True)
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (whole, out))
    assert (before["steps"], after["steps"]) == (2, 3) and after["before"] == before["before"]


def test_its_policy_can_be_evaluated(eval_recipe, cli, whole, tmp_path):
    """The start by default, a checkpoint where one is given: the figures of the run's own report."""
    summary = json.loads((whole / "summary.json").read_text())
    for moment, extra in (("before", ()), ("after", ("--adapter", checkpoints(whole)[-1]))):
        ended = cli(eval_recipe, *(f"--set={override}" for override in SHORT), f"--set=run.out={whole}", "--split", "dev",
                    "--out", tmp_path / moment, *extra, config=QUICKSTART)
        assert ended.status == 0, ended
        evaluated = json.loads((tmp_path / moment / "summary.json").read_text())["dev"]
        assert {name: summary[moment]["dev"][name] for name in ("strict", "ems", "rems", "error_rate")} == \
            {name: evaluated[name] for name in ("strict", "ems", "rems", "error_rate")}


@pytest.mark.slow
def test_a_warm_up_by_lora_is_the_reference_and_the_base_stays(run, sql_model):
    """On the model that writes digits: some are right, so GRPO moves what the warm-up has made."""
    out = run("task.kind=temptabqa", f"task.path={MINI}", f"warmup.source={MINI / 'gold_sql.jsonl'}", "warmup.examples=3",
              "warmup.epochs=32", f"model.path={sql_model}", "warmup.method=lora", "evaluation.report=[]", "task.template=plain",
              "run.steps=3", "grpo.questions=3")
    assert not (out / "base").exists()
    start, end = (load_tensors(folder / "adapter_model.safetensors") for folder in (out / "warmup", checkpoints(out)[-1]))
    assert all(start[name].any() for name in start) and not any(torch.equal(start[name], end[name]) for name in start)
    first, *_, last = [record for record in records(out / "metrics.jsonl") if "kl" in record]
    assert first["kl"] == 0.0 < last["kl"]


@pytest.mark.slow
def test_gold_sql_of_a_file_warms_a_given_model_up(run, sql_model):
    out = run("task.kind=temptabqa", f"task.path={MINI}", f"warmup.source={MINI / 'gold_sql.jsonl'}", "warmup.examples=3",
              "warmup.epochs=32", f"model.path={sql_model}", "warmup.learning_rate=1e-3", "evaluation.report=[]")
    losses = [record["loss"] for record in records(out / "warmup.jsonl")]
    assert len(losses) == 3 and losses[-1] < losses[0]                          # 3 · 32 / 32
    assert not (out / "new").exists() and (out / "base/tokenizer.json").read_bytes() == (sql_model / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_the_control_deals_the_answers_out_anew(train_recipe, run, whole, monkeypatch):
    """The warm-up is the same, gold SQL and all; what GRPO is told is right is another question's answer."""
    asked = []
    monkeypatch.setattr(train_recipe, "collect", lambda questions, *args, collect=train_recipe.collect, **options:
                        asked.extend(questions) or collect(questions, *args, **options))
    out = run("task.shuffle_answers=true", "evaluation.report=[]")
    assert (out / "base/model.safetensors").read_bytes() == (whole / "base/model.safetensors").read_bytes()
    true = {question.id: question for question in make_task(load_config(QUICKSTART)).load("train")}
    assert [question.text for question in asked] == [true[question.id].text for question in asked]
    assert [question.answer for question in asked] != [true[question.id].answer for question in asked]


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("overrides, sentence", [
    (["task.kind=temptabqa", f"task.path={MINI}"], "warmup.source, reward.gold_sql: gold SQL for task.kind = \"temptabqa\" comes "
                                                   "from \"templates\" or a JSONL file, got \"athletes\""),
    (["warmup.source=gold.jsonl"], "warmup.source, reward.gold_sql: gold SQL for task.kind = \"athletes\" comes from \"athletes\", got \"gold.jsonl\""),
    (["task.kind=temptabqa", f"task.path={MINI}", "warmup.source=nowhere.jsonl"], "there is no file of gold SQL nowhere.jsonl"),
    (["warmup.examples=5000"], "warmup.examples: 5000 were asked for, athletes has known solutions for 1670 questions of the split train"),
    (["model.adapter=x"], "model.adapter: a warm-up makes its own start; take one of model.adapter and warmup.source"),
    (["evaluation.report=[\"held\"]"], "unknown split 'held' (did you mean 'heldout'?): the made-up athletes have train, dev, "
                                       "heldout, counterfactual"),
    (["model.new.heads=5"], "model.new: the width 32 is no multiple of twice the 5 heads: rotary positions turn pairs"),
    (["model.new.max_positions=100"], "warmup: prompt and solution of train/"),
])
def test_a_mistake_is_one_sentence(train_recipe, cli, tmp_path, overrides, sentence):
    ended = cli(train_recipe, *(f"--set={override}" for override in (*SHORT, f"run.out={tmp_path / 'run'}", *overrides)),
                config=QUICKSTART)
    message = ended.err.split("\r")[-1].strip()
    assert ended.status == 1 and message.split("\n")[-1].startswith(f"train.py: {sentence}"), ended
    assert "Traceback" not in ended.err


def test_a_source_without_gold_sql(train_recipe, cli, tmp_path):
    """Two lines: one is known not to answer its question, the other is of another split."""
    source = tmp_path / "gold.jsonl"
    source.write_text('{"split": "train", "index": 0, "sql": "SELECT 1", "answerable": false}\n'
                      '{"split": "dev", "index": 0, "sql": "SELECT 1", "answerable": true}\n')
    ended = cli(train_recipe, f"--set=run.out={tmp_path / 'run'}", "--set=task.kind=temptabqa", f"--set=task.path={MINI}",
                f"--set=warmup.source={source}", "--set=evaluation.report=[]", config=QUICKSTART)
    assert (ended.status, ended.err) == (1, f"train.py: warmup.source: {source} has no known solution for the split train\n")


def command(out: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), str(QUICKSTART),
            *(f"--set={override}" for override in (*SHORT, f"run.out={out}", *overrides))]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_no_half_a_model(tmp_path):
    """No file may grow beyond 20 KB: the tokenizer fits, 50,000 weights do not."""
    ended = subprocess.run(command(tmp_path / "run"), cwd=ROOT, capture_output=True, text=True,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    message = ended.stderr.strip().split("\n")[-1]
    assert ended.returncode == 1 and message.startswith("train.py: ") and "File too large" in message, ended
    assert "Traceback" not in ended.stderr and not (tmp_path / "run/new").exists()


@pytest.mark.slow
def test_in_a_terminal_of_80_columns_no_line_wraps(tmp_path):
    main, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(command(tmp_path / "r", "warmup.stop_at=90", "warmup.look_every=4", "run.sample_every=1"), cwd=ROOT,
                               stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    screen = b""
    while True:
        try:
            screen += os.read(main, 4096)
        except OSError:                                     # the other end is closed: it has ended
            break
    os.close(main)
    assert process.wait() == 0, screen.decode()
    shown = [re.sub(r"\x1b\[\w*", "", line) for line in re.split(r"[\r\n]+", screen.decode())]
    assert max(len(line) for line in shown if not line.startswith("saved: ")) <= 80
    assert any(re.match(r"warm-up 9/9 \[.*\], loss [\d.]+ strict \d+%", line) for line in shown)
    assert any(re.match(r"dev +strict +EMS +REMS +errors +suite +blind", line) for line in shown)
    assert any(re.match(r"all 260 ( +\d+(\.\d)?→\d+(\.\d)?){5} +\d+\.\d", line) for line in shown)
