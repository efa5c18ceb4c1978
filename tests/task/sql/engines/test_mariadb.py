"""A real MariaDB, private and given: right rows, every status, nothing written, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pymysql
import pytest

from minigrpo.task.sql.engines.database import STATUSES, DatabaseError, Execution, Limits, run_all
from minigrpo.task.sql.engines.mariadb import MariaDB, _end_query, open_existing, open_private
from minigrpo.task.sql.engines.mariadb_driver import Login
from minigrpo.task.sql.engines.mariadb_text import text_objection
from tests.mariadb_server import (
    CROSS_JOIN,
    DATABASES,
    NUMBERS,
    PASSWORD,
    READ_GAMES,
    administrator,
    needs_mariadb,
    reader_of,
    rows,
)
from tests.processes import command_lines, eventually
from tests.quick import rest_slow

pytestmark = needs_mariadb


@pytest.fixture(scope="module")
def database() -> Iterator[MariaDB]:
    with open_private(DATABASES) as opened:
        yield opened


@pytest.fixture
def unguarded(monkeypatch) -> Iterator[MariaDB]:
    """A server whose queries are sent without checking their text."""
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.text_objection", lambda sql: "")
    with open_private(DATABASES) as opened:
        yield opened


def folder(database: MariaDB) -> Path:
    return Path(reader_of(database).socket).parent


def processes(word: str) -> list[int]:
    """The processes with this word in their command line. The name of a server's folder finds its keeper and the server."""
    return [pid for pid, line in command_lines().items() if word in line]


def keepers() -> list[int]:
    """The keepers of this process; other test runs on this machine have their own."""
    return [pid for pid in processes("minigrpo-keeper") if f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text()]


# ---------------------------------------------------------------------------------------------------------- right queries
def test_rows_columns_and_values(database: MariaDB) -> None:
    execution = database.run("SELECT name, year AS when_, format FROM Athlete JOIN Medal USING (athlete_id) ORDER BY medal_id", "games")
    assert execution.status == "ok" and execution.code is None and execution.error == "" and execution.seconds > 0
    assert execution.columns == ("name", "when_", "format")
    assert execution.rows == (("Zoë Ødegård", 2012, "Team "), ("Zoë Ødegård", None, "50 % \\ 金"), ("Ann O'Neil", 2013, "team"))


def test_an_average_is_a_decimal_with_four_digits_more_and_null_counts_nowhere(database: MariaDB) -> None:
    (mean, count), = rows(database, "SELECT AVG(year), COUNT(year) FROM Medal")     # (2012 + 2013) / 2
    assert (mean, count) == (Decimal("2012.5"), 2) and isinstance(mean, Decimal)


@pytest.mark.parametrize("word, ids", [("'Team'", ((1,),)), ("'Team   '", ((1,),)), ("'team'", ((3,),)), ("'TEAM'", ())])
def test_text_is_compared_by_case_but_not_by_trailing_spaces(database: MariaDB, word: str, ids: tuple) -> None:
    assert rows(database, f"SELECT medal_id FROM Medal WHERE format = {word}") == ids
    assert rows(database, f"SELECT medal_id FROM Medal WHERE {word} = format") == ids


@pytest.mark.parametrize("sql", [
    "SELECT ';', '--', '#', '@', '/*'", 'SELECT ";", "--", "#", "@", "/*"', r"""SELECT ';', '--', '#', '@', '/*' AS `a;--#@/*`""",
    " \n((SELECT ';', '--', '#', '@', '/*')) ; \n", "wiTh x AS (SELECT ';', '--', '#', '@', '/*') SELECT * FROM x;"])
def test_quoted_signs_are_text(database: MariaDB, sql: str) -> None:
    assert rows(database, sql) == ((";", "--", "#", "@", "/*"),)


def test_a_time_is_the_text_that_the_server_shows(database: MariaDB) -> None:
    """As in SQLite, and not as Python writes a duration."""
    assert rows(database, "SELECT CAST('09:30:00' AS TIME), CAST('26:00:00' AS TIME)") == (("09:30:00", "26:00:00"),)


# -------------------------------------------------------------------------------------------------------------- outcomes
@pytest.mark.parametrize("sql, status, code", [
    ("SELECT 1", "ok", None),
    (None, "no_sql", None), (" \n", "no_sql", None), (" ;\n", "no_sql", None),
    ("The answer is 3", "refused", None),
    ("SELECT FROM WHERE", "syntax", 1064), ("SELECT 'open", "syntax", 1064), ("SELECT \"open\\", "syntax", 1064),
    ("SELECT age FROM Athlete", "unknown_column", 1054), ("SELECT Medal.year FROM Athlete", "unknown_column", 1054),
    ("SELECT 1 FROM Athletes", "unknown_table", 1146), ("SELECT 1 FROM medal", "unknown_table", 1146),
    ("SELECT Medal.* FROM Athlete", "unknown_table", 1051),
    ("SELECT athlete_id FROM Athlete, Medal", "other", 1052),                   # ambiguous
    ("SELECT (SELECT year FROM Medal)", "other", 1242),                         # more than one row
    ("SELECT * FROM mysql.user", "refused", 1142),
    (CROSS_JOIN, "timeout", 1969),
    ("SELECT SLEEP(5)", "refused", None), ("SELECT NO_SUCH(5)", "refused", None),       # no function in the list
    ("SELECT * FROM information_schema.tables", "refused", None),
    (NUMBERS.format(900) + "SELECT a.i FROM n a, n b", "too_large", None),
])
def test_status(database: MariaDB, sql: str | None, status: str, code: int | None) -> None:
    execution = database.run(sql, "games")
    assert (execution.status, execution.code) == (status, code), execution
    assert status in STATUSES and (status in ("ok", "no_sql")) == (execution.error == "")
    assert execution.ok or (execution.rows == () and execution.columns == ())
    assert execution.seconds < 0.25 + 0.5 + 2                                   # a query that hangs would take longer; the 2 s are for a busy machine
    assert rows(database, "SELECT 2") == ((2,),)                                # and the next query is right


REFUSED = [
    "INSERT INTO Athlete VALUES (3, 'x')", "UPDATE Athlete SET name = 'x'", "DELETE FROM Medal", "TRUNCATE Medal", "DROP TABLE Medal",
    "CREATE TABLE games.x (a INT)", "ALTER TABLE Medal ADD x INT", "GRANT ALL ON *.* TO reader@localhost", "SET PASSWORD = ''",
    "SET SESSION max_statement_time = 0", "SET STATEMENT max_statement_time = 0 FOR SELECT 1", "USE other_games", "KILL 1", "SHUTDOWN",
    "BEGIN NOT ATOMIC SELECT 1; END", "HANDLER Medal OPEN", "DO SLEEP(9)", "CALL x()", "PREPARE p FROM 'SELECT 1'", "COMMIT",
    "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE Medal", "(DELETE FROM Medal)", "SELECTED", "EXPLAIN SELECT 1", "\ufeffSELECT 1",
    "SELECT 1; DROP TABLE Medal", "SELECT 1;;", "SELECT '\\'; DROP TABLE Medal; '; DROP TABLE Medal", "SELECT ''';'; DROP TABLE Medal",
    "SELECT 1 -- one", "SELECT 1 # one", "SELECT /* one */ 1", "SELECT 1 /*! INTO OUTFILE '/tmp/x' */", "-- one\nSELECT 1",
    "SELECT @a", "SELECT @a := 1", "SELECT @@version", "SELECT 1 INTO @a", "SELECT '\0'", "SELECT '\ud800'", "SELECT 1" + " " * 10_000,
    "SELECT 1 INTO OUTFILE '/tmp/minigrpo-outfile'", "SELECT 1 INTO DUMPFILE '/tmp/minigrpo-outfile'", "SELECT * FROM Medal FOR UPDATE",
    # MariaDB 10.11 crashes on it; a model of two layers wrote it.
    "SELECT Format.name FROM Athlete JOIN Tournament USING (athlete_id) JOIN Format USING (tournament_id) WHERE Athlete.name.name = 'x'",
    "SELECT * FROM mysql.global_priv", "SELECT * FROM sys.version", "WITH x AS (SELECT 1) DELETE FROM Medal",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_nothing_but_one_select_and_nothing_but_our_data(database: MariaDB, sql: str) -> None:
    before = rows(database, "SELECT * FROM Athlete, Medal")
    status = database.run(sql, "games").status
    assert status == ("syntax" if sql.startswith("WITH x") else "refused")       # MariaDB has no WITH ... DELETE
    assert rows(database, "SELECT * FROM Athlete, Medal") == before and len(before) == 2 * 3
    assert not Path("/tmp/minigrpo-outfile").exists()


def test_a_query_reads_its_own_database_and_no_other(database: MariaDB) -> None:
    """Also by qualified name: a question about one database must not be answered from another."""
    assert database.run("SELECT * FROM Secret", "other_games").rows == ((7,),)
    assert database.run("SELECT * FROM other_games.Secret", "games").status == "refused"
    assert database.run("SELECT * FROM games.Athlete", "other_games").status == "refused"
    assert database.run("SELECT * FROM games.Athlete", "games").ok


def test_the_account_alone_would_stop_a_write(database: MariaDB) -> None:
    """The text checks are one guard, the account's rights another: without the first, each of these still fails and changes nothing."""
    with reader_of(database).connect() as connection, connection.cursor() as cursor:
        for sql in ("INSERT INTO games.Athlete VALUES (3, 'x')", "DROP TABLE games.Medal", "CREATE DATABASE x", "SET GLOBAL read_only = 0",
                    "CREATE TEMPORARY TABLE games.x (a INT)", "SHUTDOWN", "SELECT * FROM mysql.user", "CREATE USER x"):
            with pytest.raises(pymysql.MySQLError) as caught:
                cursor.execute(sql)
            assert caught.value.args[0] in (1044, 1142, 1227, 1290), sql         # no right to; or: this server is read-only
        cursor.execute("SELECT LOAD_FILE('/etc/hostname')")                     # without the right to files: NULL
        assert cursor.fetchone() == (None,)
    assert len(rows(database, "SELECT * FROM Athlete, Medal")) == 6


@pytest.mark.parametrize("sql", ["SELECT '" + "\\'" * 4_990, "SELECT " + "'" * 9_990, "(" * 10_000, "SELECT 1" + "\n" * 9_000 + ";"])
def test_the_guard_does_not_hang(sql: str) -> None:
    start = time.perf_counter()
    text_objection(sql)
    assert time.perf_counter() - start < 10              # an exponential scan would never end


# One REGEXP_REPLACE of 60,000 characters takes a second or more and checks neither the time limit nor a KILL.
STUCK = "SELECT " + ", ".join(["REGEXP_REPLACE(REPEAT('x', 60000), 'x', '')"] * 20)


def test_a_query_that_no_clock_and_no_kill_stops_is_a_timeout_and_its_neighbours_are_right(unguarded: MariaDB) -> None:
    """Its server is killed and restarted; the queries that ran at the same time, of 0.1 s each, run again."""
    queries = [(STUCK, "games"), *((f"SELECT {i}, SLEEP(0.1)", "games") for i in range(30))]
    stuck, *others = run_all(unguarded, queries, 4)
    assert stuck.status == "timeout" and stuck.seconds < 0.25 + 0.5
    assert [execution.rows for execution in others] == [((i, 0),) for i in range(30)]
    assert rows(unguarded, "SELECT COUNT(*) FROM Athlete, Medal") == ((2 * 3,),)
    assert len(processes(folder(unguarded).name)) == 2


def test_it_is_killed_on_the_server_too() -> None:
    """The server's limit is 20 s here and our patience half a second, so that only our KILL can end the cross join: it does,
    and the server lives."""
    with open_private(DATABASES, Limits(time_limit=20.0)) as database:
        database._patience = 0.5
        (server,) = servers(database)
        assert database.run(CROSS_JOIN, "games").status == "timeout"
        with administrator(database) as cursor:
            cursor.execute("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'WITH%'")
            assert cursor.fetchone() == (0,)
        assert servers(database) == [server]


@pytest.mark.slow
def test_rows_that_trickle_in_have_one_limit_together() -> None:
    """Each of 40 rows comes a tenth of a second after the one before: none is late by itself. The server's limit is 20 s."""
    with open_private(DATABASES, Limits(time_limit=20.0)) as database:
        database._patience = 0.5
        start = time.monotonic()
        connection = reader_of(database).connect()
        # Each row fills the server's buffer, so that it is sent at once.
        assert database._query(reader_of(database), connection, NUMBERS.format(40) + "SELECT SLEEP(0.1), RPAD('x', 20000, 'x') FROM n").status == "timeout"
        assert time.monotonic() - start < 2


# ------------------------------------------------------------------------------------------------------------------- caps
def test_row_cap_and_byte_cap_are_exact() -> None:
    """The caps are 10 rows and 100 bytes. Numbers count 8: 10 rows of one are 80. 'é' is 2 bytes in UTF-8, NULL is nothing."""
    with open_private(DATABASES, Limits(max_rows=10, max_bytes=100, connections=1)) as database:
        for sql, status in [
            (NUMBERS.format(10) + "SELECT i FROM n", "ok"), (NUMBERS.format(11) + "SELECT i FROM n", "too_large"),
            ("SELECT RPAD('é', 50, 'é'), NULL", "ok"), ("SELECT RPAD('é', 50, 'é'), 'x'", "too_large"),
            ("SELECT RPAD('x', 92, 'x'), 1", "ok"), ("SELECT RPAD('x', 93, 'x'), 1", "too_large"), ("SELECT RPAD('x', 16000, 'x')", "too_large"),
            (NUMBERS.format(10) + "SELECT 'xxxxxxxxxx' FROM n", "ok"), (NUMBERS.format(10) + "SELECT 'xxxxxxxxxxx' FROM n", "too_large"),
        ]:
            assert database.run(sql, "games").status == status, sql
            assert rows(database, "SELECT 2") == ((2,),)        # one connection: the next query does not read the rest of this one


def test_memory_cap() -> None:
    """Each WITH table mentions the one before twice, so that the plan holds 2¹² copies of the first: more than 64 MiB."""
    doubling = "WITH c0 AS (SELECT 1 n)" + "".join(f", c{i} AS (SELECT a.n FROM c{i - 1} a, c{i - 1} b)" for i in range(1, 13))
    with open_private(DATABASES, Limits(time_limit=10.0)) as database:      # enough time to reach the limit on any machine
        execution = database.run(doubling + " SELECT COUNT(*) FROM c12", "games")
        assert (execution.status, execution.code) == ("too_large", 1290)
        assert rows(database, "SELECT 2") == ((2,),)


# ------------------------------------------------------------------------------------------------------------------ state
def test_nothing_passes_from_a_query_to_the_next(monkeypatch) -> None:
    """LAST_INSERT_ID(7) and GET_LOCK leave a value and a lock on a connection, of which there is one."""
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.text_objection", lambda sql: "")
    with open_private(DATABASES, Limits(connections=1)) as database:
        assert rows(database, "SELECT LAST_INSERT_ID(7), GET_LOCK('mine', 0)") == ((7, 1),)
        assert rows(database, "SELECT LAST_INSERT_ID(), IS_FREE_LOCK('mine')") == ((0, 1),)
        assert database.run("SELECT id FROM Secret", "other_games").rows == ((7,),)
        assert database.run("SELECT id FROM Secret", "games").status == "unknown_table"
        assert rows(database, "SELECT DATABASE()") == (("games",),)
        for _ in range(2):                                      # the limit is set again for each query
            assert database.run("SELECT SLEEP(5)", "games").status == "timeout"


def test_many_at_once_in_order(database: MariaDB) -> None:
    many = [(f"SELECT {i}", ("games", "other_games")[i % 2]) for i in range(200)]           # more threads than connections
    assert [execution.rows for execution in run_all(database, many, 16)] == [((i,),) for i in range(200)]


@pytest.mark.slow
def test_every_slot_may_hold_a_connection_for_each_database_and_one_to_kill_with() -> None:
    """Eighty slots and two databases need 240 connections at once; by default a server accepts 151."""
    with open_private(DATABASES, Limits(connections=80)) as database, ExitStack() as hang_up:
        for reader in [reader_of(database, name) for name in ("games", "other_games", "games") for _ in range(80)]:
            hang_up.callback(reader.connect().close)
        assert rows(database, "SELECT 2") == ((2,),)


def test_an_unknown_database_is_our_mistake(database: MariaDB) -> None:
    with pytest.raises(ValueError, match="'gams'; known: games, other_games"):
        database.run("SELECT 1", "gams")


@pytest.mark.parametrize("wrong", rest_slow([{"time_limit": 0.0}, {"connections": 0}]))
def test_no_limit_is_no_limit_at_all(wrong: dict) -> None:
    before = keepers()
    with pytest.raises(ValueError, match="time_limit > 0 and connections >= 1"):
        open_private(DATABASES, Limits(**wrong))
    assert keepers() == before


# ------------------------------------------------------------------------------------------------------------ gone afterwards
def test_close_leaves_nothing() -> None:
    database = open_private(DATABASES)
    place = folder(database)
    assert place.is_dir() and place.stat().st_mode & 0o777 == 0o700
    assert len(processes(place.name)) == 2                      # the keeper and the server
    database.close()
    database.close()
    assert not place.exists() and processes(place.name) == []
    with pytest.raises(DatabaseError, match="closed"):
        database.run("SELECT 1", "games")


@pytest.mark.slow
def test_a_query_that_outlives_the_server_and_finds_it_closed_starts_none() -> None:
    """Its server died. While it waited to run again, alone, the database was closed, so the files are gone."""
    database = open_private(DATABASES, Limits(connections=1))
    place = folder(database)
    database.close()
    with pytest.raises(DatabaseError, match="^MariaDB is closed$"):
        database._run_alone({}, "games", "SELECT 1")
    assert not place.exists() and processes(place.name) == []


CHILD = """
import os, sys, time
from minigrpo.task.sql.engines.mariadb import open_private
database = open_private({"empty": ()})
print(database._readers["empty"].socket, flush=True)
if sys.argv[1] == "raise":
    raise SystemError("crash")
if sys.argv[1] == "fork":                   # the grandchild also holds our end of the pipe; closing must not wait for it
    if os.fork() == 0:
        os.close(1)
        time.sleep(8)
        os._exit(0)
    database.close()
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("end", rest_slow([signal.SIGKILL, signal.SIGTERM, "raise", "fork"]))
def test_however_we_end_the_server_ends(end: signal.Signals | str) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(end)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with child:
        place = Path(child.stdout.readline().strip()).parent
        assert place.name.startswith("minigrpo-")
        if isinstance(end, signal.Signals):
            assert place.is_dir() and len(processes(place.name)) == 2
            child.send_signal(end)
        child.wait(timeout=5)
    assert eventually(lambda: not place.exists() and not processes(place.name))


# ---------------------------------------------------------------------------------------------------------------- faults
def servers(database: MariaDB) -> list[int]:
    """The server's process, without its keeper."""
    return [pid for pid in processes(folder(database).name) if "minigrpo-keeper" not in command_lines().get(pid, "")]


def test_a_server_that_is_killed_is_started_again_with_its_data_and_its_folder() -> None:
    with open_private(DATABASES) as database:
        before, place = rows(database, "SELECT * FROM Athlete, Medal"), folder(database)
        for _ in range(3):
            os.kill(*servers(database), signal.SIGKILL)
            assert rows(database, "SELECT * FROM Athlete, Medal") == before
        assert folder(database) == place and len(processes(place.name)) == 2
    assert not place.exists() and processes(place.name) == []


@pytest.mark.slow
def test_a_server_that_is_killed_under_many_queries_changes_no_result() -> None:
    """Sixteen queries at a time, of a tenth of a second each, and six deaths of the server."""
    with open_private(DATABASES, Limits(connections=16)) as database, ThreadPoolExecutor() as pool:
        queries = [(f"{NUMBERS.format(900)}SELECT {i}, COUNT(*) FROM n a, n b WHERE a.i < 100", "games") for i in range(96)]
        running = pool.submit(run_all, database, queries, 16)
        for _ in range(6):
            time.sleep(0.2)
            for server in servers(database):
                with suppress(ProcessLookupError):
                    os.kill(server, signal.SIGKILL)
        assert [execution.rows for execution in running.result()] == [((i, 99 * 900),) for i in range(96)]


# MariaDB 10.11 crashes on a name of three parts after JOIN ... USING. The text checks refuse such names.
CRASHING = "SELECT Medal.format FROM Athlete JOIN Medal USING (athlete_id) JOIN Medal m USING (athlete_id) WHERE Athlete.name.name = 'x'"


def test_a_query_that_crashes_the_server_is_its_own_error_and_no_other(unguarded: MariaDB) -> None:
    queries = [(f"SELECT {i}, SLEEP(0.1)", "games") for i in range(12)]
    queries[5] = (CRASHING, "games")
    executions = run_all(unguarded, queries, 4)
    assert replace(executions.pop(5), seconds=0) == Execution("other", error="the server crashed")
    assert [execution.rows for execution in executions] == [((i, 0),) for i in range(12) if i != 5]


@pytest.mark.slow
def test_a_server_that_dies_of_everything_is_at_fault(unguarded: MariaDB, monkeypatch) -> None:
    """Here one crash is the query's fault, two in a row the server's. Any answer, also an error, starts the count again."""
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.CRASHES", 2)
    for sql, status in [("SELECT 1", "ok"), ("SELECT FROM", "syntax"), (NUMBERS.format(1001) + "SELECT i FROM n", "too_large")]:
        assert unguarded.run(CRASHING, "games").error == "the server crashed"
        assert unguarded.run(sql, "games").status == status
    assert unguarded.run(CRASHING, "games").error == "the server crashed"
    with pytest.raises(DatabaseError, match="^the private MariaDB died under 2 queries in a row, the last of them .SELECT[^\n]+$"):
        unguarded.run(CRASHING, "games")


def test_a_killed_keeper_takes_its_server_along_and_both_are_replaced() -> None:
    with open_private(DATABASES) as database:
        place = folder(database)
        (keeper,) = [pid for pid in processes(place.name) if pid not in servers(database)]
        os.kill(keeper, signal.SIGKILL)
        assert eventually(lambda: not processes(place.name))
        assert rows(database, "SELECT COUNT(*) FROM Medal") == ((3,),)
    assert not place.exists() and processes(place.name) == []


@pytest.mark.slow
def test_a_server_that_hangs_is_replaced(monkeypatch) -> None:
    """A stopped server accepts connections and answers nothing."""
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.SECONDS_TO_ANSWER", 0.5)
    with open_private(DATABASES) as database:
        assert rows(database, "SELECT 1") == ((1,),)
        os.kill(*servers(database), signal.SIGSTOP)
        assert rows(database, "SELECT 2") == ((2,),)


def test_a_lost_connection_is_replaced() -> None:
    """Kill the only connection, as its own account may. The next query notices, connects again, and returns the right rows."""
    with open_private(DATABASES, Limits(connections=1)) as database:
        assert rows(database, "SELECT 1") == ((1,),)
        (connection,) = database._slots.queue[0].values()
        assert _end_query(reader_of(database), connection.thread_id())
        assert rows(database, "SELECT 2") == ((2,),)


@contextmanager
def given(database: MariaDB, monkeypatch, limits: Limits = Limits()) -> Iterator[MariaDB]:
    """The private server, used as if someone else ran it."""
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.PAUSES", (0.0, 0.1, 0.3))
    make_helper(database)
    existing, _ = open_existing(Login(reader_of(database).socket, "", 3306, "helper", PASSWORD), ["games"], limits)
    with existing:
        yield existing


def make_helper(database: MariaDB) -> None:
    with administrator(database) as cursor:
        cursor.execute("CREATE USER helper@localhost IDENTIFIED BY %s", (PASSWORD,))
        cursor.execute(f"GRANT {READ_GAMES}")


@pytest.mark.slow
def test_a_given_server_that_is_gone_is_one_sentence(monkeypatch) -> None:
    with open_private(DATABASES) as database, given(database, monkeypatch) as existing:
        os.kill(*servers(database), signal.SIGKILL)
        with pytest.raises(DatabaseError, match="^MariaDB at .* as 'helper' failed 3 times: Can't connect") as caught:
            existing.run("SELECT 1", "games")
        assert "\n" not in str(caught.value) and PASSWORD not in str(caught.value)


@pytest.mark.slow
def test_a_given_server_that_comes_back_in_time_is_waited_for(monkeypatch) -> None:
    with open_private(DATABASES) as database, ThreadPoolExecutor() as pool:
        with given(database, monkeypatch) as existing:
            monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.PAUSES", (0.1,) * 100)
            os.kill(*servers(database), signal.SIGKILL)
            later = pool.submit(existing.run, "SELECT COUNT(*) FROM Medal", "games")
            time.sleep(0.3)
            assert not later.done()
            assert rows(database, "SELECT 1") == ((1,),)
            make_helper(database)                               # it restarts with its tables, and without later accounts
            assert later.result().rows == ((3,),)


@pytest.mark.slow
def test_a_server_without_a_free_connection_is_waited_for(monkeypatch) -> None:
    """An account that may have two connections has two; half a second later it has one."""
    with open_private(DATABASES) as database, ThreadPoolExecutor() as pool, given(database, monkeypatch) as existing:
        with administrator(database) as cursor:
            cursor.execute("ALTER USER helper@localhost WITH MAX_USER_CONNECTIONS 2")
        taken = [reader_of(existing).connect() for _ in range(2)]
        with pytest.raises(DatabaseError, match="failed 3 times: User .* has exceeded the 'max_user_connections'"):
            existing.run("SELECT 1", "games")
        monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.PAUSES", (0.1,) * 100)
        later = pool.submit(existing.run, "SELECT COUNT(*) FROM Medal", "games")
        time.sleep(0.5)
        taken[0].close()
        assert later.result().rows == ((3,),)
        taken[1].close()


def test_no_password_is_shown(monkeypatch) -> None:
    """Not when a database or its logins are printed, not in a query's outcome, and not in the error that ends a run."""
    with open_private(DATABASES) as database, given(database, monkeypatch) as existing:
        shown = [repr(opened.run("SELECT * FROM mysql.user", "games")) for opened in (database, existing)]
        shown += [f"{opened!r} {opened} {opened._readers} {[str(reader) for reader in opened._readers.values()]}"
                  for opened in (database, existing)]
        with administrator(database) as cursor:
            cursor.execute("ALTER USER helper@localhost IDENTIFIED BY 'another'")
        (slot,) = [slot for slot in existing._slots.queue if slot]
        slot["games"].close()
        with pytest.raises(DatabaseError, match="failed 3 times: Access denied for user 'helper'") as caught:
            existing.run("SELECT 1", "games")
        shown += traceback.format_exception(caught.value)
        passwords = [reader.password for opened in (database, existing) for reader in opened._readers.values()]
        assert len(passwords) == 3 and not any(password in text for password in passwords for text in shown)
