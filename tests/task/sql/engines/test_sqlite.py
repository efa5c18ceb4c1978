"""Real SQLite throughout. Pet has four rows, chosen so that every expected value can be counted by eye."""

import hashlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.task.sql.data.temptabqa import database_of, load_databases
from minigrpo.task.sql.engines.database import STATUSES, Column, DatabaseError, Limits, Table, run_all
from minigrpo.task.sql.engines.mariadb import MariaDB, open_private
from minigrpo.task.sql.engines.sqlite import (
    MAX_CALLS,
    MAX_CELL_BYTES,
    MAX_EXPANSIONS,
    expansions,
    named_twice,
    open_files,
    open_sqlite,
    text_objection,
)
from tests.mariadb_server import skip_without_mariadb
from tests.temptabqa import BENCHMARK, needs_gold

OWNER = Table("Owner", (Column("owner_id", "INT"), Column("name", "TEXT")), ((1, "Zoë"), (2, "Bob")))
PET = Table("Pet", (Column("pet_id", "INT"), Column("owner_id", "INT", ("Owner", "owner_id")), Column("name", "TEXT")),
            ((1, 1, "Rex"), (2, 1, "Mia"), (3, 2, None), (4, 2, "Rex ")))
OTHER = Table("Pet", (Column("pet_id", "INT"), Column("name", "TEXT")), ((1, "another world"),))
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r"
# x: 'a' doubled while shorter than 10,000, so 2^14 = 16,384 times; y: nearly twice as long, within the cap of a value
LONG = ("WITH RECURSIVE s(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM s WHERE LENGTH(x) < 10000), "
        "m AS (SELECT MAX(x) x FROM s), n AS (SELECT x, x || SUBSTR(x, 1, 16000) y FROM m) ")


def repeat(text: str, times: int, separator: str = ", ") -> str:
    """``text`` repeated ``times`` times, with {} replaced by the number of the copy."""
    return separator.join(text.replace("{}", str(i)) for i in range(times))


def doubling(levels: int, definition: str = "c{next} AS (SELECT p.x FROM c{} p, c{} q)") -> str:
    levels_sql = "".join(", " + definition.replace("{next}", str(i + 1)).replace("{}", str(i)) for i in range(levels))
    return f"WITH c0 AS (SELECT 1 x){levels_sql} SELECT COUNT(*) FROM c{levels}"


@pytest.fixture(scope="module")
def db():
    with open_sqlite({"pets": [OWNER, PET], "other": [OTHER]}) as database:
        yield database


def rows(db, sql, name="pets"):
    execution = db.run(sql, name)
    assert execution.status == "ok", execution
    return execution.rows


# ------------------------------------------------------------------------------------------------------------- values
def test_values_columns_and_time(db):
    execution = db.run("SELECT name AS n, pet_id FROM Pet WHERE pet_id > 2 ORDER BY pet_id;", "pets")
    assert (execution.status, execution.columns, execution.code, execution.error) == ("ok", ("n", "pet_id"), None, "")
    assert execution.rows == ((None, 3), ("Rex ", 4))
    assert 0 < execution.seconds < 0.25


@pytest.mark.parametrize("sql, value", [
    ("SELECT NULL", None),
    ("SELECT name FROM Owner WHERE owner_id = 1", "Zoë"),
    ("SELECT '😀'", "😀"),
    ("SELECT AVG(owner_id) FROM Pet", 1.5),             # 1, 1, 2, 2
    ("SELECT -9223372036854775808", -2**63),
    ("SELECT 7 / 2", 3),                                # the known difference: whole numbers divide to whole numbers
    ("SELECT 9e999", float("inf")),
    ("SELECT x'00ff'", b"\x00\xff"),
    ("SELECT \"Rex\"", "Rex"),                          # no such column: it is text, as in MariaDB
    ("SELECT COUNT(*) FROM pET WHERE name = 'Rex'", 2),  # table names ignore case; 'Rex' = 'Rex ' as in MariaDB
    ("SELECT COUNT(*) FROM Pet WHERE name = 'rex'", 0),  # text does not
    ("SELECT COUNT(*) FROM (SELECT DISTINCT owner_id FROM Pet)", 2),
    ("SELECT SUM(n) FROM (SELECT ROW_NUMBER() OVER (ORDER BY name) n FROM Pet)", 10),      # 1 + 2 + 3 + 4
    ("SELECT STRFTIME('%Y', '2012-07-29')", "2012"),
    ("SELECT UPPER(TRIM(name)) FROM Pet WHERE pet_id = 4", "REX"),
    ("SELECT name FROM `Pet` WHERE [name] LIKE 'm%'", "Mia"),
])
def test_value(db, sql, value):
    assert rows(db, sql) == ((value,),)


def test_recursion_that_ends(db):
    assert rows(db, "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 100) "
                    "SELECT SUM(n) FROM r") == ((5050,),)


@pytest.mark.parametrize("sql, value", [
    ("CONCAT('a', 1, 2.5)", "a12.5"),
    ("CONCAT('a', NULL)", None),                        # SQLite's own CONCAT (3.44 and later) would say 'a'
    ("CONCAT_WS('-', 'a', NULL, 'b')", "a-b"),
    ("CONCAT_WS(NULL, 'a', 'b')", None),
    ("FLOOR(1.5)", 1), ("FLOOR(-1.5)", -2), ("CEIL(1.5)", 2), ("CEILING(-1.5)", -1), ("FLOOR(7)", 7),
    ("FLOOR(NULL)", None), ("FLOOR('x')", None), ("FLOOR(1e300)", None), ("FLOOR(9e999)", None),
    ("TRIM('xxaxx', 'x')", "a"), ("LTRIM('xax', 'x')", "ax"), ("RTRIM('xax', 'x')", "xa"), ("TRIM('a', NULL)", None),
    ("TRIM(' a ')", "a"), ("ROUND(2.345, 1)", 2.3),
])
def test_functions(db, sql, value):
    (result,), = rows(db, "SELECT " + sql)
    assert result == value and type(result) is type(value)      # FLOOR gives 1, not 1.0


# ----------------------------------------------------------------------------------------------------------- statuses
@pytest.mark.parametrize("sql, status, code", [
    (None, "no_sql", None), ("", "no_sql", None), (" \n\t", "no_sql", None), (" ;", "no_sql", None),
    ("SELECT FROM WHERE", "syntax", 1), ("SELECT 'open", "syntax", 1), ("SELECT (1", "syntax", 1),
    ("SELECT ?", "syntax", 1), ("(SELECT 1)", "syntax", 1),
    ("SELECT nope FROM Pet", "unknown_column", 1), ("SELECT p.nope FROM Pet p", "unknown_column", 1),
    ("SELECT `syntax error` FROM Pet", "unknown_column", 1),
    ("SELECT * FROM Pet JOIN Owner USING (nope)", "unknown_column", 1),
    ("SELECT * FROM nope", "unknown_table", 1), ("SELECT nope.* FROM Pet", "unknown_table", 1),
    ("SELECT YEAR('2012-07-29')", "other", 1), ("SELECT name FROM Pet, Owner", "other", 1),     # no such; ambiguous
    ("SELECT SUM(MAX(pet_id)) FROM Pet", "other", 1), ("SELECT 1 LIMIT 'x'", "other", 20),      # SQLITE_MISMATCH
    ("SELECT CAST(x'ff' AS TEXT)", "other", None),      # not UTF-8: Python's own error
    (ENDLESS, "timeout", 9),
    (LONG + "SELECT y || y FROM n", "too_large", 18),   # 64,768 bytes in one value
])
def test_status(db, sql, status, code):
    execution = db.run(sql, "pets")
    assert (execution.status, execution.code) == (status, code), execution
    assert bool(execution.error) == (status not in ("ok", "no_sql"))
    assert execution.ok or execution.rows == execution.columns == ()


@pytest.mark.parametrize("sql", [
    "INSERT INTO Pet VALUES (9, 1, 'x')", "UPDATE Pet SET name = 'x'", "DELETE FROM Pet",
    "REPLACE INTO Pet VALUES (1, 1, 'x')",
    "WITH d AS (SELECT 1) DELETE FROM Pet", "WITH d AS (SELECT 1) INSERT INTO Pet SELECT 9, 1, 'x'",
    "WITH d AS (SELECT 1) UPDATE Pet SET name = 'x' RETURNING name",
    "DROP TABLE Pet", "CREATE TABLE t (a)", "CREATE TEMP TABLE t AS SELECT 1", "CREATE VIEW v AS SELECT 1",
    "ALTER TABLE Pet RENAME TO x",
    "PRAGMA query_only = 0", "PRAGMA writable_schema = 1", "ATTACH ':memory:' AS x",
    "VACUUM INTO '/tmp/x'", "BEGIN", "ROLLBACK", "ANALYZE",
    "EXPLAIN SELECT 1", "VALUES (1)", "hello", "SELECTED",
    "SELECT 1; DROP TABLE Pet", "SELECT nope; SELECT 1", "SELECT 1;;", "SELECT 1 -- x", "SELECT /* x */ 1", "SELECT @a",
    "SELECT 1\0", "SELECT '\ud800'", "\ufeffSELECT 1", "SELECT '" + "a" * 10_000 + "'",
    "SELECT name FROM sqlite_master", "SELECT sql FROM sqlite_schema", "SELECT stat FROM sqlite_stat1",
    "SELECT * FROM pragma_table_info('Pet')", "SELECT 1 FROM pragma_database_list",
    "SELECT value FROM json_each('[1]')", "SELECT 1 FROM dbstat", "SELECT 1 FROM sqlite_stmt",
    "SELECT LOAD_EXTENSION('x')", "SELECT RANDOMBLOB(9)", "SELECT HEX(ZEROBLOB(9999))", "SELECT PRINTF('%9999999d', 1)",
    "SELECT RANDOM()", "SELECT LAST_INSERT_ROWID()", "SELECT SQLITE_VERSION()", "SELECT JSON_ARRAY(1)",
    "SELECT " + repeat("ABS({})", MAX_CALLS + 1),
])
def test_refused_and_nothing_changes(db, sql):
    before = rows(db, "SELECT * FROM Pet ORDER BY pet_id")
    execution = db.run(sql, "pets")
    assert execution.status == "refused" and execution.error, execution
    assert rows(db, "SELECT * FROM Pet ORDER BY pet_id") == before == PET.rows


def test_as_many_calls_as_allowed(db):
    assert rows(db, "SELECT " + repeat("ABS({})", MAX_CALLS)) == (tuple(range(MAX_CALLS)),)


def test_unknown_database_is_our_bug(db):
    with pytest.raises(ValueError, match="'nope'; known: other, pets"):
        db.run("SELECT 1", "nope")


def test_databases_are_apart(db):
    assert rows(db, "SELECT name FROM Pet", "other") == (("another world",),)
    assert db.run("SELECT * FROM Owner", "other").status == "unknown_table"


# --------------------------------------------------------------------------------------------------------------- caps
def test_row_cap_is_exact():
    with open_sqlite({"pets": [OWNER, PET]}, Limits(max_rows=4)) as db:
        assert len(rows(db, "SELECT * FROM Pet")) == 4
        execution = db.run("SELECT pet_id FROM Pet UNION ALL SELECT 5", "pets")
        assert (execution.status, execution.rows) == ("too_large", ())
        assert rows(db, "SELECT COUNT(*) FROM Pet") == ((4,),)


def test_byte_cap_is_exact():
    with open_sqlite({"pets": [OWNER, PET]}, Limits(max_bytes=20)) as db:
        assert rows(db, "SELECT 'éé', 1, 'abcdefgh', NULL")             # 4 bytes (é is 2) + 8 + 8 + 0 = 20
        assert db.run("SELECT 'ééx', 1, 'abcdefgh', NULL", "pets").status == "too_large"
        assert rows(db, "SELECT pet_id FROM Pet LIMIT 2")                # 8 + 8, and a third row would make 24
        assert db.run("SELECT pet_id FROM Pet LIMIT 3", "pets").status == "too_large"


def test_cap_of_a_value_is_exact(db):
    more = MAX_CELL_BYTES - 2 * 2**14
    assert more == 0                                                     # so x || x is exactly the cap
    assert rows(db, LONG + "SELECT LENGTH(x || x) FROM n") == ((MAX_CELL_BYTES,),)
    assert db.run(LONG + "SELECT LENGTH(x || x || 'b') FROM n", "pets").status == "too_large"


# ------------------------------------------------------------------------------------------------------------ attacks
@pytest.mark.parametrize("sql", [
    ENDLESS,
    "SELECT COUNT(*) FROM " + repeat("Pet p{}", 20),                                       # 4^20 rows
    "SELECT COUNT(*) FROM " + repeat("Pet p{}", 60) + " WHERE " + repeat("p{}.name <> 'x'", 60, " AND "),
    "SELECT p0.name FROM " + repeat("Pet p{}", 14) + " ORDER BY p1.name, p2.name",         # sorts 4^14 rows
    LONG + ", r(x) AS (SELECT x FROM n UNION ALL SELECT x || '' FROM r) SELECT COUNT(*) FROM r",
    LONG + "SELECT COUNT(DISTINCT y || p0.pet_id || p1.pet_id || p2.pet_id || p3.pet_id || p4.pet_id || p5.pet_id) FROM n, "
    + repeat("Pet p{}", 9),
    LONG + "SELECT " + repeat("INSTR(y, x || '{}')", 46, " + ") + " FROM n, Pet, Owner",   # 16,000² / 2 comparisons each
    LONG + "SELECT " + repeat("LENGTH(REPLACE(y, x || '{}', ''))", 22, " + ") + " FROM n, Pet, Pet p2, Pet p3",
    LONG + "SELECT " + repeat("(y LIKE '%' || SUBSTR(x, 1, 90) || '{}')", 22, " + ") + " FROM n, Pet, Pet p2",
    LONG + ", t AS (SELECT y, REPLACE(x, 'a', 'b') || 'a' z FROM n) "
    "SELECT " + repeat("LENGTH(TRIM(y, z))", 22, " + ") + " FROM t, Pet, Pet p2, Pet p3",
    LONG + "SELECT GROUP_CONCAT(y, y) FROM n, Pet",                                        # bombs: too large at once
    LONG + "SELECT CONCAT(" + repeat("y", 50) + ") FROM n",
    LONG + "SELECT REPLACE(y, 'a', y) FROM n",
    LONG + "SELECT HEX(y) FROM n",
    LONG + "SELECT " + repeat("y", 190) + " FROM n",                                       # 6 MB in one row
    doubling(30),
    doubling(12, "c{next}(x) AS NOT MATERIALIZED (SELECT p.x FROM c{} p, c{} q)"),
    "WITH c0 AS (SELECT 1 x), d AS (WITH " + doubling(12)[5:] + ") SELECT * FROM d, d e",
    "SELECT " + "(" * 4000 + "1" + ")" * 4000,
    "SELECT 1 WHERE " + repeat("1 = {}", 600, " OR "),
    "SELECT 1 " + repeat("UNION SELECT {}", 300, " "),
])
def test_attacks_end_early_and_leave_no_trace(db, sql):
    start = time.thread_time()
    execution = db.run(sql, "pets")
    assert not execution.ok and execution.rows == (), execution.status
    assert time.thread_time() - start < 1.0         # 0.25, and the time that C functions take between two checks of the clock
    assert rows(db, "SELECT COUNT(*) FROM Pet") == ((4,),)


def test_time_limit_is_kept():
    with open_sqlite({"pets": [PET]}, Limits(time_limit=0.05)) as db:
        start = time.thread_time()
        assert db.run(ENDLESS, "pets").status == "timeout"
        assert 0.05 <= time.thread_time() - start < 0.15


# ----------------------------------------------------------------------------------------------------- many at once
def test_sixteen_in_four_threads(db):
    queries = [(f"SELECT {i}, COUNT(*) FROM Pet WHERE pet_id <= {i}", "pets") for i in range(16)]
    results = run_all(db, queries, threads=4)
    assert [execution.rows for execution in results] == [((i, min(i, 4)),) for i in range(16)]     # there are four pets


@pytest.mark.slow
def test_busy_neighbours_change_no_result(db):
    """Eight threads on four slots. Every second query would never end; the others still return the right rows."""
    queries = [(ENDLESS.replace("n + 1", f"n + {i}"), "pets") if i % 2 else (f"SELECT {i}", "other")
               for i in range(1, 13)]
    results = run_all(db, queries, threads=8)
    assert [execution.status for execution in results] == ["timeout", "ok"] * 6
    assert [execution.rows for execution in results[1::2]] == [((i,),) for i in range(2, 13, 2)]


def test_more_threads_than_slots_wait():
    with open_sqlite({"pets": [PET]}, Limits(connections=1)) as db:
        assert all(execution.ok for execution in run_all(db, [(f"SELECT {i}", "pets") for i in range(32)], threads=16))


def test_close_waits_frees_and_repeats():
    db = open_sqlite({"pets": [PET]}, Limits(connections=2))
    results = []
    thread = threading.Thread(target=lambda: results.append(db.run(ENDLESS, "pets")))
    thread.start()
    time.sleep(0.05)
    db.close()
    db.close()
    thread.join(timeout=5)
    assert [execution.status for execution in results] == ["timeout"]       # close() waited for it
    with pytest.raises(DatabaseError, match="closed"):
        db.run("SELECT 1", "pets")


def test_broken_database_is_no_reward():
    """All pages of the image except the first are overwritten: SQLITE_CORRUPT, which is not the query's fault."""
    db = open_sqlite({"pets": [OWNER, PET]})
    image = db._sources["pets"]
    db._sources["pets"] = image[:4096] + b"\xff" * (len(image) - 4096)
    with db, pytest.raises(DatabaseError, match="SQLITE_CORRUPT"):
        db.run("SELECT * FROM Pet", "pets")


@pytest.mark.parametrize("table, reason", [
    (Table("Pet", PET.columns, ((1, 1, "a"), (1, 1, "b"))), "UNIQUE"),                     # the key twice
    (Table("Pet", PET.columns, ((1, 1),)), "bindings|supplied"),
    (Table("Pet", PET.columns, ((1, 2**70, "a"),)), "large"),
    (Table("Pet", PET.columns, ((1, 1, "a" * MAX_CELL_BYTES),)), "too big"),
])
def test_tables_that_do_not_load(table, reason):
    with pytest.raises(DatabaseError, match=re.compile(f"'pets'.*({reason})", re.S)):
        open_sqlite({"pets": [table]})


@pytest.mark.parametrize("wrong", [{"time_limit": 0}, {"connections": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="expected time_limit > 0 and connections >= 1"):
        open_sqlite({}, Limits(**wrong))


# ------------------------------------------------------------------------------------------------------ files that exist
def write(file: Path, *statements: str) -> Path:
    """A database made by these statements, which may use functions and collations that its maker defined."""
    connection = sqlite3.connect(file)
    connection.create_function("theirs", 1, lambda value: value, deterministic=True)
    connection.create_collation("theirs", lambda one, other: (one > other) - (one < other))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return file


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path / "pets.sqlite", "CREATE TABLE Pet (pet_id INTEGER PRIMARY KEY, owner_id INT, name TEXT)",
                 "INSERT INTO Pet VALUES (1, 1, 'Rex'), (2, 1, 'Mia'), (3, 2, NULL), (4, 2, 'Rex ')",
                 "CREATE VIEW Named AS SELECT name FROM Pet WHERE name IS NOT NULL")


def contents(folder: Path) -> dict[str, str]:
    """Every file of the folder, by the hash of its bytes."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def failure(folder: Path, *names: str) -> str:
    with pytest.raises((DatabaseError, ValueError)) as caught:
        open_files(folder, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_read_where_it_is(file):
    """Also its views. Its text is compared as the file declares, not as in the databases that we create."""
    before = contents(file.parent)
    database, tables = open_files(file.parent, ["pets"])
    with database:
        assert rows(database, "SELECT name FROM Pet ORDER BY pet_id") == (("Rex",), ("Mia",), (None,), ("Rex ",))
        assert rows(database, "SELECT COUNT(*) FROM Named WHERE name = 'Rex'") == ((1,),)
        assert rows(database, "SELECT name FROM Pet GROUP BY name ORDER BY COUNT(*), name LIMIT 1") == ((None,),)
        assert database.run("SELECT * FROM sqlite_master", "pets").status == "refused"
        queries = [(f"SELECT {i}, COUNT(*) FROM Pet WHERE pet_id <= {i}", "pets") for i in range(16)]
        assert [execution.rows for execution in run_all(database, queries, 4)] == [((i, min(i, 4)),) for i in range(16)]
    assert [table.name for table in tables["pets"]] == ["Pet", "Named"] and tables["pets"][0].rows[1] == (2, 1, "Mia")
    assert contents(file.parent) == before


HOSTILE = ["INSERT INTO Pet VALUES (9, 1, 'x')", "WITH d AS (SELECT 1) UPDATE Pet SET name = 'x' RETURNING name",
           "DROP VIEW Named", "PRAGMA query_only = 0", "PRAGMA writable_schema = 1", "PRAGMA journal_mode = WAL",
           "ATTACH '{file}' AS x", "ATTACH 'file:{file}?mode=rw' AS x", "VACUUM", "VACUUM INTO '{file}.copy'", "REINDEX",
           "ANALYZE", "BEGIN IMMEDIATE", "CREATE TABLE x (a)", "ALTER TABLE Pet ADD x",
           "CREATE TEMP TRIGGER x AFTER INSERT ON Pet BEGIN DELETE FROM Pet; END", "SELECT WRITEFILE('{file}', 'x')", "SELECT LOAD_EXTENSION('x')", "SELECT 1; DROP TABLE Pet"]


@pytest.mark.parametrize("sql", HOSTILE)
def test_hostile_sql_leaves_a_file_as_it_was(file, sql):
    """No other file appears beside it either, neither a journal nor a copy."""
    before, sql = contents(file.parent), sql.format(file=file)
    database, _ = open_files(file.parent, ["pets"])
    with database:
        assert not database.run(sql, "pets").ok
    assert contents(file.parent) == before


def test_past_every_other_guard_a_file_is_still_immutable(file):
    """Without text checks, authorizer and query_only, and with a writable schema: the file itself was opened read-only."""
    before = contents(file.parent)
    database, _ = open_files(file.parent, ["pets"])
    with database:
        database.run("SELECT 1", "pets")
        (slot,) = [slot for slot in database._slots.queue if slot]
        connection = slot["pets"].connection
        connection.set_authorizer(None)
        for pragma in ("query_only = 0", "writable_schema = 1", "locking_mode = EXCLUSIVE"):
            connection.execute(f"PRAGMA {pragma}")
        for sql in ("INSERT INTO Pet VALUES (9, 1, 'x')", "DROP TABLE Pet", "DELETE FROM sqlite_master", "VACUUM",
                    "PRAGMA user_version = 7", f"ATTACH '{file}.other' AS x"):
            with pytest.raises(sqlite3.OperationalError, match="readonly|too many attached"):
                connection.execute(sql)
    assert contents(file.parent) == before


def test_a_folder_may_be_one_that_nobody_can_write_to_and_a_path_may_have_any_sign(tmp_path):
    folder = tmp_path / "100 % #1? ü"
    folder.mkdir()
    write(folder / "a?b.sqlite", "CREATE TABLE t (i INT)", "INSERT INTO t VALUES (7)")
    folder.chmod(0o500)
    database, _ = open_files(folder, ["a?b"])
    with database:
        assert rows(database, "SELECT i FROM t", "a?b") == ((7,),)
    folder.chmod(0o700)


@pytest.mark.parametrize("name", ["../pets", "/etc/passwd", "", "inner/pets", "pets.sqlite", "Pets"])
def test_a_database_is_a_name_and_no_way_to_a_file(file, tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner / "pets.sqlite", "CREATE TABLE t (i INT)")
    message = failure(inner if name.startswith("..") else tmp_path, name)
    assert message.startswith(f"unknown database {name!r}") and message.endswith("has pets.sqlite")


def test_a_folder_without_databases(tmp_path):
    assert failure(tmp_path, "shop") == f"unknown database 'shop': {tmp_path} has no *.sqlite"


@pytest.mark.parametrize("content, complaint", [
    (b"no database " * 100, "{file} cannot be read: file is not a database"),
    (b"", "the database 'bad' has no table that may be read")])
def test_a_file_that_is_no_database(tmp_path, content, complaint):
    (tmp_path / "bad.sqlite").write_bytes(content)
    assert failure(tmp_path, "bad") == complaint.format(file=tmp_path / "bad.sqlite")


def test_a_view_of_a_table_that_is_gone(tmp_path):
    write(tmp_path / "bad.sqlite", "CREATE TABLE t (i INT)", "CREATE VIEW v AS SELECT i FROM t", "DROP TABLE t")
    assert failure(tmp_path, "bad") == f"{tmp_path / 'bad.sqlite'} cannot be read: no such table: main.t"


def test_a_file_that_is_being_written(file):
    """The contents of a write-ahead log are not in the file yet, and SQLite reads an immutable file without the log."""
    writer = sqlite3.connect(file)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO Pet VALUES (5, 1, 'Ida')")
    writer.commit()
    assert failure(file.parent, "pets") == f"{file} is not whole without pets.sqlite-wal: close what writes to it"
    writer.close()                                          # this moves the log into the file
    database, _ = open_files(file.parent, ["pets"])
    with database:
        assert rows(database, "SELECT COUNT(*) FROM Pet") == ((5,),)


def test_functions_and_collations_that_only_its_maker_has(tmp_path):
    """A query that needs them fails; the rest of the database can be read."""
    write(tmp_path / "odd.sqlite", "CREATE TABLE t (i INT, name TEXT COLLATE theirs)", "CREATE INDEX it ON t(theirs(i))",
          "INSERT INTO t VALUES (1, 'b'), (2, 'a')")
    database, _ = open_files(tmp_path, ["odd"])
    with database:
        assert rows(database, "SELECT i, name FROM t", "odd") == ((1, "b"), (2, "a"))
        assert database.run("SELECT name FROM t ORDER BY name", "odd").status == "other"


def test_a_value_longer_than_the_cap_spoils_only_what_reads_it(tmp_path):
    write(tmp_path / "long.sqlite", "CREATE TABLE t (i INT, words TEXT)",
          f"INSERT INTO t VALUES (7, '{'x' * (MAX_CELL_BYTES + 1)}')")
    database, tables = open_files(tmp_path, ["long"])
    with database:
        assert rows(database, "SELECT i FROM t", "long") == ((7,),)
        assert database.run("SELECT words FROM t", "long").status == "too_large"
    assert len(tables["long"][0].rows[0][1]) == 100


def test_a_file_that_goes_away_is_an_error_and_no_outcome(file):
    database, _ = open_files(file.parent, ["pets"])
    file.unlink()
    with database, pytest.raises(DatabaseError, match="cannot open 'pets' any more: unable to open database file"):
        database.run("SELECT 1", "pets")


# --------------------------------------------------------------------------------------------------------- any text
WORDS = st.sampled_from(
    "SELECT WITH RECURSIVE AS FROM WHERE JOIN ON ( ) , * . ; = 'x' \" ' ` [ 1 -1 2.5e9 NULL Pet Owner name pet_id c CASE WHEN "
    "END OVER ORDER BY GROUP HAVING LIMIT UNION COUNT(*) CONCAT( LIKE IN EXISTS -- /* DELETE PRAGMA x'ff' ? @a é".split())
PRINTABLE = st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(WORDS).map(lambda words: "SELECT " + " ".join(words)),
                 st.lists(WORDS).map(lambda words: "WITH c AS ( SELECT 1 ) SELECT " + " ".join(words)),
                 st.text(st.characters(exclude_categories=())).map("SELECT ".__add__)))
def test_any_text_gives_an_execution(db, text):
    execution = db.run(text, "pets")
    assert execution.status in STATUSES and (execution.ok or execution.rows == ())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(PRINTABLE, max_size=20), max_size=5))
def test_text_comes_back_as_it_went_in(db, texts):
    literals = ["'" + text.replace("'", "''") + "'" for text in texts]
    assert rows(db, f"SELECT {', '.join(literals + ['0'])}") == ((*texts, 0),)
    assert rows(db, f"SELECT CONCAT({', '.join(literals + [chr(39) * 2])})") == (("".join(texts),),)


# ------------------------------------------------------------------------------------------------------- the benchmark
@pytest.mark.slow
@needs_gold
def test_every_gold_query_runs():
    gold = [json.loads(line) for line in (BENCHMARK / "gold_sql.jsonl").read_text(encoding="utf-8").splitlines()]
    queries = [(row["sql"], database_of(row["split"])) for row in gold if row["sql"]]
    with open_sqlite(load_databases(BENCHMARK)) as db:
        assert rows(db, "SELECT COUNT(*) FROM Athlete", "counterfactual") == ((234,),)     # its 234 contexts
        assert {execution.status for execution in run_all(db, queries, threads=4)} == {"ok"}


# ------------------------------------------ the text compared with the engines: how SQLite lets a name be written, and what MariaDB refuses
NOT_UNIQUE = 1066           # MariaDB's error number


def test_expansions_bound_the_copies():
    """c1 copies c0 twice, c2 copies c1 twice, …: 2^n copies of c0 for n levels, and c_n is mentioned once more."""
    assert [expansions(doubling(n)) for n in (0, 1, 8)] == [1, 2, 256]
    assert expansions(doubling(8)) <= MAX_EXPANSIONS < expansions(doubling(9))
    assert text_objection(doubling(8)) == "" and "expansions" in text_objection(doubling(9))


@pytest.mark.parametrize("spelling", ["[c{}]", "`c{}`", '"c{}"', "'c{}'", "C{}"])
def test_spelling_does_not_hide_a_mention(spelling):
    """SQLite takes each for the same table. It is valid, and counts like the plain name."""
    sql = doubling(3, f"c{{next}} AS (SELECT p.x FROM {spelling} p, c{{}} q)")
    assert expansions(sql) == 8
    with open_sqlite({"pets": [PET]}) as db:
        assert db.run(sql, "pets").rows == ((1,),)


# ------------------------------------------------------------------------------------------- one name for two tables
ONE_NAME = [
    ("Pet JOIN Pet ON 1 = 1", "Pet"), ("Pet, Pet", "Pet"), ("Pet p JOIN Pet AS p USING (pet_id)", "p"), ("Pet, Pet p, Pet", "Pet"),
    ("`Pet` NATURAL JOIN Pet", "Pet"), ("Pet Owner LEFT JOIN Owner ON 1 = 1", "Owner"),
    ("(SELECT * FROM Pet) x CROSS JOIN (SELECT * FROM Pet) x", "x"), ("Pet WHERE pet_id IN (SELECT Pet.pet_id FROM Pet, Pet)", "Pet"),
    ("Owner UNION SELECT 1 FROM Pet, Pet", "Pet"), ("Pet JOIN Owner ON Pet.owner_id = Owner.owner_id JOIN Pet ON 1 = 1", "Pet"),
]
TWO_NAMES = [
    "Pet JOIN Pet p ON p.name = Pet.name", "Pet, Pet AS other ORDER BY 1, 1", "Pet WHERE 1 IN (SELECT COUNT(*) FROM Pet)",
    "Pet UNION SELECT 1 FROM Pet", "(SELECT * FROM Pet) x, (SELECT * FROM Pet) y", "Pet WHERE Pet.name = 'a, Pet' GROUP BY Pet.name",
    "(SELECT * FROM Pet) x CROSS JOIN Pet x",
    "Pet p JOIN Owner ON p.name = Owner.name WHERE p.name <> 'Pet' LIMIT 1", "Pet p INNER JOIN Pet q ON p.name = q.name AND p.name = 'x'",
    "Pet JOIN (SELECT name FROM Owner) AS b", "Pet p, Pet P", "(Pet JOIN Owner ON 1 = 1) JOIN (Pet p JOIN Owner o ON 2 = 2)",
]


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    skip_without_mariadb()
    with open_private({"pets": (OWNER, PET)}) as opened:
        yield opened


@pytest.mark.parametrize("sources, name", ONE_NAME)
def test_one_name_for_two_tables_is_refused_as_mariadb_refuses_it(mariadb, sources, name):
    sql = f"SELECT COUNT(*) FROM {sources}"
    theirs = mariadb.run(sql, "pets")
    assert theirs.status == "other" and theirs.code == NOT_UNIQUE
    with open_sqlite({"pets": [OWNER, PET]}) as sqlite:
        ours = sqlite.run(sql, "pets")
    assert ours.status == "other" and ours.error == f"Not unique table/alias: {name!r}" and theirs.error.endswith(ours.error)


@pytest.mark.parametrize("sources", TWO_NAMES)
def test_what_has_two_names_is_not_refused(mariadb, sources):
    """MariaDB runs these statements. Whether SQLite runs them too (p and P are one name to it) is not tested here."""
    sql = f"SELECT COUNT(*) FROM {sources}"
    assert named_twice(sql) == "" and mariadb.run(sql, "pets").ok


def test_a_long_text_takes_no_time():
    """Nested brackets, and many tables: each is read once."""
    assert named_twice("SELECT " + "(" * 4_900 + "1" + ")" * 4_900) == ""
    assert named_twice("SELECT 1 FROM " + ", ".join(f"a b{i}" for i in range(1_200)) + ", a b7") == "b7"
