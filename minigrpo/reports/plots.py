"""A run's records → curves and bars, as PNG files; and what all pictures share.

Only this file imports matplotlib, and only when a picture is drawn.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from minigrpo.common.console import printable
from minigrpo.common.errors import UserError
from minigrpo.reports.run_reader import Json, Records, Summary, phases, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too; the light ones last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#F0E442")
DASHES = ("-", "--", ":", "-.")
# Text is never mathematics: a "$" in a label is a dollar.
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold", "legend.fontsize": 8,
    "legend.frameon": False, "legend.borderpad": 0, "legend.borderaxespad": 0.2, "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2, "legend.labelspacing": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "0.92", "savefig.dpi": 150, "text.parse_math": False,
    "text.usetex": False}
WIDTH = 8.0                                     # inches: 1200 pixels, and still to be read at 800
METRICS = {"strict": "strict", "ems": "EMS", "rems": "REMS", "error_rate": "errors"}


# ------------------------------------------------------------------------------------------------- what all pictures share
def smooth(values: Sequence[float], window: int, middle: Callable[[Sequence[float]], float]) -> list[float]:
    """The centred moving ``middle`` (a mean or a median) of the finite values; the window is cut off at both ends.

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


@contextmanager
def picture(file: Path, height: float) -> Iterator["Figure"]:
    """Yield a figure to draw on; on leaving it is written to ``file``. No matplotlib: ``UserError``."""
    try:
        import matplotlib.figure
        import matplotlib.layout_engine
        import matplotlib.ticker
    except ModuleNotFoundError:
        raise UserError("pictures are drawn with matplotlib, which is not installed: pip install -e '.[plot]'") from None
    with matplotlib.rc_context(STYLE):
        layout = matplotlib.layout_engine.ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.03, wspace=0.03)
        figure = matplotlib.figure.Figure((WIDTH, height), layout=layout)
        yield figure
        figure.savefig(file)


def two_columns(figure: "Figure", count: int) -> list["Axes"]:
    return [figure.add_subplot(math.ceil(count / 2), 2, number) for number in range(1, count + 1)]


def percent_axis(axes: "Axes") -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 25))


def short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= 24 else shown[:23] + "…"


# --------------------------------------------------------------------------------------------------------------- curves
@dataclass(frozen=True)
class Panel:
    """``lines``: metric of the records → its label. ``factor``: 100 shows shares in percent. ``whole``: the axis is 0 … 100.
    ``smoothed``: the line is not the values, but their moving middle."""

    title: str
    unit: str
    records: Sequence[Json]
    lines: Mapping[str, str]
    factor: int = 1
    whole: bool = False
    smoothed: bool = True


def plot_curves(run: Records, file: Path) -> None:
    """The steps and the evaluations, without panels of which nothing is on record; of the kinds of errors those that occur; of
    the phases those that take more than half a percent of the time."""
    steps = run.steps
    spent = {phase: sum(phases(record).get(phase, 0.0) for record in steps) for phase in phases(steps[0])}
    total = sum(spent.values())
    errors = [name for name in steps[0] if name.startswith("status/") and name != "status/ok"]
    panels = [
        Panel("Reward of the candidates", "reward", steps, {"reward": "mean", "reward_std": "σ within a group, mean"}),
        Panel("Candidates that are right", "% of candidates", steps,
              {name: METRICS[name] for name in ("strict", "ems", "rems") if name in steps[0]}, 100, whole=True),
        *(Panel(f"Greedy on {printable(split)}", "% of questions", records,
                {f"{split}/{name}": label for name, label in METRICS.items() if f"{split}/{name}" in records[0]},
                whole=True, smoothed=False) for split, records in run.evaluations.items()),
        Panel("Candidates that fail, by kind", "% of candidates", steps,
              {"error_rate": "all", **{name: name.removeprefix("status/") for name in errors
                                       if any(record.get(name) for record in steps)}}, 100),
        Panel("KL term against the start policy", "nats a token", steps, {"kl": "KL"}),
        Panel("Length of the completions", "tokens", steps,
              {"completions/mean_length": "mean", "completions/max_length": "longest"}),
        Panel("Zero spread, cut off", "%", steps, {"frac_reward_zero_std": "groups of equal rewards",
                                               "completions/clipped_ratio": "completions cut off"}, 100, whole=True),
        Panel("Gradient before clipping", "norm", steps, {"grad_norm": "norm"}),
        Panel("Seconds of a step, by phase", "s", steps, {f"seconds/{phase}": f"{phase} {seconds / total:.0%}"
                                                          for phase, seconds in spent.items() if seconds > 0.005 * total})]
    _draw([panel for panel in panels if any(name in record for record in panel.records for name in panel.lines)], file)


def plot_warmup(run: Records, file: Path) -> None:
    """The warm-up's loss and gradient, and its scores."""
    looks = [record for record in run.warmup if "strict" in record]
    scores = Panel(f"Warm-up: strict on {printable(run.cfg.evaluation.split)}", "% of questions", looks, {"strict": "strict"},
                   whole=True, smoothed=False)
    _draw([Panel("Warm-up: loss on gold SQL", "nats a token", run.warmup, {"loss": "loss"}),
           Panel("Warm-up: gradient before clipping", "norm", run.warmup, {"grad_norm": "norm"}),
           *([scores] if looks else [])], file)


def _draw(panels: Sequence[Panel], file: Path) -> None:
    with picture(file, 2.25 * math.ceil(len(panels) / 2)) as figure:
        for axes, panel in zip(two_columns(figure, len(panels)), panels):
            _draw_panel(axes, panel)
            axes.set_xlabel("step")
            axes.set_xlim(-1, max(record["step"] for each in panels for record in each.records) + 1)
            axes.locator_params(axis="x", integer=True)
            axes.set_ylabel(panel.unit)
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
            axes.set_title(panel.title, pad=5 + 12 * math.ceil(len(labels) / 3))        # above the legend


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    """Each step as a faint point, the moving middle as a bold line, steps that are not finite as crosses at the edge. Later
    lines are broken, so that an equal one is seen below them."""
    steps, highest = [record["step"] for record in panel.records], 0.0
    window = window_for(len(steps)) if panel.smoothed else 1
    for rank, (name, label) in enumerate(panel.lines.items()):
        values = [panel.factor * value for value in series(panel.records, name)]
        # The median ignores a single odd step; for shares the mean keeps rare errors visible and lets shares add up.
        middle, colour = smooth(values, window, median if panel.factor == 1 else fmean), COLOURS[rank % len(COLOURS)]
        axes.plot(steps, values, ".", color=colour, markersize=3, alpha=0.35)
        axes.plot(steps, middle, DASHES[rank % len(DASHES)], color=colour, linewidth=1.8, label=label,
                  marker="o" if window == 1 else "", markersize=3.5)
        highest = max([highest, *filter(math.isfinite, middle)])
    if panel.whole:
        percent_axis(axes)
    elif axes.dataLim.ymin >= 0:                # a few odd steps lie above the axis, where they would flatten all others
        axes.set_ylim(0, min(axes.get_ylim()[1], 3 * highest) or 1)
    missing = [record["step"] for record in panel.records if any(record.get(name, 0) is None for name in panel.lines)]
    if missing:
        axes.plot(missing, [0.03] * len(missing), "kx", markersize=5, transform=axes.get_xaxis_transform(), label="not finite")


# ----------------------------------------------------------------------------------------------------------------- bars
def plot_splits(moments: Mapping[str, Summary], file: Path) -> None:
    """Each split as bars, one colour for each moment, with intervals if the summary has them; the blind guess as a line."""
    last = list(moments.values())[-1]
    splits = [split for split, line in last.items() if line["n"]]
    metrics = {name: title for name, title in METRICS.items()
               if all(name in summary[split] for summary in moments.values() for split in splits)}
    thick, places = 0.8 / len(moments), range(len(splits))
    with picture(file, 1.6 + 2 * len(splits) * (0.2 + 0.16 * len(moments))) as figure:
        grid = two_columns(figure, len(metrics))
        for axes, (metric, title) in zip(grid, metrics.items()):
            for number, (moment, summary) in enumerate(moments.items()):
                _bars(axes, [summary[split] for split in splits], metric, (number + 0.5) * thick - 0.4, thick,
                      COLOURS[0 if number == len(moments) - 1 else 5], moment)
            if metric == "strict" and all("blind" in last[split] for split in splits):
                axes.vlines([last[split]["blind"] for split in splits], [place - 0.45 for place in places],
                            [place + 0.45 for place in places], color="black", linewidth=1.5, label="blind guess")
            axes.set_yticks(places, [short(split) for split in splits])
            axes.set_ylim(len(splits) - 0.5, -0.5)
            axes.set_xlim(0, 118)                       # room for a figure behind a bar of 100
            axes.set_xticks(range(0, 101, 25))
            axes.grid(False, axis="y")
            axes.set_xlabel("% of questions")
            axes.set_title(title)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)


def _bars(axes: "Axes", lines: Sequence[Mapping], metric: str, shift: float, thick: float, colour: str, label: str) -> None:
    places, values = [place + shift for place in range(len(lines))], [line[metric] for line in lines]
    axes.barh(places, values, 0.9 * thick, color=colour, label=label)
    ends = [line.get("interval", {}).get(metric, (value, value)) for line, value in zip(lines, values)]
    if any(low < high for low, high in ends):
        axes.hlines(places, *zip(*ends), color="black", linewidth=1.2, label="95 % interval")
    for place, value, (_, high) in zip(places, values, ends):
        axes.text(min(100, max(0, value, high)) + 1.5, place, f"{value:.1f}", va="center", fontsize=8, clip_on=True)
