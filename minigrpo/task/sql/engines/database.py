"""What a database is to the rest: tables go in, one untrusted query at a time is run, one Execution comes out.

Knows no engine. Bad SQL is data (an ``Execution`` whose status says how it failed); a broken database is an exception
(``DatabaseError``), because a failure of the machinery must never become a reward.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from minigrpo.common.errors import TaskError

Status = Literal[
    "ok",              # it ran; rows are complete
    "no_sql",          # there was no SQL to run
    "refused",         # not a single SELECT, or not permitted
    "syntax",          # the parser gave up
    "unknown_column",
    "unknown_table",
    "other",           # any other error of the statement
    "timeout",         # the time limit
    "too_large",       # rows, bytes or memory beyond the caps
]
STATUSES: tuple[str, ...] = get_args(Status)


class DatabaseError(TaskError):
    """The database itself failed (not the query): never a reward; the run stops with this sentence."""


@dataclass(frozen=True)
class Execution:
    """What became of one query. Every status but ``ok`` is an error and has no rows.

    ``rows``: values as the driver gives them (int, Decimal, float, str, None, ...); ``code``: the engine's error number;
    ``error``: its message; ``seconds``: wall-clock time of the query as its caller saw it.
    """

    status: Status
    rows: tuple[tuple[object, ...], ...] = ()
    columns: tuple[str, ...] = ()
    code: int | None = None
    error: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Database(Protocol):
    """The contract of every engine."""

    def run(self, sql: str | None, database_name: str) -> Execution:
        """Run one untrusted query on one named database. Safe to call from several threads.

        Never raises for anything the SQL did; raises ``DatabaseError`` if the database itself is at fault.
        None, blank SQL or a bare semicolon is ``no_sql``.
        """

    def close(self) -> None:
        """Release connections, processes and files. Harmless when repeated."""


@dataclass(frozen=True)
class MockDatabase:
    """A database for which every query succeeds with one constant row: isolates the learner from SQL."""

    value: object = 1

    def run(self, sql: str | None, database_name: str) -> Execution:
        if sql is None or not sql.strip(" \t\r\n;"):
            return Execution("no_sql")
        return Execution("ok", rows=((self.value,),), columns=("value",))

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------------ tables
@dataclass(frozen=True)
class Column:
    """``type`` is "INT" or "TEXT", which each engine spells its own way, or whatever a database that exists declares;
    ``references`` is ("Table", "column") or None. Names, those of tables too, stand as SQL spells them: in quotes where
    they need some."""

    name: str
    type: str
    references: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table with its rows, or with some of them (not ``complete``). ``key``: the places of the primary key's columns, in
    its order; none is no key."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[object, ...], ...]
    key: tuple[int, ...] = (0,)
    complete: bool = True


Tables = Sequence[Table]            # of one database; one that is to be created has its foreign keys in order


def create_table(table: Table, types: Mapping[str, str]) -> str:
    """The CREATE TABLE statement; ``types`` spells types in the engine's words, what it leaves out stays as it is.

    >>> print(create_table(Table("Pet", (Column("id", "INT"), Column("owner", "INT", ("Owner", "id"))), ()), {"INT": "INT"}))
    CREATE TABLE Pet (
      id INT PRIMARY KEY,
      owner INT REFERENCES Owner(id)
    )
    """
    return "\n".join(table_lines(table, types))


def table_lines(table: Table, types: Mapping[str, str]) -> list[str]:
    """The same by lines: column i is line i + 1. A foreign key of several columns is told column by column."""
    lines = []
    for i, column in enumerate(table.columns):
        words = [column.name, types.get(column.type, column.type)]
        words += ["PRIMARY KEY"] if table.key == (i,) else []
        words += ["REFERENCES {}({})".format(*column.references)] if column.references else []
        lines.append("  " + " ".join(filter(None, words)))              # SQLite has columns without a type
    if len(table.key) > 1:
        lines.append(f"  PRIMARY KEY ({', '.join(table.columns[i].name for i in table.key)})")
    return [f"CREATE TABLE {table.name} (", *(line + "," for line in lines[:-1]), lines[-1], ")"]


# --------------------------------------------------------------------------------------------------------- many at once
def run_all(database: Database, queries: Sequence[tuple[str | None, str]], threads: int) -> list[Execution]:
    """Run (sql, database name) pairs on several threads; results in order. Each distinct pair is run once.

    A query that the clock cut off is not run again: what the policy wrote decides, not how often it wrote it.
    """
    distinct = list(dict.fromkeys(queries))
    with ThreadPoolExecutor(max_workers=max(1, min(threads, len(distinct)))) as pool:
        results = dict(zip(distinct, pool.map(lambda query: database.run(*query), distinct)))
    return [results[query] for query in queries]


@dataclass(frozen=True)
class Remembered:
    """A database that runs each distinct query once, however often it comes: for an evaluation, in which no row changes."""

    database: Database
    known: dict[tuple[str | None, str], Execution] = field(default_factory=dict)

    def run(self, sql: str | None, database_name: str) -> Execution:
        if (sql, database_name) not in self.known:
            self.known[sql, database_name] = self.database.run(sql, database_name)
        return self.known[sql, database_name]

    def close(self) -> None:
        self.database.close()
