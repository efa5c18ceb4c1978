"""The benchmark's database with another name for every table and column: does a policy read the schema, or know it by heart?

The names of one schema are here, and no engine. The questions and their answers stay the same.
"""

from collections.abc import Sequence
from dataclasses import replace

from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.engines.database import Column, Table, Tables

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
