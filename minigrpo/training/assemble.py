"""Config sections → the parts they describe: questions, databases, judge. The recipes begin and end here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.rollout import Judge
from minigrpo.task.sql.data import athletes, jsonl, temptabqa
from minigrpo.task.sql.data.renamed import RENAMED, ask_renamed, rename_tables
from minigrpo.task.sql.engines import mariadb, sqlite
from minigrpo.task.sql.engines.database import Database, MockDatabase, Tables
from minigrpo.task.sql.prompt import read_examples, render_prompt, schema_text
from minigrpo.task.sql.question import Question
from minigrpo.task.sql.reward import make_reward
from minigrpo.task.stream import without_kinds

TESTED = {"temptabqa": "original", "athletes": "heldout"}       # the split that is asked of the renamed database too
SAMPLES = 3                     # values a column that a query may know of at least: a warm-up teaches what no prompt shows


def load_split(task: config.Task, split: str, gold_sql: str = "") -> list[Question]:
    """The questions of one split; ``gold_sql``: as ``warmup.source``; its queries are attached where they are known."""
    own = ("athletes", "jsonl")                             # kinds whose questions bring gold SQL along
    if gold_sql and (gold_sql if gold_sql in own else "temptabqa") != task.kind:
        expected = f'"{task.kind}"' if task.kind in own else "a JSONL file"
        raise UserError(f'warmup.source, reward.gold_sql: gold SQL for task.kind = "{task.kind}" comes from {expected}, got '
                         f'"{gold_sql}"')
    if split == RENAMED and task.kind in TESTED:
        return ask_renamed(load_split(task, TESTED[task.kind]))
    if task.kind == "temptabqa":
        return temptabqa.load_questions(task.path, split, gold_sql or None)
    return athletes.load_questions(split) if task.kind == "athletes" else jsonl.load_questions(task.path, split)


def split_is_there(task: config.Task, split: str) -> bool:
    split = TESTED.get(task.kind, split) if split == RENAMED else split
    if task.kind == "temptabqa":
        return split in temptabqa.SPLITS and (Path(task.path) / temptabqa.SPLITS[split]).is_file()
    return split in (athletes.SPLITS if task.kind == "athletes" else jsonl.split_names(task.path))


def load_tests(task: config.Task) -> dict[str, list[Question]]:
    """Every split to test on: the benchmark's seven, the made-up athletes' two, of your own all but ``task.split``.

    One whose file is absent has no questions; where all are, the first of them is what the ``FileNotFoundError`` speaks of.
    """
    named = {"temptabqa": temptabqa.TESTS, "athletes": athletes.TESTS}
    names = named.get(task.kind) or [name for name in jsonl.split_names(task.path) if name != task.split]
    there = [name for name in names if split_is_there(task, name)] or names[:1]
    return {name: load_split(task, name) if name in there else [] for name in names}


@dataclass(frozen=True)
class Data:
    """A run's questions: ``known`` is trained on, has what gold SQL there is, and is of no kind that is held out; ``dev`` is
    the evaluation split, of which ``asked`` are asked during training; ``splits`` are those reported before and after."""

    known: list[Question]
    dev: list[Question]
    asked: list[Question]
    splits: dict[str, list[Question]]

    @property
    def all(self) -> list[Question]:
        return [*self.known, *self.dev, *(question for members in self.splits.values() for question in members)]


def load_data(cfg: config.Config) -> Data:
    gold_sql = cfg.warmup.source or cfg.reward.gold_sql
    known = without_kinds(load_split(cfg.task, cfg.task.split, gold_sql), cfg.task.hold_out)
    dev = load_split(cfg.task, cfg.evaluation.split)
    return Data(known, dev, dev[:cfg.evaluation.questions or len(dev)],
                {name: load_split(cfg.task, name) for name in cfg.evaluation.report})


def open_judge(task: config.Task, database: config.Database, reward: config.Reward) -> Judge:
    """The task's side of a step: prompts, rewards, and a loaded database, open until the judge is left."""
    make_reward(reward.preset, {})                          # what is wrong with it is said before a server is started
    examples = read_examples(Path(task.examples)) if task.examples else []
    opened, tables = open_existing(task, database) if task.kind == "jsonl" else open_loaded(task, database)
    schema = cache(lambda name, samples: schema_text(task.template, tables[name], samples))

    def prompt(question: Question) -> str:
        return render_prompt(task.template, question.text, schema(question.database, task.samples), examples=examples)

    second = athletes.SECOND if task.kind == "athletes" else ""
    return Judge(prompt, opened, make_reward(reward.preset, tables), database.connections, second, tuple(tables),
                 lambda name: schema(name, max(task.samples, SAMPLES)))


def open_loaded(task: config.Task, cfg: config.Database) -> tuple[Database, Mapping[str, Tables]]:
    """The configured engine with the task's tables loaded, and these."""
    tables = athletes.load_databases() if task.kind == "athletes" else temptabqa.load_databases(task.path)
    if "original" in tables:                                # else no file that is there asks anything of it
        tables = {**tables, RENAMED: rename_tables(tables["original"])}
    if cfg.engine == "mock":
        return MockDatabase(), tables
    if cfg.engine == "sqlite":
        return sqlite.open_sqlite(tables, **_limits(cfg)), tables
    if not cfg.host and not cfg.socket:
        return mariadb.open_private(tables, **_limits(cfg)), tables
    return mariadb.open_server(tables, **_login(cfg), **_limits(cfg)), tables


def open_existing(task: config.Task, cfg: config.Database) -> tuple[Database, Mapping[str, Tables]]:
    """The databases that the task's questions are asked of, where they are, and their tables."""
    if cfg.engine == "mock":
        raise UserError('database.engine: "mock" has no tables to show; task.kind = "jsonl" takes mariadb or sqlite')
    names = jsonl.database_names(task.path)
    if cfg.engine == "sqlite":
        return sqlite.open_files(task.path, names, **_limits(cfg))
    if not cfg.host and not cfg.socket:
        raise UserError('task.kind = "jsonl" asks databases that exist: name their MariaDB server by database.host or '
                         'database.socket, or take database.engine = "sqlite"')
    return mariadb.open_existing(names, **_login(cfg), **_limits(cfg))


def _limits(cfg: config.Database) -> dict[str, Any]:
    return dict(time_limit=cfg.time_limit, max_rows=cfg.max_rows, max_bytes=cfg.max_bytes, connections=cfg.connections)


def _login(cfg: config.Database) -> dict[str, Any]:
    """A given server's password comes from the environment."""
    return dict(host=cfg.host, port=cfg.port, socket=cfg.socket, user=cfg.user,
                password=os.environ.get(config.PASSWORD_VARIABLE, ""))

