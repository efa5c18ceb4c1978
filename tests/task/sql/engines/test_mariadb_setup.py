"""mariadb_setup.py: tables loaded and dropped, what is there found, by accounts with more and fewer rights; and each failure
one sentence. The queries: test_mariadb.py."""

from collections.abc import Iterator
from dataclasses import replace

import pymysql
import pytest

from minigrpo.task.sql.engines.database import Column, DatabaseError, Limits, Table
from minigrpo.task.sql.engines.mariadb import MariaDB, open_existing, open_private, open_server
from minigrpo.task.sql.engines.mariadb_setup import BROKEN_CODES, STATUS_OF_CODE, beyond_reading, roles, status_of
from tests.mariadb_server import (
    ATHLETE,
    CROSS_JOIN,
    DATABASES,
    MEDAL,
    PASSWORD,
    READ_GAMES,
    account,
    administrator,
    needs_mariadb,
    reader_of,
    rows,
    skip_without_mariadb,
)


@pytest.fixture(scope="module")
def database() -> Iterator[MariaDB]:
    skip_without_mariadb()
    with open_private(DATABASES) as opened:
        yield opened


# --------------------------------------------------------------------------------------------------------- errors, and loading
@pytest.mark.parametrize("code, status", [(1064, "syntax"), (1969, "timeout"), (1242, "other"), (3572, "other"), (1999, "other"),
                                          (2000, None), (2013, None), (2999, None), (3000, "other"), (0, None), ("text", None)])
def test_an_error_is_the_statement_s_or_the_server_s(code: int | str, status: str | None) -> None:
    """The client's own errors have numbers 2000 to 2999, 0, or none: then the server did not answer."""
    assert status_of(pymysql.OperationalError(code, "why")) == status


def test_no_number_is_both_the_statement_s_and_the_server_s() -> None:
    assert not BROKEN_CODES & STATUS_OF_CODE.keys()
    assert all(status_of(pymysql.OperationalError(code, "why")) is None for code in BROKEN_CODES)


@needs_mariadb
@pytest.mark.slow
def test_the_longest_text_fits_and_references_hold() -> None:
    """300 characters are more than the usual 255. A row larger than half a packet is loaded too."""
    long = "é" * 300
    with open_private({"d": (Table("T", (Column("id", "INT"), Column("x", "TEXT")), tuple((i, long) for i in range(500))),)}) as opened:
        assert opened.run("SELECT COUNT(*), MIN(x) FROM T", "d").rows == ((500, long),)
    orphan = replace(MEDAL, rows=((1, 99, "Team", 2012),))                   # there is no athlete 99
    with pytest.raises(DatabaseError, match="foreign key"):
        open_private({"games": (ATHLETE, orphan)})


def test_an_underscore_in_a_name_is_an_underscore(database: MariaDB) -> None:
    """In a GRANT, _ matches any character: the reader of other_games could read otherXgames."""
    with administrator(database) as cursor:
        cursor.execute("CREATE DATABASE otherXgames")
        assert database.run("SELECT * FROM otherXgames.Secret", "games").status == "refused"
        assert database.run("SELECT * FROM otherXgames.Secret", "other_games").status == "refused"
        assert database.run("SELECT * FROM Secret", "other_games").ok
        cursor.execute("DROP DATABASE otherXgames")


# ---------------------------------------------------------------------------------------------------------- a given server
def made_by_us(cursor: pymysql.cursors.Cursor) -> list[tuple[object, ...]]:
    cursor.execute("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'minigrpo%' "
                   "UNION ALL SELECT user FROM mysql.user WHERE user LIKE 'minigrpo%'")
    return list(cursor.fetchall())


TABLES = r"SELECT, INSERT, CREATE, DROP ON `minigrpo\_%`.* TO helper@localhost"
GRANTABLE = TABLES + " WITH GRANT OPTION"
USERS = "CREATE USER ON *.* TO helper@localhost"


def test_a_given_server_serves_the_same_and_keeps_nothing(database: MariaDB) -> None:
    with account(database, GRANTABLE, USERS) as login, administrator(database) as cursor:
        with open_server(login, DATABASES) as given:
            assert len(made_by_us(cursor)) == 4                 # two databases, each with its reader
            for sql in ("SELECT * FROM Medal", "SELECT nothing", "SELECT SLEEP(5)", CROSS_JOIN, "DELETE FROM Medal"):
                assert replace(given.run(sql, "games"), seconds=0) == replace(database.run(sql, "games"), seconds=0)
            assert given.run("SELECT * FROM games.Medal", "games").status == "refused"      # it existed before
        given.close()
        assert made_by_us(cursor) == []


@pytest.mark.parametrize("rights", [(), (USERS,), (GRANTABLE,), (TABLES, USERS)])
def test_a_missing_right_is_one_sentence_and_leaves_nothing(database: MariaDB, rights: tuple[str, ...]) -> None:
    """Missing rights: all; to create tables; to create the reader; to pass a right on."""
    with account(database, *rights) as login, administrator(database) as cursor:
        with pytest.raises(DatabaseError, match="'helper' does not load the tables: .*denied.*the account needs SELECT.*CREATE USER"):
            open_server(login, DATABASES)
        assert made_by_us(cursor) == []


def test_what_cannot_be_dropped_is_named(database: MariaDB) -> None:
    with account(database, GRANTABLE, USERS) as login, administrator(database) as cursor:
        given = open_server(login, DATABASES)
        cursor.execute("REVOKE CREATE USER ON *.* FROM helper@localhost")
        todo = "; ".join(f"DROP USER `minigrpo_[0-9a-f]{{8}}_reader_{i}`@`localhost`" for i in (1, 0))
        with pytest.raises(DatabaseError, match=f"left behind, to be run by hand: {todo}$"):
            given.close()
        (one,), (two,) = made_by_us(cursor)                     # the databases are still gone
        cursor.execute(f"DROP USER {one}@localhost, {two}@localhost")


@pytest.mark.parametrize("change, complaint", [
    ({"password": "wrong-" + PASSWORD}, "Access denied"), ({"user": "nobody"}, "Access denied"),
    ({"socket": "/nowhere/socket"}, "Can't connect"), ({"socket": "", "host": "127.0.0.1", "port": 1}, "Can't connect")])
def test_a_server_that_we_cannot_enter_is_one_sentence_without_the_password(database: MariaDB, change: dict, complaint: str) -> None:
    with account(database) as login:
        with pytest.raises(DatabaseError, match=complaint) as caught:
            open_server(replace(login, **change), DATABASES)
        assert PASSWORD not in str(caught.value) and PASSWORD not in repr(caught.value.__cause__)


# --------------------------------------------------------------------------------------------------- databases that exist
@pytest.mark.parametrize("rights", [
    (READ_GAMES,), pytest.param(("SELECT ON *.* TO helper@localhost",), marks=pytest.mark.slow),
    pytest.param(("SELECT, SHOW VIEW ON `ga%`.* TO helper@localhost",), marks=pytest.mark.slow),
    ("SELECT ON games.Athlete TO helper@localhost", "SELECT ON games.Medal TO helper@localhost")])
def test_a_database_that_exists_is_read_where_it_is(database: MariaDB, rights: tuple[str, ...]) -> None:
    """By an account that may read one database, all databases, or two tables. The tables equal those it was made from."""
    with account(database, *rights) as login, administrator(database) as cursor:
        existing, tables = open_existing(login, ["games"])
        with existing:
            for sql in ("SELECT * FROM Medal", "SELECT nothing", "SELECT SLEEP(5)", CROSS_JOIN, "DELETE FROM Medal"):
                assert replace(existing.run(sql, "games"), seconds=0) == replace(database.run(sql, "games"), seconds=0)
            with pytest.raises(ValueError, match="unknown database 'other_games'; known: games"):
                existing.run("SELECT 1", "other_games")
            assert made_by_us(cursor) == []
        assert made_by_us(cursor) == []
    assert [(table.name, table.rows, table.key) for table in tables["games"]] == [
        (table.name, table.rows, table.key) for table in (ATHLETE, MEDAL)]
    assert [column.references for column in tables["games"][1].columns] == [column.references for column in MEDAL.columns]


@pytest.mark.parametrize("right, more", [
    ("INSERT ON games.* TO helper@localhost", "INSERT"), ("ALL ON games.* TO helper@localhost", "ALL PRIVILEGES"),
    ("FILE ON *.* TO helper@localhost", "FILE"), ("SUPER ON *.* TO helper@localhost", "SUPER"),
    ("SELECT ON games.* TO helper@localhost WITH GRANT OPTION", "GRANT OPTION"),
    ("DROP ON games.Medal TO helper@localhost", "DROP"), ("UPDATE (year) ON games.Medal TO helper@localhost", "UPDATE"),
    ("CREATE TEMPORARY TABLES, LOCK TABLES ON games.* TO helper@localhost", "CREATE TEMPORARY TABLES, LOCK TABLES"),
    ("EXECUTE ON *.* TO helper@localhost", "EXECUTE"), ("ALL ON *.* TO helper@localhost WITH GRANT OPTION",
                                                        "ALL PRIVILEGES, GRANT OPTION")])
def test_an_account_that_may_do_more_than_read_is_refused(database: MariaDB, right: str, more: str) -> None:
    with account(database, READ_GAMES, right) as login:
        with pytest.raises(DatabaseError) as caught:
            open_existing(login, ["games"])
        assert str(caught.value) == (f"MariaDB at {login.socket} as 'helper' may do more than read ({more}): "
                                     "name an account that has SELECT alone")


@pytest.mark.parametrize("default", [True, False])
def test_an_account_that_may_do_more_by_a_role_is_refused(database: MariaDB, default: bool) -> None:
    """Whether the role is on after login, or SET ROLE could turn it on; also a role within a role."""
    with account(database, READ_GAMES) as login, administrator(database) as cursor:
        try:
            for statement in ("CREATE ROLE outer_role", "CREATE ROLE inner_role", "GRANT SELECT ON games.* TO outer_role",
                              "GRANT outer_role TO helper@localhost",
                              *["SET DEFAULT ROLE outer_role FOR helper@localhost"] * default):
                cursor.execute(statement)
            open_existing(login, ["games"])[0].close()        # a role that only reads is accepted like a right
            cursor.execute("GRANT DELETE ON games.* TO inner_role")
            cursor.execute("GRANT inner_role TO outer_role")
            with pytest.raises(DatabaseError, match=r"may do more than read \(DELETE\)"):
                open_existing(login, ["games"])
        finally:
            cursor.execute("DROP ROLE IF EXISTS outer_role, inner_role")


def test_an_account_that_reads_by_its_default_role(database: MariaDB) -> None:
    """All its rights come from the role. A connection that is reset between queries keeps them."""
    with account(database) as login, administrator(database) as cursor:
        for statement in ("CREATE ROLE readers", "GRANT SELECT ON games.* TO readers", "GRANT readers TO helper@localhost",
                          "SET DEFAULT ROLE readers FOR helper@localhost"):
            cursor.execute(statement)
        existing, _ = open_existing(login, ["games"], Limits(connections=1))
        with existing:
            assert [rows(existing, "SELECT COUNT(*) FROM Medal") for _ in range(3)] == [((3,),)] * 3
        cursor.execute("DROP ROLE readers")


def test_rights_alone_would_stop_a_write(database: MariaDB) -> None:
    """Why the account's rights matter: without text checks, and in a session that may write, each of these still fails."""
    with account(database, READ_GAMES) as login, administrator(database) as cursor:
        existing, _ = open_existing(login, ["games"])
        with existing, reader_of(existing).connect() as connection, connection.cursor() as ours:
            ours.execute("USE games")
            for sql in ("DROP TABLE Medal", "INSERT INTO Medal VALUES (9, 1, 'x', 1)", "TRUNCATE Medal",
                        "CREATE TABLE x (a INT)", "SELECT * FROM Medal INTO OUTFILE '/tmp/minigrpo-outfile'", "SET GLOBAL read_only = 0"):
                with pytest.raises(pymysql.MySQLError) as caught:
                    ours.execute(sql)
                assert caught.value.args[0] in (1044, 1045, 1142, 1227), sql
        cursor.execute("SELECT COUNT(*) FROM games.Medal")
        assert cursor.fetchone() == (3,)


@pytest.mark.parametrize("names, complaint", [
    (["gamse"], "unknown database 'gamse' (did you mean 'games'?); it may see games, information_schema"),
    (["games", "other_games"], "unknown database 'other_games' (did you mean 'games'?); it may see games, information_schema")])
def test_a_database_that_is_not_there_or_not_for_us(database: MariaDB, names: list[str], complaint: str) -> None:
    with account(database, READ_GAMES) as login:
        with pytest.raises(DatabaseError) as caught:
            open_existing(login, names)
        assert str(caught.value) == f"MariaDB at {login.socket} as 'helper': {complaint}"


def test_a_database_without_tables_for_us(database: MariaDB) -> None:
    with account(database, "SELECT ON nothing.* TO helper@localhost") as login, administrator(database) as cursor:
        cursor.execute("CREATE DATABASE nothing")
        with pytest.raises(DatabaseError, match="^the database 'nothing' has no table that may be read$"):
            open_existing(login, ["nothing"])
        cursor.execute("DROP DATABASE nothing")


@pytest.mark.parametrize("change, complaint", [
    ({"password": "wrong-" + PASSWORD}, "Access denied"), ({"user": "nobody"}, "Access denied"),
    ({"socket": "/nowhere/socket"}, "Can't connect"), ({"socket": "", "host": "127.0.0.1", "port": 1}, "Can't connect")])
def test_a_login_that_fails_is_one_sentence_without_the_password(database: MariaDB, change: dict, complaint: str) -> None:
    with account(database, READ_GAMES) as login:
        with pytest.raises(DatabaseError, match=f"^MariaDB at .* cannot be read: .*{complaint}") as caught:
            open_existing(replace(login, **change), ["games"])
        assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ lines of SHOW GRANTS, without a server
USAGE = "GRANT USAGE ON *.* TO `me`@`%` IDENTIFIED BY PASSWORD '*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29'"


@pytest.mark.parametrize("lines", [
    [USAGE],
    [USAGE, "GRANT SELECT ON `shop`.* TO `me`@`%`"],
    ["GRANT SELECT ON *.* TO `me`@`%`"],
    [USAGE, "GRANT SELECT, SHOW VIEW ON `shop`.* TO `me`@`%`"],
    [USAGE, "GRANT SELECT (`a`, `INSERT`), SHOW VIEW ON `shop`.`t` TO `me`@`%`"],
    [USAGE + " WITH MAX_QUERIES_PER_HOUR 5000"],
    ["GRANT SHOW DATABASES ON *.* TO 'me'@'%' REQUIRE SSL"],
    # Names with the words that are looked for in them, and with a quote.
    [USAGE, "GRANT SELECT ON `a``, DROP ON b TO c WITH GRANT OPTION`.* TO `ALL ON`@`%`"],
    ["GRANT `readers` TO `me`@`%`", USAGE, "GRANT SELECT ON `shop`.* TO `readers`", "SET DEFAULT ROLE `readers` FOR `me`@`%`"],
])
def test_accounts_that_only_read(lines):
    assert beyond_reading(lines) == []


@pytest.mark.parametrize("line, more", [
    ("GRANT ALL PRIVILEGES ON `shop`.* TO `me`@`%`", ["ALL PRIVILEGES"]),
    ("GRANT SELECT, INSERT, DROP ON `shop`.* TO `me`@`%`", ["INSERT", "DROP"]),
    ("GRANT SELECT (`a`), UPDATE (`b`, `c`) ON `shop`.`t` TO `me`@`%`", ["UPDATE"]),
    ("GRANT FILE ON *.* TO `me`@`%`", ["FILE"]),
    ("GRANT SUPER, PROCESS ON *.* TO `me`@`%` IDENTIFIED BY PASSWORD '*94BD'", ["SUPER", "PROCESS"]),
    ("GRANT SELECT ON *.* TO `me`@`%` WITH GRANT OPTION", ["GRANT OPTION"]),
    ("GRANT `readers` TO `me`@`%` WITH ADMIN OPTION", ["ADMIN OPTION"]),
    ("GRANT EXECUTE ON FUNCTION `shop`.`f` TO `me`@`%`", ["EXECUTE"]),     # a function may write
    ("GRANT DELETE ON `shop`.`t` TO PUBLIC", ["DELETE"]),
    ("GRANT INSERT ON `shop`.* TO `readers`", ["INSERT"]),                 # through a role
    ("GRANT PROXY ON ''@'%' TO 'me'@'%' WITH GRANT OPTION", ["PROXY", "GRANT OPTION"]),
    ("ALLOW EVERYTHING TO 'me' BY '*94BD'", ["ALLOW EVERYTHING TO x BY x"]),     # in no version we know, so it is not trusted
])
def test_accounts_that_may_do_more(line, more):
    """Wherever the line comes; and the result never contains a password's hash."""
    assert beyond_reading([line]) == beyond_reading([USAGE, line]) == beyond_reading([line, line, USAGE]) == more
    assert "94BD" not in "".join(more)


def test_the_roles_of_an_account_and_no_others():
    """As a new server and an old one write them. Roles that a role contains are left out, since they come with it."""
    assert roles([USAGE, "GRANT `read``ers` TO `me`@`%`", "GRANT old TO 'me'@'%' WITH ADMIN OPTION", "GRANT `in` TO `readers`",
                  "SET DEFAULT ROLE `readers` FOR `me`@`%`", "GRANT SELECT ON `a`.* TO `me`@`%`"]) == ["`read``ers`", "old"]
