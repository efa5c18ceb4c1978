"""The SQL task with its parts given instead of opened from a config: a prompt, a database, a reward."""

from collections.abc import Callable, Mapping
from functools import cache

from minigrpo.common import settings
from minigrpo.config import Config
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.engines.database import Database, Tables
from minigrpo.task.sql.reward import RewardFunction
from minigrpo.task.sql.task import SQLTask


class GivenTask(SQLTask):
    """``second`` as in ``SQLTask``; ``schema``: a database's schema with its sample values, by the database's name."""

    def __init__(self, prompt: Callable[[Question], str], database: Database, reward: RewardFunction, *, second: str = "",
                 tables: Mapping[str, Tables] | None = None, schema: Callable[[str], str] = lambda database: "") -> None:
        super().__init__(settings.build(Config, {"database.engine": "sqlite", "database.connections": 2}))
        self.written, self.database, self.reward, self.second = prompt, database, reward, second
        self.tables = tables or {}
        self.schema = cache(lambda name, samples: schema(name))

    def __enter__(self) -> "GivenTask":
        return self

    def prompt(self, problem: Question) -> str:
        return self.written(problem)
