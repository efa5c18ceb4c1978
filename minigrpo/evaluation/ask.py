"""One question that nobody has answered yet: the policy's candidates, and what each of them gives. Knows no gold answer."""

from dataclasses import replace

import torch

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import INDENT, WIDTH, labelled, printable, table
from minigrpo.common.errors import UserError
from minigrpo.common.messages import unknown
from minigrpo.policy.files.weights import Policy
from minigrpo.policy.search import Completion
from minigrpo.rollout import Group, Judge, Rollout, collect
from minigrpo.task.sql.answer import render_cell
from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.question import Question
from minigrpo.task.sql.reward import Reward

MOST_ROWS, MOST_COLUMNS = 10, 8                 # of a result, on the console


def pose(text: str, database: str, judge: Judge) -> Question:
    """``text`` as a question to one of the judge's databases. An empty one, or an unknown database: ``ValueError``."""
    if not text.strip():
        raise UserError("--ask: the question is empty")
    if any("\ud800" <= char <= "\udfff" for char in text):      # how Python shows bytes of a command line that are no text
        raise UserError("--ask: the question is not UTF-8")
    if database not in judge.databases:
        raise UserError(f"--database: {unknown('database', database, judge.databases)}: there are "
                         f"{', '.join(judge.databases)}")
    return Question("--ask", "", 0, text, "", database, "")


def write_candidates(question: Question, policy: Policy, judge: Judge, generation: config.Generation,
                     generator: torch.Generator) -> Group:
    """The question's group, as training would see it but for the rewards: without a known answer there are none."""
    blind = replace(judge, reward=lambda question, sql, execution: Reward(0.0, {}))
    group, = collect([question], policy, blind, generation, generator=generator, clock=Clock())
    return group


def score(completion: Completion, generation: config.Generation) -> float:
    """How likely the policy finds it: what beams are ranked by, or of a sample Σ log-prob."""
    length = len(completion.ids) ** generation.length_penalty if generation.method == "beam" else 1
    return sum(completion.logprobs) / length


def show_candidates(group: Group, generation: config.Generation) -> str:
    """The question and each different SQL with its score, best first, and what it gave, within 80 columns."""
    method = (f"{generation.completions} beams, scored Σ log-prob / length^{generation.length_penalty:g}"
              if generation.method == "beam" else
              f"{generation.completions} samples at temperature {generation.temperature:g}, scored Σ log-prob")
    lines = [*labelled("question", group.question.text), *labelled("database", group.question.database),
             *labelled("method", method)]
    alike: dict[str | None, list[Rollout]] = {}
    for rollout in sorted(group.rollouts, key=lambda rollout: -score(rollout.completion, generation)):
        alike.setdefault(rollout.sql, []).append(rollout)
    for sql, (best, *others) in alike.items():
        written = f"{score(best.completion, generation):.3g}" + (f", written {1 + len(others)} times" if others else "")
        cut = "" if best.completion.stopped else f", cut off after {len(best.completion.ids)} tokens"
        lines += ["", *labelled("score", written + cut), *labelled("SQL", sql or ""), *gave(best.execution)]
    return "\n".join(lines)


def gave(execution: Execution) -> list[str]:
    """The rows, or the error, beside a label; an engine quotes what it cannot read, at any length, so that is cut."""
    if not execution.ok:
        return labelled("gave", execution.status + (f": {execution.error}" if execution.error else ""), 8)
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
    cells = [[printable(cell)[:width + 1] for cell in row[:MOST_COLUMNS]] for row in
             (execution.columns, *([render_cell(value) for value in row] for row in execution.rows[:MOST_ROWS]))]
    widths = [max(map(len, column)) for column in zip(*cells)]
    room = width - 2 * (len(widths) - 1)
    widest = next(widest for widest in range(width, 0, -1) if sum(min(size, widest) for size in widths) <= room)
    drawn = table([[cell if len(cell) <= widest else cell[:widest - 1] + "…" for cell in row] for row in cells])
    more = [f"{count} more {what}{'s' * (count > 1)}" for count, what in
            ((len(execution.rows) - MOST_ROWS, "row"), (len(execution.columns) - MOST_COLUMNS, "column")) if count > 0]
    return "\n".join([*(line.rstrip() for line in drawn.split("\n")), *([f"… {' and '.join(more)}"] if more else [])])
