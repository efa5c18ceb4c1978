r"""The contract of database.py on MariaDB, private or given: tables in, one untrusted query at a time, one Execution out.

Knows the server and its error numbers; of questions, rewards and models it knows nothing. Four guards, each enough for
most of what a model writes: the text must be one SELECT (``objection``); the account may only read the loaded databases;
the session has limits on time and memory, set anew for each query; the reader counts rows and bytes.

A private server lives under a keeper, a shell that waits on a pipe of ours. However we end, the pipe ends with us, and the
keeper kills the server and removes its files.
"""

import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import LifoQueue
from select import select
from threading import Lock
from typing import Mapping

import pymysql
from pymysql.cursors import Cursor, SSCursor

from .database import DatabaseError, Execution, Status, Table, Tables, create_table

MAX_SQL = 10_000                # characters of a query
SECONDS_TO_START = 30.0         # of a private server; 1 is usual
SECONDS_OF_GRACE = 2.0          # beyond the time limit, for a query that the server's own clock does not stop
PAUSES = (0.0, 0.1, 0.3, 1.0)   # seconds before each attempt to reach the server
RESET_CONNECTION = 0x1F         # a command of the protocol that PyMySQL does not name: all session state but the database

STATUS: dict[int, Status] = {   # what is not here (and not BROKEN) is "other"
    1064: "syntax",
    1054: "unknown_column",
    1146: "unknown_table",      # FROM nowhere
    1051: "unknown_table",      # SELECT nowhere.* FROM somewhere
    1109: "unknown_table",
    1044: "refused",            # no right to the database
    1045: "refused",            # no right to files (older servers)
    1142: "refused",            # no right to the table; also for any table of a database that is not there
    1143: "refused",            # no right to the column
    1227: "refused",            # no right to files, to the server's administration
    1370: "refused",            # no right to the function; also for one that is not there
    1792: "refused",            # the session is READ ONLY: FOR UPDATE, NEXTVAL
    1969: "timeout",            # max_statement_time
    3024: "timeout",            # the same on MySQL
    1290: "too_large",          # max_session_mem_used (also read_only, but the missing right to write comes first)
    1114: "too_large",          # tmp_disk_table_size: a temporary table is full
    1038: "too_large",          # no memory to sort in
    1153: "too_large",          # max_allowed_packet
}
BROKEN = {
    1040,                       # too many connections
    1053,                       # the server shuts down
    1203,                       # too many connections of this account
    1317,                       # someone killed the query
    1927,                       # someone killed the connection
}                               # and whatever PyMySQL says itself: 2000 to 2999, 0, or no number

SESSION = ("max_statement_time={:f}, tx_read_only=1, "
           # Quotes must mean here what they mean in objection(), and the same on every server.
           "sql_mode='STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_CREATE_USER,NO_ENGINE_SUBSTITUTION', "
           "character_set_client=utf8mb4, character_set_results=utf8mb4, collation_connection=utf8mb4_bin, "
           "max_session_mem_used=67108864, tmp_disk_table_size=67108864, tmp_memory_table_size=8388608, group_concat_max_len=65536")

RIGHTS = r"SELECT, INSERT, CREATE, DROP and REFERENCES, WITH GRANT OPTION, on `minigrpo\_%`.*, and CREATE USER"


def open_private(databases: Mapping[str, Tables], *, time_limit: float = 0.25, max_rows: int = 1000,
                 max_bytes: int = 1_000_000, connections: int = 4) -> "MariaDB":
    """Start a server of our own, load the databases, and serve up to ``connections`` queries at once.

    It listens on a socket in a folder of ours (in memory where there is room), is gone with us, and keeps nothing. A query
    gets ``time_limit`` seconds and may return ``max_rows`` rows of ``max_bytes`` bytes in all (text in UTF-8, a number as
    8, NULL as 0). ``DatabaseError``: MariaDB is not installed, does not start, or does not take the tables.
    """
    with ExitStack() as undo:
        root = _start_server(undo)
        reader, names = _load(root, databases, "", [])
        return MariaDB(reader, names, undo.pop_all(), time_limit, max_rows, max_bytes, connections)


def open_server(databases: Mapping[str, Tables], *, host: str = "", port: int = 3306, socket: str = "", user: str,
                password: str, time_limit: float = 0.25, max_rows: int = 1000, max_bytes: int = 1_000_000,
                connections: int = 4) -> "MariaDB":
    """The same on a server that someone else runs, reached by ``host`` and ``port`` or by ``socket``.

    The account needs ``RIGHTS``. All that we make is named ``minigrpo_<random>_...``: one database for each of ours and
    one account that may only read them, from this machine. ``close`` drops it all; a crash leaves it behind, with no harm
    but the space. A query that the server's clock does not stop is cut off for us, not for the server, which works on it
    until it notices; packets are as large as that server allows. ``DatabaseError``: unreachable, refused, lacking a right.
    """
    undo_statements: list[str] = []
    with ExitStack() as undo:
        admin = _Login(socket, host, port, user, password)
        undo.callback(_drop, admin, undo_statements)
        reader, names = _load(admin, databases, f"minigrpo_{secrets.token_hex(4)}_", undo_statements)
        return MariaDB(reader, names, undo.pop_all(), time_limit, max_rows, max_bytes, connections)


@dataclass(frozen=True)
class _Login:
    """Where a server is (a socket, else host and port), and as whom to talk to it."""

    socket: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)

    def __str__(self) -> str:
        return f"MariaDB at {self.socket or f'{self.host}:{self.port}'} as {self.user!r}"

    def connect(self, read_timeout: float = 60.0) -> pymysql.Connection:
        # Without ssl_disabled PyMySQL builds an SSL context for each connection, which a socket has no use for.
        return pymysql.connect(unix_socket=self.socket or None, host=self.host or None, port=self.port, user=self.user,
                               password=self.password.encode(), ssl_disabled=bool(self.socket), charset="utf8mb4",
                               collation="utf8mb4_bin", autocommit=True, connect_timeout=5, read_timeout=read_timeout)


class MariaDB:
    """Implements ``Database``. Connections are kept, one for each query that runs; what a query leaves on one is wiped."""

    def __init__(self, reader: _Login, names: Mapping[str, str], undo: ExitStack, time_limit: float, max_rows: int,
                 max_bytes: int, connections: int) -> None:
        if time_limit <= 0 or connections < 1:              # to the server, 0 seconds are no limit
            raise ValueError(f"expected time_limit > 0 and connections >= 1, got {time_limit} and {connections}")
        self._undo, self._closed, self._closing = undo, False, Lock()
        self._reader, self._names = reader, names                           # our name of a database → the server's
        self._patience = time_limit + SECONDS_OF_GRACE
        self._session = "SET SESSION " + SESSION.format(time_limit)
        self._max_rows, self._max_bytes, self._connections = max_rows, max_bytes, connections
        self._idle: LifoQueue[pymysql.Connection | None] = LifoQueue()      # None: to be opened when it is needed
        for _ in range(connections):
            self._idle.put(None)

    def run(self, sql: str | None, database_name: str) -> Execution:
        """See ``Database.run``. Blocks while all connections are busy (not counted in ``seconds``)."""
        if database_name not in self._names:
            raise ValueError(f"unknown database {database_name!r}; known: {', '.join(sorted(self._names))}")
        if sql is None or not sql.strip():
            return Execution("no_sql")
        if reason := objection(sql):
            return Execution("refused", error=reason)
        connection = self._idle.get()
        try:
            for pause in PAUSES:
                time.sleep(pause)
                if self._closed:
                    raise DatabaseError("MariaDB is closed")
                try:
                    if connection is None or not connection.open:
                        connection = self._reader.connect(self._patience)
                    return self._attempt(connection, sql, self._names[database_name])
                except pymysql.MySQLError as error:
                    failure = error
            raise DatabaseError(f"{self._reader} failed {len(PAUSES)} times: {_message(failure)}") from failure
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        """Wait for the queries that run, then undo all that opening did."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for connection in [self._idle.get() for _ in range(self._connections)]:
                _hang_up(connection)
                self._idle.put(None)                # whoever waits for a connection gets the error
            self._undo.close()

    def __enter__(self) -> "MariaDB":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attempt(self, connection: pymysql.Connection, sql: str, database: str) -> Execution:
        """One query on one connection; raises ``MySQLError`` if the server is at fault."""
        with ExitStack() as cut_short:
            cut_short.callback(_hang_up, connection)        # whatever goes wrong, nobody shall read the rest of it
            connection._execute_command(RESET_CONNECTION, b"")
            connection._read_ok_packet()
            connection.query(self._session)
            connection.select_db(database)
            execution = self._query(connection, sql)
            cut_short.pop_all()
        return execution

    def _query(self, connection: pymysql.Connection, sql: str) -> Execution:
        start = time.perf_counter()
        cursor = connection.cursor(SSCursor)                # unbuffered: rows arrive while they are counted
        try:
            cursor.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
            rows = self._fetch(cursor)
        except pymysql.MySQLError as error:
            status = self._blame(error, connection)
            return Execution(status, code=error.args[0], error=_message(error), seconds=time.perf_counter() - start)
        finally:
            if not connection.open and cursor._result is not None:
                cursor._result.unbuffered_active = False    # else the cursor, when collected, reads on from no socket
        seconds = time.perf_counter() - start
        if rows is None:
            return Execution("too_large", error=f"more than {self._max_rows} rows or {self._max_bytes} bytes", seconds=seconds)
        return Execution("ok", rows, columns, seconds=seconds)

    def _fetch(self, cursor: SSCursor) -> tuple[tuple[object, ...], ...] | None:
        rows: list[tuple[object, ...]] = []
        size = 0
        while row := cursor.fetchone():
            rows.append(row)
            size += sum(map(_bytes, row))
            if len(rows) > self._max_rows or size > self._max_bytes:
                _hang_up(cursor.connection)                 # a result can only be read to its end or not at all
                return None
        return tuple(rows)

    def _blame(self, error: pymysql.MySQLError, connection: pymysql.Connection) -> Status:
        """What kind of failure it was; raises the error again if the statement is not to blame."""
        code = error.args[0]
        if code == 2013 and isinstance(error.__context__, TimeoutError):        # our patience has ended, the query has not
            self._kill(connection.thread_id())
            return "timeout"
        if not isinstance(code, int) or code in BROKEN or code == 0 or 2000 <= code < 3000:
            raise error
        return STATUS.get(code, "other")

    def _kill(self, thread: int) -> None:
        """KILL it as the reader, who may always kill its own. A server that does not even do that is at fault itself."""
        with self._reader.connect(self._patience) as connection:
            try:
                connection.query(f"KILL {thread}")
            except pymysql.MySQLError as error:
                if error.args[0] != 1094:                   # no such thread: it has ended meanwhile
                    raise


def _message(error: pymysql.MySQLError) -> str:
    return str(error.args[-1])


def _hang_up(connection: pymysql.Connection | None) -> None:
    if connection is not None and connection.open:
        connection.close()


def _bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8 * (value is not None)


# ------------------------------------------------------------------------------------------------------ before it is run
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*+(?:'|\\?\Z)|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|`[^`]*(?:`|\Z)""", re.S)


def objection(sql: str) -> str:
    r"""Why this text is not sent, or "".

    >>> objection("SELECT ';' ;"), objection("SELECT 1; SELECT 2"), objection("SELECT 1 -- one")
    ('', 'more than one statement', 'comments and variables are not permitted')
    """
    if len(sql) > MAX_SQL:
        return f"longer than {MAX_SQL} characters"
    if "\0" in sql or any("\ud800" <= character <= "\udfff" for character in sql):
        return "not text"
    if not re.match(r"[\s(]*(select|with)\b", sql, re.I | re.A):
        return "does not begin with SELECT or WITH"
    bare = QUOTED.sub("''", sql)
    if ";" in bare.rstrip().removesuffix(";"):
        return "more than one statement"
    # Variables carry state from query to query and hold memory that no limit counts; comments hide code (/*! ... */).
    return "comments and variables are not permitted" if re.search(r"@|#|--|/\*", bare) else ""


# --------------------------------------------------------------------------------------------------------------- loading
def _load(admin: _Login, databases: Mapping[str, Tables], prefix: str, undo: list[str]) -> tuple[_Login, dict[str, str]]:
    """Create the databases and their reader; the reader and {our name: the server's}. ``undo`` gets what takes it back."""
    names = {name: prefix + name for name in databases}
    try:
        with admin.connect() as connection, connection.cursor() as cursor:
            cursor.max_stmt_length = 50_000                 # our own server takes 64 KiB
            for name, tables in databases.items():
                cursor.execute(f"CREATE DATABASE `{names[name]}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
                undo.append(f"DROP DATABASE `{names[name]}`")
                connection.select_db(names[name])
                for table in tables:
                    _load_table(cursor, table)
            return _create_reader(cursor, admin, names.values(), prefix + "reader", undo), names
    except pymysql.MySQLError as error:
        raise DatabaseError(f"{admin} does not load the tables: {_message(error)} (the account needs {RIGHTS})") from error


def _load_table(cursor: Cursor, table: Table) -> None:
    longest = max((len(value) for row in table.rows for value in row if isinstance(value, str)), default=0)
    cursor.execute(create_table(table, {"INT": "INT", "TEXT": f"VARCHAR({max(255, longest)})"}))
    cursor.executemany(f"INSERT INTO {table.name} VALUES ({', '.join(['%s'] * len(table.columns))})", table.rows)
    cursor.execute(f"ANALYZE TABLE {table.name}")           # else plans, and the order of ties, change when it comes to it


def _create_reader(cursor: Cursor, admin: _Login, names: object, user: str, undo: list[str]) -> _Login:
    cursor.execute("SELECT SUBSTRING_INDEX(USER(), '@', -1)")
    host = cursor.fetchone()[0]                             # us, as the server sees us
    reader = replace(admin, user=user, password=secrets.token_urlsafe(24))
    cursor.execute(f"CREATE USER `{user}`@`{host}` IDENTIFIED BY %s", (reader.password,))
    undo.append(f"DROP USER `{user}`@`{host}`")
    for name in names:
        pattern = name.replace("_", r"\_")                  # in a GRANT, _ is any character
        cursor.execute(f"GRANT SELECT ON `{pattern}`.* TO `{user}`@`{host}`")
    return reader


def _drop(admin: _Login, statements: list[str]) -> None:
    if not statements:
        return
    try:
        with admin.connect() as connection:
            connection.query("SET SESSION lock_wait_timeout=10")        # seconds; the default is a day
            while statements:
                connection.query(statements[-1])
                statements.pop()
    except pymysql.MySQLError as error:
        raise DatabaseError(f"{admin}: {_message(error)}; left behind, to be run by hand: {'; '.join(statements)}") from error


# -------------------------------------------------------------------------------------------------------- a private server
KEEPER = r"""
folder=$1; install=$2; server=$3; shift 3
[ "$(id -u)" = 0 ] && user=--user=root              # it refuses to run as root unless told to
mkdir -m 700 "$folder" || exit
if "$install" --no-defaults --datadir="$folder/data" $user --auth-root-authentication-method=normal --skip-test-db \
    --innodb-log-file-size=4M </dev/null >"$folder/log" 2>&1
then "$server" --no-defaults --datadir="$folder/data" $user --socket="$folder/socket" --tmpdir="$folder" "$@" \
    </dev/null 2>>"$folder/log" &
fi
exec >&-                    # now the server alone holds our output: it ends when the server does
read -r line                # a line, or the end of the pipe
kill -9 $!; wait
rm -rf "$folder"
"""
FLAGS = ("--skip-networking --skip-name-resolve --performance-schema=OFF --innodb-buffer-pool-size=16M --innodb-log-file-size=4M "
         "--innodb-flush-log-at-trx-commit=0 --innodb-use-native-aio=0 --local-infile=0 --max-allowed-packet=64K --read-only=1")


def _start_server(undo: ExitStack) -> _Login:
    """A server that answers, as its root (whom read-only does not bind, and who has no password behind a closed folder)."""
    folder = _roomy() / f"minigrpo-{secrets.token_hex(8)}"
    command = ["/bin/sh", "-c", KEEPER, "minigrpo-keeper", folder, _program("mariadb-install-db", "mysql_install_db"),
               _program("mariadbd", "mysqld"), *FLAGS.split()]
    # A session of its own: Ctrl-C in the terminal is for us, and we may still be asking.
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                              cwd="/", start_new_session=True)
    undo.callback(_stop, keeper)
    root = _Login(str(folder / "socket"), "", 0, "root", "")
    deadline = time.monotonic() + SECONDS_TO_START
    while not select([keeper.stdout], [], [], 0.01)[0] and time.monotonic() < deadline:
        if (folder / "socket").exists():
            with suppress(pymysql.OperationalError):        # made, but not yet listened to
                root.connect().close()
                return root
    log = folder / "log"
    tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else [f"{folder} cannot be made"]
    raise DatabaseError("the private MariaDB did not start; the end of its log:\n" + "\n".join(tail))


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    with keeper:                                            # which closes the pipes and waits
        with suppress(BrokenPipeError):
            keeper.stdin.write(b"\n")                       # if we have forked, the child holds the pipe open too


def _roomy() -> Path:
    """Memory-backed storage if there is room for the server's 35 MB many times over, else the folder for temporary files."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free >= 512 * 2**20:
        return memory
    return Path(tempfile.gettempdir()).resolve()


def _program(*names: str) -> str:
    """The first of these that is on the PATH."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise DatabaseError(f"no {names[0]} on the PATH: install MariaDB (apt-get install mariadb-server), or name a server")
