"""The contract of database.py on the SQLite that Python links: on tables in memory, or on a file that exists.

Each worker slot has its own copy of every database it is asked for, or its own connection to the file, which it opens as
immutable. So queries run in parallel and do not affect each other.

Guards: ``query_only``; an authorizer that permits only reads of our tables and a list of functions; a time limit; limits on
lengths. A single C function on long strings cannot be interrupted, so strings must be short (``MAX_CELL_BYTES``) and calls few
(``MAX_CALLS``). The text is read for what SQLite does not see. Sorts spill to unlinked temporary files, so memory stays flat.

Text is compared as in MariaDB: exactly, except for trailing spaces (RTRIM). Other differences remain, so error rates of the
two engines are not comparable. Here table names ignore case; 7 / 2 is 3; || joins text; "x" is text only if no column is
called x; YEAR, IF, LEFT and other functions of MariaDB are missing. We define CONCAT (NULL if any part is NULL), CONCAT_WS,
and FLOOR, CEIL and CEILING (to whole numbers) ourselves, on every version of SQLite, with the meaning they have in MariaDB.
"""

import math
import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import LifoQueue
from threading import Lock

from minigrpo.common.errors import UserError, unknown
from minigrpo.task.sql.engines.database import Database, DatabaseError, Execution, Limits, Status, Tables, create_table
from minigrpo.task.sql.engines.guard import MAX_SQL_CHARACTERS, check_query, objection, read_rows, too_large
from minigrpo.task.sql.engines.introspect import SQLITE, read_tables
from minigrpo.task.sql.engines.lexer import QUOTED, TOKEN, definitions, sources, word

MAX_CELL_BYTES = 32_768     # of one value or one stored row: the longest argument of a C function
MAX_CALLS = 50              # of functions and LIKEs in a statement
STEPS_PER_CLOCK_CHECK = 100         # of SQLite's virtual machine

SQLITE_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_CELL_BYTES, sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MAX_SQL_CHARACTERS,       # in bytes
    sqlite3.SQLITE_LIMIT_COLUMN: 200, sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200, sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000, sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 50, sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100, sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
}
MAX_EXPANSIONS = 256            # of common table expressions
FUNCTIONS = frozenset("""
    avg count group_concat max min sum total
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    concat concat_ws glob instr length like lower ltrim replace rtrim substr substring trim upper
    coalesce ifnull iif nullif typeof
    abs ceil ceiling exp floor ln log log10 log2 mod pow power round sign sqrt trunc
    current_date current_time current_timestamp date datetime julianday strftime time unixepoch
""".split())
STATUS_OF_MESSAGE: tuple[tuple[str, Status], ...] = (       # how the message of SQLite's general error, number 1, begins
    (r'near ".*": syntax error$|unrecognized token|incomplete input$|too many SQL variables|variable number', "syntax"),
    (r"no such column|cannot join using column", "unknown_column"),
    (r"no such table", "unknown_table"),
    (r"not authorized|vtable constructor failed|You can only execute one statement", "refused"),
)
STATUS_OF_CODE: dict[int, Status] = {
    sqlite3.SQLITE_AUTH: "refused", sqlite3.SQLITE_READONLY: "refused", sqlite3.SQLITE_INTERRUPT: "timeout",
    sqlite3.SQLITE_TOOBIG: "too_large", sqlite3.SQLITE_NOMEM: "too_large", sqlite3.SQLITE_FULL: "too_large",
}
BROKEN_CODES = {sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR,
                sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISUSE}


def open_sqlite(databases: Mapping[str, Tables], limits: Limits = Limits()) -> "SQLite":
    """Load the databases into memory. ``limits.time_limit`` is in seconds of the processor: waiting for other threads does not
    count. One value may have ``MAX_CELL_BYTES``. ``DatabaseError``: tables that cannot be loaded, or a row that is longer."""
    return SQLite({name: _image(name, tables) for name, tables in databases.items()}, limits)


def open_files(folder: str | Path, names: Sequence[str], limits: Limits = Limits()) -> tuple["SQLite", dict[str, Tables]]:
    """Open databases that exist, "shop" being ``folder``'s shop.sqlite; and return their tables.

    No query can change a file, and nobody else may change it while it is open. A query that reads a value longer than
    ``MAX_CELL_BYTES`` is ``too_large``. ``UserError``: there is no such file; ``DatabaseError``: it cannot be read.
    """
    there = {file.stem: file for file in sorted(Path(folder).resolve().glob("*.sqlite"))}
    for name in names:
        if name not in there:                               # so that no name leads out of the folder
            raise UserError(f"{unknown('database', name, there)}: {folder} has "
                             f"{', '.join(file.name for file in there.values()) or 'no *.sqlite'}")
    tables = {name: _tables(name, there[name]) for name in names}
    return SQLite({name: there[name] for name in names}, limits), tables


class SQLite(Database):
    """A slot serves one thread at a time: database name → worker, created on first use."""

    def __init__(self, sources: Mapping[str, bytes | Path], limits: Limits) -> None:
        """``sources``: database name → its image, or its file."""
        self._sources, self._limits = sources, limits
        self._closed, self._closing = False, Lock()
        self._slots: LifoQueue[dict[str, _Worker]] = LifoQueue()
        for _ in range(limits.connections):
            self._slots.put({})

    def run(self, sql: str | None, database_name: str) -> Execution:
        checked = check_query(sql, database_name, self._sources, text_objection)
        if isinstance(checked, Execution):
            return checked
        if name := named_twice(checked):
            return Execution("other", error=f"Not unique table/alias: {name!r}")
        slot = self._slots.get()
        try:
            if self._closed:
                raise DatabaseError("SQLite is closed")
            if database_name not in slot:
                slot[database_name] = _Worker(self._sources[database_name], self._limits)
            return slot[database_name].run(checked)
        except sqlite3.Error as error:                      # of opening it: the worker handles the errors of queries
            raise DatabaseError(f"SQLite cannot open {database_name!r} any more: {error}") from error
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        """Wait for the queries that run, then release all copies and files."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for slot in [self._slots.get() for _ in range(self._limits.connections)]:
                for worker in slot.values():
                    worker.connection.close()
                self._slots.put({})             # whoever waits for a slot gets the error


class _Worker:
    """One connection to one copy of a database, or to a file. It runs one query at a time."""

    def __init__(self, source: bytes | Path, limits: Limits) -> None:
        self.limits, self.deadline, self.calls = limits, 0.0, 0
        self.connection = _connect(source) if isinstance(source, Path) else _connect()
        if isinstance(source, bytes):
            self.connection.deserialize(source)
        names = self.connection.execute("SELECT lower(name) FROM sqlite_master WHERE type IN ('table', 'view')")
        self.tables = frozenset(name for name, in names if not name.startswith("sqlite_"))
        self.connection.execute("PRAGMA query_only = 1")
        self.connection.execute("PRAGMA temp_store = FILE")
        self.connection.set_authorizer(self._permit)
        self.connection.set_progress_handler(lambda: time.thread_time() > self.deadline, STEPS_PER_CLOCK_CHECK)

    def run(self, sql: str) -> Execution:
        start = time.perf_counter()
        self.deadline, self.calls = time.thread_time() + self.limits.time_limit, 0
        execution = self._query(sql)
        return replace(execution, seconds=time.perf_counter() - start)

    def _query(self, sql: str) -> Execution:
        try:
            with closing(self.connection.execute(sql)) as cursor:
                columns, rows = tuple(column[0] for column in cursor.description), read_rows(cursor, self.limits)
        except MemoryError:                     # Python's exception for SQLITE_NOMEM
            return Execution("too_large", code=sqlite3.SQLITE_NOMEM, error="out of memory")
        except sqlite3.Error as error:          # errors of Python's module have no number
            return Execution(_status(error), code=getattr(error, "sqlite_errorcode", None), error=str(error))
        return too_large(self.limits) if rows is None else Execution("ok", rows, columns)

    def _permit(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """The authorizer: SQLite asks it about each action of a statement. A READ without a column is COUNT(*) or a CTE."""
        if action == sqlite3.SQLITE_FUNCTION:
            self.calls += 1
            allowed = str(second).lower() in FUNCTIONS and self.calls <= MAX_CALLS
        elif action == sqlite3.SQLITE_READ:
            allowed = second == "" or str(first).lower() in self.tables
        else:
            allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _status(error: sqlite3.Error) -> Status:
    """The status of a query that failed; raises ``DatabaseError`` if the statement is not to blame."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF          # the other bits are detail
    if code in BROKEN_CODES:
        raise DatabaseError(f"SQLite failed: {error} ({error.sqlite_errorname})") from error
    by_message = (status for start, status in STATUS_OF_MESSAGE if re.match(start, str(error), re.S))
    return STATUS_OF_CODE[code] if code in STATUS_OF_CODE else next(by_message, "other")


# ------------------------------------------------------------------------------------------------- what only the text shows
def text_objection(sql: str) -> str:
    """Why this text is not sent to SQLite, or "": ``guard.objection``, and the limit on copies of WITH tables."""
    if reason := objection(sql, re.compile(QUOTED)):
        return reason
    too_many = "with" in sql.lower() and expansions(sql) > MAX_EXPANSIONS
    return f"more than {MAX_EXPANSIONS} expansions of its WITH tables" if too_many else ""


def expansions(sql: str) -> int:
    """An upper bound on the copies of a common table expression: the product, over all of them, of how often each is named.
    SQLite makes the copies while it compiles the query, 2ⁿ for n that double, before any of its own limits applies.

    >>> expansions("WITH a AS (SELECT 1), b AS (SELECT * FROM a, a x), c AS (SELECT * FROM b, b y) SELECT * FROM c")
    4
    """
    words = [word(token) for token in TOKEN.findall(sql.lower())]
    named = [name for name, after in zip(words, words[1:] + [""]) if after != "."]         # a.x does not copy a
    return math.prod(max(1, named.count(name) - 1) for name in definitions(words))


def named_twice(sql: str) -> str:
    """The name that two tables of one FROM share, or "". MariaDB refuses such a query; SQLite reads each column from the
    first of the two.

    >>> named_twice("SELECT * FROM Pet JOIN Owner ON 1 = 1 JOIN Pet ON 2 = 2"), named_twice("SELECT * FROM Pet, Pet p")
    ('Pet', '')
    """
    for tables in sources([word(token) for token in TOKEN.findall(sql)]):
        named = [(table == "?", name) for table, name in tables]        # a subquery may share a table's name
        if twice := [name for a_subquery, name in named if named.count((a_subquery, name)) > 1 and name != "?"]:
            return twice[0]
    return ""


# ---------------------------------------------------------------------------------------------------------- loading
def _image(name: str, tables: Tables) -> bytes:
    """The database as bytes, with an index on every column (600 → 4,000 of the benchmark's queries a second)."""
    with closing(_connect()) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, SQLITE_LIMITS[sqlite3.SQLITE_LIMIT_COLUMN])
        try:
            connection.execute("BEGIN")
            for table in tables:
                connection.execute(create_table(table, {"INT": "INTEGER", "TEXT": "TEXT COLLATE RTRIM"}))
                places = ", ".join("?" * len(table.columns))
                connection.executemany(f"INSERT INTO {table.name} VALUES ({places})", table.rows)
                for column in table.columns[1:]:
                    connection.execute(f"CREATE INDEX {table.name}_{column.name} ON {table.name}({column.name})")
            connection.execute("COMMIT")
            connection.execute("ANALYZE")
        except (sqlite3.Error, OverflowError) as error:
            raise DatabaseError(f"cannot load database {name!r}: {error}") from error
        return connection.serialize()


def _tables(name: str, file: Path) -> Tables:
    """The tables of a file. The statements are our own, so values may be long; read_tables cuts them."""
    for beside in (file.with_name(file.name + end) for end in ("-wal", "-journal")):
        if beside.is_file() and beside.stat().st_size:      # SQLite reads an immutable file without it
            raise DatabaseError(f"{file} is not whole without {beside.name}: close what writes to it")
    try:
        with closing(_connect(file)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2**31 - 1)
            connection.text_factory = lambda text: text.decode(errors="replace")
            return read_tables(name, SQLITE, lambda sql: connection.execute(sql).fetchall(), sqlite3.OperationalError)
    except sqlite3.Error as error:
        raise DatabaseError(f"{file} cannot be read: {error}") from error


def _connect(file: Path | None = None) -> sqlite3.Connection:
    """Connect to a file, or to an empty database in memory, with the limits for untrusted SQL."""
    # SQLite never writes to an immutable file, does not lock it, and creates no other file beside it.
    address = f"{file.as_uri()}?mode=ro&immutable=1" if file else ":memory:"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, cached_statements=0)
    for limit, value in SQLITE_LIMITS.items():
        connection.setlimit(limit, value)
    for function, arguments, implementation in OWN_FUNCTIONS:
        connection.create_function(function, arguments, implementation, deterministic=True)
    return connection


# -------------------------------------------------------------------------------------------------------- functions
def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _concat(*values: object) -> str | None:
    return None if None in values else "".join(map(_text, values))


def _concat_ws(separator: object, *values: object) -> str | None:
    return None if separator is None else _text(separator).join(_text(value) for value in values if value is not None)


def _whole(rounding: Callable[[float], int]) -> Callable[[object], int | None]:
    """FLOOR or CEIL to a whole number, as in MariaDB. NULL for a value that is no number or is too large."""
    return lambda value: rounding(value) if isinstance(value, int | float) and abs(value) < 2**63 else None


def _strip(strip: Callable[[str, str], str]) -> Callable[[object, object], str | None]:
    """TRIM(text, characters). SQLite's own function takes seconds on long arguments."""
    return lambda text, characters: None if None in (text, characters) else strip(_text(text), _text(characters))


OWN_FUNCTIONS: tuple[tuple[str, int, Callable[..., str | int | None]], ...] = (
    ("concat", -1, _concat), ("concat_ws", -1, _concat_ws),
    ("floor", 1, _whole(math.floor)), ("ceil", 1, _whole(math.ceil)), ("ceiling", 1, _whole(math.ceil)),
    ("trim", 2, _strip(str.strip)), ("ltrim", 2, _strip(str.lstrip)), ("rtrim", 2, _strip(str.rstrip)),
)
