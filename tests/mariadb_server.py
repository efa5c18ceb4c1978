"""Whether a MariaDB is there, a private one for tests, what is in it, and accounts on it as somebody else would make them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pymysql
import pytest

from minigrpo.task.sql.engines.database import Column, Table
from minigrpo.task.sql.engines.mariadb import MariaDB
from minigrpo.task.sql.engines.mariadb_driver import Login

WHY = "no mariadbd on the PATH: apt-get install mariadb-server"
ABSENT = shutil.which("mariadbd") is None and "CI" not in os.environ            # there it is installed, or something is wrong
needs_mariadb = pytest.mark.skipif(ABSENT, reason=WHY)

# Two athletes, three medals. "Team " keeps its trailing space; Ødegård's second medal has no year.
ATHLETE = Table("Athlete", (Column("athlete_id", "INT"), Column("name", "TEXT")), ((1, "Zoë Ødegård"), (2, "Ann O'Neil")))
MEDAL = Table("Medal", (Column("medal_id", "INT"), Column("athlete_id", "INT", ("Athlete", "athlete_id")),
                        Column("format", "TEXT"), Column("year", "INT")),
              ((1, 1, "Team ", 2012), (2, 1, "50 % \\ 金", None), (3, 2, "team", 2013)))
DATABASES = {"games": (ATHLETE, MEDAL), "other_games": (Table("Secret", (Column("id", "INT"),), ((7,),)),)}
NUMBERS = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
CROSS_JOIN = NUMBERS.format(900) + "SELECT COUNT(*) FROM n a, n b, n c, n d"
PASSWORD = "sésame-'§\\"
READ_GAMES = "SELECT ON games.* TO helper@localhost"


def skip_without_mariadb() -> None:
    """For fixtures, which take no mark."""
    if ABSENT:
        pytest.skip(WHY)


def rows(database: MariaDB, sql: str) -> tuple[tuple[object, ...], ...]:
    execution = database.run(sql, "games")
    assert execution.ok, execution
    return execution.rows


def reader_of(database: MariaDB, name: str = "") -> object:
    return database._readers[name or next(iter(database._readers))]


@contextmanager
def administrator(database: MariaDB) -> Iterator[pymysql.cursors.Cursor]:
    root = replace(reader_of(database), user="root", password="", database="")
    with root.connect() as connection, connection.cursor() as cursor:
        yield cursor


@contextmanager
def account(database: MariaDB, *rights: str) -> Iterator[Login]:
    """An account on the private server with these rights, as open_server wants it."""
    with administrator(database) as cursor:
        cursor.execute("CREATE USER helper@localhost IDENTIFIED BY %s", (PASSWORD,))
        cursor.execute("SET GLOBAL read_only = 0")              # the private server is; a given one is not
        for right in rights:
            cursor.execute("GRANT " + right)
        try:
            yield Login(reader_of(database).socket, "", 3306, "helper", PASSWORD)
        finally:
            cursor.execute("DROP USER helper@localhost")
            cursor.execute("SET GLOBAL read_only = 1")
