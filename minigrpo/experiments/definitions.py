"""The experiments: which keys their runs differ in, what is measured of them, and what is drawn. A new one is one row."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.reports import plots
from minigrpo.reports.run_reader import Records, phases, series
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.infobox import RENAMED
from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.reward import PRESETS

Runs = Mapping[str, Sequence[Records]]                          # label → a run for each seed
Figures = Mapping[str, Mapping[str, Sequence[float]]]           # label → what is measured → its value for each seed
Looks = Sequence[tuple[float, float, float]]                    # the picture's two places across, and percent strict there
K_COMPARED = 2, 8                               # with 2 candidates only the order of rewards counts, with 8 their distances
FOLDS = 5                                       # one kind of question in so many is held out
Keys = Sequence[str]                            # overrides, as for --set


# ------------------------------------------------------------------------------------------------------------------ figures
def measure(runs: Runs) -> Figures:
    """Strict before and after on each split that the runs report, hacks and errors after; reward, zero spread and length at
    the end of training. If some runs held out kinds of questions: strict on these and on the others, for all runs."""
    apart = [{kind for run in seed for kind in run.cfg.task.hold_out} for seed in zip(*runs.values())]
    return {label: _figures(members, apart) for label, members in runs.items()}


def _figures(members: Sequence[Records], apart: Sequence[set[str]]) -> dict[str, list[float]]:
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
        found[label] = [fmean(series(run.steps, name)[-plots.window_for(len(run.steps)):]) for run in members]
    return found


def _strict(summary: Mapping, kinds: set[str], inside: bool | None) -> float:
    """Percent strict of a split's questions; ``inside``: of these kinds (True), of the others (False), of all (None)."""
    if inside is None:
        return summary["strict"]
    chosen = [of for kind, of in summary["kinds"].items() if (kind in kinds) is inside]
    return sum(of["strict"] * of["n"] for of in chosen) / sum(of["n"] for of in chosen) if chosen else math.nan


def measure_costs(runs: Runs) -> Figures:
    """Strict on the evaluation split at the seconds of training and at the examples that the seed's first run took in all; the
    seconds and examples of each; final strict on the report splits; and seconds by phase of a GRPO step, or of a warm-up step
    if there is no GRPO."""
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
    """Percent strict at the last evaluation within a budget of seconds (``axis`` 0) or examples (1); NaN if there is none."""
    return next((look[2] for look in reversed(run.costs()) if look[axis] <= budget), math.nan)


def layout(figures: Figures) -> list[list[str]]:
    """A line for each label, or a column if there are fewer labels than figures; means over the seeds."""
    columns = list(next(iter(figures.values())))
    lines = [["", *columns], *([label, *(_cell(of[column]) for column in columns)] for label, of in figures.items())]
    return lines if len(figures) > len(columns) else [list(line) for line in zip(*lines)]


def _cell(values: Sequence[float]) -> str:
    """The mean, and with several seeds the lowest and the highest."""
    if any(map(math.isnan, values)):
        return "–"
    digits = 3 if 0 < max(map(abs, values)) < 1 else 1
    spread = f" ({min(values):.{digits}f}…{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


# ----------------------------------------------------------------------------------------------------------------- pictures
def compare_runs(runs: Runs, out: Path) -> list[Path]:
    """Strict on the evaluation split, if the runs were evaluated, and of the candidates, by steps and by seconds. All runs
    have the same splits and steps. Returns ``out``/compare-curves.png."""
    rows = {(f"Strict on {plots.short(split)}" if split else "Strict of the candidates"):
            {label: [_looks(run, split) for run in members] for label, members in runs.items()}
            for split in (*next(iter(runs.values()))[0].evaluations, "")}
    return _draw(rows, {"steps taken": None, "seconds of steps": None}, out / "compare-curves.png")


def _looks(run: Records, split: str) -> Looks:
    (steps, values), seconds = run.curve(split), run.seconds()
    values = values if split else plots.smooth(values, plots.window_for(len(values)), fmean)
    return [(step, seconds[step], value) for step, value in zip(steps, values)]


def plot_costs(runs: Runs, out: Path) -> list[Path]:
    """Strict on the evaluation split by seconds of training and by examples seen, warm-up included, up to the first label's
    total. Returns ``out``/compare-costs.png."""
    first = next(iter(runs.values()))
    seconds, examples, _ = (1.05 * max(ends) for ends in zip(*(run.costs()[-1] for run in first)))
    rows = {f"Strict on {plots.short(first[0].cfg.evaluation.split)}":
            {label: [run.costs() for run in members] for label, members in runs.items()}}
    return _draw(rows, {"seconds of training": seconds, "examples seen": examples}, out / "compare-costs.png")


def _draw(rows: Mapping[str, Mapping[str, Sequence[Looks]]], units: Mapping[str, float | None], file: Path) -> list[Path]:
    """A row of two panels under each title: one for each unit, up to its end if it has one. Thin lines are runs. A thick line
    leads through the means of the runs' first looks, of their second ones, and so on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with plots.picture(file, 3 * len(rows)) as figure:
        grid = plots.two_columns(figure, 2 * len(rows))
        for number, ((title, curves), (unit, end)) in enumerate(product(rows.items(), units.items())):
            axes, across = grid[number], number % 2
            for place, (label, runs) in enumerate(curves.items()):
                colour, dash = plots.COLOURS[place % 7], plots.DASHES[place // 7 % 4]     # seven colours are seen on white
                means = [[fmean(values) for values in zip(*looks)] for looks in zip(*runs)]
                axes.plot([look[across] for look in means], [look[2] for look in means], color=colour, linestyle=dash,
                          linewidth=2, marker="o" if len(means) < 20 else "", markersize=4, label=label)
                for run in runs:
                    axes.plot([look[across] for look in run], [look[2] for look in run], color=colour, linewidth=0.7,
                              alpha=0.5)
            axes.set_title(title)
            axes.set_ylabel("% strict")
            axes.set_xlabel(unit)
            axes.set_xlim(0, end)
            plots.percent_axis(axes)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return [file]


def draw_by_candidates(runs: Runs, out: Path) -> list[Path]:
    """Separate pictures of the runs with two candidates and of those with eight."""
    return [file for K in K_COMPARED for file in compare_runs(
        {label: members for label, members in runs.items() if label.endswith(f" K={K}")}, out / f"K={K}")]


# -------------------------------------------------------------------------------------------------------------- experiments
def brevity(question: Question, sql: str | None, execution: Execution) -> float:
    """A reward that depends on the text alone: minus a hundredth for each character of the SQL, −3 if there is none."""
    return -len(sql) / 100 if sql else -3.0


@dataclass(frozen=True)
class Experiment:
    """``question``: what it answers. ``variants``: for a seed's config, label → overrides, or a function that makes them from
    the seed's first run. ``start``: overrides of the start that the runs of a seed share; None: each makes its own."""

    question: str
    variants: Callable[[config.Config], Mapping[str, Keys | Callable[[Records], Keys]]]
    start: Callable[[config.Config], Keys] | None = lambda cfg: ()
    measure: Callable[[Runs], Figures] = measure
    draw: Callable[[Runs, Path], Sequence[Path]] = compare_runs


def kinds_apart(cfg: config.Config) -> list[str]:
    """Every fifth kind of the training questions; five seeds in a row hold out different ones."""
    kinds, first = sorted({problem.kind for problem in make_task(cfg).load(cfg.task.split)}), cfg.run.seed % FOLDS
    if first >= len(kinds) or len(kinds) == 1:
        raise UserError(f"--experiment generalise: of the {len(kinds)} kinds of questions in the split {cfg.task.split} seed "
                         f"{cfg.run.seed} would hold out {'none' if first else 'all'}: expected at least {max(2, first + 1)}")
    return kinds[first::FOLDS]


def untaught_kinds(cfg: config.Config) -> Keys:
    """The start has not seen the held-out kinds either; its warm-up has at most as many examples as the other kinds offer."""
    known, apart = make_task(cfg).load(cfg.task.split, cfg.warmup.source), kinds_apart(cfg)
    left = sum(problem.solution is not None and problem.kind not in apart for problem in known)
    examples = (f"warmup.examples={min(left, cfg.warmup.examples)}",) if cfg.warmup.source else ()
    return f"task.hold_out={json.dumps(apart)}", *examples


def with_and_without(cfg: config.Config) -> Mapping[str, Keys]:
    asked = [*cfg.evaluation.report, *([RENAMED] if make_task(cfg).has_split(RENAMED) else [])]
    report, apart = f"evaluation.report={json.dumps(list(dict.fromkeys(asked)))}", json.dumps(kinds_apart(cfg))
    return {"GRPO on the other kinds": (f"task.hold_out={apart}", report), "GRPO on all kinds": (report,)}


def ways_to_spend(cfg: config.Config) -> Mapping[str, Keys | Callable[[Records], Keys]]:
    """The config as it is, evaluated ten times; then gold SQL alone for as many seconds and examples, and answers alone for as
    many examples."""
    if not cfg.warmup.source:
        raise UserError('--experiment costs: it compares with gold SQL, and warmup.source is ""')

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
                     for K in K_COMPARED for preset in PRESETS}, draw=draw_by_candidates),
    "candidates": Experiment(
        "How should candidates be written, and how many?",
        lambda cfg: {f"{method} K={K}": (f"generation.method={method}", f"generation.completions={K}")
                     for method in ("beam", "sample") for K in (2, 4, 8)}),
    "mock": Experiment(
        "Is the learner sound? The database always succeeds: without spread nothing may move; a reward of the text's length "
        "alone must be learned.",
        lambda cfg: {"constant reward": ("database.engine=mock",),
                     "shorter is better": ("database.engine=mock", "reward.preset=minigrpo.experiments.definitions.brevity")}),
    "generalise": Experiment(
        "What carries over: to other facts, to kinds of questions that no training has seen, to tables and columns of other "
        "names? GRPO with and without the kinds that the start has not seen.", with_and_without, untaught_kinds),
    "costs": Experiment(
        "What is a second worth, and an example? Gold SQL, answers alone, and answers after some gold SQL, for as many "
        "seconds of training and for as many examples.", ways_to_spend, None, measure_costs, plot_costs),
}
