"""What every engine holds against untrusted SQL: a look at the text before it is sent, caps on what comes back."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_SQL = 10_000                # characters of a query
BLANK = " \t\r\n\f\v;"          # a text of nothing else is no SQL

Rows = tuple[tuple[object, ...], ...]


def objection(sql: str, quoted: re.Pattern[str]) -> str:
    r"""Why this text is not sent, or "". ``quoted`` matches what the engine takes for one quoted text or name.

    >>> quoted = re.compile("'[^']*'")
    >>> objection("SELECT ';' ;", quoted), objection("SELECT 1; SELECT 2", quoted), objection("DROP TABLE t", quoted)
    ('', 'more than one statement', 'does not begin with SELECT or WITH')
    """
    if len(sql) > MAX_SQL:
        return f"longer than {MAX_SQL} characters"
    if re.search("[\0\ufeff\ud800-\udfff]", sql):           # U+FEFF is a blank to SQLite, and to nobody else
        return "not text"
    if not re.match(r"[\s(]*(select|with)\b", sql, re.I | re.A):
        return "does not begin with SELECT or WITH"
    bare = quoted.sub("''", sql)
    if ";" in bare.rstrip().removesuffix(";"):
        return "more than one statement"
    # MariaDB 10.11 crashes on WHERE a.b.c behind JOIN ... USING; no query on one database needs to name it.
    if re.search(r"[\w$']\s*\.\s*[\w$']+\s*\.\s*[\w$'*]", bare):
        return "a name of three parts is not permitted"
    # Variables carry state from query to query and hold memory that no limit counts; comments hide code (/*! ... */).
    return "comments and variables are not permitted" if re.search(r"@|#|--|/\*", bare) else ""


@dataclass(frozen=True)
class Caps:
    """How much of a result is read: ``rows``, and ``bytes`` in all (text in UTF-8, a number as 8, NULL as 0)."""

    rows: int
    bytes: int

    def read(self, rows: Iterable[tuple[object, ...]]) -> Rows | None:
        """All rows, or None as soon as they are too many.

        >>> Caps(rows=2, bytes=9).read([("é", 1)]), Caps(rows=1, bytes=99).read([(1,), (2,)])
        (None, None)
        >>> Caps(rows=2, bytes=10).read([("é", 1), (None, None)])
        (('é', 1), (None, None))
        """
        kept: list[tuple[object, ...]] = []
        size = 0
        for row in rows:
            kept.append(row)
            size += sum(map(_bytes, row))
            if len(kept) > self.rows or size > self.bytes:
                return None
        return tuple(kept)

    def __str__(self) -> str:
        return f"more than {self.rows} rows or {self.bytes} bytes"


def _bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8 * (value is not None)
