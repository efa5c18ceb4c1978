"""Values in a query that have no source: hard-coded dates, guessed names, answers written out. Needs no database.

A value is a number or a quoted text (or its pieces between the % of a pattern). It is compared word by word, ignoring case.
Values that say nothing about the world do not count: 0, 1 and 100, which count and scale; numbers after LIMIT and OFFSET; the
results of a CASE (THEN, ELSE), such as Yes, No and ranks; and a text with blanks at both ends, which joins two others.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from minigrpo.task.sql.engines.lexer import TOKEN

UNCOUNTED_NUMBERS = {"0", "1", "100"}
UNCOUNTED_AFTER = {"limit", "offset", "then", "else"}
NUMBERS = {word: str(number) for number, word in
           enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)}
DECADES = {word: 10 * tens for tens, word in
           enumerate("twenties thirties forties fifties sixties seventies eighties nineties".split(), start=2)}


def invented(sql: str | None, *sources: str) -> list[str]:
    r"""The values of a query that none of the texts ``sources`` contains, as the query writes them.

    A number is also found if it is written in words (two to twelve), or lies in a decade, end included (twenties, 1990s).

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
        return piece.strip() in numbers | UNCOUNTED_NUMBERS or any(piece in source for source in known)

    return [value for value, pieces in _values(sql or "") if not all(map(has_source, filter(str.strip, map(_phrase, pieces))))]


def _values(sql: str) -> Iterator[tuple[str, list[str]]]:
    """Each value of a query, and the pieces that it consists of."""
    tokens = TOKEN.findall(sql.replace("\\'", "''"))        # MariaDB's other way to write an apostrophe
    aliases = {name for word, name in zip(tokens, tokens[1:]) if word.lower() == "as"}
    previous = ""                                           # the last token that is neither a number nor a sign , . + -
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""]):
        if token[0].isdigit():
            if previous not in UNCOUNTED_AFTER:
                yield token, [token]
        elif token[0] in "'\"":
            is_name = token[0] == '"' and (token in aliases or "." in (before, after))
            text = token[1:].removesuffix(token[0]).replace(2 * token[0], token[0])
            glue = text != text.lstrip() and text != text.rstrip()
            if previous not in UNCOUNTED_AFTER and not is_name and not glue:
                yield token, text.split("%")
            previous = token
        elif token not in ",.+-":
            previous = token.lower()


@lru_cache(maxsize=1000)
def _phrase(text: str) -> str:
    """The words of a text with a blank around each, so that a phrase is found in it only as whole words."""
    return " " + " ".join(re.findall(r"\w+", text.casefold())) + " "
