"""Sweeps of the real recipe, cut short: what runs there are, that they share a start, and what the table says of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from minigrpo.config import load_config
from minigrpo.experiments.definitions import EXPERIMENTS
from minigrpo.experiments.sweep import run_experiment
from tests.paths import MINI
from tests.test_quickstart import QUICKSTART, SHORT

GOLD = str(MINI / "gold_sql.jsonl")
# On the small benchmark, whose splits have a few questions each, where the quickstart's have hundreds.
SMALL = [*SHORT, "task.kind=temptabqa", f"task.path={MINI}", f"warmup.source={GOLD}", "warmup.examples=3"]


class Sweep(NamedTuple):
    """The folder of an experiment, what was trained in order (a run's name, whether it was resumed), and how."""

    root: Path
    trained: list[tuple[str, bool]]
    train: Callable[..., int]
    overrides: list[str]


@pytest.fixture(scope="module", params=[SMALL, pytest.param([*SHORT], marks=pytest.mark.slow)], ids=["small", "quickstart"])
def mock(request, train_recipe, tmp_path_factory) -> Sweep:
    """The experiment "mock" of two seeds."""
    out, trained = tmp_path_factory.mktemp("sweep"), []

    def train(cfg, *, resume):
        trained.append((Path(cfg.run.out).name, resume))
        return train_recipe.train(cfg, resume=resume)

    overrides = [*request.param, f"run.out={out}"]
    assert run_experiment("mock", str(QUICKSTART), overrides, [0, 1], train) == 0
    return Sweep(out / "mock", trained, train, overrides)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_seed_has_a_start_and_a_run_of_each_variant(mock):
    root, trained = mock.root, mock.trained
    assert trained[:6] == [(f"{label}-{seed}", False) for seed in (0, 1)
                           for label in ("start", "constant-reward", "shorter-is-better")]
    assert not (root / "constant-reward-0/warmup.jsonl").exists() and (root / "start-0/warmup.jsonl").exists()


def test_the_runs_of_a_seed_share_their_start(mock):
    """The base that they train from is one folder, so their first look at the report split is the same, bit for bit. That of
    another seed is another, and where hundreds of questions are asked that can be seen."""
    root = mock.root
    rows = {name: (root / name / "before.jsonl").read_text() for name in ("constant-reward-0", "shorter-is-better-0",
                                                                          "constant-reward-1")}
    assert rows["constant-reward-0"] == rows["shorter-is-better-0"]
    assert rows["constant-reward-0"] != rows["constant-reward-1"] or len(rows["constant-reward-0"].splitlines()) < 100
    ours, theirs = ((root / f"start-{seed}/base/model.safetensors").read_bytes() for seed in (0, 1))
    assert ours != theirs
    configs = [load_config(root / name / "config.toml") for name in rows]
    assert [cfg.model.path for cfg in configs] == [f"{root}/start-{seed}/base" for seed in (0, 0, 1)]
    assert all(cfg.warmup.source == "" for cfg in configs)


def test_without_spread_nothing_moves_but_what_the_text_earns_does(mock):
    """A database that always succeeds pays every candidate alike: advantages, loss, gradient and KL are 0 in every step. Where
    the length of the text decides, candidates differ, and the adapters move."""
    root = mock.root
    for record in records(root / "constant-reward-0")[:2]:
        assert (record["reward_std"], record["grad_norm"], record["loss"], record["kl"]) == (0.0, 0.0, 0.0, 0.0)
    assert any(record["grad_norm"] > 0 for record in records(root / "shorter-is-better-0") if "reward" in record)


def test_the_table_is_that_of_the_runs(mock):
    root = mock.root
    figures = json.loads((root / "table.json").read_text())
    assert list(figures) == ["constant reward", "shorter is better"]
    for seed in (0, 1):
        summary = json.loads((root / f"constant-reward-{seed}/summary.json").read_text())
        assert figures["constant reward"]["dev: strict"][seed] == summary["after"]["dev"]["strict"]
        assert figures["constant reward"]["dev: start"][seed] == summary["before"]["dev"]["strict"]
        # Two steps: the last tenth of them is the last one.
        assert figures["constant reward"]["reward"][seed] == records(root / f"constant-reward-{seed}")[1]["reward"]
    lines = (root / "table.md").read_text().splitlines()
    assert lines[0] == EXPERIMENTS["mock"].question
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["", "constant reward", "shorter is better"]
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["dev: start", "dev: strict", "dev: EMS, not strict",
                                                                 "dev: errors", "reward", "zero spread", "tokens"]
    assert (root / "compare-curves.png").stat().st_size > 1000


def test_what_is_there_is_not_done_again(mock):
    root, trained, train, overrides = mock
    before = {file: file.read_bytes() for file in root.glob("*/metrics.jsonl")}
    del trained[6:]
    assert run_experiment("mock", str(QUICKSTART), overrides, [0, 1], train) == 0
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
    ("mock", ["run.steps=0"], "--experiment: with run.steps = 0 there is nothing to compare"),
    ("costs", ['warmup.source=""'], "--experiment costs: it compares with gold SQL, and warmup.source is \"\""),
    ("mock", ["evaluation.report=[]"], "--experiment: name the splits to compare the runs on in evaluation.report")])
def test_what_cannot_be_swept_is_one_sentence(tmp_path, name, overrides, message):
    with pytest.raises(ValueError) as error:
        run_experiment(name, str(QUICKSTART), [f"run.out={tmp_path}", *overrides], [], None)
    assert message in str(error.value)


def test_gold_sql_stays_known_to_the_rewards_that_want_it(mock):
    """The runs begin where the warm-up ended, and have none of their own."""
    root = mock.root
    cfg = load_config(root / "constant-reward-0/config.toml")
    assert (cfg.warmup.source, cfg.reward.gold_sql) == ("", {"temptabqa": GOLD, "athletes": "athletes"}[cfg.task.kind])


@pytest.mark.slow
def test_a_sweep_over_kinds_and_names_runs(train_recipe, tmp_path):
    """The questions of the renamed database are asked too; the start and one of the runs had no question of the kinds."""
    assert run_experiment("generalise", str(QUICKSTART), [*SHORT, f"run.out={tmp_path}"], [1], train_recipe.train) == 0
    figures = json.loads((tmp_path / "generalise/table.json").read_text())
    assert [f"{split} ({which} kinds): strict" in figures["GRPO on all kinds"] for split in ("dev", "renamed")
            for which in ("untaught", "taught")] == [True] * 4
    held = {name: load_config(tmp_path / f"generalise/{name}-1/config.toml").task.hold_out
            for name in ("start", "GRPO-on-the-other-kinds", "GRPO-on-all-kinds")}
    assert held["start"] == held["GRPO-on-the-other-kinds"] != held["GRPO-on-all-kinds"] == ()


# -------------------------------------------------------------------------------------------------------------------- costs
@pytest.mark.slow
def test_ways_to_spend_are_compared_at_what_the_first_took(train_recipe, tmp_path):
    """The second and the third are made from the records of the first: more seconds than it took, and as many examples."""
    overrides = [*SHORT, "warmup.stop_at=100", f"run.out={tmp_path}"]
    assert run_experiment("costs", str(QUICKSTART), overrides, [0], train_recipe.train) == 0
    figures = json.loads((tmp_path / "costs/table.json").read_text())
    both, gold, answers = (figures[label] for label in ("SFT, then GRPO", "SFT on gold SQL", "GRPO on answers alone"))
    assert gold["examples"] >= both["examples"] and 0 <= answers["examples"][0] - both["examples"][0] < 2
    assert not list((tmp_path / "costs").glob("start-*")) and (tmp_path / "costs/compare-costs.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_reward_of_the_text_alone_is_learned(train_recipe, tmp_path):
    """From the quickstart's start, with the database out of the game: 40 steps of 16 questions make the candidates' text at
    least a quarter shorter, and the constant reward beside it leaves the greedy SQL as it was."""
    overrides = [f"run.out={tmp_path}", "run.steps=40", "run.evaluate_every=0", 'evaluation.report=["dev"]', "run.threads=2"]
    assert run_experiment("mock", str(QUICKSTART), overrides, [0], train_recipe.train) == 0
    shorter = [record["reward"] for record in records(tmp_path / "mock/shorter-is-better-0")]
    assert sum(shorter[-4:]) / 4 > 0.75 * sum(shorter[:4]) / 4
    constant = tmp_path / "mock/constant-reward-0"
    assert (constant / "before.jsonl").read_text() == (constant / "after.jsonl").read_text()
