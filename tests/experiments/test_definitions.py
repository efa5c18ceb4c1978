"""definitions.py: what the runs of each experiment differ in, which kinds are held out, and a reward of the text alone."""

from dataclasses import replace

import pytest

from minigrpo.config import load_config
from minigrpo.experiments.definitions import EXPERIMENTS, brevity, kinds_apart
from minigrpo.reports.run_reader import read_run
from minigrpo.task.sql.data.athletes import KINDS
from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.question import Question
from tests.paths import MINI
from tests.run_folders import evaluation, step, write_run
from tests.test_quickstart import QUICKSTART

RAN = Execution("ok", rows=((1,),), columns=("a",))
QUESTION = Question("train/0", "train", 0, "How many?", "1", "athletes", "count", None)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "costs"])
def test_every_variant_is_a_config(name):
    """Of the paper's config too, on a small benchmark; and no two of an experiment are alike."""
    for source, where in ((QUICKSTART, ""), (QUICKSTART.with_name("codegemma7b.toml"), f"task.path={MINI}")):
        cfg = load_config(source, [where] if where else [])
        configs = [load_config(source, keys) for keys in EXPERIMENTS[name].variants(cfg).values()]
        assert len(set(map(repr, configs))) == len(configs) > 1


def test_rewards_are_drawn_with_two_candidates_and_with_eight(tmp_path, drawn):
    """A picture each, of the runs with so many candidates."""
    def run(name: str, strict: float):
        return read_run(write_run(tmp_path / name, metrics=[step(0), evaluation(0, strict)]))
    runs = {f"{preset} K={K}": [run(f"{preset}{K}", 10.0 * K)] for preset in ("paper", "strict") for K in (2, 8)}
    assert EXPERIMENTS["rewards"].draw(runs, tmp_path) == [
        tmp_path / f"K={K}/compare-curves.png" for K in (2, 8)]
    assert {tuple(curve.get_ydata()) for curve in drawn[1].axes[0].lines} == {(80.0,)}


# ------------------------------------------------------------------------------------------------------------- generalising
def test_each_kind_is_held_out_for_one_of_five_seeds():
    cfg = load_config(QUICKSTART)
    seeds = [kinds_apart(replace(cfg, run=replace(cfg.run, seed=seed))) for seed in range(5)]
    assert sorted(kind for kinds in seeds for kind in kinds) == sorted(kind.name for kind in KINDS)
    assert kinds_apart(replace(cfg, run=replace(cfg.run, seed=7))) == seeds[2]


@pytest.mark.parametrize("seed, sentence", [(3, "seed 3 would hold out none: expected at least 4"),
                                            (9, "seed 9 would hold out none: expected at least 5")])
def test_a_seed_that_holds_out_nothing_is_one_sentence(shop, seed, sentence):
    """The shop's questions are of three kinds."""
    cfg = load_config(QUICKSTART, ["task.kind=jsonl", f"task.path={shop}", f"run.seed={seed}"])
    of = "^--experiment generalise: of the 3 kinds of questions in the split train"
    with pytest.raises(ValueError, match=f"{of} {sentence}$"):
        kinds_apart(cfg)


def test_the_start_has_not_seen_the_kinds_and_is_shown_all_other_gold_sql():
    """Every fifth name of 26: two easy kinds with 130 queries each, two medium ones with 60, two hard ones with 10; 400 of the
    1,670 queries that the config asks for."""
    cfg = load_config(QUICKSTART)
    assert kinds_apart(cfg) == ["easy/at", "easy/entered", "hard/before", "hard/start", "medium/first", "medium/which"]
    start = load_config(QUICKSTART, EXPERIMENTS["generalise"].start(cfg))
    assert start.warmup.examples == 1270 and list(start.task.hold_out) == kinds_apart(cfg)


def test_brevity_knows_the_text_alone():
    assert brevity(QUESTION, "SELECT 1", RAN) == -0.08 == brevity(QUESTION, "SELECT 2", Execution("syntax"))
    assert brevity(QUESTION, None, Execution("no_sql")) == -3.0
