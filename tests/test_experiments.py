"""Sweeps of the real recipe, cut short: what runs there are, that they share a start, and what the table says of them."""

import json
from pathlib import Path

import pytest

from minigrpo.config import load_config
from minigrpo.experiments import EXPERIMENTS, brevity, compare, run_experiment
from minigrpo.task.database import Execution
from minigrpo.task.questions import Question

from .test_quickstart import QUICKSTART, SHORT

RAN = Execution("ok", rows=((1,),), columns=("a",))
QUESTION = Question("train/0", "train", 0, "How many?", "1", "athletes", "count", None)


@pytest.fixture(scope="module")
def mock(train_recipe, tmp_path_factory):
    """The experiment "mock" of two seeds: (its folder, the configs that were trained, in order, whether each was resumed)."""
    out, trained = tmp_path_factory.mktemp("sweep"), []

    def train(cfg, *, resume):
        trained.append((Path(cfg.run.out).name, resume))
        return train_recipe.train(cfg, resume=resume)

    assert run_experiment("mock", str(QUICKSTART), [*SHORT, f"run.out={out}"], [0, 1], train) == 0
    return out / "mock", trained, train


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_seed_has_a_start_and_a_run_of_each_variant(mock):
    root, trained, _ = mock
    assert trained[:6] == [(f"{label}-{seed}", False) for seed in (0, 1)
                           for label in ("start", "constant-reward", "shorter-is-better")]
    assert not (root / "constant-reward-0/warmup.jsonl").exists() and (root / "start-0/warmup.jsonl").exists()


def test_the_runs_of_a_seed_share_their_start(mock):
    """The base that they train from is one folder, so their first look at the report split is the same, bit for bit; that of
    another seed is another."""
    root, _, _ = mock
    rows = {name: (root / name / "before.jsonl").read_text() for name in ("constant-reward-0", "shorter-is-better-0",
                                                                          "constant-reward-1")}
    assert rows["constant-reward-0"] == rows["shorter-is-better-0"] != rows["constant-reward-1"]
    configs = [load_config(root / name / "config.toml") for name in rows]
    assert [cfg.model.path for cfg in configs] == [f"{root}/start-{seed}/base" for seed in (0, 0, 1)]
    assert all(cfg.warmup.source == "" for cfg in configs)


def test_without_spread_nothing_moves_but_what_the_text_earns_does(mock):
    """A database that always succeeds pays every candidate alike: advantages, loss, gradient and KL are 0 in every step. Where
    the length of the text decides, candidates differ, and the adapters move."""
    root, _, _ = mock
    for record in records(root / "constant-reward-0")[:2]:
        assert (record["reward_std"], record["grad_norm"], record["loss"], record["kl"]) == (0.0, 0.0, 0.0, 0.0)
    assert any(record["grad_norm"] > 0 for record in records(root / "shorter-is-better-0") if "reward" in record)


def test_the_table_is_that_of_the_runs(mock):
    root, _, _ = mock
    figures = json.loads((root / "table.json").read_text())
    assert list(figures) == ["constant reward", "shorter is better"]
    for seed in (0, 1):
        summary = json.loads((root / f"constant-reward-{seed}/summary.json").read_text())
        assert figures["constant reward"]["dev: strict"][seed] == summary["after"]["dev"]["strict"]
        assert figures["constant reward"]["dev: start"][seed] == summary["before"]["dev"]["strict"]
        # Two steps: the last tenth of them is the last one.
        assert figures["constant reward"]["reward"][seed] == records(root / f"constant-reward-{seed}")[1]["reward"]
    lines = (root / "table.md").read_text().splitlines()
    assert lines[0] == EXPERIMENTS["mock"].question and lines[2].startswith("|") and "dev: strict" in lines[2] and len(lines) == 6
    assert (root / "compare-ends.png").stat().st_size > 1000


def test_what_is_there_is_not_done_again(mock):
    root, trained, train = mock
    before = {file: file.read_bytes() for file in root.glob("*/metrics.jsonl")}
    del trained[6:]
    assert run_experiment("mock", str(QUICKSTART), [*SHORT, f"run.out={root.parent}"], [0, 1], train) == 0
    assert [resumed for _, resumed in trained[6:]] == [True] * 6
    assert {file: file.read_bytes() for file in root.glob("*/metrics.jsonl")} == before


def test_a_run_that_is_stopped_stops_the_sweep(tmp_path):
    calls = []

    def train(cfg, *, resume):
        calls.append(cfg.run.out)
        return 143
    assert run_experiment("mock", str(QUICKSTART), [*SHORT, f"run.out={tmp_path}"], [], train) == 143 and len(calls) == 1


@pytest.mark.parametrize("name, overrides, message", [
    ("reward", [], "--experiment: unknown experiment 'reward'"),
    ("mock", ["evaluation.report=[]"], "--experiment: name the splits to compare the runs on in evaluation.report")])
def test_what_cannot_be_swept_is_one_sentence(tmp_path, name, overrides, message):
    with pytest.raises(ValueError) as error:
        run_experiment(name, str(QUICKSTART), [f"run.out={tmp_path}", *overrides], [], None)
    assert message in str(error.value)


def test_every_variant_is_a_config(tmp_path):
    """Of the paper's config too, and no two of an experiment are alike."""
    for source in (QUICKSTART, QUICKSTART.with_name("codegemma7b.toml")):
        for experiment in EXPERIMENTS.values():
            configs = [load_config(source, list(keys)) for keys in experiment.variants.values()]
            assert len(set(map(repr, configs))) == len(configs)


def test_brevity_knows_the_text_alone():
    assert brevity(QUESTION, "SELECT 1", RAN) == -0.08 == brevity(QUESTION, "SELECT 2", Execution("syntax"))
    assert brevity(QUESTION, None, Execution("no_sql")) == -3.0


@pytest.mark.slow
def test_a_reward_of_the_text_alone_is_learned(train_recipe, tmp_path):
    """From the quickstart's start, with the database out of the game: 40 steps of 16 questions make the candidates' text at least
    a quarter shorter, and the constant reward beside it leaves the greedy SQL as it was."""
    overrides = [f"run.out={tmp_path}", "run.steps=40", "run.evaluate_every=0", 'evaluation.report=["dev"]', "run.threads=2"]
    assert run_experiment("mock", str(QUICKSTART), overrides, [0], train_recipe.train) == 0
    shorter = [record["reward"] for record in records(tmp_path / "mock/shorter-is-better-0")]
    assert sum(shorter[-4:]) / 4 > 0.75 * sum(shorter[:4]) / 4
    constant = tmp_path / "mock/constant-reward-0"
    assert (constant / "before.jsonl").read_text() == (constant / "after.jsonl").read_text()
