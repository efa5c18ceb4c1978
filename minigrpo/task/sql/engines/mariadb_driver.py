"""The client library PyMySQL: how to log in, what its exceptions say, and everything of it that it does not publish.

The functions below the line use names of PyMySQL that begin with an underscore. tests/task/sql/engines/test_mariadb_driver.py
names the versions that they were tested with.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import SSCursor

RESET_CONNECTION = 0x1F         # a command of the protocol that PyMySQL does not name: clears all session state

# PyMySQL would make a TIME a timedelta, whose text is "9:30:00" for 09:30:00 and "1 day, 2:00:00" for 26:00:00.
CONVERSIONS = {kind: convert for kind, convert in conversions.items() if kind != FIELD_TYPE.TIME}


@dataclass(frozen=True)
class Login:
    """Where a server is (a socket, else host and port), which account to use, and which database to open ("": none)."""

    socket: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = ""

    def __str__(self) -> str:
        return f"MariaDB at {self.socket or f'{self.host}:{self.port}'} as {self.user!r}"

    def connect(self, seconds: float = 60.0) -> pymysql.Connection:
        """A new connection, without opening the database. ``seconds``: how long each answer may take."""
        # Without ssl_disabled PyMySQL builds an SSL context for each connection, which a socket does not need.
        return pymysql.connect(unix_socket=self.socket or None, host=self.host or None, port=self.port, user=self.user,
                               password=self.password.encode(), ssl_disabled=bool(self.socket), charset="utf8mb4",
                               collation="utf8mb4_bin", conv=CONVERSIONS, autocommit=True, read_timeout=seconds,
                               connect_timeout=min(seconds, 5.0))


def message(error: pymysql.MySQLError) -> str:
    return str(error.args[-1])


def timed_out(error: pymysql.MySQLError) -> bool:
    """Whether the client gave up waiting for the server."""
    return error.args[0] in (2003, 2013) and isinstance(error.__context__, TimeoutError)


def hang_up(connection: pymysql.Connection) -> None:
    if connection.open:
        connection.close()


# ------------------------------------------------------------------------------------------------ not published by PyMySQL
def set_read_timeout(connection: pymysql.Connection, seconds: float) -> None:
    """From now on each answer may take so long."""
    connection._read_timeout = seconds                      # type: ignore[attr-defined]


def reset_session(connection: pymysql.Connection) -> None:
    """Clear everything that earlier queries left on the connection, except which database is open."""
    connection._execute_command(RESET_CONNECTION, b"")      # type: ignore[attr-defined]
    connection._read_ok_packet()                            # type: ignore[attr-defined]


def read_until(cursor: SSCursor, deadline: float) -> Iterator[tuple[object, ...]]:
    """The rows of an unbuffered result, each waited for until ``deadline`` (of ``time.perf_counter``) at most."""
    while row := cursor.fetchone():
        yield row
        set_read_timeout(cursor.connection, max(1e-3, deadline - time.perf_counter()))


def drop_unread(cursor: SSCursor) -> None:
    """Forget the rest of a result whose connection is closed. Otherwise the cursor reads it when it is garbage collected."""
    result = cursor._result                                 # type: ignore[attr-defined]
    if result is not None:
        result.unbuffered_active = False
