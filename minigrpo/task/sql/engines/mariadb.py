"""The contract of database.py on MariaDB: on a private server, a given one, or databases that exist already.

Does not depend on questions, rewards or models. Five guards; each alone stops most of what a model writes:

- the text must be one SELECT that calls only listed functions (``text_objection``);
- the account may only read its own database;
- the session has limits on time and memory, which are set again for each query;
- rows and bytes are counted while they are read;
- a query that exceeds its time limit is abandoned and killed. If it does not end, our own server is killed and restarted.

If our own server dies during a query, the query runs again, alone. Only if the server dies again is it that query's error, so
no query's outcome depends on another query. The neighbours of a killed server lose nothing but time.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from queue import LifoQueue
from threading import Lock

import pymysql
from pymysql.cursors import SSCursor

from minigrpo.task.sql.engines import mariadb_driver as driver
from minigrpo.task.sql.engines.database import Database, DatabaseError, Execution, Limits, Status, Tables
from minigrpo.task.sql.engines.guard import check_query, read_rows, too_large
from minigrpo.task.sql.engines.mariadb_driver import Login
from minigrpo.task.sql.engines.mariadb_server import Server, start_server
from minigrpo.task.sql.engines.mariadb_setup import answers, drop, existing, load, status_of
from minigrpo.task.sql.engines.mariadb_text import text_objection

SECONDS_OF_GRACE = 0.15         # beyond the time limit, before we abandon a query that the server itself has not stopped
SECONDS_TO_DIE = 0.2            # for a killed query to end, before its server is killed
SECONDS_TO_ANSWER = 10.0        # for an idle server to answer
PAUSES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)        # seconds to wait after each failed attempt to reach the server
DEATHS = 2                      # of the server while a query ran alone: then the query is to blame
CRASHES = 10                    # such queries in a row, with no answer between them: then the server is to blame

SESSION = ("max_statement_time={:f}, tx_read_only=1, "
           # Quotes must mean here what they mean in objection(), and the same on every server.
           "sql_mode='STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_CREATE_USER,NO_ENGINE_SUBSTITUTION', "
           "character_set_client=utf8mb4, character_set_results=utf8mb4, collation_connection=utf8mb4_bin, "
           "max_session_mem_used=67108864, tmp_disk_table_size=67108864, tmp_memory_table_size=8388608, "
           "group_concat_max_len=65536")


def open_private(databases: Mapping[str, Tables], limits: Limits = Limits()) -> "MariaDB":
    """Start a server of our own and load the databases.

    It listens on a socket in a private folder (in memory where there is room), ends when this program ends, and keeps nothing.
    If it dies earlier, it is restarted with the tables it had. ``DatabaseError``: MariaDB is not installed, does not start, or
    does not accept the tables.
    """
    with ExitStack() as undo:
        # Each slot may hold a connection for each database, and one more to kill with. 20 more are for administrators.
        server = start_server(undo, answers, limits.connections * (len(databases) + 1) + 20)
        root = Login(server.socket, "", 0, "root", "")
        readers = load(root, databases, "", [])
        with root.connect() as connection:
            connection.query("FLUSH TABLES")                # also those of the accounts, which are not InnoDB's
        server.freeze()
        return MariaDB(readers, undo, limits, server)


def open_server(admin: Login, databases: Mapping[str, Tables], limits: Limits = Limits()) -> "MariaDB":
    """Load the databases into a server that someone else runs.

    The account needs ``RIGHTS``. Everything that we create is named ``minigrpo_<random>_...``: for each database a copy, and
    an account that may read only this copy, from this machine. ``close`` drops it all, and says what it could not drop. A
    crash leaves it behind; it takes space and does no other harm. We stop waiting for a query that exceeds the server's time
    limit, but the server works on it until it notices our KILL. Packets are as large as that server allows.
    ``DatabaseError``: the server is unreachable or refuses, or the account lacks a right.
    """
    undo_statements: list[str] = []
    with ExitStack() as undo:
        undo.callback(drop, admin, undo_statements)
        readers = load(admin, databases, f"minigrpo_{secrets.token_hex(4)}_", undo_statements)
        return MariaDB(readers, undo, limits)


def open_existing(login: Login, names: Iterable[str], limits: Limits = Limits()) -> tuple["MariaDB", dict[str, Tables]]:
    """Open databases that exist on a server that someone else runs, only to read them; and return their tables.

    Nothing is created or dropped there. The account must have no right except to read. Untrusted SQL may read everything that
    the account may read, in other databases too. ``DatabaseError``: the server is unreachable or refuses, the account may do
    more than read, or there is no such database.
    """
    tables = existing(login, names)
    readers = {name: replace(login, database=name) for name in tables}
    return MariaDB(readers, ExitStack(), limits), tables


class MariaDB(Database):
    """There are as many slots as queries may run at once. A slot keeps one connection for each
    database it was asked for, logged in as an account that can read no other. What a query leaves on it is cleared."""

    def __init__(self, readers: Mapping[str, Login], undo: ExitStack, limits: Limits, server: Server | None = None) -> None:
        """``readers``: database name → the account that reads it; ``server``: the one they log in to, if it is our own."""
        self._closed, self._closing, self._taking_all = False, Lock(), Lock()
        self._readers, self._server, self._limits = readers, server, limits
        self._patience = limits.time_limit + SECONDS_OF_GRACE
        self._session = "SET SESSION " + SESSION.format(limits.time_limit)
        self._slots: LifoQueue[_Slot] = LifoQueue()
        for _ in range(limits.connections):
            self._slots.put({})
        self._crashes = 0                                                   # since the last query that was answered
        self._undo = undo.pop_all()                                         # from here on close() is responsible

    def run(self, sql: str | None, database_name: str) -> Execution:
        checked = check_query(sql, database_name, self._readers, text_objection)
        if isinstance(checked, Execution):
            return checked
        slot = self._slots.get()
        try:
            return self._run(slot, database_name, checked)
        except _ServerDied:
            pass                                            # because of this query, or of another that ran at the same time
        finally:
            self._slots.put(slot)
        with self._all_slots() as slots:
            return self._run_alone(slots[0], database_name, checked)

    def close(self) -> None:
        """Wait for the queries that run, then undo everything that opening did."""
        with self._closing, self._undo:             # it undoes once, even if the waiting is interrupted
            if not self._closed:
                self._closed = True                 # whoever waits for a slot gets the error
                with self._all_slots() as slots:
                    for connection in [connection for slot in slots for connection in slot.values()]:
                        driver.hang_up(connection)

    @contextmanager
    def _all_slots(self) -> Iterator[list["_Slot"]]:
        """All slots, as soon as no query runs. The caller must hold none."""
        with self._taking_all, ExitStack() as put_back:
            taken: list[_Slot] = []
            while len(taken) < self._limits.connections:
                taken.append(self._slots.get())
                put_back.callback(self._slots.put, taken[-1])
            yield taken

    def _run(self, slot: "_Slot", database_name: str, sql: str) -> Execution:
        """One query, with several attempts to reach the server. ``_ServerDied``: our own server ended meanwhile."""
        reader = self._readers[database_name]
        for pause in PAUSES:
            self._check_open()
            try:
                if database_name not in slot or not slot[database_name].open:
                    slot[database_name] = reader.connect(SECONDS_TO_ANSWER)
                return self._attempt(reader, slot[database_name], sql)
            except pymysql.MySQLError as error:
                failure = error
            if not self._server:
                time.sleep(pause)
                continue
            if driver.timed_out(failure):                   # the server hangs
                self._server.kill()
            if self._server.has_ended(pause):
                raise _ServerDied
        raise DatabaseError(f"{reader} failed {len(PAUSES)} times: {driver.message(failure)}") from failure

    def _run_alone(self, slot: "_Slot", database_name: str, sql: str) -> Execution:
        """Run a query during which our own server died, now that no other query runs. If the server dies again, the query is
        to blame."""
        assert self._server, "only our own server is seen to die"
        for _ in range(DEATHS):
            self._check_open()                              # if it was closed while we waited, the server's files are gone
            self._server.restart()
            try:
                return self._run(slot, database_name, sql)
            except _ServerDied:
                pass
        self._crashes += 1
        if self._crashes >= CRASHES:
            raise DatabaseError(f"the private MariaDB died under {CRASHES} queries in a row, the last of them {sql[:200]!r}")
        return Execution("other", error="the server crashed")

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseError("MariaDB is closed")

    def _attempt(self, reader: Login, connection: pymysql.Connection, sql: str) -> Execution:
        """One query on one connection; raises ``MySQLError`` if the server is at fault."""
        with ExitStack() as cut_short:
            cut_short.callback(driver.hang_up, connection)  # after any error, so that no later query reads the rest
            driver.set_read_timeout(connection, SECONDS_TO_ANSWER)
            driver.reset_session(connection)
            connection.query(self._session)
            connection.select_db(reader.database)
            execution = self._query(reader, connection, sql)
            cut_short.pop_all()
        return execution

    def _query(self, reader: Login, connection: pymysql.Connection, sql: str) -> Execution:
        start = time.perf_counter()
        cursor = connection.cursor(SSCursor)                # unbuffered: rows are counted as they arrive
        try:
            driver.set_read_timeout(connection, self._patience)
            cursor.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
            rows = read_rows(driver.read_until(cursor, start + self._patience), self._limits)
            if rows is None:
                driver.hang_up(connection)                  # a connection is free only after the last row is read
        except pymysql.MySQLError as error:
            status = self._blame(error, reader, connection)
            return Execution(status, (), (), error.args[0], driver.message(error), time.perf_counter() - start)
        finally:
            if not connection.open:
                driver.drop_unread(cursor)
        seconds = time.perf_counter() - start
        self._crashes = 0
        return too_large(self._limits, seconds) if rows is None else Execution("ok", rows, columns, seconds=seconds)

    def _blame(self, error: pymysql.MySQLError, reader: Login, connection: pymysql.Connection) -> Status:
        """The status of a query that failed; raises the error again if the statement is not to blame."""
        if driver.timed_out(error):                         # we stopped waiting, but the query still runs
            if not _end_query(reader, connection.thread_id()) and self._server:
                self._server.kill()                         # the other queries on it see that it died, and run again
            return "timeout"
        if (status := status_of(error)) is None:
            raise error
        self._crashes = 0                                   # an error is an answer too: the server lives
        return status


_Slot = dict[str, pymysql.Connection]           # database name → a connection of its reader


class _ServerDied(Exception):
    """Our own server ended while a query ran."""


def _end_query(reader: Login, thread: int) -> bool:
    """KILL a query as its reader, who may always kill its own. Returns whether it ended within ``SECONDS_TO_DIE``: some
    functions do not notice a KILL while they run."""
    until = time.monotonic() + SECONDS_TO_DIE
    try:
        with reader.connect(SECONDS_TO_DIE) as connection:
            while time.monotonic() < until:
                connection.query(f"KILL {thread}")
                time.sleep(0.01)
    except pymysql.MySQLError as error:
        return error.args[0] == 1094                        # no such thread
    return False
