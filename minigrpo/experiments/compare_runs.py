"""Several runs side by side, by label and seed: learning curves, costs and final figures, as tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from minigrpo.common.console import printable
from minigrpo.common.errors import UserError
from minigrpo.reports.drawing import (
    COLOURS,
    DASHES,
    legend_above,
    percent_axis,
    picture,
    short,
    smooth,
    titled,
    two_columns,
    window_for,
)
from minigrpo.reports.run_reader import Records, phases, series

if TYPE_CHECKING:
    from minigrpo.reports.drawing import Axes

Runs = Mapping[str, Sequence[Records]]                          # label → a run for each seed
Figures = Mapping[str, Mapping[str, Sequence[float]]]           # label → what is measured → its value for each seed


# ----------------------------------------------------------------------------------------------------------------- figures
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
        found[label] = [fmean(series(run.steps, name)[-window_for(len(run.steps)):]) for run in members]
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


# ---------------------------------------------------------------------------------------------------------------- pictures
def compare_runs(runs: Runs, out: Path) -> list[Path]:
    """Several runs under each label, one a seed, as two pictures: how strict rose, by steps and by seconds, and where it
    ended. Thin lines and dots are runs, thick lines and bars their means.

    Strict on the evaluation split, where all runs were evaluated on it, and of the candidates; the ends are those of the
    splits that all runs report, else the last evaluation, else the last candidates. Returns ``out``/compare-curves.png and
    ``out``/compare-ends.png. ``ValueError``: no label, a label without runs, a run without steps.
    """
    every = [run for members in runs.values() for run in members]
    if not every or not all(runs.values()):
        none = ", ".join(label for label, members in runs.items() if not members) or "no label at all"
        raise UserError(f"a comparison needs a run under each label, got none for {none}")
    if early := [run.folder for run in every if not run.steps]:
        raise UserError(f"{early[0]} cannot be compared: it holds no step of GRPO")
    evaluated = [split for split in every[0].evaluations if all(split in run.evaluations for run in every)][:1]
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "compare-curves.png", out / "compare-ends.png"]
    _plot_comparison(runs, [*evaluated, ""], files[0])
    _plot_ends(runs, _ends(every, evaluated), files[1])
    return files


def _colour(number: int) -> tuple[str, str]:
    """Colour and dash of a label: seven colours that are seen on white, then the same with another dash."""
    return COLOURS[number % 7], DASHES[number // 7 % len(DASHES)]


def _plot_comparison(runs: Runs, splits: Sequence[str], file: Path) -> None:
    rows = math.ceil(len(runs) / 4)
    with picture(file, 2.7 * len(splits) + 0.2 * rows) as figure:
        grid = two_columns(figure, 2 * len(splits))
        for number, split in enumerate(splits):
            by_steps, by_seconds = grid[2 * number:2 * number + 2]
            for place, (label, members) in enumerate(runs.items()):
                _draw_seeds(by_steps, by_seconds, members, split, place, label)
            for axes, unit in ((by_steps, "steps taken"), (by_seconds, "seconds of steps")):
                axes.set_title(f"Strict on {short(split)}" if split else "Strict of the candidates")
                axes.set_ylabel("% of questions" if split else "% of candidates")
                axes.set_xlabel(unit)
                axes.set_xlim(left=0)
                percent_axis(axes)
        legend_above(figure, grid[0])


def _draw_seeds(by_steps: "Axes", by_seconds: "Axes", members: Sequence[Records], split: str, place: int, label: str) -> None:
    """A label's runs as thin lines; their mean as a thick one, at the steps that all have, or at their mean time."""
    (colour, dash), points = _colour(place), []
    for run in members:
        steps, values = run.curve(split)
        values, seconds = values if split else smooth(values, window_for(len(values)), fmean), run.seconds()
        points.append({step: (seconds[step], value) for step, value in zip(steps, values)})
        if len(members) > 1:
            for axes, across in ((by_steps, steps), (by_seconds, [seconds[step] for step in steps])):
                axes.plot(across, values, color=colour, linewidth=0.7, alpha=0.5)
    shared = sorted(set.intersection(*map(set, points)))
    means = [[fmean(run[step][axis] for run in points) for step in shared] for axis in (0, 1)]
    for axes, across in ((by_steps, shared), (by_seconds, means[0])):
        axes.plot(across, means[1], color=colour, linestyle=dash, linewidth=2, label=" " + printable(label),
                  marker="o" if split or len(shared) == 1 else "", markersize=4)


def _ends(every: Sequence[Records], evaluated: Sequence[str]) -> list[tuple[str, str]]:
    """(moment, split) of the figures that all runs have: "after" on their report splits, else the last evaluation, else the
    candidates of the last tenth of the steps."""
    first = every[0].moments.get("after", {})
    reported = [split for split in first if all(run.moments.get("after", {}).get(split, {}).get("n") for run in every)]
    return [("after", split) for split in reported] or [("last", split) for split in evaluated] or [("", "")]


def _end(run: Records, moment: str, split: str) -> float:
    if moment == "after":
        return run.moments[moment][split]["strict"]
    values = run.curve(split)[1]
    return values[-1] if split else fmean(values[-window_for(len(values)):])


def _plot_ends(runs: Runs, ends: Sequence[tuple[str, str]], file: Path) -> None:
    """Bars and figures are means over the runs of a label (lowest … highest), dots are runs, a line is where they began."""
    with picture(file, 0.5 + math.ceil(len(ends) / 2) * (0.9 + 0.3 * len(runs))) as figure:
        for axes, (moment, split) in zip(two_columns(figure, len(ends)), ends):
            for place, members in enumerate(runs.values()):
                values = [_end(run, moment, split) for run in members]
                starts = [run.moments["before"][split]["strict"] for run in members] if moment == "after" else []
                axes.barh(place, fmean(values), 0.7, color=_colour(place)[0], alpha=0.55)
                axes.plot(values, [place] * len(values), "o", color="black", markersize=3.5, markerfacecolor="white")
                if starts:
                    axes.vlines(fmean(starts), place - 0.4, place + 0.4, color="black", linewidth=1.5)
                spread = f" ({min(values):.1f} … {max(values):.1f})" if len(values) > 1 else ""
                axes.text(104, place, f"{fmean(values):.1f}{spread}", va="center", fontsize=8)
            axes.set_yticks(range(len(runs)), [short(label) for label in runs])
            axes.set_ylim(len(runs) - 0.5, -0.5)
            axes.set_xlim(0, 180)                       # room for the figures
            axes.set_xticks(range(0, 101, 25))
            axes.grid(False, axis="y")
            axes.set_xlabel("% strict " + {"after": "at the end; line: before", "last": "in the last evaluation",
                                           "": "of the last tenth of the steps"}[moment])
            axes.set_title(f"Strict on {short(split)}" if split else "Strict of the candidates")


# ---------------------------------------------------------------------------------------------------------------- what it cost
def plot_costs(runs: Runs, out: Path) -> list[Path]:
    """Strict on the evaluation split by seconds of training and by examples seen, warm-up included, up to the first label's
    total; and seconds of a step by phase. A line is a run, a bar a mean. Returns ``out``/compare-costs.png."""
    first, split = next(iter(runs.values())), next(iter(runs.values()))[0].cfg.evaluation.split
    out.mkdir(parents=True, exist_ok=True)
    file = out / "compare-costs.png"
    with picture(file, 4.6 + 0.3 * len(runs)) as figure:
        grid = two_columns(figure, 3)
        for axis, (axes, unit) in enumerate(zip(grid, ("seconds of training", "examples seen"))):
            for place, (label, members) in enumerate(runs.items()):
                for number, run in enumerate(members):
                    colour, dash = _colour(place)
                    axes.plot([look[axis] for look in run.costs()], [look[2] for look in run.costs()], color=colour, alpha=0.8,
                              linestyle=dash, linewidth=1.2, marker="o", markersize=2.5,
                              label=" " + printable(label) if number == 0 else None)
            axes.set_title(f"Strict on {short(split)}")
            axes.set_ylabel("% of questions")
            axes.set_xlabel(unit)
            axes.set_xlim(0, 1.05 * max(run.costs()[-1][axis] for run in first))
            percent_axis(axes)
        _draw_phases(grid[2], runs)
        legend_above(figure, grid[0])
    return [file]


def _draw_phases(axes: "Axes", runs: Runs) -> None:
    """Mean seconds of a GRPO step by phase, without negligible phases; of a warm-up step if there is no GRPO."""
    steps = {label: [phases(record) for run in members for record in run.steps or run.warmup]
             for label, members in runs.items()}
    names = list(dict.fromkeys(name for records in steps.values() for name in records[0]))
    spent = {label: [fmean(record.get(name, 0.0) for record in records) for name in names] for label, records in steps.items()}
    for number, name in enumerate(names):
        if any(seconds[number] > 0.005 * sum(seconds) for seconds in spent.values()):
            axes.barh(range(len(spent)), [seconds[number] for seconds in spent.values()], 0.7, color=COLOURS[number],
                      left=[sum(seconds[:number]) for seconds in spent.values()], label=name)
    axes.set_yticks(range(len(spent)), [short(label) for label in spent])
    axes.set_ylim(len(spent) - 0.5, -0.5)
    axes.set_xlabel("s")
    titled(axes, "Seconds of a step, by phase", columns=6)
