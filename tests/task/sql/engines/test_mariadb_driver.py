"""mariadb_driver.py: what PyMySQL does not publish does what we use it for, against a real server."""

import gc
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pymysql
import pytest
from pymysql.cursors import SSCursor

from minigrpo.task.sql.engines.mariadb import MariaDB, open_private
from minigrpo.task.sql.engines.mariadb_driver import (
    Login,
    drop_unread,
    hang_up,
    read_until,
    reset_session,
    set_read_timeout,
    timed_out,
)
from tests.mariadb_server import DATABASES, NUMBERS, needs_mariadb, reader_of

TESTED = (1, 1), (1, 3)             # versions of PyMySQL, from the first up to but without the second


def test_this_version_of_the_driver_has_been_tested():
    """With another one, look whether the tests below still speak of its names, then widen the range and pyproject's."""
    assert TESTED[0] <= pymysql.VERSION[:2] < TESTED[1]


def test_a_login_shows_no_password():
    login = Login("", "example.org", 3306, "me", "secret")
    assert str(login) == "MariaDB at example.org:3306 as 'me'" and "secret" not in repr(login)
    assert str(Login("/run/socket", "", 0, "me", "secret")) == "MariaDB at /run/socket as 'me'"


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    with open_private(DATABASES) as opened:
        yield opened


@pytest.fixture
def connection(server) -> Iterator[pymysql.Connection]:
    connection = reader_of(server).connect()
    yield connection
    hang_up(connection)
    hang_up(connection)                                     # once more is no error


@needs_mariadb
def test_an_answer_is_waited_for_as_long_as_is_set(connection):
    """The query takes two seconds; after the first limit of a fifth, the connection is of no use any more."""
    set_read_timeout(connection, 0.2)
    start = time.monotonic()
    with pytest.raises(pymysql.OperationalError) as caught:
        connection.query("SELECT SLEEP(2)")
    assert timed_out(caught.value) and 0.2 <= time.monotonic() - start < 1.5


@needs_mariadb
def test_resetting_clears_the_session(connection):
    """A variable and a session's setting are gone."""
    with connection.cursor() as cursor:
        cursor.execute("SET @x = 7, max_statement_time = 9")
        reset_session(connection)
        cursor.execute("SELECT @x, @@max_statement_time")
        assert cursor.fetchall() == ((None, 0.0),)


def test_all_rows_have_one_deadline_together():
    """Ten seconds are left when the first row is read, fewer when the second is; once none is left, a thousandth of one."""
    waited = []
    cursor = SimpleNamespace(connection=SimpleNamespace(), fetchone=iter([(1,), (2,), (3,), None]).__next__)
    for _ in read_until(cursor, time.perf_counter() + 10):
        waited.append(getattr(cursor.connection, "_read_timeout", None))
    assert waited[0] is None and 9 < waited[2] < waited[1] < 10
    cursor.fetchone = iter([(1,), None]).__next__
    assert list(read_until(cursor, time.perf_counter() - 1)) == [(1,)] and cursor.connection._read_timeout == 1e-3


@needs_mariadb
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_the_rest_of_a_result_that_is_dropped_is_not_read(connection):
    """Without drop_unread the cursor reads from a closed connection when it is collected, which Python can only warn of."""
    cursor = connection.cursor(SSCursor)
    cursor.execute(NUMBERS.format(900) + "SELECT i FROM n")
    assert next(read_until(cursor, time.perf_counter() + 5)) == (1,)
    hang_up(connection)
    drop_unread(cursor)
    del cursor
    gc.collect()
