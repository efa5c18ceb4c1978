"""What a query's text names, held against the schema, the question, and gold SQL where there is one. Knows no engine, no rows.

The text is read by its words, not parsed; names and values are compared in lower case. What cannot be read safely names
nothing at all: a text too long to be sent, and one with a backslash, since whether that quotes the sign behind it differs from
engine to engine, and with it what stands in quotes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from minigrpo.task.sql.answer import render_cell
from minigrpo.task.sql.engines.database import Table, Tables
from minigrpo.task.sql.engines.guard import MAX_SQL
from minigrpo.task.sql.engines.sqlite_text import TOKEN, definitions, sources, word
from minigrpo.task.sql.question import Question

CATEGORY = 10                   # a column of at most so many different values has them known to everyone: MedalGold, ...
Bears = Mapping[str, set[str]]
PLAIN = {"0", "1"}              # numbers that SQL needs by itself: LIMIT 1, COUNT(*) > 0
TEXT = "''"                     # what a quoted text is among the words: no name
MOST_USING = 20                 # words of a USING that are read

TERMS = {
    "reads": "1 if the SQL reads a table of the database",
    "tables": "its tables against those of gold SQL (F1), else the share of them that exist",
    "columns": "its columns, keys apart, against those of gold SQL (F1), else the share of them that exist; none is 0",
    "joins": "its joins against those of gold SQL (F1), else the share of its tables that a key joins to another",
    "literals": "its literals against those of gold SQL (F1), else the share found in the question or a column of few values",
}


@dataclass(frozen=True, eq=False)
class Schema:
    """``columns``: table → column → the key that it is or refers to in the end, else itself; ``keys``: columns that are, or
    refer to, one; ``values``: those of columns with few of them, as ``plain_words``."""

    columns: Mapping[str, Mapping[str, str]]
    keys: frozenset[tuple[str, str]]
    values: frozenset[str]


@dataclass(frozen=True)
class Named:
    """What a query names. ``columns`` are (table, column), of no table where there is no such column; ``joins`` are (table,
    key that it is joined by), ``strays`` pairs of columns that are equated and have no key in common."""

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
    found: set[object] = set()
    for row in table.rows:
        found.add(row[place])
        if len(found) > CATEGORY:
            return set()
    return {plain_words(render_cell(value)) for value in found - {None}}


def plain_words(text: str) -> str:
    """The words of a text in lower case, one space between two.

    >>> plain_words("'%Women''s  team'")
    'women s team'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


# ------------------------------------------------------------------------------------------------------------- reading
def read_literals(sql: str, names: frozenset[str] = frozenset()) -> frozenset[str]:
    """The texts and numbers in a query as ``plain_words``, without aliases. In double quotes stands a text, unless it is one
    of ``names``.

    >>> sorted(read_literals("SELECT COUNT(*) AS 'n' FROM Medal WHERE type = 'MedalGold' AND year > 2012"))
    ['2012', 'medalgold']
    """
    tokens = TOKEN.findall(sql)
    found = {plain_words(token) for before, token in zip(["", *tokens], tokens)
             if before.lower() != "as" and (token[0].isdigit() or _is_text(token, names))}
    return frozenset(found - {""})


def _is_text(token: str, names: frozenset[str]) -> bool:
    return token[0] == "'" or token[0] == '"' and _name(token) not in names


@lru_cache(maxsize=4096)            # gold SQL is read for each candidate, and a policy writes the same query again and again
def read_sql(sql: str, schema: Schema) -> Named:
    """What a query names; nothing, where that cannot be read safely."""
    if len(sql) > MAX_SQL or "\\" in sql:
        return Named()
    names = frozenset(schema.columns).union(*schema.columns.values())
    words = [TEXT if _is_text(token, names) else _name(token) for token in TOKEN.findall(sql)]
    made = {*definitions(words), "?"}                       # a WITH table hides one of the database that has its name
    named = [source for clause in sources(words) for source in clause]
    tables = frozenset(table for table, _ in named if table not in made)
    known = {table for table in tables if table in schema.columns}
    bears = {"": known}                                     # name → tables of the database that bear it somewhere; "" is any
    for table, name in named:
        bears.setdefault(name, set()).update({table} & known)
    joins, strays = _read_joins(words, bears, schema)
    return Named(tables, _read_columns(words, bears, schema) - schema.keys, joins, strays, read_literals(sql, names))


def _places(qualifier: str, column: str, bears: Bears, schema: Schema) -> list[tuple[str, str]]:
    """Where ``qualifier.column`` may stand, as (table, column); a column without a qualifier in any table that is read."""
    return sorted((table, column) for table in bears.get(qualifier, ()) if column in schema.columns[table])


def _read_columns(words: Sequence[str], bears: Bears, schema: Schema) -> frozenset[tuple[str, str]]:
    found = set()
    for i, (name, after) in enumerate(zip(words, [*words[1:], ""])):
        qualifier = words[i - 2] if i > 1 and words[i - 1] == "." else ""
        if after in (".", "(") or not name.isidentifier() or qualifier in bears and not bears[qualifier]:
            continue                                        # a qualifier, a function, no name; a column of a subquery
        places = _places(qualifier, name, bears, schema)
        if places or qualifier:
            found.add(places[0] if places else ("", f"{qualifier}.{name}"))
    return frozenset(found)


def _read_joins(words: Sequence[str], bears: Bears,
                schema: Schema) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    """The joins and the strays. Not seen: NATURAL, and a key that is computed with."""
    joins, strays = set(), set()
    for i, sign in enumerate(words):
        if sign == "=" and 0 < i < len(words) - 1:
            left = (words[i - 3], words[i - 1]) if i > 2 and words[i - 2] == "." else ("", words[i - 1])
            right = (words[i + 1], words[i + 3]) if words[i + 2:i + 3] == ["."] and len(words) > i + 3 else ("", words[i + 1])
            sides = [places[0] for side in (left, right) if (places := _places(*side, bears, schema))]
            if left[0] != right[0] or len({table for table, _ in sides}) > 1:       # else a comparison within one table
                _link(sides, joins, strays, schema)
        elif sign == "using" and words[i + 1:i + 2] == ["("]:
            for column in takewhile(")".__ne__, words[i + 2:i + 2 + MOST_USING]):
                _link(_places("", column, bears, schema), joins, strays, schema)
    return frozenset(joins), frozenset(strays)


def _link(sides: Sequence[tuple[str, str]], joins: set[tuple[str, str]], strays: set[tuple[str, str]], schema: Schema) -> None:
    """Columns that are equated: of one key a join, of none in common a stray; fewer than two are a column and a value."""
    roots = {schema.columns[table][column] for table, column in sides}
    if len(roots) > 1:
        first, *_, last = sorted(".".join(side) for side in sides)
        strays.add((first, last))
    elif len(sides) > 1 and sides[0] in schema.keys:
        joins.update((table, root) for table, _ in sides for root in roots)


# ------------------------------------------------------------------------------------------------------------- judging
def structure_terms(question: Question, sql: str | None, schema: Schema) -> dict[str, float]:
    """The terms of one query, each 0 … 1; all are 0 for one that reads no table."""
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
            "literals": sum(literal in PLAIN or literal in schema.values or f" {literal} " in asked
                            for literal in own.literals) / len(own.literals) if own.literals else 1.0}


def _f1(own: frozenset, gold: frozenset) -> float:
    return 2 * len(own & gold) / (len(own) + len(gold)) if own or gold else 1.0
