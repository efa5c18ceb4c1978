"""What all pictures share: style, layout, legends, smoothing.

Only this file imports matplotlib, and only when a picture is drawn.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigrpo.common.console import printable
from minigrpo.common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too; the light ones last, for areas.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#F0E442")
DASHES = ("-", "--", ":", "-.")
# Text is never mathematics: a "$" in a label is a dollar.
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold", "legend.fontsize": 8,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "0.92", "savefig.dpi": 150, "text.parse_math": False, "text.usetex": False}
WIDTH = 8.0                                     # inches: 1200 pixels, and still to be read at 800


def smooth(values: Sequence[float], window: int, middle: Callable[[Sequence[float]], float]) -> list[float]:
    """The centred moving ``middle`` (a mean or a median) of the finite values; the window is cut off at both ends.

    >>> from statistics import fmean
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


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


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
    """``count`` axes in two columns; an odd one at the end is as wide as both."""
    places = figure.add_gridspec((count + 1) // 2, 2)
    return [figure.add_subplot(places[i // 2, :] if i == count - 1 and count % 2 else places[i // 2, i % 2])
            for i in range(count)]


def titled(axes: "Axes", title: str, *, columns: int = 3, always: bool = False) -> None:
    """The title, and between it and the axes the legend, if there is more than one line (or ``always``)."""
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


def short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= 24 else shown[:23] + "…"


def legend_above(figure: "Figure", axes: "Axes", last: Sequence[str] = ()) -> None:
    """One legend for all axes, with the labels ``last`` at its end. No label may begin with an underscore: matplotlib would
    ignore it."""
    entries = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    order = sorted(entries, key=lambda label: label in last)
    figure.legend([entries[label] for label in order], order, loc="outside upper left", ncols=4)
