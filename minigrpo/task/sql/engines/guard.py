"""What every engine does against untrusted SQL: checks on the text before it is sent, limits on the rows that come back."""

import re
from collections.abc import Callable, Collection, Iterable

from minigrpo.common.errors import UserError
from minigrpo.task.sql.engines.database import Execution, Limits

MAX_SQL_CHARACTERS = 10_000
BLANK = " \t\r\n\f\v;"          # a text of only these characters is no SQL

Rows = tuple[tuple[object, ...], ...]


def check_query(sql: str | None, database_name: str, databases: Collection[str],
                objection_to: Callable[[str], str]) -> str | Execution:
    """The SQL to send to the engine, or the outcome of a query that is not sent. ``objection_to``: the engine's check of the
    text, as ``objection``. ``UserError``: there is no database of that name."""
    if database_name not in databases:
        raise UserError(f"unknown database {database_name!r}; known: {', '.join(sorted(databases))}")
    if sql is None or not sql.strip(BLANK):
        return Execution("no_sql")
    reason = objection_to(sql)
    return Execution("refused", error=reason) if reason else sql


def objection(sql: str, quoted: re.Pattern[str]) -> str:
    r"""Why this text is not sent to the engine, or "". ``quoted`` matches one quoted text or name as the engine reads it.

    >>> quoted = re.compile("'[^']*'")
    >>> objection("SELECT ';' ;", quoted), objection("SELECT 1; SELECT 2", quoted), objection("DROP TABLE t", quoted)
    ('', 'more than one statement', 'does not begin with SELECT or WITH')
    """
    if len(sql) > MAX_SQL_CHARACTERS:
        return f"longer than {MAX_SQL_CHARACTERS} characters"
    if re.search("[\0\ufeff\ud800-\udfff]", sql):           # U+FEFF is a blank to SQLite only
        return "not text"
    if not re.match(r"[\s(]*(select|with)\b", sql, re.I | re.A):
        return "does not begin with SELECT or WITH"
    bare = quoted.sub("''", sql)
    if ";" in bare.rstrip().removesuffix(";"):
        return "more than one statement"
    # A query runs on one database, so it never needs the form database.table.column. Both engines refuse it, so that the same
    # text is refused on both; MariaDB 10.11 even crashes on WHERE a.b.c after JOIN ... USING.
    if re.search(r"[\w$']\s*\.\s*[\w$']+\s*\.\s*[\w$'*]", bare):
        return "a name of three parts is not permitted"
    # Variables carry state from query to query and hold memory that no limit counts; comments can hide code (/*! ... */).
    return "comments and variables are not permitted" if re.search(r"@|#|--|/\*", bare) else ""


def read_rows(rows: Iterable[tuple[object, ...]], limits: Limits) -> Rows | None:
    """All rows of a result, or None as soon as they exceed the limits.

    >>> read_rows([("é", 1)], Limits(max_rows=2, max_bytes=9)), read_rows([(1,), (2,)], Limits(max_rows=1))
    (None, None)
    >>> read_rows([("é", 1), (None, None)], Limits(max_rows=2, max_bytes=10))
    (('é', 1), (None, None))
    """
    kept: list[tuple[object, ...]] = []
    size = 0
    for row in rows:
        kept.append(row)
        size += sum(map(_bytes, row))
        if len(kept) > limits.max_rows or size > limits.max_bytes:
            return None
    return tuple(kept)


def too_large(limits: Limits, seconds: float = 0.0) -> Execution:
    """The outcome of a query whose rows ``read_rows`` did not return."""
    return Execution("too_large", error=f"more than {limits.max_rows} rows or {limits.max_bytes} bytes", seconds=seconds)


def _bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8 * (value is not None)
