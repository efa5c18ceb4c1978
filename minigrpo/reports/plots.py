"""A run's records → learning curves and bars, as PNG files. Knows no model and no database.

matplotlib is named here alone, and only when a picture is drawn.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from minigrpo import config
from minigrpo.common.console import printable
from minigrpo.common.errors import UserError
from minigrpo.reports.run_reader import Json, Records, Summary, phases, series
from minigrpo.task.sql.engines.database import STATUSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too; the light ones last, for areas.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#F0E442")
DASHES = ("-", "--", ":", "-.")
# Text is never mathematics: a "$" in a label is a dollar.
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold", "legend.fontsize": 8,
         "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "axes.axisbelow": True, "grid.color": "0.92", "savefig.dpi": 150, "text.parse_math": False, "text.usetex": False}
WIDTH = 8.0                                     # inches: 1200 pixels, and still to be read at 800
BLIND, INTERVAL = "blind guess", "95 % interval"
METRICS = {"strict": "strict", "ems": "EMS", "rems": "REMS", "error_rate": "errors"}


def smooth(values: Sequence[float], window: int, middle: Callable[[Sequence[float]], float]) -> list[float]:
    """The centred moving ``middle`` (a mean or a median) of the finite values; at both ends of those that there are.

    >>> smooth([0.0, 3.0, math.nan, 5.0, 1.0], 3, fmean)
    [1.5, 1.5, 4.0, 3.0, 3.0]
    """
    finite = ([value for value in values[max(0, i - window // 2):i + window // 2 + 1] if math.isfinite(value)]
              for i in range(len(values)))
    return [middle(some) if some else math.nan for some in finite]


def window_for(count: int) -> int:
    """An odd number of steps, near a tenth of them.

    >>> [window_for(count) for count in (1, 24, 110, 1000)]
    [1, 3, 11, 101]
    """
    return 2 * (count // 20) + 1


# ---------------------------------------------------------------------------------------------------------- one picture
def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def picture(file: Path, height: float) -> Iterator["Figure"]:
    """A figure to draw on; on leaving it is ``file``. No matplotlib: ``ValueError``."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        raise UserError("pictures are drawn with matplotlib, which is not installed: pip install -e '.[plot]'") from None
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure((WIDTH, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.03, wspace=0.03)
        yield figure
        figure.savefig(file)


def two_columns(figure: "Figure", count: int) -> list["Axes"]:
    """``count`` axes in two columns; an odd one at the end is as wide as both."""
    places = figure.add_gridspec((count + 1) // 2, 2)
    return [figure.add_subplot(places[i // 2, :] if i == count - 1 and count % 2 else places[i // 2, i % 2])
            for i in range(count)]


def titled(axes: "Axes", title: str, *, columns: int = 3, always: bool = False) -> None:
    """The title, and between it and the axes what the lines are, where there is more than one (or ``always``)."""
    handles, labels = axes.get_legend_handles_labels()
    rows = math.ceil(len(handles) / columns) if len(handles) > 1 or always else 0
    if rows:
        order = [i for column in range(columns) for i in range(column, len(handles), columns)]      # it fills column by column
        axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="lower left", bbox_to_anchor=(0, 1),
                    ncols=columns, borderaxespad=0.2, borderpad=0, handlelength=1.6, columnspacing=1.2, labelspacing=0.25)
    axes.set_title(title, pad=5 + 12 * rows)


def percent_axis(axes: "Axes", top: float = 100) -> None:
    axes.set_ylim(0, top)
    axes.set_yticks([top * part / 4 for part in range(5)])


def _whole_steps(axes: "Axes", label: str, steps: Sequence[int]) -> None:
    """An axis of whole steps; one alone stands in the middle."""
    axes.set_xlabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if steps[0] == steps[-1]:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)


# --------------------------------------------------------------------------------------------------------------- curves
@dataclass(frozen=True)
class Panel:
    """``lines``: metric → what it is called. ``share``: of 0 … 1, shown in percent. ``limit``: a key of the config, drawn
    where the lines come near it."""

    title: str
    unit: str
    lines: Mapping[str, str]
    share: bool = False
    stacked: bool = False
    limit: str = ""


WARMUP_PANELS = (Panel("Warm-up: loss on gold SQL", "nats a token", {"loss": "loss"}),
                 Panel("Warm-up: gradient before clipping", "norm", {"grad_norm": "norm"}, limit="grpo.max_grad_norm"))


def step_panels(run: Records) -> list[Panel]:
    """What is drawn of the steps; of the phases, those that take more than half a percent of the time."""
    spent = {phase: sum(phases(record).get(phase, 0.0) for record in run.steps) for phase in phases(run.steps[0])}
    total = sum(spent.values())
    return [
        Panel("Reward of the candidates", "reward", {"reward": "mean", "reward_std": "σ within a group, mean"}),
        Panel("Candidates that are right", "% of candidates",
              {name: METRICS[name] for name in ("strict", "ems", "rems")}, share=True),
        Panel("Candidates that fail, by kind", "% of candidates", {f"status/{name}": name for name in STATUSES[1:]},
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
    """The steps as small multiples: every step faint, the moving middle bold; evaluations as points."""
    panels = [panel for panel in step_panels(run) if any(name in record for record in run.steps for name in panel.lines)]
    with picture(file, 2.25 * math.ceil((len(panels) + len(run.evaluations)) / 2)) as figure:
        grid = two_columns(figure, len(panels) + len(run.evaluations))
        for axes, split in zip(grid[2:], run.evaluations):
            _draw_evaluations(axes, split, run.evaluations[split], len(run.steps))
        for axes, panel in zip(grid[:2] + grid[2 + len(run.evaluations):], panels):
            _draw_panel(axes, panel, run.steps, run.cfg, "step")


def plot_warmup(run: Records, file: Path) -> None:
    """The warm-up's loss and gradient, and what it scored when it was looked at."""
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
    # What is equal lies one upon another: the lower marks are larger, and hollow.
    for (name, label), rank, mark in zip(METRICS.items(), (0, 1, 2, 4), "os^x"):
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
    # One odd step must not bend a line, but rare errors must not vanish, and shares must add up.
    middle = {label: smooth(line, window_for(len(steps)), fmean if panel.share else median) for label, line in values.items()}
    shown = _draw_stack(axes, steps, middle) if panel.stacked else _draw_lines(axes, steps, values, middle)
    missing = [record["step"] for record in records if any(record.get(name, 0) is None for name in panel.lines)]
    if missing:
        axes.plot(missing, [0.03] * len(missing), "x", color="black", markersize=5, transform=axes.get_xaxis_transform(),
                  label="not finite")
    if panel.share:
        # Errors are few where all goes well: their kinds want a scale on which they can be told apart. It starts at 0.
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
    """Every step faint, the moving middle bold, the first of them uppermost. Returns the highest point of what is bold."""
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
    """Areas one upon another, those that are always zero left out. Returns the highest point."""
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
    """Let the axis begin at 0 where nothing is below it, and end above ``shown`` and nearly all points: those that tower
    above the rest are arrows at the edge, with how far the farthest goes. A limit is drawn where it is near."""
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
    """Each split of a table as bars, a colour a moment, with its interval where the summary has one; and the blind guess."""
    splits = [split for split, line in list(moments.values())[-1].items() if line["n"]]
    thick = 0.8 / len(moments)
    with picture(file, 1.6 + 2 * len(splits) * (0.2 + 0.16 * len(moments))) as figure:
        grid = two_columns(figure, len(METRICS))
        for axes, (metric, title) in zip(grid, METRICS.items()):
            for number, (moment, summary) in enumerate(moments.items()):
                for place, split in enumerate(splits):
                    _bar(axes, summary[split], metric, place - 0.4 + (number + 0.5) * thick, thick,
                         COLOURS[0 if number == len(moments) - 1 else 5], moment if place == 0 else "")
            guesses = [(place, list(moments.values())[-1][split].get("blind")) for place, split in enumerate(splits)]
            if metric == "strict" and all(guess is not None for _, guess in guesses):
                axes.vlines([guess for _, guess in guesses], [place - 0.45 for place, _ in guesses],
                            [place + 0.45 for place, _ in guesses], color="black", linewidth=1.5, label=BLIND)
            axes.set_yticks(range(len(splits)), [short(split) for split in splits])
            axes.set_ylim(len(splits) - 0.5, -0.5)
            axes.set_xlim(0, 118)                       # room for a figure behind a bar of 100
            axes.set_xticks(range(0, 101, 25))
            axes.grid(False, axis="y")
            axes.set_xlabel("% of questions")
            axes.set_title(title)
        legend_above(figure, grid[0])


def _bar(axes: "Axes", line: Mapping, metric: str, place: float, thick: float, colour: str, label: str) -> None:
    low, high = line.get("interval", {}).get(metric, (line[metric], line[metric]))
    axes.barh(place, line[metric], 0.9 * thick, color=colour, label=label)
    if low < high:
        axes.plot([low, high], [place, place], color="white", linewidth=3)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2, label=INTERVAL if label else "")
    axes.text(max(line[metric], high) + 1.5, place, f"{line[metric]:.1f}", va="center", fontsize=8)


def short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= 24 else shown[:23] + "…"


def legend_above(figure: "Figure", axes: "Axes") -> None:
    """What the colours are, once for all axes. matplotlib leaves out what begins with an underscore: no label does."""
    entries = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    order = sorted(entries, key=lambda label: label in (BLIND, INTERVAL))
    figure.legend([entries[label] for label in order], order, loc="outside upper left", ncols=4)
