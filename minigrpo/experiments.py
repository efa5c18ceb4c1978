"""Sweeps: runs of one config that differ in a few keys, and what came of them side by side. Knows no model.

    out/EXPERIMENT/start-SEED/             the start that all runs of a seed share, where the config has a warm-up
    out/EXPERIMENT/LABEL-SEED/             a run; one that is whole is left as it is, one that was stopped goes on
    out/EXPERIMENT/table.md, table.json    the table; with the extra plot also compare-*.png
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Callable, Mapping, Sequence

from minigrpo import config
from minigrpo.assemble import load_split
from minigrpo.comparison import compare_runs, plot_costs
from minigrpo.metrics import say, table
from minigrpo.pictures import can_draw, window_for
from minigrpo.records import Records, phases, read_run, series
from minigrpo.run import has_steps
from minigrpo.start import base_path, start_adapter
from minigrpo.tables import markdown
from minigrpo.task.database import Execution
from minigrpo.task.questions import Question, unknown
from minigrpo.task.renamed import RENAMED
from minigrpo.task.reward import PRESETS

AT_ONCE = 2, 8                                                  # candidates: only their order counts; their distances too
FOLDS = 5                                                       # a seed's runs have one kind of question in so many held out
Keys = Sequence[str]                                            # what differs, as for --set
Runs = Mapping[str, Sequence[Records]]                          # label → a run for each seed
Figures = Mapping[str, Mapping[str, Sequence[float]]]           # label → what is measured → its value for each seed


def measure(runs: Runs) -> Figures:
    """Strict before and after on each split that the runs report, hacks and errors after; reward, zero spread and length at
    the end of training. Where some runs had kinds of questions held out: strict on these and on the others, for all runs."""
    apart = [{kind for run in seed for kind in run.cfg.task.hold_out} for seed in zip(*runs.values())]
    return {label: _ends(members, apart) for label, members in runs.items()}


def _ends(members: Sequence[Records], apart: Sequence[set[str]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    parts = {" (untaught kinds)": True, " (taught kinds)": False} if any(apart) else {"": None}
    for split, summary in members[0].moments["after"].items():
        if summary["n"]:
            for name, inside in parts.items():
                for label, moment in (("start", "before"), ("strict", "after")):
                    found[f"{split}{name}: {label}"] = [_strict(run.moments[moment][split], kinds, inside)
                                                        for run, kinds in zip(members, apart)]
            for label, name in (("EMS, not strict", "hack"), ("errors", "error_rate")):
                found[f"{split}: {label}"] = [run.moments["after"][split][name] for run in members]
    for name, label in (("reward", "reward"), ("frac_reward_zero_std", "zero spread"), ("completions/mean_length", "tokens")):
        found[label] = [fmean(series(run.steps, name)[-window_for(len(run.steps)):]) for run in members]
    return found


def _strict(summary: Mapping, kinds: set[str], inside: bool | None) -> float:
    """Percent strict of a split's questions; ``inside``: of these kinds (True), of the others (False), of all (None)."""
    if inside is None:
        return summary["strict"]
    chosen = [of for kind, of in summary["kinds"].items() if (kind in kinds) is inside]
    return sum(of["strict"] * of["n"] for of in chosen) / sum(of["n"] for of in chosen) if chosen else math.nan


def measure_costs(runs: Runs) -> Figures:
    """Strict on the evaluation split for what the first run of a seed took in all, in seconds of training and in examples;
    what each took itself; strict in the end on what they report; and where the seconds of a step of GRPO, or of the warm-up
    where there is none, went."""
    budgets = [run.costs()[-1] for run in next(iter(runs.values()))]
    return {label: {
        "at equal seconds": [_within(run, 0, budget[0]) for run, budget in zip(members, budgets)],
        "at equal examples": [_within(run, 1, budget[1]) for run, budget in zip(members, budgets)],
        "seconds": [run.costs()[-1][0] for run in members],
        "examples": [float(run.costs()[-1][1]) for run in members],
        **{f"{split}: strict": [run.moments["after"][split]["strict"] for run in members]
           for split, summary in members[0].moments["after"].items() if summary["n"]},
        **{f"{phase}, s a step": [fmean(phases(record).get(phase, 0.0) for record in run.steps or run.warmup)
                                  for run in members] for phase in ("generate", "execute", "reward", "reference", "update")},
    } for label, members in runs.items()}


def _within(run: Records, axis: int, budget: float) -> float:
    """Percent strict at the last look that the budget allows: 0 is for seconds, 1 for examples. NaN: there is none."""
    return next((look[2] for look in reversed(run.costs()) if look[axis] <= budget), math.nan)


def draw_by_candidates(runs: Runs, out: Path) -> list[Path]:
    """Pictures of the runs with two candidates, and others of those with eight."""
    return [file for K in AT_ONCE for file in compare_runs(
        {label: members for label, members in runs.items() if label.endswith(f" K={K}")}, out / f"K={K}")]


def brevity(question: Question, sql: str | None, execution: Execution) -> float:
    """A reward that the tokens alone decide: minus a hundredth for each character of the SQL, −3 where there is none."""
    return -len(sql) / 100 if sql else -3.0


# ------------------------------------------------------------------------------------------------------------- what differs
@dataclass(frozen=True)
class Experiment:
    """``question``: what it answers. ``variants``: of a seed's config, label → keys that differ, or what makes them when the
    first run is done. ``start``: keys of the start that the runs of a seed share; None: each makes its own."""

    question: str
    variants: Callable[[config.Config], Mapping[str, Keys | Callable[[Records], Keys]]]
    start: Callable[[config.Config], Keys] | None = lambda cfg: ()
    measure: Callable[[Runs], Figures] = measure
    draw: Callable[[Runs, Path], Sequence[Path]] = compare_runs


def kinds_apart(cfg: config.Config) -> list[str]:
    """Every fifth kind of the training questions; each of five seeds has others."""
    kinds = sorted({question.kind for question in load_split(cfg.task, cfg.task.split)})
    return kinds[cfg.run.seed % FOLDS::FOLDS]


def untaught_kinds(cfg: config.Config) -> Keys:
    """The start has never seen the kinds either, and is shown all gold SQL of the others if there is no more."""
    known, apart = load_split(cfg.task, cfg.task.split, cfg.warmup.source), kinds_apart(cfg)
    left = sum(question.gold_sql is not None and question.kind not in apart for question in known)
    return _held_out(cfg), *((f"warmup.examples={min(left, cfg.warmup.examples)}",) if cfg.warmup.source else ())


def with_and_without(cfg: config.Config) -> Mapping[str, Keys]:
    asked = [*cfg.evaluation.report, *([] if cfg.task.kind == "jsonl" else [RENAMED])]
    report = f"evaluation.report={json.dumps(list(dict.fromkeys(asked)))}"
    return {"GRPO on the other kinds": (_held_out(cfg), report), "GRPO on all kinds": (report,)}


def _held_out(cfg: config.Config) -> str:
    return f"task.hold_out={json.dumps(kinds_apart(cfg))}"


def ways_to_spend(cfg: config.Config) -> Mapping[str, Keys | Callable[[Records], Keys]]:
    """The config as it is, looked at ten times; then gold SQL alone for as many seconds and examples, and answers alone for as
    many examples."""
    if not cfg.warmup.source:
        raise ValueError('--experiment costs: it compares with gold SQL, and warmup.source is ""')

    def gold_sql_alone(both: Records) -> Keys:
        seconds, examples, _ = both.costs()[-1]
        step = fmean(phases(record)["update"] for record in both.warmup)
        steps = math.ceil(1.1 * max(seconds / step, examples / cfg.warmup.batch))       # in case the machine is faster then
        epochs = math.ceil(steps * cfg.warmup.batch / cfg.warmup.examples)
        return "run.steps=0", "warmup.stop_at=100", f"warmup.epochs={epochs}"

    def answers_alone(both: Records) -> Keys:
        steps = math.ceil(both.costs()[-1][1] / cfg.grpo.questions)
        return 'warmup.source=""', f"run.steps={steps}", f"run.evaluate_every={max(1, steps // 10)}"

    return {"SFT, then GRPO": (f"run.evaluate_every={max(1, cfg.run.steps // 10)}",), "SFT on gold SQL": gold_sql_alone,
            "GRPO on answers alone": answers_alone}


EXPERIMENTS = {
    "rewards": Experiment(
        "What does each reward teach? Every preset from the same start; K = 2 knows only which of two is better.",
        lambda cfg: {f"{preset} K={K}": (f"reward.preset={preset}", f"generation.completions={K}")
                     for K in AT_ONCE for preset in PRESETS}, draw=draw_by_candidates),
    "candidates": Experiment(
        "How should candidates be written, and how many?",
        lambda cfg: {f"{method} K={K}": (f"generation.method={method}", f"generation.completions={K}")
                     for method in ("beam", "sample") for K in (2, 4, 8)}),
    "mock": Experiment(
        "Is the learner sound? The database always succeeds: without spread nothing may move; a reward of the text's length "
        "alone must be learned.",
        lambda cfg: {"constant reward": ("database.engine=mock",),
                     "shorter is better": ("database.engine=mock", "reward.preset=minigrpo.experiments.brevity")}),
    "generalise": Experiment(
        "What carries over: to other facts, to kinds of questions that no training has seen, to tables and columns of other "
        "names? GRPO with and without the kinds that the start has not seen.", with_and_without, untaught_kinds),
    "costs": Experiment(
        "What is a second worth, and an example? Gold SQL, answers alone, and answers after some gold SQL, for as many "
        "seconds of training and for as many examples.", ways_to_spend, None, measure_costs, plot_costs),
}


# ---------------------------------------------------------------------------------------------------------------- running it
def run_experiment(name: str, source: str, overrides: Keys, seeds: Sequence[int], train: Callable[..., int]) -> int:
    """Make all runs that are not there yet by ``train(cfg, resume=...)``, then their table and pictures.

    Returns the exit status: that of the first run that was stopped, or 0. ``ValueError``: no such experiment, nothing that
    the runs would report, or folders that hold runs of another config.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"--experiment: {unknown('experiment', name, EXPERIMENTS)}: there are {', '.join(EXPERIMENTS)}")
    cfg, experiment = config.load_config(source, overrides), EXPERIMENTS[name]
    config.require(cfg, "model.path", "run.out")
    if not cfg.evaluation.report:
        raise ValueError("--experiment: name the splits to compare the runs on in evaluation.report")
    root, runs = Path(cfg.run.out) / name, {}

    def run(label: str, seed: int, *keys: str) -> tuple[int, Path]:
        member = config.load_config(source, [*overrides, f"run.seed={seed}", *keys,
                                             f"run.out={root}/{label.replace(' ', '-').replace(',', '')}-{seed}"])
        say(f"\n{name}: {label}, seed {seed}")
        return train(member, resume=has_steps(Path(member.run.out))), Path(member.run.out)

    for seed in seeds or (cfg.run.seed,):
        seeded, shared = config.load_config(source, [*overrides, f"run.seed={seed}"]), ()
        if experiment.start and (cfg.warmup.source or cfg.model.path == "new"):
            status, made = run("start", seed, *experiment.start(seeded), "run.steps=0", "evaluation.report=[]")
            if status:
                return status
            start = config.load_config(made / "config.toml")
            shared = f"model.path={base_path(start)}", f"model.adapter={start_adapter(start)}", 'warmup.source=""'
        for label, keys in experiment.variants(seeded).items():
            first = next(iter(runs.values()), [])
            status, folder = run(label, seed, *shared, *(keys(first[-1]) if callable(keys) else keys))
            if status:
                return status
            runs.setdefault(label, []).append(read_run(folder))
    figures = experiment.measure(runs)
    cells = layout(figures)
    say(f"\n{experiment.question}\n\n{table(cells)}")
    (root / "table.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (root / "table.md").write_text(f"{experiment.question}\n\n{markdown(cells)}\n", encoding="utf-8")
    if can_draw():
        say("\n" + "\n".join(map(str, experiment.draw(runs, root))))
    return 0


def layout(figures: Figures) -> list[list[str]]:
    """A line for each label, or a column where there are fewer labels than figures: means over the seeds."""
    columns = list(next(iter(figures.values())))
    lines = [["", *columns], *([label, *(_cell(of[column]) for column in columns)] for label, of in figures.items())]
    return lines if len(figures) > len(columns) else [list(line) for line in zip(*lines)]


def _cell(values: Sequence[float]) -> str:
    """The mean, and where there are several seeds the lowest and the highest."""
    if any(map(math.isnan, values)):
        return "–"
    digits = 3 if 0 < max(map(abs, values)) < 1 else 1
    spread = f" ({min(values):.{digits}f}…{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"
