"""A run's records → learning curves and bars, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from minigrpo import config
from minigrpo.common.console import printable
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
from minigrpo.reports.run_reader import Json, Records, Summary, phases, series

if TYPE_CHECKING:
    from minigrpo.reports.drawing import Axes

BLIND, INTERVAL = "blind guess", "95 % interval"
METRICS = {"strict": "strict", "ems": "EMS", "rems": "REMS", "error_rate": "errors"}


# ---------------------------------------------------------------------------------------------------------- one picture
def _whole_steps(axes: "Axes", label: str, steps: Sequence[int]) -> None:
    """An axis of whole steps; a single step is centred."""
    axes.set_xlabel(label)
    axes.locator_params(axis="x", integer=True)
    if steps[0] == steps[-1]:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)


# --------------------------------------------------------------------------------------------------------------- curves
@dataclass(frozen=True)
class Panel:
    """``lines``: metric → its label. ``share``: values are 0 … 1 and shown in percent. ``limit``: a key of the config, drawn
    if the lines come near it."""

    title: str
    unit: str
    lines: Mapping[str, str]
    share: bool = False
    stacked: bool = False
    limit: str = ""


WARMUP_PANELS = (Panel("Warm-up: loss on gold SQL", "nats a token", {"loss": "loss"}),
                 Panel("Warm-up: gradient before clipping", "norm", {"grad_norm": "norm"}, limit="grpo.max_grad_norm"))


def _errors(record: Json) -> dict[str, str]:
    """The shares of each status but "ok", as a step's record has them: metric → status."""
    return {name: name.removeprefix("status/") for name in record if name.startswith("status/") and name != "status/ok"}


def step_panels(run: Records) -> list[Panel]:
    """The panels of the steps; of the phases, those that take more than half a percent of the time."""
    spent = {phase: sum(phases(record).get(phase, 0.0) for record in run.steps) for phase in phases(run.steps[0])}
    total = sum(spent.values())
    return [
        Panel("Reward of the candidates", "reward", {"reward": "mean", "reward_std": "σ within a group, mean"}),
        Panel("Candidates that are right", "% of candidates",
              {name: METRICS[name] for name in ("strict", "ems", "rems") if name in run.steps[0]}, share=True),
        Panel("Candidates that fail, by kind", "% of candidates", _errors(run.steps[0]),
              share=True, stacked=True),
        Panel("KL term against the start policy", "nats a token", {"kl": "KL"}),
        Panel("Length of the completions", "tokens", {"completions/mean_length": "mean", "completions/max_length": "longest"},
              limit="generation.max_new_tokens"),
        Panel("Zero spread, cut off", "%", {"frac_reward_zero_std": "groups of equal rewards",
                                        "completions/clipped_ratio": "completions cut off"}, share=True),
        Panel("Gradient before clipping", "norm", {"grad_norm": "norm"}, limit="grpo.max_grad_norm"),
        Panel("Seconds of a step, by phase", "s", stacked=True,
              lines={f"seconds/{phase}": f"{phase} {seconds / total:.0%}"
                     for phase, seconds in spent.items() if seconds > 0.005 * total})]


def plot_curves(run: Records, file: Path) -> None:
    """The steps as small multiples: each step as a faint point, the moving middle as a bold line; evaluations as points."""
    panels = [panel for panel in step_panels(run) if any(name in record for record in run.steps for name in panel.lines)]
    with picture(file, 2.25 * math.ceil((len(panels) + len(run.evaluations)) / 2)) as figure:
        grid = two_columns(figure, len(panels) + len(run.evaluations))
        for axes, split in zip(grid[2:], run.evaluations):
            _draw_evaluations(axes, split, run.evaluations[split], len(run.steps))
        for axes, panel in zip(grid[:2] + grid[2 + len(run.evaluations):], panels):
            _draw_panel(axes, panel, run.steps, run.cfg, "step")


def plot_warmup(run: Records, file: Path) -> None:
    """The warm-up's loss and gradient, and its scores."""
    looks = [record for record in run.warmup if "strict" in record]
    with picture(file, 2.25 * (1 + bool(looks))) as figure:
        grid = two_columns(figure, len(WARMUP_PANELS) + bool(looks))
        for axes, panel in zip(grid, WARMUP_PANELS):
            _draw_panel(axes, panel, run.warmup, run.cfg, "warm-up step")
        if looks:
            steps = [record["step"] + 1 for record in looks]
            grid[-1].plot(steps, series(looks, "strict"), "o-", color=COLOURS[0], markersize=3, linewidth=1, label="strict")
            grid[-1].axhline(run.cfg.warmup.stop_at, color="0.4", linewidth=1, linestyle="--", label="stop_at")
            grid[-1].set_ylabel("% of questions")
            percent_axis(grid[-1])
            _whole_steps(grid[-1], "warm-up steps taken", steps)
            titled(grid[-1], f"Warm-up: strict on {printable(run.cfg.evaluation.split)}")


def _draw_evaluations(axes: "Axes", split: str, records: Sequence[Json], last: int) -> None:
    steps = [record["step"] + 1 for record in records]          # an evaluation sees what its step has made of the policy
    # Equal values overlap, so the marks below are larger and hollow.
    for (name, label), rank, mark in zip(METRICS.items(), (0, 1, 2, 4), "os^x"):
        if f"{split}/{name}" not in records[0]:
            continue
        axes.plot(steps, series(records, f"{split}/{name}"), mark, linestyle=DASHES[rank % 4], color=COLOURS[rank],
                  markersize=4 + 3 * (rank % 4), markerfacecolor="none" if rank else COLOURS[rank], linewidth=1, label=label,
                  clip_on=False, zorder=3 - 0.1 * rank)
    axes.set_ylabel("% of questions")
    percent_axis(axes)
    _whole_steps(axes, "steps taken", [0, last])
    axes.set_xlim(-0.02 * last, 1.02 * last)
    titled(axes, f"Greedy on {printable(split)}", columns=4)


def _draw_panel(axes: "Axes", panel: Panel, records: Sequence[Json], cfg: config.Config, unit: str) -> None:
    steps, factor = [record["step"] for record in records], 100 if panel.share else 1
    values = {label: [factor * value for value in series(records, name)] for name, label in panel.lines.items()}
    # The median ignores a single odd step; for shares the mean keeps rare errors visible and lets shares add up.
    middle = {label: smooth(line, window_for(len(steps)), fmean if panel.share else median) for label, line in values.items()}
    shown = _draw_stack(axes, steps, middle) if panel.stacked else _draw_lines(axes, steps, values, middle)
    missing = [record["step"] for record in records if any(record.get(name, 0) is None for name in panel.lines)]
    if missing:
        axes.plot(missing, [0.03] * len(missing), "x", color="black", markersize=5, transform=axes.get_xaxis_transform(),
                  label="not finite")
    if panel.share:
        # If errors are rare, a finer scale is needed to tell their kinds apart. It starts at 0.
        scales = (4, 8, 12, 20, 40, 60) if panel.stacked else ()
        percent_axis(axes, next((end for end in scales if shown <= end + 1e-9), 100))
    else:
        heights = [list(map(sum, zip(*values.values())))] if panel.stacked else list(values.values())
        points = [(step, value) for line in heights for step, value in zip(steps, line) if math.isfinite(value)]
        limit = config.flatten(cfg)[panel.limit] if panel.limit else math.inf
        _axis_from_zero(axes, points, shown, limit, panel.limit.partition(".")[2])
    axes.set_ylabel(panel.unit)
    _whole_steps(axes, unit, steps)
    titled(axes, panel.title, always=panel.stacked)


def _draw_lines(axes: "Axes", steps: Sequence[int], values: Mapping[str, Sequence[float]],
                middle: Mapping[str, Sequence[float]]) -> float:
    """Each step as a faint point, the moving middle as a bold line, the first on top. Returns the lines' highest point."""
    for rank, (label, line) in enumerate(values.items()):
        axes.plot(steps, line, ".", color=COLOURS[rank], markersize=3, alpha=0.35)
        axes.plot(steps, middle[label], DASHES[rank], color=COLOURS[rank], marker="o" if len(steps) == 1 else "",
                  linewidth=1.8, label=label, zorder=3 - 0.1 * rank, clip_on=False)
    finite = [value for line in middle.values() for value in line if math.isfinite(value)]
    if not finite:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center")
        axes.set_yticks([])
    return max(finite, default=0.0)


def _draw_stack(axes: "Axes", steps: Sequence[int], middle: Mapping[str, Sequence[float]]) -> float:
    """Stacked areas, without those that are always zero. Returns the highest point."""
    edges, bottom = [step - 0.5 for step in [*steps, steps[-1] + 1]], [0.0] * len(steps)
    for colour, (label, line) in zip(COLOURS, middle.items()):
        if any(line):
            top = list(map(sum, zip(bottom, line)))
            axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, linewidth=0, label=label)
            bottom = top
    if not any(bottom):
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    return max(bottom)


def _axis_from_zero(axes: "Axes", points: Sequence[tuple[int, float]], shown: float, limit: float, name: str) -> None:
    """Begin the axis at 0 if no value is negative, and end it above ``shown`` and nearly all points. Outliers are arrows at
    the edge, with the largest value as their label. A limit is drawn if it is near."""
    values = sorted(value for _, value in points)
    if not values or values[0] < 0:
        return
    usual = values[math.ceil(0.95 * len(values)) - 1]
    top = max(1.5 * usual, 1.1 * shown) if values[-1] > 4 * usual else values[-1]
    beyond = [step for step, value in points if value > top]
    if beyond:
        axes.plot(beyond, [0.96] * len(beyond), "^", color="black", markersize=5, transform=axes.get_xaxis_transform(),
                  label=f"up to {values[-1]:.3g}")
    if limit < 2 * top:
        axes.axhline(limit, color="0.4", linewidth=1, linestyle="--", label=name)
        top = max(top, limit)
    axes.set_ylim(0, 1.06 * top or 1)


# ----------------------------------------------------------------------------------------------------------------- bars
def plot_splits(moments: Mapping[str, Summary], file: Path) -> None:
    """Each split as bars, one colour for each moment, with intervals if the summary has them; the blind guess as a line."""
    last = list(moments.values())[-1]
    splits = [split for split, line in last.items() if line["n"]]
    thick = 0.8 / len(moments)
    metrics = {name: title for name, title in METRICS.items() if all(name in last[split] for split in splits)}
    with picture(file, 1.6 + 2 * len(splits) * (0.2 + 0.16 * len(moments))) as figure:
        grid = two_columns(figure, len(metrics))
        for axes, (metric, title) in zip(grid, metrics.items()):
            for number, (moment, summary) in enumerate(moments.items()):
                for place, split in enumerate(splits):
                    _bar(axes, summary[split], metric, place - 0.4 + (number + 0.5) * thick, thick,
                         COLOURS[0 if number == len(moments) - 1 else 5], moment if place == 0 else "")
            if metric == "strict" and all("blind" in last[split] for split in splits):
                places = range(len(splits))
                axes.vlines([last[split]["blind"] for split in splits], [place - 0.45 for place in places],
                            [place + 0.45 for place in places], color="black", linewidth=1.5, label=BLIND)
            axes.set_yticks(range(len(splits)), [short(split) for split in splits])
            axes.set_ylim(len(splits) - 0.5, -0.5)
            axes.set_xlim(0, 118)                       # room for a figure behind a bar of 100
            axes.set_xticks(range(0, 101, 25))
            axes.grid(False, axis="y")
            axes.set_xlabel("% of questions")
            axes.set_title(title)
        legend_above(figure, grid[0], (BLIND, INTERVAL))


def _bar(axes: "Axes", line: Mapping, metric: str, place: float, thick: float, colour: str, label: str) -> None:
    low, high = line.get("interval", {}).get(metric, (line[metric], line[metric]))
    axes.barh(place, line[metric], 0.9 * thick, color=colour, label=label)
    if low < high:
        axes.plot([low, high], [place, place], color="white", linewidth=3)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2, label=INTERVAL if label else "")
    axes.text(max(line[metric], high) + 1.5, place, f"{line[metric]:.1f}", va="center", fontsize=8)
