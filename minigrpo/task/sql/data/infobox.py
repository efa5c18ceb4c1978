"""Infoboxes: the published text about one athlete, and the five tables of TEMPTABQA-C's schema that it becomes,
also under other names. Needs no engine."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from minigrpo.common.errors import UserError
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.engines.database import Column, Table, Tables

_ATHLETE = Column("athlete_id", "INT", ("Athlete", "athlete_id"))
_TOURNAMENT = Column("tournament_id", "INT", ("Tournament", "tournament_id"))
_FORMAT = Column("format_id", "INT", ("Format", "format_id"))
SCHEMA: dict[str, tuple[Column, ...]] = {
    "Athlete": (Column("athlete_id", "INT"), Column("name", "TEXT")),
    "Tournament": (Column("tournament_id", "INT"), _ATHLETE, Column("name", "TEXT")),
    "Format": (Column("format_id", "INT"), _TOURNAMENT, Column("name", "TEXT")),
    "Medal": (Column("medal_id", "INT"), _FORMAT,
              Column("type", "TEXT"), Column("year", "INT"), Column("location", "TEXT")),
    "PersonalInformation": (Column("info_id", "INT"), _ATHLETE,
                            *(Column(f"birth_{part}", "INT") for part in ("year", "month", "day"))),
}

Found = TypeVar("Found")
Medal = tuple[str, int, str]                                # type, year, location
Format = tuple[str, tuple[Medal, ...]]                      # name, medals


@dataclass(frozen=True)
class Infobox:
    """One athlete's facts, in the order of the infobox. ``born`` is (year, month, day) or None.

    ``tournaments`` are (name, formats), and formats are (name, medals); all countries' blocks are in one list.
    """

    athlete: str
    born: tuple[int, int, int] | None
    tournaments: tuple[tuple[str, tuple[Format, ...]], ...]


def parse_context(text: str) -> Infobox:
    """Parse an infobox text. ``UserError``: the number and the text of a line in an unknown form.

    >>> parse_context("Ann\\n\\nCountry Representing: FIJ\\nGames\\nTeam \\tMedalGold | 2012 | Suva\\n\\n").tournaments
    (('Games', (('Team ', (('MedalGold', 2012, 'Suva'),)),)),)
    """
    athlete, *lines = text.split("\n")                      # not splitlines(): a name may contain an odd separator
    born: tuple[int, int, int] | None = None
    tournaments: list[tuple[str, list[Format]]] = []
    section = head = ""
    _expect(athlete.strip() and "\t" not in athlete, 1, athlete, "an athlete's name")
    for number, line in enumerate(lines, start=2):
        if line == "":                                      # it ends a block; a line of one tab is an empty value
            head = ""
        elif line == "Personal Information" or line.startswith("Country Representing:"):
            section, head = line.split()[0], ""
        elif not head:                                      # the first line of a block: a label or a tournament
            _expect(section and "\t" not in line, number, line, "a section, a label or a tournament")
            head = line
            if section == "Country":
                tournaments.append((line, []))
        elif section == "Country":
            tournaments[-1][1].append(_parse_format(line, number))
        elif head == "Birth Date" and line != "\t":         # only a tab: unknown
            _expect(born is None, number, line, "one birth date")
            match = _expect(re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})\t", line, re.ASCII),
                            number, line, "a birth date such as '1995-7-5' and a tab")
            born = int(match[1]), int(match[2]), int(match[3])
        else:                                               # height, coach, ...: not in the published schema
            _expect(line.endswith("\t"), number, line, "a value that ends in a tab")
    return Infobox(athlete, born, tuple((name, tuple(formats)) for name, formats in tournaments))


def _expect(found: Found | None, number: int, line: str, what: str) -> Found:
    if not found:
        raise UserError(f"line {number} of the context: expected {what}, got {line!r:.80}")
    return found


def _parse_format(line: str, number: int) -> Format:
    """``format<TAB>medal, medal``; a format without medals has nothing after the tab."""
    name, tab, text = line.partition("\t")
    _expect(tab and name, number, line, "a format, a tab and medals")
    medals = []
    for leaf in re.split(r", (?=Medal\w* \|)", text) if text else []:
        match = _expect(re.fullmatch(r"(Medal(?:Gold|Silver|Bronze)) \| (\d{4}) \| ([^|]+)", leaf, re.ASCII),
                        number, leaf, "a medal such as 'MedalGold | 2012 | London'")
        medals.append((match[1], int(match[2]), match[3]))
    return name, tuple(medals)


def build_tables(boxes: Iterable[Infobox]) -> tuple[Table, ...]:
    """The five tables of the published schema, in the order of ``SCHEMA``. Keys count from 1 in the order of ``boxes``."""
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in SCHEMA}

    def add(table: str, *values: object) -> int:
        rows[table].append((len(rows[table]) + 1, *values))
        return len(rows[table])

    for box in boxes:
        athlete = add("Athlete", box.athlete)
        if box.born:
            add("PersonalInformation", athlete, *box.born)
        for name, formats in box.tournaments:
            tournament = add("Tournament", athlete, name)
            for format_name, medals in formats:
                format_id = add("Format", tournament, format_name)
                for medal in medals:
                    add("Medal", format_id, *medal)
    return tuple(Table(name, SCHEMA[name], tuple(rows[name])) for name in SCHEMA)


# ------------------------------------------------------------------------- does a policy read the schema, or know it by heart?
RENAMED = "renamed"                                         # the name of the database, and of the split that asks it

# Other words for the same things. None of them is a reserved word of SQL.
NAMES = {
    "Athlete": "Competitor", "athlete_id": "competitor_no", "name": "label",
    "Tournament": "Event", "tournament_id": "event_no",
    "Format": "Discipline", "format_id": "discipline_no",
    "Medal": "Award", "medal_id": "award_no", "type": "metal", "year": "season", "location": "venue",
    "PersonalInformation": "Biography", "info_id": "biography_no",
    "birth_year": "born_in", "birth_month": "born_in_month", "birth_day": "born_on_day",
}


def with_renamed(dataset: Dataset, asked: str) -> Dataset:
    """The data set with one more database and split, both called "renamed": the database "original" under other names, and the
    questions of the split ``asked``. Without "original" there is no such database."""
    load_tables = dataset.tables
    assert load_tables, "a database that exists already cannot be renamed"

    def load(path: str, split: str, gold_sql: str) -> list[Question]:
        questions = dataset.load(path, asked if split == RENAMED else split, gold_sql)
        return ask_renamed(questions) if split == RENAMED else questions

    def has_split(path: str, split: str) -> bool:
        return dataset.has_split(path, asked if split == RENAMED else split)

    def tables(path: str) -> dict[str, Tables]:
        loaded = dict(load_tables(path))
        return loaded | {RENAMED: rename_tables(loaded["original"])} if "original" in loaded else loaded

    return replace(dataset, load=load, has_split=has_split, tables=tables)


def rename_tables(tables: Tables) -> tuple[Table, ...]:
    """The same rows and keys under the names of ``NAMES``, which has one for every table and column."""
    def rename_column(column: Column) -> Column:
        references = column.references and (NAMES[column.references[0]], NAMES[column.references[1]])
        return replace(column, name=NAMES[column.name], references=references)

    return tuple(replace(table, name=NAMES[table.name], columns=tuple(map(rename_column, table.columns))) for table in tables)


def ask_renamed(questions: Sequence[Question]) -> list[Question]:
    """The same questions, asked of the renamed database. They have no gold SQL, as it would use the old names."""
    return [replace(question, id=f"{RENAMED}/{question.index}", split=RENAMED, database=RENAMED, gold_sql=None)
            for question in questions]
