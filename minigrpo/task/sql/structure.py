"""Compares what a query's text names with the schema, the question, and gold SQL where there is some. Needs no engine or rows.

The text is read word by word, not parsed; names and values are compared in lower case. Some texts cannot be read safely and
count as naming nothing: a text too long to be sent, and one with a backslash. Engines differ in whether a backslash escapes
the next character, and so in what is inside quotes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from minigrpo.task.sql.answer import Question, render_cell
from minigrpo.task.sql.engines.database import Table, Tables
from minigrpo.task.sql.engines.guard import MAX_SQL_CHARACTERS
from minigrpo.task.sql.engines.lexer import TOKEN, definitions, sources, word

MAX_CATEGORY_VALUES = 10        # a column with no more distinct values is a category (MedalGold, ...): a query may name them
ALLOWED_NUMBERS = {"0", "1"}    # SQL needs them for itself: LIMIT 1, COUNT(*) > 0
QUOTED_TEXT = "''"              # stands for a quoted text among the words, because it is no name
MAX_USING_WORDS = 20            # words of a USING that are read

TablesOfName = Mapping[str, set[str]]       # a name or alias in a query → the tables it stands for; "" → all tables

TERMS = {
    "reads": "1 if the SQL reads a table of the database",
    "tables": "F1 of its tables and gold SQL's; without gold SQL, the share of them that exist",
    "columns": "F1 of its columns, except keys, and gold SQL's; without gold SQL, the share of them that exist, or 0 for none",
    "joins": "F1 of its joins and gold SQL's; without gold SQL, the share of its tables that a key joins to another",
    "literals": "F1 of its literals and gold SQL's; without gold SQL, the share in the question or in a column of few values",
}


@dataclass(frozen=True, eq=False)
class Schema:
    """``columns``: table → column → "table.column" of the key that the column finally references, or of itself. ``keys``: the
    columns that are, or reference, a key. ``values``: the values of columns with few distinct ones, as ``plain_words``."""

    columns: Mapping[str, Mapping[str, str]]
    keys: frozenset[tuple[str, str]]
    values: frozenset[str]


@dataclass(frozen=True)
class Named:
    """What a query names. ``columns`` are (table, column), with table "" if no such column exists. ``joins`` are (table, the
    key that joins it). ``strays`` are pairs of columns that are compared by = but share no key."""

    tables: frozenset[str] = frozenset()
    columns: frozenset[tuple[str, str]] = frozenset()
    joins: frozenset[tuple[str, str]] = frozenset()
    strays: frozenset[tuple[str, str]] = frozenset()
    literals: frozenset[str] = frozenset()


def read_schema(tables: Tables) -> Schema:
    columns, references, keys, values = {}, {}, set(), set()
    for table in tables:
        name = _name(table.name)
        columns[name] = {_name(column.name): f"{name}.{_name(column.name)}" for column in table.columns}
        for i, column in enumerate(table.columns):
            if column.references:
                references[f"{name}.{_name(column.name)}"] = ".".join(map(_name, column.references))
            if column.references or i in table.key:
                keys.add((name, _name(column.name)))
            else:
                values |= _category(table, i)
    roots = {name: {column: _root(place, references) for column, place in members.items()}
             for name, members in columns.items()}
    return Schema(roots, frozenset(keys), frozenset(values))


def _name(name: str) -> str:
    return word(name).lower()


def _root(place: str, references: Mapping[str, str]) -> str:
    seen = {place}
    while (place := references.get(place, place)) not in seen:
        seen.add(place)
    return place


def _category(table: Table, place: int) -> set[str]:
    found = {row[place] for row in table.rows}
    return {plain_words(render_cell(value)) for value in found - {None}} if len(found) <= MAX_CATEGORY_VALUES else set()


def plain_words(text: str) -> str:
    """The words of a text in lower case, separated by single spaces.

    >>> plain_words("'%Women''s  team'")
    'women s team'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


# ------------------------------------------------------------------------------------------------------------- reading
def read_literals(sql: str, names: frozenset[str] = frozenset()) -> frozenset[str]:
    """The texts and numbers in a query as ``plain_words``, without aliases. Double quotes enclose a text, unless it is one of
    ``names``.

    >>> sorted(read_literals("SELECT COUNT(*) AS 'n' FROM Medal WHERE type = 'MedalGold' AND year > 2012"))
    ['2012', 'medalgold']
    """
    tokens = TOKEN.findall(sql)
    found = {plain_words(token) for before, token in zip(["", *tokens], tokens)
             if before.lower() != "as" and (token[0].isdigit() or _is_text(token, names))}
    return frozenset(found - {""})


def _is_text(token: str, names: frozenset[str]) -> bool:
    return token[0] == "'" or token[0] == '"' and _name(token) not in names


@lru_cache(maxsize=4096)            # gold SQL is read for each candidate, and policies repeat their queries
def read_sql(sql: str, schema: Schema) -> Named:
    """What a query names; nothing if its text cannot be read safely."""
    if len(sql) > MAX_SQL_CHARACTERS or "\\" in sql:
        return Named()
    names = frozenset(schema.columns).union(*schema.columns.values())
    words = [QUOTED_TEXT if _is_text(token, names) else _name(token) for token in TOKEN.findall(sql)]
    made = {*definitions(words), "?"}                       # a WITH table hides a table of the same name
    named = [source for clause in sources(words) for source in clause]
    tables = frozenset(table for table, _ in named if table not in made)
    known = {table for table in tables if table in schema.columns}
    tables_of = {"": known}
    for table, name in named:
        tables_of.setdefault(name, set()).update({table} & known)
    joins, strays = _read_joins(words, tables_of, schema)
    return Named(tables, _read_columns(words, tables_of, schema) - schema.keys, joins, strays, read_literals(sql, names))


def _places(qualifier: str, column: str, tables_of: TablesOfName, schema: Schema) -> list[tuple[str, str]]:
    """The (table, column) pairs that ``qualifier.column`` can mean. Without a qualifier, it may be in any table read."""
    return sorted((table, column) for table in tables_of.get(qualifier, ()) if column in schema.columns[table])


def _read_columns(words: Sequence[str], tables_of: TablesOfName, schema: Schema) -> frozenset[tuple[str, str]]:
    found = set()
    for i, (name, after) in enumerate(zip(words, [*words[1:], ""])):
        qualifier = words[i - 2] if i > 1 and words[i - 1] == "." else ""
        if after in (".", "(") or not name.isidentifier() or qualifier in tables_of and not tables_of[qualifier]:
            continue                                        # a qualifier, a function, no name, or a subquery's column
        places = _places(qualifier, name, tables_of, schema)
        if places or qualifier:
            found.add(places[0] if places else ("", f"{qualifier}.{name}"))
    return frozenset(found)


def _read_joins(words: Sequence[str], tables_of: TablesOfName,
                schema: Schema) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    """The joins and the strays. NATURAL joins and keys inside expressions are not recognised."""
    joins: set[tuple[str, str]] = set()
    strays: set[tuple[str, str]] = set()
    for i, sign in enumerate(words):
        if sign == "=" and 0 < i < len(words) - 1:
            left = (words[i - 3], words[i - 1]) if i > 2 and words[i - 2] == "." else ("", words[i - 1])
            right = (words[i + 1], words[i + 3]) if words[i + 2:i + 3] == ["."] and len(words) > i + 3 else ("", words[i + 1])
            sides = [places[0] for side in (left, right) if (places := _places(*side, tables_of, schema))]
            if left[0] != right[0] or len({table for table, _ in sides}) > 1:       # otherwise both sides are of one table
                _link(sides, joins, strays, schema)
        elif sign == "using" and words[i + 1:i + 2] == ["("]:
            for column in takewhile(")".__ne__, words[i + 2:i + 2 + MAX_USING_WORDS]):
                _link(_places("", column, tables_of, schema), joins, strays, schema)
    return frozenset(joins), frozenset(strays)


def _link(sides: Sequence[tuple[str, str]], joins: set[tuple[str, str]], strays: set[tuple[str, str]], schema: Schema) -> None:
    """Record columns that are compared by =: as a join if they share a key, as a stray if not. A single column is compared
    with a value, which is neither."""
    roots = {schema.columns[table][column] for table, column in sides}
    if len(roots) > 1:
        first, *_, last = sorted(".".join(side) for side in sides)
        strays.add((first, last))
    elif len(sides) > 1 and sides[0] in schema.keys:
        joins.update((table, root) for table, _ in sides for root in roots)


# ------------------------------------------------------------------------------------------------------------- judging
def structure_terms(question: Question, sql: str | None, schema: Schema) -> dict[str, float]:
    """The terms of one query, each 0 … 1. All are 0 for a query that reads no table of the database."""
    own = read_sql(sql or "", schema)
    if own.tables.isdisjoint(schema.columns):
        return dict.fromkeys(TERMS, 0.0)
    if question.gold_sql:
        gold = read_sql(question.gold_sql, schema)
        return {"reads": 1.0, "tables": _f1(own.tables, gold.tables), "columns": _f1(own.columns, gold.columns),
                "joins": _f1(own.joins | own.strays, gold.joins | gold.strays), "literals": _f1(own.literals, gold.literals)}
    asked = f" {plain_words(question.text)} "
    joined = {table for table, _ in own.joins}
    apart = len(own.tables - joined) if len(own.tables) > 1 else 0
    return {"reads": 1.0,
            "tables": len(own.tables & schema.columns.keys()) / len(own.tables),
            "columns": sum(table != "" for table, _ in own.columns) / max(1, len(own.columns)),
            "joins": 1 - (apart + len(own.strays)) / (len(own.tables) + len(own.strays)),
            "literals": sum(literal in ALLOWED_NUMBERS or literal in schema.values or f" {literal} " in asked
                            for literal in own.literals) / len(own.literals) if own.literals else 1.0}


def _f1(own: frozenset[object], gold: frozenset[object]) -> float:
    return 2 * len(own & gold) / (len(own) + len(gold)) if own or gold else 1.0


# --------------------------------------------------------------------------------------------- values without a source
UNCOUNTED_NUMBERS = {"0", "1", "100"}
UNCOUNTED_AFTER = {"limit", "offset", "then", "else"}
NUMBERS = {name: str(number) for number, name in
           enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)}
DECADES = {name: 10 * tens for tens, name in
           enumerate("twenties thirties forties fifties sixties seventies eighties nineties".split(), start=2)}


def invented(sql: str | None, *sources: str) -> list[str]:
    r"""The values of a query that none of the texts ``sources`` contains, as the query writes them: hard-coded dates, guessed
    names, answers written out.

    A value is a number or a quoted text (or its pieces between the % of a pattern), compared word by word, ignoring case.
    Values that say nothing about the world do not count: 0, 1 and 100, which count and scale; numbers after LIMIT and OFFSET;
    the results of a CASE (THEN, ELSE), such as Yes, No and ranks; and a text with blanks at both ends, which joins two others.
    A number is also found if it is written in words (two to twelve), or lies in a decade, end included (twenties, 1990s).

    >>> invented("SELECT COUNT(*) FROM Medal WHERE type = 'MedalGold' AND year IN (2012, 2014) LIMIT 5",
    ...          "How many golds in 2012?", "type TEXT -- 'MedalGold', 'MedalSilver'")
    ['2014']
    >>> invented("SELECT name LIKE '%Suva%' WHERE age BETWEEN 20 AND 29", "In her twenties?")
    ["'%Suva%'"]
    """
    known = [_phrase(source) for source in sources]
    words = {name for source in known for name in source.split()}
    numbers = {NUMBERS[name] for name in words & NUMBERS.keys()}
    for name in words:
        if start := DECADES.get(name) or (int(name[:-1]) if re.fullmatch(r"\d{1,3}0s", name, re.ASCII) else 0):
            numbers |= set(map(str, range(start, start + 11)))

    def has_source(piece: str) -> bool:
        return piece.strip() in numbers | UNCOUNTED_NUMBERS or any(piece in source for source in known)

    return [value for value, pieces in _values(sql or "") if not all(map(has_source, filter(str.strip, map(_phrase, pieces))))]


def _values(sql: str) -> Iterator[tuple[str, list[str]]]:
    """Each value of a query, and the pieces that it consists of."""
    tokens = TOKEN.findall(sql.replace("\\'", "''"))        # MariaDB's other way to write an apostrophe
    aliases = {name for before, name in zip(tokens, tokens[1:]) if before.lower() == "as"}
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
