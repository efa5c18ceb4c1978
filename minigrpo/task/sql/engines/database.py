"""What every database engine offers: it takes tables, runs one untrusted query at a time, and returns one Execution.

Does not depend on any engine. Bad SQL is data: an ``Execution`` whose status says how it failed. A broken database is an
exception (``DatabaseError``), because a failure of the machinery must never become a reward.
"""

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Literal, Protocol, Self, get_args

from minigrpo.common.errors import TaskError, UserError

MAX_REMEMBERED_BYTES = 256 * 2**20      # memory of all results that ``Remembered`` keeps

Status = Literal[
    "ok",              # the query ran, and all its rows are here
    "no_sql",          # there was no SQL to run
    "refused",         # not a single SELECT, or not permitted
    "syntax",          # a syntax error
    "unknown_column",
    "unknown_table",
    "other",           # any other error of the statement
    "timeout",         # it reached the time limit
    "too_large",       # it reached the limit on rows, bytes or memory
]
STATUSES: tuple[str, ...] = get_args(Status)


class DatabaseError(TaskError):
    """The database itself failed, not the query. It never becomes a reward: the run stops with this sentence."""


@dataclass(frozen=True)
class Limits:
    """What a query may cost, and how many queries may run at once.

    ``time_limit``: seconds a query may take; ``max_rows``: rows it may return; ``max_bytes``: bytes of its whole result (text
    in UTF-8, a number as 8, NULL as 0); ``connections``: queries at once. ``UserError``: no time, or no connection.
    """

    time_limit: float = 0.25
    max_rows: int = 1000
    max_bytes: int = 1_000_000
    connections: int = 4

    def __post_init__(self) -> None:
        if self.time_limit <= 0 or self.connections < 1:        # to MariaDB, 0 seconds mean no limit
            raise UserError(f"expected time_limit > 0 and connections >= 1, got {self.time_limit} and {self.connections}")


@dataclass(frozen=True)
class Execution:
    """The outcome of one query. Every status except ``ok`` is an error and has no rows.

    ``rows``: values as the driver returns them (int, Decimal, float, str, None, ...); ``code``: the engine's error number;
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
    """The contract of every engine. As a context manager it closes itself."""

    def run(self, sql: str | None, database_name: str) -> Execution:
        """Run one untrusted query on one named database. Safe to call from several threads: it waits while ``connections``
        queries run, which ``seconds`` does not count.

        An error of the SQL never raises: it is a status. ``DatabaseError``: the database itself failed. ``UserError``: there
        is no database of that name. None, blank SQL and a bare semicolon are ``no_sql``.
        """

    def close(self) -> None:
        """Release connections, processes and files. May be called more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class MockDatabase(Database):
    """A database on which every query succeeds and returns one constant row: for tests of training without SQL."""

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
    """A column of a table. ``type`` is "INT" or "TEXT", which each engine translates to a type of its own, or the type that
    an existing database declares. ``references`` is the ("Table", "column") that a foreign key points to, or None. Names of
    columns and tables are written as in SQL: in quotes where they need quotes."""

    name: str
    type: str
    references: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table with its rows, or with only some of them (not ``complete``). ``key``: the indices of the primary key's columns,
    in the key's order; empty if there is no primary key."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[object, ...], ...]
    key: tuple[int, ...] = (0,)
    complete: bool = True


Tables = Sequence[Table]            # of one database; to create it, each table must come after the tables it references


def create_table(table: Table, types: Mapping[str, str], notes: Mapping[int, str] | None = None) -> str:
    """The CREATE TABLE statement. ``types`` translates types to the engine's; a type that it does not have stays as it is.
    ``notes``: index of a column → a comment on it. A foreign key of several columns is written column by column.

    >>> pet = Table("Pet", (Column("id", "INT"), Column("owner", "INT", ("Owner", "id"))), ())
    >>> print(create_table(pet, {"INT": "INTEGER"}, {0: "a number"}))
    CREATE TABLE Pet (
      id INTEGER PRIMARY KEY, -- a number
      owner INTEGER REFERENCES Owner(id)
    )
    """
    lines = []
    for i, column in enumerate(table.columns):
        words = [column.name, types.get(column.type, column.type)]
        words += ["PRIMARY KEY"] if table.key == (i,) else []
        words += ["REFERENCES {}({})".format(*column.references)] if column.references else []
        lines.append("  " + " ".join(filter(None, words)))              # SQLite has columns without a type
    if len(table.key) > 1:
        lines.append(f"  PRIMARY KEY ({', '.join(table.columns[i].name for i in table.key)})")
    lines = [*(line + "," for line in lines[:-1]), lines[-1]]
    for i, note in (notes or {}).items():
        lines[i] += f" -- {note}"
    return "\n".join([f"CREATE TABLE {table.name} (", *lines, ")"])


# --------------------------------------------------------------------------------------------------------- many at once
Query = tuple[str | None, str]      # SQL, the name of the database


def run_all(database: Database, queries: Sequence[Query], threads: int) -> list[Execution]:
    """Run (SQL, database name) pairs on several threads; results are in the order of the queries.

    Each distinct pair runs once, also if it reaches the time limit: a query's outcome must not depend on how often the policy
    wrote it.
    """
    distinct = list(dict.fromkeys(queries))
    with ThreadPoolExecutor(max_workers=max(1, min(threads, len(distinct)))) as pool:
        results = dict(zip(distinct, pool.map(lambda query: database.run(*query), distinct)))
    return [results[query] for query in queries]


class Remembered(Database):
    """A database that keeps the results of queries and returns them when a query comes again: for an evaluation, during which
    no row changes. It keeps up to ``max_bytes`` of results and forgets the least recently used first."""

    def __init__(self, database: Database, max_bytes: int = MAX_REMEMBERED_BYTES) -> None:
        self.database, self.max_bytes = database, max_bytes
        self.known: OrderedDict[Query, Execution] = OrderedDict()       # the least recently used comes first
        self._bytes, self._lock = 0, Lock()

    def run(self, sql: str | None, database_name: str) -> Execution:
        query = sql, database_name
        with self._lock:
            if query in self.known:
                self.known.move_to_end(query)
                return self.known[query]
        execution = self.database.run(sql, database_name)               # without the lock: others may run meanwhile
        with self._lock:
            if query not in self.known:
                self._bytes += _memory(query, execution)
                self.known[query] = execution
            while self._bytes > self.max_bytes:
                self._bytes -= _memory(*self.known.popitem(last=False))
        return execution

    def close(self) -> None:
        self.database.close()


def _memory(query: Query, execution: Execution) -> int:
    """Bytes of memory that a query and its result take, up to a small constant."""
    return sum(map(sys.getsizeof, (*query, execution.error, execution.rows, *execution.rows,
                                   *(value for row in execution.rows for value in row))))
