"""The database contract: CREATE TABLE statements, executions, running many queries at once, remembered results."""

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace

import pytest

from minigrpo.common.errors import UserError
from minigrpo.task.sql.engines.database import (
    STATUSES,
    Column,
    Execution,
    Limits,
    MockDatabase,
    Remembered,
    Table,
    _memory,
    create_table,
    run_all,
)

PET = Table("Pet", (Column("id", "INT"), Column("owner", "INT", ("Owner", "id")), Column("name", "TEXT")), ())


class Recorder:
    """Returns the query as its row, and records all queries and how many ran at once. Later queries finish first."""

    def __init__(self, pause: float = 0.0) -> None:
        self.asked: list[tuple[str | None, str]] = []
        self.pause, self.running, self.most = pause, 0, 0
        self.lock = threading.Lock()

    def run(self, sql: str | None, database_name: str) -> Execution:
        with self.lock:
            self.asked.append((sql, database_name))
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self.pause / len(self.asked))
        with self.lock:
            self.running -= 1
        return Execution("ok", rows=((sql, database_name),))

    def close(self) -> None:
        pass


class Broken:
    def run(self, sql: str | None, database_name: str) -> Execution:
        raise RuntimeError("no machine")

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------------- tables
def test_create_table_spells_types_keys_and_links():
    assert create_table(PET, {"INT": "INTEGER", "TEXT": "VARCHAR(255)"}) == (
        "CREATE TABLE Pet (\n  id INTEGER PRIMARY KEY,\n  owner INTEGER REFERENCES Owner(id),\n  name VARCHAR(255)\n)")


def test_create_table_runs():
    connection = sqlite3.connect(":memory:")
    connection.execute(create_table(PET, {"INT": "INTEGER", "TEXT": "TEXT"}))
    columns = connection.execute("PRAGMA table_info(Pet)").fetchall()
    assert [(column[1], column[2], column[5]) for column in columns] == [       # name, type, place in the key
        ("id", "INTEGER", 1), ("owner", "INTEGER", 0), ("name", "TEXT", 0)]
    (link,) = connection.execute("PRAGMA foreign_key_list(Pet)").fetchall()
    assert link[2:5] == ("Owner", "owner", "id")
    connection.close()


def test_create_table_with_one_column():
    table = Table("T", (Column("a", "TEXT"),), ())
    assert create_table(table, {"TEXT": "TEXT"}) == "CREATE TABLE T (\n  a TEXT PRIMARY KEY\n)"


def test_a_type_that_the_engine_does_not_respell_stays_as_declared():
    table = Table("T", (Column("a", "INT"), Column("b", "DECIMAL(8,2)"), Column("c", "")), ())
    assert create_table(table, {"INT": "INTEGER"}) == "CREATE TABLE T (\n  a INTEGER PRIMARY KEY,\n  b DECIMAL(8,2),\n  c\n)"


@pytest.mark.parametrize("key, place_in_key", [((), {}), ((1,), {"owner": 1}), ((2, 0), {"name": 1, "id": 2})])
def test_create_table_has_the_key_that_the_table_has(key, place_in_key):
    """No key, a key that is not the first column, and a key of two columns, "name" before "id": as SQLite reads them back."""
    connection = sqlite3.connect(":memory:")
    connection.execute(create_table(replace(PET, key=key), {}))
    columns = connection.execute("PRAGMA table_info(Pet)").fetchall()
    assert {column[1]: column[5] for column in columns if column[5]} == place_in_key
    connection.close()


def test_a_column_has_its_own_line():
    """Also if its name contains a line break: its comment follows it. A key of several columns comes after all columns."""
    table = Table("T", (Column("`a\nb`", "INT"), Column("c", "INT")), (), key=(0, 1))
    assert create_table(table, {}) == "CREATE TABLE T (\n  `a\nb` INT,\n  c INT,\n  PRIMARY KEY (`a\nb`, c)\n)"
    assert create_table(table, {}, {0: "x", 1: "y"}) == (
        "CREATE TABLE T (\n  `a\nb` INT, -- x\n  c INT, -- y\n  PRIMARY KEY (`a\nb`, c)\n)")


# --------------------------------------------------------------------------------------------------------- executions
def test_only_ok_is_ok():
    assert [status for status in STATUSES if Execution(status).ok] == ["ok"]


def test_the_taxonomy():
    assert sorted(STATUSES) == ["no_sql", "ok", "other", "refused", "syntax", "timeout", "too_large",
                                "unknown_column", "unknown_table"]


def test_executions_are_values():
    assert Execution("ok", rows=((1,),)) == Execution("ok", rows=((1,),)) != Execution("ok", rows=((2,),))
    assert len({Execution("syntax", code=1), Execution("syntax", code=1)}) == 1
    with pytest.raises(FrozenInstanceError):
        Execution("ok").status = "other"


@pytest.mark.parametrize("sql", [None, "", "  \n"])
def test_mock_without_sql(sql):
    assert MockDatabase().run(sql, "any") == Execution("no_sql")


def test_mock_with_sql():
    mock = MockDatabase(value="x")
    assert mock.run("nonsense", "any") == Execution("ok", rows=(("x",),), columns=("value",))
    mock.close()
    mock.close()


# ------------------------------------------------------------------------------------------------------- many at once
def test_results_are_in_the_order_of_the_queries():
    """The first query sleeps longest, so the order in which they end is not the order in which they were asked."""
    queries = [(f"SELECT {i}", "d") for i in range(16)]
    assert [execution.rows[0] for execution in run_all(Recorder(pause=0.05), queries, threads=8)] == queries


def test_equal_queries_run_once():
    """Of six queries three are distinct: the same SQL on another database is another query; None is a query too."""
    queries = [("a", "x"), ("a", "y"), ("a", "x"), (None, "x"), ("a", "x"), (None, "x")]
    recorder = Recorder()
    results = run_all(recorder, queries, threads=4)
    assert sorted(recorder.asked, key=str) == sorted({("a", "x"), ("a", "y"), (None, "x")}, key=str)
    assert [execution.rows[0] for execution in results] == queries
    assert results[0] is results[2] is results[4]


@pytest.mark.parametrize("threads, most", [(1, 1), (0, 1), (3, 3)])
def test_as_many_at_once_as_threads(threads, most):
    recorder = Recorder(pause=0.2)
    run_all(recorder, [(f"SELECT {i}", "d") for i in range(6)], threads)
    assert recorder.most == most


def test_threads_do_not_change_results():
    queries = [(f"SELECT {i % 5}", "d") for i in range(20)]
    assert run_all(Recorder(), queries, 1) == run_all(Recorder(), queries, 7)


def test_no_queries():
    assert run_all(Recorder(), [], threads=4) == []


def test_a_broken_database_is_not_swallowed():
    with pytest.raises(RuntimeError, match="no machine"):
        run_all(Broken(), [("SELECT 1", "d")], threads=2)


def test_what_is_remembered_runs_once_over_all_batches():
    """The second batch asks two of the first's three queries again, and one of them of another database."""
    recorder = Recorder()
    remembered = Remembered(recorder)
    first = run_all(remembered, [("a", "x"), ("b", "x"), (None, "x")], threads=2)
    again = run_all(remembered, [("b", "x"), ("a", "y"), (None, "x")], threads=2)
    assert sorted(recorder.asked, key=str) == sorted([("a", "x"), ("b", "x"), (None, "x"), ("a", "y")], key=str)
    assert again[0] is first[1] and again[2] is first[2] and again[1].rows == (("a", "y"),)
    assert Remembered(recorder).run("a", "x") is not first[0]           # nothing is shared between evaluations


def test_a_failure_of_the_machinery_is_not_remembered():
    remembered = Remembered(Broken())
    with pytest.raises(RuntimeError, match="no machine"):
        remembered.run("SELECT 1", "d")
    assert remembered.known == {}


class Wide(Recorder):
    """Each result is a text of 10,000 characters, which takes 10,000 bytes and some hundred more."""

    def run(self, sql: str | None, database_name: str) -> Execution:
        super().run(sql, database_name)
        return Execution("ok", rows=(("x" * 10_000,),))


def test_what_is_remembered_is_bounded_and_the_least_recently_used_is_forgotten_first():
    """There is room for three results. "a" is asked again before "d" comes, so "d" takes the place of "b"."""
    wide = Wide()
    remembered = Remembered(wide, max_bytes=35_000)
    for sql in "abcadab":
        assert remembered.run(sql, "x").ok
    assert [sql for sql, _ in wide.asked] == ["a", "b", "c", "d", "b"]
    assert [sql for sql, _ in remembered.known] == ["d", "a", "b"]


def test_a_result_that_is_larger_than_all_room_is_returned_and_not_kept():
    wide = Wide()
    remembered = Remembered(wide, max_bytes=5_000)
    assert [remembered.run("a", "x").rows[0][0] for _ in range(2)] == ["x" * 10_000] * 2
    assert len(wide.asked) == 2 and not remembered.known


def test_many_threads_share_what_is_remembered():
    """Eight threads ask for twenty results, with room for three: each query gets its own result, and the bound holds."""
    remembered = Remembered(Recorder(), max_bytes=3 * 600)
    queries = [(f"SELECT {i * j % 20}", "d") for i in range(20) for j in range(20)]
    with ThreadPoolExecutor(8) as pool:
        assert [execution.rows[0] for execution in pool.map(lambda query: remembered.run(*query), queries)] == queries
    assert remembered._bytes == sum(_memory(*kept) for kept in remembered.known.items()) <= 3 * 600 and remembered.known


@pytest.mark.parametrize("wrong", [{"time_limit": 0.0}, {"time_limit": -1.0}, {"connections": 0}])
def test_limits_that_are_none_are_refused(wrong):
    with pytest.raises(UserError, match="^expected time_limit > 0 and connections >= 1, got "):
        Limits(**wrong)
