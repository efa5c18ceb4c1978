"""definitions.py: what the runs of each experiment differ in, which kinds are held out, a reward of the text alone; what is
measured of several runs, by hand, and what is drawn of them, read from the axes."""

from dataclasses import replace
from pathlib import Path

import pytest

from minigrpo.config import load_config
from minigrpo.experiments.definitions import (
    EXPERIMENTS,
    brevity,
    compare_runs,
    kinds_apart,
    layout,
    measure,
    measure_costs,
    plot_costs,
)
from minigrpo.reports.run_reader import Records, read_run
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.athletes import KINDS
from minigrpo.task.sql.engines.database import Execution
from tests.paths import MINI
from tests.run_folders import evaluation, line, step, write_run
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


# ----------------------------------------------------------------------------------------------------------------- figures
def test_held_out_kinds_are_measured_apart_in_runs_that_had_them_too(tmp_path):
    """10 questions of kind a, 30 of kind b, which one of the two runs held out: a 50 %, b 10 %; together (5 + 3) of 40."""
    def run(name: str, config: str, a: float, b: float):
        def moment(a: float, b: float) -> dict:
            kinds = {"a": {"n": 10, "strict": a}, "b": {"n": 30, "strict": b}}
            return {"dev": line((10 * a + 30 * b) / 40, hack=0.0, kinds=kinds)}
        return read_run(write_run(tmp_path / name, config=config, metrics=[step(0)],
                                  summary={"steps": 1, "before": moment(0.0, 0.0), "after": moment(a, b)}))
    figures = measure({"without": [run("without", '[task]\nhold_out = ["b"]\n', 50.0, 10.0)],
                       "with": [run("with", "", 60.0, 40.0)]})
    assert [figures[label]["dev (untaught kinds): strict"] for label in ("without", "with")] == [[10.0], [40.0]]
    assert [figures[label]["dev (taught kinds): strict"] for label in ("without", "with")] == [[50.0], [60.0]]
    assert "dev: strict" not in figures["with"]


def test_what_others_reach_within_what_the_first_took(tmp_path):
    """The first takes two steps of warm-up (2 s, 16 examples each) and two of GRPO (3 s, 8 questions each): 10 s, 48 examples.
    Gold SQL alone stands at 40 % after 10 s and 80 examples, at 20 % after 6 s and 48 examples, at 50 % after 12 s: 40 for the
    same seconds, 20 for the same examples. Answers alone stand at 5 % after 9 s and 24 examples, at 9 % after 18 s and 48."""
    def taught(*strict: float) -> list[dict]:
        return [{"step": number, "loss": 1.0, "seconds/update": 2.0, "strict": value} for number, value in enumerate(strict)]

    def run(name: str, warmup: list[dict], metrics: list[dict]):
        moments = {"dev": line(50.0)}
        return read_run(write_run(tmp_path / name, warmup=warmup, metrics=metrics,
                                  summary={"steps": 0, "before": moments, "after": moments}))
    figures = measure_costs({
        "both": [run("both", taught(1.0, 2.0), [step(0), step(1), evaluation(1, 60.0)])],
        "gold": [run("gold", taught(5.0, 10.0, 20.0, 30.0, 40.0, 50.0), [])],
        "answers": [run("answers", [], [*map(step, range(3)), evaluation(2, 5.0),
                                        *map(step, range(3, 6)), evaluation(5, 9.0)])]})
    assert [figures[label]["at equal seconds"] for label in figures] == [[60.0], [40.0], [5.0]]
    assert [figures[label]["at equal examples"] for label in figures] == [[60.0], [20.0], [9.0]]
    assert [figures[label]["seconds"] for label in figures] == [[10.0], [12.0], [18.0]]
    assert [figures[label]["examples"] for label in figures] == [[48.0], [96.0], [48.0]]
    assert figures["gold"]["update, s a step"] == [2.0] and figures["both"]["generate, s a step"] == [2.0]


def test_the_table_lies_the_way_it_fits():
    """Two labels with three figures: a figure a line. Two with one: a label a line. Seeds: mean, lowest, highest."""
    wide = {"a": {"x": [1.0, 2.0], "y": [0.25], "z": [float("nan")]}, "b": {"x": [3.0, 5.0], "y": [0.0], "z": [1.0]}}
    assert layout(wide) == [["", "a", "b"], ["x", "1.5 (1.0…2.0)", "4.0 (3.0…5.0)"], ["y", "0.250", "0.0"], ["z", "–", "1.0"]]
    assert layout({"a": {"x": [1.0]}, "b": {"x": [2.0]}}) == [["", "x"], ["a", "1.0"], ["b", "2.0"]]


# ---------------------------------------------------------------------------------------------------------------- pictures
def two_seeds(tmp_path: Path) -> dict[str, list[Records]]:
    """Two labels, two seeds each; a step of "slow" takes twice the seconds."""
    def run(name: str, seconds: float, ends: float) -> Records:
        metrics = [step(number, **{"seconds/generate": seconds - 1}) for number in range(4)]
        return read_run(write_run(
            tmp_path / name, metrics=[*metrics[:2], evaluation(1, 40.0), *metrics[2:], evaluation(3, ends)],
            summary={"steps": 4, "before": {"small": line(30.0)}, "after": {"small": line(ends)}}))
    return {"fast": [run("f0", 3.0, 60.0), run("f1", 3.0, 70.0)], "slow $x$": [run("s0", 6.0, 80.0), run("s1", 6.0, 84.0)]}


def thick(axes, label: str) -> tuple[list[float], list[float]]:
    mean = next(curve for curve in axes.lines if curve.get_label() == label)
    return list(mean.get_xdata()), list(mean.get_ydata())


def test_runs_are_compared_by_steps_and_by_seconds(tmp_path, drawn):
    """Evaluated after steps 2 and 4, 3 seconds a step or 6: at 6 and 12 seconds, or 12 and 24; means of 60, 70 and 80, 84."""
    files = compare_runs(two_seeds(tmp_path), tmp_path / "out")
    assert files == [tmp_path / "out/compare-curves.png"] and files[0].stat().st_size > 5000
    by_steps, by_seconds = drawn[0].axes[:2]
    assert thick(by_steps, "fast") == ([2, 4], [40.0, 65.0])
    assert thick(by_seconds, "fast") == ([6.0, 12.0], [40.0, 65.0])
    assert thick(by_seconds, "slow $x$") == ([12.0, 24.0], [40.0, 82.0])
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["fast", "slow $x$"]


def test_without_evaluations_the_candidates_are_compared(tmp_path, drawn):
    runs = {name: [read_run(write_run(tmp_path / name, metrics=[step(0, strict=share)]))]
            for name, share in (("a", 0.5), ("b", 1.0))}
    compare_runs(runs, tmp_path / "out")
    assert len(drawn[0].axes) == 2 and thick(drawn[0].axes[0], "b") == ([0], [100.0])


# ---------------------------------------------------------------------------------------------------------------- what it cost
def test_what_a_run_cost_is_drawn_against_seconds_and_examples(tmp_path, drawn):
    """Two steps of warm-up, 16 examples and 2 seconds each, looked at after the second (25 %); then two steps of GRPO, 8
    questions and 3 seconds each, looked at after the second (60 %): 25 % at 4 s and 32 examples, 60 % at 10 s and 48."""
    warmup = [{"step": 0, "loss": 1.0, "seconds/update": 2.0}, {"step": 1, "loss": 1.0, "seconds/update": 2.0, "strict": 25.0}]
    both = read_run(write_run(tmp_path / "both", warmup=warmup, metrics=[step(0), step(1), evaluation(1, 60.0)]))
    assert both.costs() == [(4.0, 32, 25.0), (10.0, 48, 60.0)]
    taught = read_run(write_run(tmp_path / "taught", warmup=warmup))
    assert plot_costs({"both": [both], "taught": [taught]}, tmp_path) == [tmp_path / "compare-costs.png"]
    seconds, examples = drawn[0].axes
    assert [list(curve.get_xdata()) for curve in seconds.lines] == [[4.0, 10.0]] * 2 + [[4.0]] * 2      # a mean, and its run
    assert [list(curve.get_xdata()) for curve in examples.lines] == [[32, 48]] * 2 + [[32]] * 2
    assert [list(curve.get_ydata()) for curve in examples.lines] == [[25.0, 60.0]] * 2 + [[25.0]] * 2
