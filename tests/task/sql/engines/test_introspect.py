"""introspect.py on both engines: tables are read as declared, names work in SQL, samples are real values."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pymysql
import pytest

from minigrpo.task.sql.engines.database import Column, DatabaseError, Tables
from minigrpo.task.sql.engines.introspect import MARIADB, SAMPLE_ROWS, SQLITE, read_tables
from minigrpo.task.sql.engines.mariadb import open_private
from minigrpo.task.sql.prompt import schema_text
from tests.mariadb_server import skip_without_mariadb

Read = Callable[..., Tables]


def sqlite_reader() -> Read:
    def read(*statements: str) -> Tables:
        with closing(sqlite3.connect(":memory:")) as connection:
            for statement in statements:
                connection.execute(statement)
            return read_tables("d", SQLITE, lambda sql: connection.execute(sql).fetchall(), sqlite3.OperationalError)
    return read


@pytest.fixture(scope="module")
def mariadb_cursor() -> Iterator[pymysql.cursors.Cursor]:
    skip_without_mariadb()
    with open_private({"other": ()}) as server:
        root = replace(server._readers["other"], user="root", password="")
        with root.connect() as connection, connection.cursor() as cursor:
            yield cursor


@pytest.fixture(params=["sqlite", "mariadb"])
def read(request) -> Read:
    """``read("CREATE ...", ...)``: the tables of a database on which these statements have run."""
    if request.param == "sqlite":
        return sqlite_reader()
    cursor = request.getfixturevalue("mariadb_cursor")

    def query(sql: str) -> tuple:
        cursor.execute(sql)
        return cursor.fetchall()

    def read(*statements: str) -> Tables:
        for statement in ("DROP DATABASE IF EXISTS d", "CREATE DATABASE d CHARACTER SET utf8mb4", "USE d", *statements):
            cursor.execute(statement)
        return read_tables("d", MARIADB, query, pymysql.MySQLError)
    return read


def test_tables_as_declared(read):
    """Types, a key of two columns in its own order, a foreign key of two columns, a table without a key, a column without values."""
    tables = {table.name: table for table in read(
        "CREATE TABLE seat (hall INT NOT NULL, place CHAR(3) NOT NULL, price DECIMAL(8,2), PRIMARY KEY (place, hall))",
        "CREATE TABLE ticket (code CHAR(3), ticket_id INT PRIMARY KEY, hall INT, FOREIGN KEY (code, hall) "
        "REFERENCES seat(place, hall))",
        "CREATE TABLE note (line VARCHAR(20))",
        "INSERT INTO seat VALUES (1, 'A1', 9.5), (1, 'A2', NULL)")}
    assert sorted(tables) == ["note", "seat", "ticket"]
    seat, ticket, note = tables["seat"], tables["ticket"], tables["note"]
    assert (seat.key, ticket.key, note.key) == ((1, 0), (1,), ())
    assert [column.name for column in seat.columns] == ["hall", "place", "price"]
    assert [column.type.lower() for column in seat.columns[1:]] == ["char(3)", "decimal(8,2)"]
    assert [column.references for column in ticket.columns] == [("seat", "place"), None, ("seat", "hall")]
    assert sorted(row[:2] for row in seat.rows) == [(1, "A1"), (1, "A2")] and note.rows == ()
    assert {None if price is None else float(price) for _, _, price in seat.rows} == {9.5, None}


AWKWARD = ["order", "select", "Key", "values", "two words", "semi;colon", "quo`te", "ünïcode", "1st", "dash-ed", "rank",
           "current_date"]


def test_names_run_as_the_schema_spells_them(read):
    """Each as the name of a table, of a column and of a foreign key's target; the prompt shows them in the same form."""
    quoted = ["`" + name.replace("`", "``") + "`" for name in AWKWARD]
    statements = [f"CREATE TABLE {name} ({name} INT PRIMARY KEY, up INT, FOREIGN KEY (up) REFERENCES {name}({name}))"
                  for name in quoted]
    tables = read(*statements)
    assert len(tables) == len(AWKWARD)
    plain, compact = schema_text("plain", tables, 3), schema_text("compact", tables, 3)
    for table in tables:
        key, up = table.columns
        assert key.name == table.name and up.references == (table.name, table.name)
        assert f"CREATE TABLE {table.name} (\n  {table.name} " in plain and f"REFERENCES {table.name}({table.name})" in plain
        assert f"{table.name}({table.name}, up)" in compact
    # A model copies names from the schema, so this runs every table and column as the schema writes them.
    again = read(*statements, *(f"INSERT INTO {table.name} SELECT 1, {table.name}.{table.name} FROM {table.name} WHERE 1 = 0"
                                for table in tables))
    assert again == tables
    assert {"`order`", "`select`", "`two words`", "`quo``te`", "`1st`"} <= {table.name for table in tables}


def test_plain_names_stay_plain(read):
    """None of the benchmark's names is reserved: quotes would cost tokens that no answer needs."""
    (table,) = read("CREATE TABLE Medal (medal_id INT PRIMARY KEY, type INT, year INT, format INT, name INT, location INT)")
    assert [table.name, *(column.name for column in table.columns)] == [
        "Medal", "medal_id", "type", "year", "format", "name", "location"]


def test_views_are_tables_without_a_key(read):
    tables = {table.name: table for table in read(
        "CREATE TABLE t (i INT PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)",
        "CREATE VIEW doubled AS SELECT 2 * i AS twice FROM t")}
    view = tables["doubled"]
    assert (view.columns[0].name, view.key, sorted(view.rows)) == ("twice", (), [(2,), (4,)])


def test_a_thousand_rows_are_complete_and_one_more_is_not(read):
    for rows in (SAMPLE_ROWS, SAMPLE_ROWS + 1):
        (table,) = read("CREATE TABLE t (i INT)", f"INSERT INTO t VALUES {', '.join(f'({i})' for i in range(rows))}")
        assert (len(table.rows), table.complete) == (SAMPLE_ROWS, rows == SAMPLE_ROWS)


def test_of_a_long_value_comes_no_more_than_a_prompt_could_show(read):
    """Only 100 of 10,000 characters or bytes are read. With quotes they are too long to be shown, so no prompt shows a cut value."""
    (table,) = read("CREATE TABLE t (i INT, words TEXT, bytes BLOB)",
                    f"INSERT INTO t VALUES (7, '{'é' * 10_000}', x'{'00' * 10_000}')")
    assert table.rows == ((7, "é" * 100, b"\0" * 100),)
    assert schema_text("compact", [table], 3) == "t(i (7), words, bytes)"


def test_values_keep_their_kind(read):
    """Numbers stay numbers although texts are cut; a date is a text in the prompt."""
    (table,) = read("CREATE TABLE t (i BIGINT, f DOUBLE, d DATE, e DECIMAL(6,3))",
                    "INSERT INTO t VALUES (12345678901, 0.5, '2023-01-10', 1.250)")
    assert schema_text("compact", [table], 3) == "t(i (12345678901), f (0.5), d ('2023-01-10'), e (1.25))"


def test_a_database_without_tables_is_one_sentence(read):
    with pytest.raises(DatabaseError, match="^the database 'd' has no table that may be read$"):
        read()


# ---------------------------------------------------------------------------------------------------- on one engine only
def test_links_of_sqlite_that_name_no_column_or_no_table():
    """Links to the key of a table written in another case, to a missing table, and to a table without a key."""
    _, loose, pet = sqlite_reader()(
        "CREATE TABLE Owner (a INT, b INT, PRIMARY KEY (b, a))", "CREATE TABLE Loose (a INT)",
        "CREATE TABLE Pet (x INT, y INT, lost REFERENCES nowhere(id), loose REFERENCES Loose, "
        "FOREIGN KEY (x, y) REFERENCES oWNER)")
    assert [column.references for column in pet.columns] == [("Owner", "b"), ("Owner", "a"), None, None]
    assert loose.key == ()


def test_columns_of_sqlite_that_are_computed_or_have_no_type():
    (table,) = sqlite_reader()("CREATE TABLE t (a, b  DOUBLE   PRECISION, c INT GENERATED ALWAYS AS (b + 1))",
                               "INSERT INTO t VALUES ('x', 1.5)")
    assert table.columns == (Column("a", ""), Column("b", "DOUBLE PRECISION"), Column("c", "INT"))
    assert table.rows == (("x", 1.5, 2.5),)


def test_an_enumeration_and_a_sequence_of_mariadb(mariadb_cursor):
    """The first is read as text, the second is no table."""
    def query(sql: str) -> tuple:
        mariadb_cursor.execute(sql)
        return mariadb_cursor.fetchall()

    for statement in ("DROP DATABASE IF EXISTS d", "CREATE DATABASE d", "USE d", "CREATE TABLE t (e ENUM('yes', 'no'))",
                      "INSERT INTO t VALUES ('no')", "CREATE SEQUENCE s"):
        mariadb_cursor.execute(statement)
    (table,) = read_tables("d", MARIADB, query, pymysql.MySQLError)
    assert (table.columns, table.rows) == ((Column("e", "enum('yes','no')"),), (("no",),))


def test_every_word_that_mariadb_knows_can_be_a_column(mariadb_cursor):
    """In the form that the schema shows. Some 250 of 700 words are reserved; the others need no quotes."""
    def query(sql: str) -> tuple:
        mariadb_cursor.execute(sql)
        return mariadb_cursor.fetchall()

    words = [word for word, in query("SELECT word FROM information_schema.keywords WHERE word RLIKE '^[A-Z_]+$'")]
    for statement in ("DROP DATABASE IF EXISTS d", "CREATE DATABASE d", "USE d",
                      f"CREATE TABLE t ({', '.join(f'`{word}` INT' for word in words)})"):
        mariadb_cursor.execute(statement)
    (table,) = read_tables("d", MARIADB, query, pymysql.MySQLError)
    for column in table.columns:
        query(f"SELECT {column.name}, t.{column.name} FROM t")
    plain = [column.name for column in table.columns if "`" not in column.name]
    assert len(words) > 600 and 2 * len(plain) > len(words) and "YEAR" in plain and "SELECT" not in plain
