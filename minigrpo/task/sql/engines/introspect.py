"""The tables of an existing database, read from its own catalogue. Two dialects of SQL are here, and no driver."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from minigrpo.task.sql.engines.database import Column, DatabaseError, Table, Tables

SAMPLE_ROWS = 1_000             # rows read of each table, to take sample values from
MAX_VALUE_CHARACTERS = 100      # read of one value; at least prompt.py's limit, above which no value is shown

RunTrusted = Callable[[str], Sequence[tuple[Any, ...]]]         # our own SQL → its rows


@dataclass(frozen=True)
class Dialect:
    """An engine's SQL for its catalogue; views count as tables.

    ``columns`` selects (table, column, declared type, place in the primary key from 1, or 0), ``links`` (table, column, the
    table and the column that it references). ``cut``: from a column and its type, the SQL of its value, cut to
    ``MAX_VALUE_CHARACTERS``."""

    columns: str
    links: str
    cut: Callable[[str, str], str]


SQLITE = Dialect(
    r"""SELECT t.name, c.name, c.type, c.pk FROM sqlite_master t, pragma_table_xinfo(t.name) c
        WHERE t.type IN ('table', 'view') AND t.name NOT LIKE 'sqlite\_%' ESCAPE '\' AND c.hidden <> 1
        ORDER BY t.rowid, c.cid""",
    # A link without a column means the other table's key. A link to a missing table, which SQLite permits, is left out.
    """SELECT t.name, f."from", o.name, coalesce(f."to", (SELECT name FROM pragma_table_xinfo(o.name) WHERE pk = f.seq + 1))
       FROM sqlite_master t, pragma_foreign_key_list(t.name) f JOIN sqlite_master o ON lower(o.name) = lower(f."table")
       WHERE t.type = 'table' AND o.type = 'table' ORDER BY t.rowid, f.id DESC, f.seq""",
    lambda column, _: f"CASE WHEN typeof({column}) IN ('text', 'blob') THEN substr({column}, 1, {MAX_VALUE_CHARACTERS}) "
                      f"ELSE {column} END")

MARIADB = Dialect(
    """SELECT c.table_name, c.column_name, c.column_type, coalesce(k.ordinal_position, 0)
       FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
       LEFT JOIN information_schema.key_column_usage k ON k.table_schema = c.table_schema AND k.table_name = c.table_name
       AND k.column_name = c.column_name AND k.constraint_name = 'PRIMARY'
       WHERE c.table_schema = database() AND t.table_type <> 'SEQUENCE' ORDER BY c.table_name, c.ordinal_position""",
    """SELECT table_name, column_name, referenced_table_name, referenced_column_name
       FROM information_schema.key_column_usage WHERE table_schema = database() AND referenced_table_schema = database()
       ORDER BY table_name, constraint_name, ordinal_position""",
    lambda column, type: f"LEFT({column}, {MAX_VALUE_CHARACTERS})" if re.search("char|text|blob|binary", type) else column)


def read_tables(name: str, dialect: Dialect, query: RunTrusted, failure: type[Exception]) -> Tables:
    """The tables and views of the database ``name``, with up to ``SAMPLE_ROWS`` rows of each. ``query`` runs SQL on it and
    raises ``failure``. ``DatabaseError``: it has no table that may be read."""
    spell = cache(lambda word: _spell(word, query, failure))
    columns: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for table, column, type, place in query(dialect.columns):
        columns[table].append((column, " ".join(type.split()), place))
    if not columns:
        raise DatabaseError(f"the database {name!r} has no table that may be read")
    links: dict[tuple[str, str], tuple[str, str]] = {}
    for table, column, other, target in query(dialect.links):
        if other in columns and target:                     # otherwise there is nothing to read, or to join on
            links.setdefault((table, column), (spell(other), spell(target)))
    tables = []
    for table, members in columns.items():
        key = sorted((place, i) for i, (_, _, place) in enumerate(members) if place)
        values = ", ".join(dialect.cut(spell(column), type) for column, type, _ in members)
        rows = query(f"SELECT {values} FROM {spell(table)} LIMIT {SAMPLE_ROWS + 1}")
        tables.append(Table(spell(table), tuple(Column(spell(column), type, links.get((table, column)))
                                                for column, type, _ in members),
                            tuple(rows[:SAMPLE_ROWS]), tuple(i for _, i in key), len(rows) <= SAMPLE_ROWS))
    return tuple(tables)


def _spell(name: str, query: RunTrusted, failure: type[Exception]) -> str:
    """A name as SQL writes it, in quotes where needed. Reserved words differ between engines and versions, so the engine is
    asked whether this name works without quotes, both as a table and as a column."""
    if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        with suppress(failure):                             # it is reserved
            if query(f"WITH {name} ({name}) AS (SELECT 7) SELECT {name}, {name}.{name} FROM {name}")[0] == (7, 7):
                return name
    return "`" + name.replace("`", "``") + "`"
