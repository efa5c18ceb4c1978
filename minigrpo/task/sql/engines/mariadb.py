"""The contract of database.py on MariaDB, private or given: tables in, or there already; one untrusted query in, one Execution
out.

Knows the server; of questions, rewards and models it knows nothing. Five guards, each enough for most of what a model
writes: the text must be one SELECT that calls listed functions (`text_objection`); the account may only read its database;
the session has limits on time and memory, set anew for each query; rows and bytes are counted as they are read; a query that
outlives its limit is given up, killed and, on a server of ours, killed with the server, which is then started again. A query
with which that server died is run again, alone; it is an error if the server dies of it then too, so that no query's outcome
is another's: what a neighbour of a killed server pays is time.
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

from minigrpo.common.errors import UserError
from minigrpo.task.sql.engines.database import DatabaseError, Execution, Status, Tables
from minigrpo.task.sql.engines.guard import BLANK, Caps
from minigrpo.task.sql.engines.mariadb_server import Server, start_server
from minigrpo.task.sql.engines.mariadb_setup import Login, answers, drop, existing, load, message, status_of, timed_out
from minigrpo.task.sql.engines.mariadb_text import text_objection

SECONDS_OF_GRACE = 0.15         # beyond the time limit, for a query that the server's own clock does not stop
SECONDS_TO_DIE = 0.2            # for one that is killed, before its server is
SECONDS_TO_ANSWER = 10.0        # for a server that is asked nothing but to listen
PAUSES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)        # seconds after each attempt to reach the server that fails
DEATHS = 2                      # of the server under a query that ran alone: then it is the query
CRASHES = 10                    # such queries without an answer between: then it is not the queries
RESET_CONNECTION = 0x1F         # a command that PyMySQL does not name: wipes all session state but the database

SESSION = ("max_statement_time={:f}, tx_read_only=1, "
           # Quotes must mean here what they mean in objection(), and the same on every server.
           "sql_mode='STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_CREATE_USER,NO_ENGINE_SUBSTITUTION', "
           "character_set_client=utf8mb4, character_set_results=utf8mb4, collation_connection=utf8mb4_bin, "
           "max_session_mem_used=67108864, tmp_disk_table_size=67108864, tmp_memory_table_size=8388608, "
           "group_concat_max_len=65536")


def open_private(databases: Mapping[str, Tables], *, time_limit: float = 0.25, max_rows: int = 1000,
                 max_bytes: int = 1_000_000, connections: int = 4) -> "MariaDB":
    """Start a server of our own, load the databases, and serve up to ``connections`` queries at once.

    It listens on a socket in a folder of ours (in memory where there is room), is gone with us, and keeps nothing; if it
    dies before us, it is started again with the tables it had. A query gets ``time_limit`` seconds and may return
    ``max_rows`` rows of ``max_bytes`` bytes in all (text in UTF-8, a number as 8, NULL as 0). ``DatabaseError``: MariaDB is
    not installed, does not start, or does not take the tables.
    """
    with ExitStack() as undo:
        # A slot may hold a connection for each database, and one more to kill with; the rest is for whoever looks after it.
        server = start_server(undo, answers, connections * (len(databases) + 1) + 20)
        root = Login(server.socket, "", 0, "root", "")
        readers = load(root, databases, "", [])
        with root.connect() as connection:
            connection.query("FLUSH TABLES")                # the accounts' too, which are not InnoDB's
        server.freeze()
        return MariaDB(readers, undo, time_limit, Caps(max_rows, max_bytes), connections, server)


def open_server(databases: Mapping[str, Tables], *, host: str = "", port: int = 3306, socket: str = "", user: str,
                password: str, time_limit: float = 0.25, max_rows: int = 1000, max_bytes: int = 1_000_000,
                connections: int = 4) -> "MariaDB":
    """The same on a server that someone else runs, reached by ``host`` and ``port`` or by ``socket``.

    The account needs ``RIGHTS``. All that we make is named ``minigrpo_<random>_...``: one database for each of ours and
    an account for it that may read nothing else, from this machine. ``close`` drops it all and says what it could not; a crash
    leaves it behind, with no harm but the space. A query that the server's clock does not stop is cut off for us, not
    for the server, which works on it until it notices our KILL; packets are as large as that server allows.
    ``DatabaseError``: unreachable, refused, lacking a right.
    """
    undo_statements: list[str] = []
    with ExitStack() as undo:
        admin = Login(socket, host, port, user, password)
        undo.callback(drop, admin, undo_statements)
        readers = load(admin, databases, f"minigrpo_{secrets.token_hex(4)}_", undo_statements)
        return MariaDB(readers, undo, time_limit, Caps(max_rows, max_bytes), connections)


def open_existing(names: Iterable[str], *, host: str = "", port: int = 3306, socket: str = "", user: str, password: str,
                  time_limit: float = 0.25, max_rows: int = 1000, max_bytes: int = 1_000_000,
                  connections: int = 4) -> tuple["MariaDB", dict[str, Tables]]:
    """Databases that exist on a server that someone else runs, to be read and nothing else; and what tables they have.

    Nothing is made there and nothing dropped. The account may have no right but to read; what it may read, untrusted SQL may
    read, in other databases too. ``DatabaseError``: unreachable, refused, an account that may do more, no such database.
    """
    login = Login(socket, host, port, user, password)
    tables = existing(login, names)
    readers = {name: replace(login, database=name) for name in tables}
    return MariaDB(readers, ExitStack(), time_limit, Caps(max_rows, max_bytes), connections), tables


class MariaDB:
    """Implements ``Database``. As many slots as queries may run at once; a slot keeps a connection for each database it
    was asked for, as an account that can read no other, and what a query leaves on one is wiped."""

    def __init__(self, readers: Mapping[str, Login], undo: ExitStack, time_limit: float, caps: Caps,
                 connections: int, server: Server | None = None) -> None:
        """``server``: the one that the readers log in to, if it is ours."""
        if time_limit <= 0 or connections < 1:              # to the server, 0 seconds are no limit
            raise UserError(f"expected time_limit > 0 and connections >= 1, got {time_limit} and {connections}")
        self._closed, self._closing, self._taking_all = False, Lock(), Lock()
        self._readers, self._server = readers, server                       # our name of a database → who reads it
        self._patience = time_limit + SECONDS_OF_GRACE
        self._session = "SET SESSION " + SESSION.format(time_limit)
        self._caps, self._connections = caps, connections
        self._slots: LifoQueue[_Slot] = LifoQueue()
        for _ in range(connections):
            self._slots.put({})
        self._crashes = 0                                                   # since the last query that was answered
        self._undo = undo.pop_all()                                         # from here on close() is responsible

    def run(self, sql: str | None, database_name: str) -> Execution:
        """See ``Database.run``. Blocks while all slots are busy (not counted in ``seconds``)."""
        if database_name not in self._readers:
            raise UserError(f"unknown database {database_name!r}; known: {', '.join(sorted(self._readers))}")
        if sql is None or not sql.strip(BLANK):
            return Execution("no_sql")
        if reason := text_objection(sql):
            return Execution("refused", error=reason)
        slot = self._slots.get()
        try:
            return self._run(slot, database_name, sql)
        except _ServerDied:
            pass                                            # of this query, or of another that ran beside it
        finally:
            self._slots.put(slot)
        with self._all_slots() as slots:
            return self._run_alone(slots[0], database_name, sql)

    def close(self) -> None:
        """Wait for the queries that run, then undo all that opening did."""
        with self._closing, self._undo:             # which undoes, once, even if the waiting is interrupted
            if not self._closed:
                self._closed = True                 # whoever waits for a slot gets the error
                with self._all_slots() as slots:
                    for connection in [connection for slot in slots for connection in slot.values()]:
                        _hang_up(connection)

    def __enter__(self) -> "MariaDB":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _all_slots(self) -> Iterator[list["_Slot"]]:
        """All slots, as soon as nothing runs. Whoever waits here must hold none."""
        with self._taking_all, ExitStack() as put_back:
            taken = []
            while len(taken) < self._connections:
                taken.append(self._slots.get())
                put_back.callback(self._slots.put, taken[-1])
            yield taken

    def _run(self, slot: "_Slot", database_name: str, sql: str) -> Execution:
        """One query, however often the server has to be reached for. ``_ServerDied``: a server of ours ended meanwhile."""
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
            if timed_out(failure):                         # it hangs
                self._server.kill()
            if self._server.has_ended(pause):
                raise _ServerDied
        raise DatabaseError(f"{reader} failed {len(PAUSES)} times: {message(failure)}") from failure

    def _run_alone(self, slot: "_Slot", database_name: str, sql: str) -> Execution:
        """A query that a server of ours died with, while nothing else runs. Its fault if that happens here too."""
        for _ in range(DEATHS):
            self._check_open()                              # whoever closed it while we waited has removed the server's files
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
            cut_short.callback(_hang_up, connection)        # whatever goes wrong, nobody shall read the rest of it
            connection._read_timeout = SECONDS_TO_ANSWER
            connection._execute_command(RESET_CONNECTION, b"")
            connection._read_ok_packet()
            connection.query(self._session)
            connection.select_db(reader.database)
            execution = self._query(reader, connection, sql)
            cut_short.pop_all()
        return execution

    def _query(self, reader: Login, connection: pymysql.Connection, sql: str) -> Execution:
        start = time.perf_counter()
        cursor = connection.cursor(SSCursor)                # unbuffered: rows arrive while they are counted
        try:
            connection._read_timeout = self._patience
            cursor.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
            rows = self._caps.read(_rows(cursor, start + self._patience))
            if rows is None:
                _hang_up(connection)                        # a result can only be read to its end or not at all
        except pymysql.MySQLError as error:
            status = self._blame(error, reader, connection)
            return Execution(status, (), (), error.args[0], message(error), time.perf_counter() - start)
        finally:
            if not connection.open and cursor._result is not None:
                cursor._result.unbuffered_active = False    # else the cursor, when collected, reads on from no socket
        seconds = time.perf_counter() - start
        self._crashes = 0
        if rows is None:
            return Execution("too_large", error=str(self._caps), seconds=seconds)
        return Execution("ok", rows, columns, seconds=seconds)

    def _blame(self, error: pymysql.MySQLError, reader: Login, connection: pymysql.Connection) -> Status:
        """What kind of failure it was; raises the error again if the statement is not to blame."""
        if timed_out(error):                               # our patience has ended, the query has not
            if not _end_query(reader, connection.thread_id()) and self._server:
                self._server.kill()                         # whoever else runs there finds that it has died, and runs again
            return "timeout"
        if (status := status_of(error)) is None:
            raise error
        self._crashes = 0                                   # a server that says no lives as well
        return status


_Slot = dict[str, pymysql.Connection]           # our name of a database → a connection of its reader


class _ServerDied(Exception):
    """A server of ours ended while a query was run."""


def _rows(cursor: SSCursor, deadline: float) -> Iterator[tuple[object, ...]]:
    """The rows of a result. Each is waited for as long as there is time."""
    while row := cursor.fetchone():
        yield row
        cursor.connection._read_timeout = max(1e-3, deadline - time.perf_counter())


def _end_query(reader: Login, thread: int) -> bool:
    """KILL it as its reader, who may always kill its own. Whether it is gone before long: some functions look up from their
    work for nothing."""
    until = time.monotonic() + SECONDS_TO_DIE
    try:
        with reader.connect(SECONDS_TO_DIE) as connection:
            while time.monotonic() < until:
                connection.query(f"KILL {thread}")
                time.sleep(0.01)
    except pymysql.MySQLError as error:
        return error.args[0] == 1094                        # no such thread
    return False


def _hang_up(connection: pymysql.Connection) -> None:
    if connection.open:
        connection.close()
