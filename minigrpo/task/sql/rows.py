"""An execution as text for the console: the first rows as a table, or the error."""

from minigrpo.common.console import INDENT, WIDTH, labelled, printable, table
from minigrpo.task.sql.answer import render_cell
from minigrpo.task.sql.engines.database import Execution

MAX_ROWS, MAX_COLUMNS = 10, 8                   # of a result, on the console


def show_execution(execution: Execution, lines: int) -> list[str]:
    """The rows, or the error beside a label. An error is cut after ``lines``: an engine quotes SQL of any length in it."""
    if not execution.ok:
        return labelled("gave", execution.status + (f": {execution.error}" if execution.error else ""), lines)
    if not execution.rows:
        return labelled("gave", "no rows")
    shown, *rest = rows_table(execution, WIDTH - INDENT).split("\n")
    return [f"  {'gave':<{INDENT - 2}}{shown}", *(" " * INDENT + line for line in rest)]


def rows_table(execution: Execution, width: int) -> str:
    """Column names and the first rows, at most ``width`` wide; long cells are cut, the widest first.

    >>> print(rows_table(Execution("ok", (("Ana Almeida", 3), ("Zoë Wong", None)), ("name", "golds")), 16))
    name       golds
    Ana Alme…      3
    Zoë Wong    None
    """
    cells = [[printable(cell)[:width + 1] for cell in row[:MAX_COLUMNS]] for row in
             (execution.columns, *([render_cell(value) for value in row] for row in execution.rows[:MAX_ROWS]))]
    widths = [max(map(len, column)) for column in zip(*cells)]
    room = width - 2 * (len(widths) - 1)
    widest = next(widest for widest in range(width, 0, -1) if sum(min(size, widest) for size in widths) <= room)
    drawn = table([[cell if len(cell) <= widest else cell[:widest - 1] + "…" for cell in row] for row in cells])
    more = [f"{count} more {what}{'s' * (count > 1)}" for count, what in
            ((len(execution.rows) - MAX_ROWS, "row"), (len(execution.columns) - MAX_COLUMNS, "column")) if count > 0]
    return "\n".join([*(line.rstrip() for line in drawn.split("\n")), *([f"… {' and '.join(more)}"] if more else [])])
