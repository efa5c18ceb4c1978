"""Config sections → the parts they describe: questions, databases, judge. The recipes begin and end here."""

import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Callable, Mapping

from minigrpo import config
from minigrpo.rollout import Judge
from minigrpo.runtime import exit_on_sigterm
from minigrpo.task import athletes, mariadb, sqlite, temptabqa
from minigrpo.task.database import Database, DatabaseError, MockDatabase, Tables
from minigrpo.task.prompt import read_examples, render_prompt, schema_text
from minigrpo.task.questions import Question
from minigrpo.task.reward import make_reward


def load_split(task: config.Task, split: str, gold_sql: str = "") -> list[Question]:
    """The questions of one split; ``gold_sql``: a warm-up's source, whose queries are attached where they are known."""
    if task.kind == "temptabqa":
        if gold_sql == "athletes":
            raise ValueError("warmup.source: athletes bring gold SQL for task.kind = \"athletes\" only; for this benchmark "
                             "name a JSONL file")
        return temptabqa.load_questions(task.path, split, gold_sql or None)
    if gold_sql not in ("", "athletes"):
        raise ValueError(f"warmup.source: the made-up athletes bring their own gold SQL: \"athletes\", not {gold_sql}")
    return athletes.load_questions(split)


def open_judge(task: config.Task, database: config.Database, reward: config.Reward) -> Judge:
    """The task's side of a step: prompts, rewards, and a loaded database, open until the judge is left."""
    reward_function = make_reward(reward.preset)
    made_up = task.kind == "athletes"
    databases = athletes.load_databases() if made_up else temptabqa.load_databases(task.path)
    examples = read_examples(Path(task.examples)) if task.examples else []
    schema = cache(lambda name: schema_text(task.template, databases[name], task.samples))

    def prompt(question: Question) -> str:
        return render_prompt(task.template, question.text, schema(question.database), examples=examples)

    return Judge(prompt, open_database(database, databases), reward_function, database.connections,
                 athletes.SECOND if made_up else "", tuple(databases))


def open_database(cfg: config.Database, databases: Mapping[str, Tables]) -> Database:
    """The configured engine with ``databases`` loaded. A given server's password comes from the environment."""
    limits = dict(time_limit=cfg.time_limit, max_rows=cfg.max_rows, max_bytes=cfg.max_bytes, connections=cfg.connections)
    if cfg.engine == "mock":
        return MockDatabase()
    if cfg.engine == "sqlite":
        return sqlite.open_sqlite(databases, **limits)
    if not cfg.host and not cfg.socket:
        return mariadb.open_private(databases, **limits)
    password = os.environ.get(config.PASSWORD_VARIABLE, "")
    return mariadb.open_server(databases, host=cfg.host, port=cfg.port, socket=cfg.socket, user=cfg.user,
                               password=password, **limits)


def exit_status(program: str, recipe: Callable[[], int]) -> int:
    """Run a recipe. What is the user's to mend, or the database's, is one sentence on stderr and status 1, not a traceback;
    Ctrl-C is 130 and SIGTERM 143."""
    exit_on_sigterm()
    try:
        return recipe()
    except (ValueError, OSError, DatabaseError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
