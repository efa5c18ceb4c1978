"""What SQLite does not refuse by itself, seen in a query's text: too many copies of a WITH table, one name for two tables."""

import math
import re
from collections.abc import Iterator, Sequence

from minigrpo.task.sql.engines.guard import objection

MAX_EXPANSIONS = 256        # of common table expressions

QUOTED = r"""'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^]]*(?:]|\Z)"""
TOKEN = re.compile(rf"""(?:'[^']*'|"[^"]*"|`[^`]*`)+|{QUOTED}|[\w$\x80-\U0010ffff]+|\S""")      # "a""b" is one name
DEFINITION = re.compile(r"(?<!\S)(\S++) (?:\( [^()]*\) )?as (?:not )?(?:materialized )?\( ")
FROM = re.compile(r"(?<!distinct )\bfrom (.+?) (?=(?:where|group|having|order|limit|union|except|intersect|window) |$)", re.I)
NEXT = re.compile(r" (?:,|join) ", re.I)
SOURCE = re.compile(r"(?:\w+ \. )?([?\w]+)(?: as)?(?: (?!(?:on|using|inner|left|right|full|cross|natural)\b)(\w+))?", re.I)


def text_objection(sql: str) -> str:
    """``guard.objection``, and the bound on WITH tables."""
    if reason := objection(sql, re.compile(QUOTED)):
        return reason
    too_many = "with" in sql.lower() and expansions(sql) > MAX_EXPANSIONS
    return f"more than {MAX_EXPANSIONS} expansions of its WITH tables" if too_many else ""


def expansions(sql: str) -> int:
    """A bound on the copies of a common table expression: the product, over all, of the mentions of their names. SQLite makes
    them while it compiles, 2ⁿ for n that double, before any guard of its own acts.

    >>> expansions("WITH a AS (SELECT 1), b AS (SELECT * FROM a, a x), c AS (SELECT * FROM b, b y) SELECT * FROM c")
    4
    """
    words = [word(token) for token in TOKEN.findall(sql.lower())]
    named = [name for name, after in zip(words, words[1:] + [""]) if after != "."]         # a.x does not copy a
    return math.prod(max(1, named.count(name) - 1) for name in definitions(words))


def named_twice(sql: str) -> str:
    """The name that two tables of one FROM bear, or "". MariaDB refuses it; SQLite reads each column from the first of them.

    >>> named_twice("SELECT * FROM Pet JOIN Owner ON 1 = 1 JOIN Pet ON 2 = 2"), named_twice("SELECT * FROM Pet, Pet p")
    ('Pet', '')
    """
    for tables in sources([word(token) for token in TOKEN.findall(sql)]):
        named = [(table == "?", name) for table, name in tables]        # a subquery may bear a table's name
        if twice := [name for a_subquery, name in named if named.count((a_subquery, name)) > 1 and name != "?"]:
            return twice[0]
    return ""


def definitions(words: Sequence[str]) -> list[str]:
    """The names of the WITH tables, in lower case as ``words`` have to be."""
    return DEFINITION.findall(" ".join(words) + " ")


def sources(words: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """The tables of each FROM, and of each join in brackets, as (table, the name it bears there); "?" is what is in brackets.

    >>> list(sources("SELECT * FROM Pet p JOIN ( SELECT 1 FROM Owner ) AS o".split()))
    [[('Owner', 'Owner')], [('Pet', 'p'), ('?', 'o')]]
    """
    text = f"( {' '.join(words)} "
    while "(" in text:
        text, _, inner = text.rpartition("(")               # the last to open: nothing is nested in it any more
        inner, _, rest = inner.partition(")")
        known = inner.lower().split()                       # without a SELECT it is TRIM(x FROM y), or a join in brackets
        for tables in FROM.findall(f"{inner.strip()} ") if "select" in known else [inner.strip()] if "join" in known else []:
            yield [(source[1], source[2] or source[1]) for source in map(SOURCE.match, NEXT.split(tables)) if source]
        text += f"?{rest}"


def word(token: str) -> str:
    """A word or a sign as it is; what is quoted becomes a word."""
    return token if token.isascii() and len(token) == 1 else re.sub(r"\W+", "_", token.strip("'\"`[]")) or "_"
