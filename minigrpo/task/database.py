"""What a database is to the rest: tables go in, one untrusted query at a time is run, one Execution comes out.

Knows no engine. Bad SQL is data (an ``Execution`` whose status says how it failed); a broken database is an exception
(``DatabaseError``), because a failure of the machinery must never become a reward.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Mapping, Protocol, Sequence, get_args

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


class DatabaseError(RuntimeError):
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
    """``type`` is "INT" or "TEXT" (each engine spells it its own way); ``references`` is ("Table", "column") or None."""

    name: str
    type: Literal["INT", "TEXT"]
    references: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table with its rows. The first column is the primary key."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[object, ...], ...]


Tables = Sequence[Table]            # of one database, in an order in which foreign keys can be created


def create_table(table: Table, types: Mapping[str, str]) -> str:
    """The CREATE TABLE statement, one column a line; ``types`` spells "INT" and "TEXT" in the engine's words.

    >>> print(create_table(Table("Pet", (Column("id", "INT"), Column("owner", "INT", ("Owner", "id"))), ()), {"INT": "INT"}))
    CREATE TABLE Pet (
      id INT PRIMARY KEY,
      owner INT REFERENCES Owner(id)
    )
    """
    lines = []
    for i, column in enumerate(table.columns):
        key = " PRIMARY KEY" if i == 0 else ""
        link = " REFERENCES {}({})".format(*column.references) if column.references else ""
        lines.append(f"  {column.name} {types[column.type]}{key}{link}")
    return f"CREATE TABLE {table.name} (\n" + ",\n".join(lines) + "\n)"


# --------------------------------------------------------------------------------------------------------- many at once
def run_all(database: Database, queries: Sequence[tuple[str | None, str]], threads: int) -> list[Execution]:
    """Run (sql, database name) pairs on several threads; results in order. Each distinct pair is run once.

    A query that the clock cut off is not run again: what the policy wrote decides, not how often it wrote it.
    """
    distinct = list(dict.fromkeys(queries))
    with ThreadPoolExecutor(max_workers=max(1, min(threads, len(distinct)))) as pool:
        results = dict(zip(distinct, pool.map(lambda query: database.run(*query), distinct)))
    return [results[query] for query in queries]

