"""A MariaDB server before the queries and after them: logging in, what its errors mean, what is there, tables loaded, dropped.

Knows the server's error numbers, its rights and its accounts; of an untrusted query it knows nothing.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import Cursor

from minigrpo.common.messages import unknown
from minigrpo.task.sql.engines.database import DatabaseError, Status, Table, Tables, create_table
from minigrpo.task.sql.engines.introspect import MARIADB, read_tables
from minigrpo.task.sql.engines.mariadb_grants import beyond_reading, roles

STATUS: dict[int, Status] = {   # what is not here (and not BROKEN) is "other"
    1064: "syntax",
    1054: "unknown_column",
    1146: "unknown_table",      # FROM nowhere
    1051: "unknown_table",      # SELECT nowhere.* FROM somewhere
    1109: "unknown_table",
    1044: "refused",            # no right to the database
    1142: "refused",            # no right to the table; also for any table of a database that is not there
    1143: "refused",            # no right to the column
    1227: "refused",            # no right to files, to the server's administration
    1370: "other",              # a function that is not there: without one of that name, a right to it is lacking
    1792: "refused",            # the session is READ ONLY: FOR UPDATE, NEXTVAL
    1969: "timeout",            # max_statement_time
    3024: "timeout",            # the same on MySQL
    1290: "too_large",          # max_session_mem_used (also read_only, which no SELECT runs into)
    1114: "too_large",          # tmp_disk_table_size: a temporary table is full
    1038: "too_large",          # no memory to sort in
    1153: "too_large",          # max_allowed_packet
}
BROKEN = {
    1040,                       # too many connections
    1053,                       # the server shuts down
    1203,                       # too many connections of this account
    1317,                       # someone killed the query
    1927,                       # someone killed the connection
}                               # and whatever PyMySQL says itself: 2000 to 2999, 0, or no number

# PyMySQL would make a TIME a timedelta, whose text is "9:30:00" for 09:30:00 and "1 day, 2:00:00" for 26:00:00.
CONVERSIONS = {kind: convert for kind, convert in conversions.items() if kind != FIELD_TYPE.TIME}

RIGHTS = r"SELECT, INSERT, CREATE and DROP, WITH GRANT OPTION, on `minigrpo\_%`.*, and CREATE USER"


@dataclass(frozen=True)
class Login:
    """Where a server is (a socket, else host and port), as whom to talk to it, and about which database ("": none)."""

    socket: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = ""

    def __str__(self) -> str:
        return f"MariaDB at {self.socket or f'{self.host}:{self.port}'} as {self.user!r}"

    def connect(self, seconds: float = 60.0) -> pymysql.Connection:
        """``seconds``: how long each answer may take."""
        # Without ssl_disabled PyMySQL builds an SSL context for each connection, which a socket has no use for.
        return pymysql.connect(unix_socket=self.socket or None, host=self.host or None, port=self.port, user=self.user,
                               password=self.password.encode(), ssl_disabled=bool(self.socket), charset="utf8mb4",
                               collation="utf8mb4_bin", conv=CONVERSIONS, autocommit=True, read_timeout=seconds,
                               connect_timeout=min(seconds, 5.0))


def status_of(error: pymysql.MySQLError) -> Status | None:
    """What kind of failure it is of the statement's, or None: the statement is not to blame."""
    code = error.args[0]
    if not isinstance(code, int) or code in BROKEN or code == 0 or 2000 <= code < 3000:
        return None
    return STATUS.get(code, "other")


def answers(socket: str) -> bool:
    """Whether a private server listens there."""
    try:
        Login(socket, "", 0, "root", "").connect().close()
    except pymysql.OperationalError:                        # the socket is made before it is listened to
        return False
    return True


def message(error: pymysql.MySQLError) -> str:
    return str(error.args[-1])


def timed_out(error: pymysql.MySQLError) -> bool:
    return error.args[0] in (2003, 2013) and isinstance(error.__context__, TimeoutError)


# ------------------------------------------------------------------------------------------------------------- what exists
def existing(login: Login, names: Iterable[str]) -> dict[str, Tables]:
    """What tables these databases have. ``DatabaseError``: no such database, or an account that may do more than read."""
    try:
        if more := beyond_reading(_grants(login)):
            raise DatabaseError(f"{login} may do more than read ({', '.join(more)}): name an account that has SELECT alone")
        with login.connect() as connection, connection.cursor() as cursor:
            return {name: _tables(login, cursor, name) for name in names}
    except pymysql.MySQLError as error:
        raise DatabaseError(f"{login} cannot be read: {message(error)}") from error


def _grants(login: Login) -> list[str]:
    """The lines of SHOW GRANTS, those of the roles that the account could turn on among them."""
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

    def query(sql: str) -> tuple[tuple, ...]:
        cursor.execute(sql)
        return cursor.fetchall()

    cursor.connection.select_db(name)
    return read_tables(name, MARIADB, query, pymysql.MySQLError)


def _column(cursor: Cursor, sql: str) -> list[str]:
    cursor.execute(sql)
    return [value for value, in cursor.fetchall()]


# --------------------------------------------------------------------------------------------------------------- loading
def load(admin: Login, databases: Mapping[str, Tables], prefix: str, undo: list[str]) -> dict[str, Login]:
    """Create each database and its reader. Returns {our name of a database: its reader}. ``undo``: what takes it back."""
    readers = {}
    try:
        with admin.connect() as connection, connection.cursor() as cursor:
            cursor.max_stmt_length = 50_000                 # our own server takes 64 KiB
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
    cursor.execute(f"ANALYZE TABLE {table.name}")           # else plans, and the order of ties, change later


def _create_reader(cursor: Cursor, admin: Login, database: str, user: str, undo: list[str]) -> Login:
    """An account that may read this database and nothing else."""
    cursor.execute("SELECT SUBSTRING_INDEX(USER(), '@', -1)")
    host = cursor.fetchone()[0]                             # us, as the server sees us
    reader = replace(admin, user=user, password=secrets.token_urlsafe(24), database=database)
    cursor.execute(f"CREATE USER `{user}`@`{host}` IDENTIFIED BY %s", (reader.password,))
    undo.append(f"DROP USER `{user}`@`{host}`")
    pattern = database.replace("_", r"\_")                  # in a GRANT, _ is any character
    cursor.execute(f"GRANT SELECT ON `{pattern}`.* TO `{user}`@`{host}`")
    reader.connect().close()                                # better now than at the first query
    return reader


def drop(admin: Login, statements: list[str]) -> None:
    """Run what takes our things back, the last first. ``DatabaseError`` names what could not be."""
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
