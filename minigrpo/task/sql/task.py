"""The SQL task: question and schema become a prompt, the SQL in a completion is run, its rows are compared with the answer.

The one file that joins a data set, an engine and a reward. Does not depend on torch or on any model.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import INDENT, WIDTH, labelled, printable, table
from minigrpo.common.errors import UserError, unknown
from minigrpo.task.contract import Task, Try, Verdict
from minigrpo.task.sql.answer import Question, render_answer, render_cell, score_answer
from minigrpo.task.sql.data import athletes, jsonl, temptabqa
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.engines import mariadb, sqlite
from minigrpo.task.sql.engines.database import STATUSES, Database, Execution, Limits, MockDatabase, Remembered, Tables, run_all
from minigrpo.task.sql.engines.mariadb_driver import Login
from minigrpo.task.sql.prompt import TEMPLATES, extract_sql, read_examples, render_prompt, schema_text
from minigrpo.task.sql.reward import Reward, make_reward
from minigrpo.task.sql.structure import invented

# ``task.kind`` → data set. A new data set is one file in data/ and one row here.
DATASETS = {"temptabqa": temptabqa.DATASET, "athletes": athletes.DATASET, "jsonl": jsonl.DATASET}
Opened = tuple[Database, Mapping[str, Tables]]
MAX_ROWS, MAX_COLUMNS = 10, 8                   # of a result, on the console
MIN_KNOWN_SAMPLES = 3       # of a column that a query may know: a warm-up teaches values that the prompt does not show


class SQLTask(Task):
    """See ``Task``; ``cfg``'s sections task, database and reward describe it."""

    language = "sql"
    scores = ("strict", "ems", "rems")
    outcomes = STATUSES
    record_form = {"sql": str | None, "reward": {"total": int | float, "terms": {...: int | float}},
                   "execution": {"status": str, "error": str, "columns": [str],
                                 "rows": [[str | int | float | bool | None]]}}

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg
        self.dataset = DATASETS[cfg.task.kind]
        self.second = self.dataset.second

    # ------------------------------------------------------------------------------------------------------------ questions
    def load(self, split: str, solutions: str = "") -> list[Question]:
        return self.dataset.load(self.cfg.task.path, split, solutions)

    def test_splits(self) -> list[str]:
        return list(self.dataset.test_splits(self.cfg.task.path, self.cfg.task.split))

    def has_split(self, split: str) -> bool:
        return self.dataset.has_split(self.cfg.task.path, split)

    # ------------------------------------------------------------------------------------------------- the database, opened
    def __enter__(self) -> "SQLTask":
        task = self.cfg.task
        make_reward(self.cfg.reward.preset, {})             # report a wrong preset before a server is started
        self.examples = read_examples(Path(task.examples)) if task.examples else []
        self.database: Database
        self.tables: Mapping[str, Tables]
        self.database, self.tables = open_databases(task.path, self.dataset, self.cfg.database)
        self.reward = make_reward(self.cfg.reward.preset, self.tables)
        self.schema = cache(lambda name, samples: schema_text(task.template, self.tables[name], samples))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.database.close()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Each different query is run once for as long as its result is remembered."""
        database, self.database = self.database, Remembered(self.database)
        try:
            yield
        finally:
            self.database = database

    # ----------------------------------------------------------------------------------------------------------- one question
    def prompt(self, problem: Question) -> str:
        task = self.cfg.task
        return render_prompt(task.template, problem.text, self.schema(problem.database, task.samples), examples=self.examples)

    def extract(self, text: str) -> str | None:
        return extract_sql(text)

    def judge(self, tries: Sequence[Try], clock: Clock, *, rewarded: bool = True) -> list[Verdict]:
        with clock("execute"):
            executions = self._run([(sql, question.database) for question, sql in tries])
        with clock("reward"):
            return [_verdict(self.reward(question, sql, execution) if rewarded else Reward(0.0, {}), sql, execution)
                    for (question, sql), execution in zip(tries, executions)]

    def _run(self, queries: Sequence[tuple[str | None, str]]) -> list[Execution]:
        return run_all(self.database, queries, self.cfg.database.connections)

    def stop_ids(self, token: Callable[[str], int | None], model: str) -> tuple[int, ...]:
        """The id of the marker that ends a turn of the prompt template; templates without markers need none."""
        template = self.cfg.task.template
        ids = [(marker, token(marker)) for marker in TEMPLATES[template].markers]
        for marker, found in ids:
            if found is None:
                without = ", ".join(name for name, other in TEMPLATES.items() if not other.markers)
                raise UserError(f"task.template: {template} needs {marker} to be one token of the model's tokenizer, which it "
                                f"is not in {model}; templates that need no such token: {without}")
        return tuple(found for _, found in ids[-1:] if found is not None)

    # ------------------------------------------------------------------------------------------------------------- evaluation
    def is_right(self, problem: Question, answer: str) -> bool:
        return bool(score_answer(problem.answer, answer).strict)

    def figures(self, problem: Question, verdict: Verdict) -> dict[str, float]:
        """``invented``: whether the SQL has a value that is neither in the question nor among the schema's names and sample
        values. An error has an empty answer and scores nothing."""
        score, schema = score_answer(problem.answer, verdict.answer), self.schema(problem.database, self._known_samples())
        return {"ems": score.ems, "rems": score.rems, "strict": score.strict,
                "invented": int(bool(invented(verdict.extracted, problem.text, schema)))}

    def _known_samples(self) -> int:
        return max(self.cfg.task.samples, MIN_KNOWN_SAMPLES)

    def further_figures(self, pairs: Sequence[tuple[Question, Mapping[str, Any]]]) -> list[dict[str, float]]:
        """``constant``: whether EMS accepts the data set's constant answer. ``suite``, where there is gold SQL and a second
        database: whether the answer is right *and* the SQL gives what gold SQL gives there (test-suite accuracy, arXiv
        2010.02840)."""
        constant = self.dataset.constant_answer
        found: list[dict[str, float]] = [{"constant": score_answer(problem.answer, constant).ems} for problem, _ in pairs]
        known = [(figures, row, problem.gold_sql) for figures, (problem, row) in zip(found, pairs)
                 if self.second and problem.gold_sql]
        executions = self._run([(sql, self.second) for _, row, gold in known for sql in (row["sql"], gold)])
        for (figures, row, _), ours, wanted in zip(known, executions[::2], executions[1::2]):
            figures["suite"] = int(bool(row["strict"]) and ours.ok and wanted.ok and _distinct(ours) == _distinct(wanted))
        return found

    # ---------------------------------------------------------------------------------------------------------------- showing
    def pose(self, text: str, place: str | None, split: str) -> Question:
        if not text.strip():
            raise UserError("--ask: the question is empty")
        if any("\ud800" <= char <= "\udfff" for char in text):      # Python's mark for bytes that are no text
            raise UserError("--ask: the question is not UTF-8")
        database = self.load(split)[0].database if place is None else place
        if database not in self.tables:
            raise UserError(f"--database: {unknown('database', database, self.tables)}: there are {', '.join(self.tables)}")
        return Question("--ask", "", 0, text, "", database, "")

    def about(self, problem: Question | None = None) -> list[tuple[str, str]]:
        if problem is not None:
            return [("database", problem.database)]
        return [("database", f"{self.cfg.database.engine}: {', '.join(self.tables)}")]

    def show(self, verdict: Verdict, lines: int = 8) -> list[str]:
        return show_execution(verdict.details, lines)

    def record(self, verdict: Verdict) -> dict[str, Any]:
        return {"sql": verdict.extracted, "execution": vars(verdict.details),
                "reward": {"total": verdict.reward, "terms": dict(verdict.terms)}}

    def read_record(self, record: Mapping[str, Any]) -> Verdict:
        ran, reward = record["execution"], record["reward"]
        if any(len(row) != len(ran["columns"]) for row in ran["rows"]):
            raise UserError(f"expected as many columns as cells in a row, got {ran['columns']!r:.80}")
        execution = Execution(ran["status"], tuple(map(tuple, ran["rows"])), tuple(ran["columns"]), error=ran["error"])
        return _verdict(Reward(reward["total"], reward["terms"]), record["sql"], execution)


def _verdict(reward: Reward, sql: str | None, execution: Execution) -> Verdict:
    answer = render_answer(execution.rows) if execution.ok else ""
    return Verdict(reward.total, reward.terms, execution.status, answer, sql, execution.error, execution)


def _distinct(execution: Execution) -> set[str]:
    return {render_answer([row]) for row in execution.rows}


# ------------------------------------------------------------------------------------------------- the configured databases
def open_databases(path: str, dataset: Dataset, cfg: config.Database) -> Opened:
    """The configured engine, and each database's tables by name. Tables of the data set are loaded into the engine; databases
    that exist already are used where they are. ``path``: the config key ``task.path``."""
    limits = Limits(time_limit=cfg.time_limit, max_rows=cfg.max_rows, max_bytes=cfg.max_bytes, connections=cfg.connections)
    if dataset.database_names:
        return _open_existing(path, dataset.database_names(path), limits, cfg)
    assert dataset.tables, "a data set has tables or names of databases"
    tables = dataset.tables(path)
    if cfg.engine == "mock":
        return MockDatabase(), tables
    if cfg.engine == "sqlite":
        return sqlite.open_sqlite(tables, limits), tables
    if not cfg.host and not cfg.socket:
        return mariadb.open_private(tables, limits), tables
    return mariadb.open_server(_login(cfg), tables, limits), tables


def _open_existing(path: str, names: Sequence[str], limits: Limits, cfg: config.Database) -> Opened:
    if cfg.engine == "mock":
        raise UserError('database.engine: "mock" has no tables to show; task.kind = "jsonl" takes mariadb or sqlite')
    if cfg.engine == "sqlite":
        return sqlite.open_files(path, names, limits)
    if not cfg.host and not cfg.socket:
        raise UserError('task.kind = "jsonl" asks databases that exist: name their MariaDB server by database.host or '
                        'database.socket, or take database.engine = "sqlite"')
    return mariadb.open_existing(_login(cfg), names, limits)


def _login(cfg: config.Database) -> Login:
    """A given server's password comes from the environment."""
    return Login(cfg.socket, cfg.host, cfg.port, cfg.user, os.environ.get(config.PASSWORD_VARIABLE, ""))


# ------------------------------------------------------------------------------------------------- a result on the console
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
