"""Checks of a query's text that SQLite does not make itself: too many copies of a WITH table, one name for two tables."""

import math
import re

from minigrpo.task.sql.engines.guard import objection
from minigrpo.task.sql.engines.lexer import QUOTED, TOKEN, definitions, sources, word

MAX_EXPANSIONS = 256        # of common table expressions


def text_objection(sql: str) -> str:
    """Why this text is not sent to SQLite, or "": ``guard.objection``, and the limit on copies of WITH tables."""
    if reason := objection(sql, re.compile(QUOTED)):
        return reason
    too_many = "with" in sql.lower() and expansions(sql) > MAX_EXPANSIONS
    return f"more than {MAX_EXPANSIONS} expansions of its WITH tables" if too_many else ""


def expansions(sql: str) -> int:
    """An upper bound on the copies of a common table expression: the product, over all of them, of how often each is named.
    SQLite makes the copies while it compiles the query, 2ⁿ for n that double, before any of its own limits applies.

    >>> expansions("WITH a AS (SELECT 1), b AS (SELECT * FROM a, a x), c AS (SELECT * FROM b, b y) SELECT * FROM c")
    4
    """
    words = [word(token) for token in TOKEN.findall(sql.lower())]
    named = [name for name, after in zip(words, words[1:] + [""]) if after != "."]         # a.x does not copy a
    return math.prod(max(1, named.count(name) - 1) for name in definitions(words))


def named_twice(sql: str) -> str:
    """The name that two tables of one FROM share, or "". MariaDB refuses such a query; SQLite reads each column from the
    first of the two.

    >>> named_twice("SELECT * FROM Pet JOIN Owner ON 1 = 1 JOIN Pet ON 2 = 2"), named_twice("SELECT * FROM Pet, Pet p")
    ('Pet', '')
    """
    for tables in sources([word(token) for token in TOKEN.findall(sql)]):
        named = [(table == "?", name) for table, name in tables]        # a subquery may share a table's name
        if twice := [name for a_subquery, name in named if named.count((a_subquery, name)) > 1 and name != "?"]:
            return twice[0]
    return ""
