"""Preparing a MariaDB server: what its errors mean, what an account may do, which tables the server has, loading tables, and
dropping them afterwards.

Does not depend on the untrusted queries that run later.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pymysql
from pymysql.cursors import Cursor

from minigrpo.common.errors import unknown
from minigrpo.task.sql.engines.database import DatabaseError, Status, Table, Tables, create_table
from minigrpo.task.sql.engines.introspect import MARIADB, read_tables
from minigrpo.task.sql.engines.mariadb_driver import Login, message

STATUS_OF_CODE: dict[int, Status] = {         # all codes that are neither here nor in BROKEN_CODES are "other"
    1064: "syntax",
    1054: "unknown_column",
    1146: "unknown_table",      # FROM nowhere
    1051: "unknown_table",      # SELECT nowhere.* FROM somewhere
    1109: "unknown_table",
    1044: "refused",            # no right to the database
    1142: "refused",            # no right to the table; also for any table of a database that does not exist
    1143: "refused",            # no right to the column
    1227: "refused",            # no right to files, or to administer the server
    1370: "other",              # a function that does not exist: the server says that there is no right to it
    1792: "refused",            # the session is READ ONLY: FOR UPDATE, NEXTVAL
    1969: "timeout",            # max_statement_time
    3024: "timeout",            # the same on MySQL
    1290: "too_large",          # max_session_mem_used (also read_only, which no SELECT runs into)
    1114: "too_large",          # tmp_disk_table_size: a temporary table is full
    1038: "too_large",          # no memory to sort in
    1153: "too_large",          # max_allowed_packet
}
BROKEN_CODES = {
    1040,                       # too many connections
    1053,                       # the server shuts down
    1203,                       # too many connections of this account
    1317,                       # someone killed the query
    1927,                       # someone killed the connection
}                               # and the errors of PyMySQL itself: 2000 to 2999, 0, or no number

RIGHTS = r"SELECT, INSERT, CREATE and DROP, WITH GRANT OPTION, on `minigrpo\_%`.*, and CREATE USER"
READING = {"USAGE", "SELECT", "SHOW VIEW", "SHOW DATABASES", "SHOW CREATE ROUTINE"}       # rights that only read
QUOTED = r"""(?:`[^`]*`|'[^']*'|"[^"]*")+"""                # a doubled quote is two of them side by side
NAME = rf"(?:{QUOTED}|[^\s`'\"@]+)"                         # servers before 10.4 write plain names without quotes
ROLE = re.compile(rf"GRANT ({NAME}) TO {NAME}@{NAME}.*", re.S)


def status_of(error: pymysql.MySQLError) -> Status | None:
    """The status of a statement that failed so, or None if the statement is not to blame."""
    code = error.args[0]
    if not isinstance(code, int) or code in BROKEN_CODES or code == 0 or 2000 <= code < 3000:
        return None
    return STATUS_OF_CODE.get(code, "other")


def answers(socket: str) -> bool:
    """Whether a private server listens there."""
    try:
        Login(socket, "", 0, "root", "").connect().close()
    except pymysql.OperationalError:                        # the socket exists before the server listens to it
        return False
    return True


# --------------------------------------------------------------------------------------------------- existing databases
def existing(login: Login, names: Iterable[str]) -> dict[str, Tables]:
    """The tables of these databases. ``DatabaseError``: there is no such database, or the account may do more than read.

    On someone else's database, the account's rights are the guard. A read-only transaction is not: DROP succeeds in it.
    """
    try:
        if more := beyond_reading(_grants(login)):
            raise DatabaseError(f"{login} may do more than read ({', '.join(more)}): name an account that has SELECT alone")
        with login.connect() as connection, connection.cursor() as cursor:
            return {name: _tables(login, cursor, name) for name in names}
    except pymysql.MySQLError as error:
        raise DatabaseError(f"{login} cannot be read: {message(error)}") from error


def beyond_reading(lines: Iterable[str]) -> list[str]:
    """The rights that go beyond reading, each once. A line in an unknown form is returned whole.

    >>> beyond_reading(["GRANT SELECT (`a`, `DROP`), INSERT (`a`) ON `shop`.* TO `me`@`%` WITH GRANT OPTION"])
    ['INSERT', 'GRANT OPTION']
    """
    found: list[str] = []
    for line in lines:
        bare = re.sub(QUOTED, "x", line)                    # a name may contain any word, and messages must not show hashes
        if rights := re.fullmatch(r"GRANT (.+?) ON .+", bare, re.S):
            found += [right for right in re.sub(r" ?\(.*?\)", "", rights[1]).split(", ") if right not in READING]
        elif not re.match(r"SET DEFAULT ROLE |GRANT \S+ TO ", bare):            # a role: its rights have lines of their own
            found.append(bare)
        found += re.findall(r"(?:GRANT|ADMIN) OPTION", bare)
    return list(dict.fromkeys(found))


def roles(lines: Iterable[str]) -> list[str]:
    """The roles that the account may turn on, as SHOW GRANTS writes them.

    >>> roles(["GRANT `readers` TO `me`@`%`", "GRANT `inner` TO `readers`", "GRANT SELECT ON `a`.* TO `me`@`%`"])
    ['`readers`']
    """
    return [role[1] for role in map(ROLE.fullmatch, lines) if role]


def _grants(login: Login) -> list[str]:
    """The lines of SHOW GRANTS, including those for each role that the account could turn on."""
    with login.connect() as connection, connection.cursor() as cursor:
        lines = _column(cursor, "SHOW GRANTS")
        for role in roles(lines):
            cursor.execute(f"SET ROLE {role}")
            lines += _column(cursor, "SHOW GRANTS")
    return lines


def _tables(login: Login, cursor: Cursor, name: str) -> Tables:
    visible = _column(cursor, "SELECT schema_name FROM information_schema.schemata")
    if name not in visible:
        raise DatabaseError(f"{login}: {unknown('database', name, visible)}; it may see {', '.join(sorted(visible))}")
    cursor.connection.select_db(name)
    return read_tables(name, MARIADB, lambda sql: _rows(cursor, sql), pymysql.MySQLError)


def _rows(cursor: Cursor, sql: str) -> tuple[tuple[Any, ...], ...]:
    cursor.execute(sql)
    return cursor.fetchall()


def _column(cursor: Cursor, sql: str) -> list[str]:
    return [value for value, in _rows(cursor, sql)]


# --------------------------------------------------------------------------------------------------------------- loading
def load(admin: Login, databases: Mapping[str, Tables], prefix: str, undo: list[str]) -> dict[str, Login]:
    """Create each database and its reader. Returns database name → reader. ``undo`` collects the SQL that drops them again."""
    readers: dict[str, Login] = {}
    try:
        with admin.connect() as connection, connection.cursor() as cursor:
            cursor.max_stmt_length = 50_000     # type: ignore[misc]  # of this cursor: our own server takes 64 KiB
            for name, tables in databases.items():
                cursor.execute(f"CREATE DATABASE `{prefix + name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
                undo.append(f"DROP DATABASE `{prefix + name}`")
                connection.select_db(prefix + name)
                for table in tables:
                    _load_table(cursor, table)
                readers[name] = _create_reader(cursor, admin, prefix + name, f"{prefix}reader_{len(readers)}", undo)
        return readers
    except pymysql.MySQLError as error:
        needs = f" (the account needs {RIGHTS})" if status_of(error) == "refused" else ""
        raise DatabaseError(f"{admin} does not load the tables: {message(error)}{needs}") from error


def _load_table(cursor: Cursor, table: Table) -> None:
    longest = max((len(value) for row in table.rows for value in row if isinstance(value, str)), default=0)
    cursor.execute(create_table(table, {"INT": "INT", "TEXT": f"VARCHAR({max(255, longest)})"}))
    cursor.executemany(f"INSERT INTO {table.name} VALUES ({', '.join(['%s'] * len(table.columns))})", table.rows)
    cursor.execute(f"ANALYZE TABLE {table.name}")           # otherwise plans, and the order of ties, change later


def _create_reader(cursor: Cursor, admin: Login, database: str, user: str, undo: list[str]) -> Login:
    """Create an account that may read only this database."""
    (host,) = _column(cursor, "SELECT SUBSTRING_INDEX(USER(), '@', -1)")        # this machine, as the server sees it
    reader = replace(admin, user=user, password=secrets.token_urlsafe(24), database=database)
    cursor.execute(f"CREATE USER `{user}`@`{host}` IDENTIFIED BY %s", (reader.password,))
    undo.append(f"DROP USER `{user}`@`{host}`")
    pattern = database.replace("_", r"\_")                  # in a GRANT, _ matches any character
    cursor.execute(f"GRANT SELECT ON `{pattern}`.* TO `{user}`@`{host}`")
    reader.connect().close()                                # so that an error shows now, not at the first query
    return reader


def drop(admin: Login, statements: list[str]) -> None:
    """Run the statements that drop what we created, the last one first. ``DatabaseError`` names those that failed."""
    left: list[str] = []
    failure: pymysql.MySQLError | None = None
    if statements:
        try:
            with admin.connect() as connection:
                connection.query("SET SESSION lock_wait_timeout=10")        # seconds; the default is a day
                for statement in reversed(statements):
                    try:
                        connection.query(statement)
                    except pymysql.MySQLError as error:
                        left, failure = [*left, statement], error
        except pymysql.MySQLError as error:
            left, failure = statements, error
    if failure:
        todo = "; ".join(left)
        raise DatabaseError(f"{admin}: {message(failure)}; left behind, to be run by hand: {todo}") from failure
