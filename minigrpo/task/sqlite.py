"""The contract of database.py on the SQLite that Python links: tables in memory, untrusted SELECTs in, Executions out.

Each worker slot has a private copy of every database it is asked for, so queries run side by side and none sees another.
Guards: `query_only`; an authorizer that permits reads of our tables and a list of functions; a clock; caps on lengths.
One C function on long strings cannot be interrupted, so strings are short (`CELL_BYTES`) and calls are few (`MAX_CALLS`).
SQLite expands each mention of a CTE while it compiles, 2ⁿ copies for n that double, before any guard of its own can act:
`expansions` bounds that from the text. Sorting spills to unlinked temporary files, so memory stays flat.

Known differences from MariaDB, so error rates are not comparable: table names ignore case; text is compared exactly, without
PAD SPACE; 7 / 2 is 3; || joins text; "x" is text only if no column is called x; MariaDB's own functions (YEAR, IF, LEFT) are
missing. CONCAT (NULL if any part is), CONCAT_WS, FLOOR, CEIL and CEILING (whole numbers) are always ours, as MariaDB has them.
"""

import math
import re
import sqlite3
import time
from contextlib import closing
from queue import LifoQueue
from threading import Lock
from typing import Callable, Mapping

from .database import DatabaseError, Execution, Status, Tables, create_table

CELL_BYTES = 32_768         # of one value or stored row: what a C function can be given
MAX_CALLS = 100             # functions and LIKEs of a statement
MAX_EXPANSIONS = 256        # of common table expressions
MAX_SQL_BYTES = 10_000
STEPS_PER_LOOK = 1_000      # virtual-machine steps between two looks at the clock

LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: CELL_BYTES, sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_SQL_BYTES,
    sqlite3.SQLITE_LIMIT_COLUMN: 200, sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200, sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000, sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 50, sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100, sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
}
FUNCTIONS = frozenset("""
    avg count group_concat max min sum total
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    concat concat_ws glob instr length like lower ltrim replace rtrim substr substring trim upper
    coalesce ifnull iif nullif typeof
    abs ceil ceiling exp floor ln log log10 log2 mod pow power round sign sqrt trunc
    current_date current_time current_timestamp date datetime julianday strftime time unixepoch
""".split())
ERRORS: tuple[tuple[str, Status], ...] = (          # how the message of the general error (number 1, or Python's own) begins
    (r'near ".*": syntax error$|unrecognized token|incomplete input$|Incorrect number of bindings|too many SQL variables'
     r"|variable number must be", "syntax"),
    (r"no such column|cannot join using column", "unknown_column"),
    (r"no such table", "unknown_table"),
    (r"not authorized|You can only execute one statement", "refused"),
)
CODES: dict[int, Status] = {
    sqlite3.SQLITE_AUTH: "refused", sqlite3.SQLITE_READONLY: "refused", sqlite3.SQLITE_INTERRUPT: "timeout",
    sqlite3.SQLITE_TOOBIG: "too_large", sqlite3.SQLITE_NOMEM: "too_large", sqlite3.SQLITE_FULL: "too_large",
}
BROKEN = frozenset({sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR,
                    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISUSE})


def open_sqlite(databases: Mapping[str, Tables], *, time_limit: float = 0.25, max_rows: int = 1000,
                max_bytes: int = 1_000_000, connections: int = 4) -> "SQLite":
    """Load the databases, to be queried by up to ``connections`` threads at once.

    A query gets ``time_limit`` seconds of the processor (busy neighbours do not cut it off) and may return ``max_rows`` rows of ``max_bytes`` bytes in all (text in UTF-8,
    a number as 8, NULL as 0), one value at most ``CELL_BYTES``. Tables that cannot be loaded are a ``DatabaseError``.
    """
    images = {name: _image(name, tables) for name, tables in databases.items()}
    return SQLite(images, lambda image: _Worker(image, time_limit, max_rows, max_bytes), connections)


class SQLite:
    """Implements ``Database``. A slot holds the workers of one thread at a time: database name → worker, made on first use."""

    def __init__(self, images: dict[str, bytes], open_worker: Callable[[bytes], "_Worker"], connections: int) -> None:
        self._images, self._open_worker = images, open_worker
        self._slots: LifoQueue[dict[str, _Worker]] = LifoQueue()
        for _ in range(connections):
            self._slots.put({})
        self._connections, self._closed, self._closing = connections, False, Lock()

    def run(self, sql: str | None, database_name: str) -> Execution:
        """See ``Database.run``. Blocks while all slots are busy (not counted in ``seconds``)."""
        if database_name not in self._images:
            raise ValueError(f"unknown database {database_name!r}; known: {', '.join(sorted(self._images))}")
        if sql is None or not sql.strip():
            return Execution("no_sql")
        if reason := objection(sql):
            return Execution("refused", error=reason)
        slot = self._slots.get()
        try:
            if self._closed:
                raise DatabaseError("SQLite is closed")
            if database_name not in slot:
                slot[database_name] = self._open_worker(self._images[database_name])
            return slot[database_name].run(sql)
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        """Wait for the queries that run, then free all memory."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            slots = [self._slots.get() for _ in range(self._connections)]
            for slot in slots:
                for worker in slot.values():
                    worker.connection.close()
                self._slots.put({})             # whoever waits for a slot gets one, and the error

    def __enter__(self) -> "SQLite":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One connection to one private copy of a database; one query at a time."""

    def __init__(self, image: bytes, time_limit: float, max_rows: int, max_bytes: int) -> None:
        self.time_limit, self.max_rows, self.max_bytes = time_limit, max_rows, max_bytes
        self.deadline, self.calls = 0.0, 0
        self.connection = _connect()
        self.connection.deserialize(image)
        names = self.connection.execute("SELECT lower(name) FROM sqlite_master WHERE type = 'table'")
        self.tables = frozenset(name for name, in names if not name.startswith("sqlite_"))
        self.connection.execute("PRAGMA query_only = 1")
        self.connection.execute("PRAGMA temp_store = FILE")
        self.connection.set_authorizer(self._permit)
        self.connection.set_progress_handler(lambda: time.thread_time() > self.deadline, STEPS_PER_LOOK)

    def run(self, sql: str) -> Execution:
        start = time.perf_counter()
        self.deadline, self.calls = time.thread_time() + self.time_limit, 0
        try:
            with closing(self.connection.execute(sql)) as cursor:
                columns, rows = tuple(column[0] for column in cursor.description), self._fetch(cursor)
        except MemoryError:                     # what Python makes of SQLITE_NOMEM
            return Execution("too_large", code=sqlite3.SQLITE_NOMEM, error="out of memory", seconds=time.perf_counter() - start)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            return Execution(_status(error), code=code, error=str(error), seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        if rows is None:
            return Execution("too_large", error=f"more than {self.max_rows} rows or {self.max_bytes} bytes", seconds=seconds)
        return Execution("ok", rows, columns, seconds=seconds)

    def _fetch(self, cursor: sqlite3.Cursor) -> tuple[tuple[object, ...], ...] | None:
        rows: list[tuple[object, ...]] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum(map(_bytes, row))
            if len(rows) > self.max_rows or size > self.max_bytes:
                return None
        return tuple(rows)

    def _permit(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """The authorizer: SQLite asks it for each thing that a statement would do. An empty column is a mere mention."""
        if action == sqlite3.SQLITE_FUNCTION:
            self.calls += 1
            allowed = str(second).lower() in FUNCTIONS and self.calls <= MAX_CALLS
        elif action == sqlite3.SQLITE_READ:
            allowed = second == "" or str(first).lower() in self.tables
        else:
            allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8 * (value is not None)


def _status(error: sqlite3.Error) -> Status:
    """What kind of failure it was; raises ``DatabaseError`` if the statement is not to blame."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF          # Python's own errors have no number
    if code in BROKEN:
        raise DatabaseError(f"SQLite failed: {error} ({error.sqlite_errorname})") from error
    return CODES.get(code) or next((status for start, status in ERRORS if re.match(start, str(error), re.S)), "other")


# ------------------------------------------------------------------------------------------------------ before it is run
TOKEN = re.compile(r"""--[^\n]*|/\*.*?(?:\*/|\Z)|\s+|('(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^]]*]|[\w$\x80-\U0010ffff]+|[^\w])""", re.S)
DEFINITION = re.compile(r"(\S+) (?:\( [^()]*\) )?as (?:not )?(?:materialized )?\( ")


def objection(sql: str) -> str:
    """Why this text is not worth sending, or ""."""
    if re.search("[\0\ufeff\ud800-\udfff]", sql):         # SQLite skips U+FEFF between words: `expansions` must not miss it
        return "not text"
    if len(sql.encode()) > MAX_SQL_BYTES:
        return f"longer than {MAX_SQL_BYTES} bytes"
    if not re.match(r"\s*(select|with)\b", sql, re.I | re.A):
        return "does not begin with SELECT or WITH"
    if "with" in sql.lower() and expansions(sql) > MAX_EXPANSIONS:
        return f"more than {MAX_EXPANSIONS} expansions of its WITH tables"
    return ""


def expansions(sql: str) -> int:
    """A bound on the copies of a common table expression: the product, over all, of the times the name is mentioned.

    >>> expansions("WITH a AS (SELECT 1), b AS (SELECT * FROM a, a x), c AS (SELECT * FROM b, b y) SELECT * FROM c")
    4
    """
    tokens = [match[1].lower() for match in TOKEN.finditer(sql) if match[1]]
    words = [token if len(token) == 1 else re.sub(r"\W+", "_", token.strip("'\"`[]")) or "_" for token in tokens]
    named = [word for word, after in zip(words, words[1:] + [""]) if after != "."]         # a.x is not a mention of a
    return math.prod(max(1, named.count(name) - 1) for name in DEFINITION.findall(" ".join(words) + " "))


# --------------------------------------------------------------------------------------------------------------- loading
def _image(name: str, tables: Tables) -> bytes:
    """The database as one string of bytes, with an index on each column."""
    with closing(_connect()) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, LIMITS[sqlite3.SQLITE_LIMIT_COLUMN])
        try:
            connection.execute("BEGIN")
            for table in tables:
                connection.execute(create_table(table, {"INT": "INTEGER", "TEXT": "TEXT"}))
                places = ", ".join("?" * len(table.columns))
                connection.executemany(f"INSERT INTO {table.name} VALUES ({places})", table.rows)
                for column in table.columns[1:]:
                    connection.execute(f"CREATE INDEX {table.name}_{column.name} ON {table.name}({column.name})")
            connection.execute("COMMIT")
            connection.execute("ANALYZE")           # with the indexes: 600 → 5,000 of the benchmark's queries a second
        except (sqlite3.Error, OverflowError) as error:
            raise DatabaseError(f"cannot load database {name!r}: {error}") from error
        return connection.serialize()


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=0)
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    for function, arguments, implementation in OURS:
        connection.create_function(function, arguments, implementation, deterministic=True)
    return connection


# ------------------------------------------------------------------------------------------------------------- functions
def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _concat(*values: object) -> str | None:
    return None if None in values else "".join(map(_text, values))


def _concat_ws(separator: object, *values: object) -> str | None:
    return None if separator is None else _text(separator).join(_text(value) for value in values if value is not None)


def _whole(rounding: Callable[[float], int]) -> Callable[[object], object]:
    """FLOOR or CEIL as MariaDB has it, a whole number; NULL for what is no finite number."""
    def function(value: object) -> object:
        return rounding(value) if isinstance(value, int | float) and abs(value) < 2**63 else None
    return function


def _stripped(strip: Callable[[str, str], str]) -> Callable[[object, object], str | None]:
    """TRIM(text, characters): SQLite's own takes seconds on long arguments."""
    return lambda text, characters: None if text is None or characters is None else strip(_text(text), _text(characters))


OURS: tuple[tuple[str, int, Callable[..., object]], ...] = (
    ("concat", -1, _concat), ("concat_ws", -1, _concat_ws),
    ("floor", 1, _whole(math.floor)), ("ceil", 1, _whole(math.ceil)), ("ceiling", 1, _whole(math.ceil)),
    ("trim", 2, _stripped(str.strip)), ("ltrim", 2, _stripped(str.lstrip)), ("rtrim", 2, _stripped(str.rstrip)),
)
