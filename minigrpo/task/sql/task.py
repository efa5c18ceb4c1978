"""The SQL task: question and schema become a prompt, the SQL in a completion is run, its rows are compared with the answer.

The one file that joins a data set, an engine and a reward. Does not depend on torch or on any model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.errors import UserError, unknown
from minigrpo.task.contract import Task, Try, Verdict
from minigrpo.task.sql.answer import render_answer, score_answer
from minigrpo.task.sql.data import athletes, jsonl, temptabqa
from minigrpo.task.sql.databases import open_databases
from minigrpo.task.sql.engines.database import STATUSES, Database, Execution, Remembered, Tables, run_all
from minigrpo.task.sql.invented import invented
from minigrpo.task.sql.prompt import TEMPLATES, extract_sql, read_examples, render_prompt, schema_text
from minigrpo.task.sql.question import Question
from minigrpo.task.sql.reward import make_reward
from minigrpo.task.sql.rows import show_execution

# ``task.kind`` → data set. A new data set is one file in data/ and one row here.
DATASETS = {"temptabqa": temptabqa.DATASET, "athletes": athletes.DATASET, "jsonl": jsonl.DATASET}
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
        examples = read_examples(Path(task.examples)) if task.examples else []
        self.database: Database
        self.tables: Mapping[str, Tables]
        self.database, self.tables = open_databases(task.path, self.dataset, self.cfg.database)
        self.reward = make_reward(self.cfg.reward.preset, self.tables)
        self.schema = cache(lambda name, samples: schema_text(task.template, self.tables[name], samples))
        self.examples = examples
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
            return [self._verdict(question, sql, execution, rewarded)
                    for (question, sql), execution in zip(tries, executions)]

    def _run(self, queries: Sequence[tuple[str | None, str]]) -> list[Execution]:
        return run_all(self.database, queries, self.cfg.database.connections)

    def _verdict(self, question: Question, sql: str | None, execution: Execution, rewarded: bool) -> Verdict:
        answer = render_answer(execution.rows) if execution.ok else ""
        if not rewarded:
            return Verdict(0.0, {}, execution.status, answer, sql, execution.error, execution)
        reward = self.reward(question, sql, execution)
        return Verdict(reward.total, reward.terms, execution.status, answer, sql, execution.error, execution)

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
        answer = render_answer(execution.rows) if execution.ok else ""
        return Verdict(reward["total"], reward["terms"], execution.status, answer, record["sql"], execution.error, execution)


def _distinct(execution: Execution) -> set[str]:
    return {render_answer([row]) for row in execution.rows}
