"""A query's text as words, and the tables that it names. It is read by patterns, not parsed, and no engine is asked."""

import re
from collections.abc import Iterator, Sequence

QUOTED = r"""'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^]]*(?:]|\Z)"""
TOKEN = re.compile(rf"""(?:'[^']*'|"[^"]*"|`[^`]*`)+|{QUOTED}|[\w$\x80-\U0010ffff]+|\S""")      # "a""b" is one name
DEFINITION = re.compile(r"(?<!\S)(\S++) (?:\( [^()]*\) )?as (?:not )?(?:materialized )?\( ")
FROM = re.compile(r"(?<!distinct )\bfrom (.+?) (?=(?:where|group|having|order|limit|union|except|intersect|window) |$)", re.I)
NEXT = re.compile(r" (?:,|join) ", re.I)
SOURCE = re.compile(r"(?:\w+ \. )?([?\w]+)(?: as)?(?: (?!(?:on|using|inner|left|right|full|cross|natural)\b)(\w+))?", re.I)


def definitions(words: Sequence[str]) -> list[str]:
    """The names of the WITH tables. ``words`` must be in lower case."""
    return DEFINITION.findall(" ".join(words) + " ")


def sources(words: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """The tables of each FROM, and of each join in brackets, as (table, its name or alias there). "?" stands for a bracket.

    >>> list(sources("SELECT * FROM Pet p JOIN ( SELECT 1 FROM Owner ) AS o".split()))
    [[('Owner', 'Owner')], [('Pet', 'p'), ('?', 'o')]]
    """
    text = f"( {' '.join(words)} "
    while "(" in text:
        text, _, inner = text.rpartition("(")               # the last bracket that opens has no other one inside
        inner, _, rest = inner.partition(")")
        known = inner.lower().split()                       # without a SELECT it is TRIM(x FROM y), or a join in brackets
        for tables in FROM.findall(f"{inner.strip()} ") if "select" in known else [inner.strip()] if "join" in known else []:
            yield [(source[1], source[2] or source[1]) for source in map(SOURCE.match, NEXT.split(tables)) if source]
        text += f"?{rest}"


def word(token: str) -> str:
    """A token as one word: a plain word or a single sign stays as it is, a quoted token becomes a plain word."""
    return token if token.isascii() and len(token) == 1 else re.sub(r"\W+", "_", token.strip("'\"`[]")) or "_"
