"""The benchmark's database with every table and column under another name: does a policy read the schema, or know it by heart?

Knows the names of one schema, and no engine. What is asked and what is right stay as they are.
"""

from collections.abc import Sequence
from dataclasses import replace

from minigrpo.task.sql.engines.database import Column, Table, Tables
from minigrpo.task.sql.question import Question

RENAMED = "renamed"                                         # of the database, and of the split that is asked of it

# Other words for the same things; none of them a word that SQL reserves.
NAMES = {
    "Athlete": "Competitor", "athlete_id": "competitor_no", "name": "label",
    "Tournament": "Event", "tournament_id": "event_no",
    "Format": "Discipline", "format_id": "discipline_no",
    "Medal": "Award", "medal_id": "award_no", "type": "metal", "year": "season", "location": "venue",
    "PersonalInformation": "Biography", "info_id": "biography_no",
    "birth_year": "born_in", "birth_month": "born_in_month", "birth_day": "born_on_day",
}


def rename_tables(tables: Tables) -> tuple[Table, ...]:
    """The same rows and keys under the names of ``NAMES``, which has one for every table and column."""
    def column(given: Column) -> Column:
        there = given.references
        return replace(given, name=NAMES[given.name], references=there and (NAMES[there[0]], NAMES[there[1]]))

    return tuple(replace(table, name=NAMES[table.name], columns=tuple(map(column, table.columns))) for table in tables)


def ask_renamed(questions: Sequence[Question]) -> list[Question]:
    """The same questions of the renamed database. Their gold SQL is for the other names, so there is none."""
    return [replace(question, id=f"{RENAMED}/{question.index}", split=RENAMED, database=RENAMED, gold_sql=None)
            for question in questions]
