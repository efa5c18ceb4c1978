"""Which values in a query have no source: hard-coded dates, guessed names, answers written out. Knows no database.

A value is a quoted text (pieces of it between the % of a pattern) or a number, read word by word and without regard to case.
What says nothing about the world is no such value: 0, 1 and 100, which count and scale; what follows LIMIT and OFFSET; what a
CASE gives (THEN, ELSE): Yes, No, ranks; a text with blanks at both ends, which joins two others.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from minigrpo.task.sql.engines.sqlite_text import TOKEN

NO_VALUE = {"0", "1", "100"}
FREE_BEHIND = {"limit", "offset", "then", "else"}
NUMBERS = {word: str(number) for number, word in
           enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)}
DECADES = {word: 10 * tens for tens, word in
           enumerate("twenties thirties forties fifties sixties seventies eighties nineties".split(), start=2)}


def invented(sql: str | None, *sources: str) -> list[str]:
    r"""The values of a query that stand in none of the texts, as the query spells them.

    A number may also stand there in words (two to twelve), or be an end or a part of a decade (twenties, 1990s).

    >>> invented("SELECT COUNT(*) FROM Medal WHERE type = 'MedalGold' AND year IN (2012, 2014) LIMIT 5",
    ...          "How many golds in 2012?", "type TEXT -- 'MedalGold', 'MedalSilver'")
    ['2014']
    >>> invented("SELECT name LIKE '%Suva%' WHERE age BETWEEN 20 AND 29", "In her twenties?")
    ["'%Suva%'"]
    """
    known = [_phrase(source) for source in sources]
    words = {word for source in known for word in source.split()}
    numbers = {NUMBERS[word] for word in words & NUMBERS.keys()}
    for word in words:
        if start := DECADES.get(word) or (int(word[:-1]) if re.fullmatch(r"\d{1,3}0s", word, re.ASCII) else 0):
            numbers |= set(map(str, range(start, start + 11)))

    def has_source(piece: str) -> bool:
        return piece.strip() in numbers | NO_VALUE or any(piece in source for source in known)

    return [value for value, pieces in _values(sql or "") if not all(map(has_source, filter(str.strip, map(_phrase, pieces))))]


def _values(sql: str) -> Iterator[tuple[str, list[str]]]:
    """Each value that a query has, and the pieces that it is made of."""
    tokens = TOKEN.findall(sql.replace("\\'", "''"))        # MariaDB's other way to write an apostrophe
    aliases = {name for word, name in zip(tokens, tokens[1:]) if word.lower() == "as"}
    behind = ""                                             # the last word that is neither a number nor between two
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""]):
        if token[0].isdigit():
            if behind not in FREE_BEHIND:
                yield token, [token]
        elif token[0] in "'\"":
            is_name = token[0] == '"' and (token in aliases or "." in (before, after))
            text = token[1:].removesuffix(token[0]).replace(2 * token[0], token[0])
            glue = text != text.lstrip() and text != text.rstrip()
            if behind not in FREE_BEHIND and not is_name and not glue:
                yield token, text.split("%")
            behind = token
        elif token not in ",.+-":
            behind = token.lower()


@lru_cache(maxsize=1000)
def _phrase(text: str) -> str:
    """Its words with a blank around each, so that a phrase stands in a text only as whole words."""
    return " " + " ".join(re.findall(r"\w+", text.casefold())) + " "
