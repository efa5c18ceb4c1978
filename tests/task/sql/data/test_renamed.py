"""The renamed database: nothing but names differs, and no name is left."""

import re

import pytest

from minigrpo.task.sql.data import athletes, temptabqa
from minigrpo.task.sql.data.renamed import NAMES, RENAMED, ask_renamed, rename_tables
from minigrpo.task.sql.engines.sqlite import open_sqlite

TABLES = athletes.load_databases()["original"]


def test_every_name_of_the_schema_has_another_and_no_two_the_same():
    names = {*temptabqa.SCHEMA, *(column.name for columns in temptabqa.SCHEMA.values() for column in columns)}
    assert set(NAMES) == names and len(set(NAMES.values())) == len(names)
    assert not {name.lower() for name in NAMES.values()} & {name.lower() for name in names}


def test_gold_sql_in_the_other_names_gives_the_same_rows():
    """Its names put into others word by word, outside quotes; what is in quotes is a value. The old names mean nothing."""
    questions = athletes.load_questions("heldout")
    with open_sqlite({"original": TABLES, RENAMED: rename_tables(TABLES)}) as database:
        for question in questions[:60]:
            parts = re.split("('[^']*')", question.gold_sql)
            renamed = "".join(part if part.startswith("'") else re.sub(r"\w+", lambda word: NAMES.get(word[0], word[0]), part)
                              for part in parts)
            assert database.run(renamed, RENAMED).rows == database.run(question.gold_sql, "original").rows != ()
            assert database.run(question.gold_sql, RENAMED).status in ("unknown_table", "unknown_column")


def test_the_same_is_asked_of_the_other_database_and_no_gold_sql_is_known():
    asked = athletes.load_questions("heldout")
    renamed = ask_renamed(asked)
    assert [(one.text, one.answer, one.kind, one.index) for one in renamed] == [
        (one.text, one.answer, one.kind, one.index) for one in asked]
    assert {(one.split, one.database, one.gold_sql) for one in renamed} == {(RENAMED, RENAMED, None)}
    assert renamed[3].id == "renamed/3"


def test_keys_point_where_they_did():
    renamed = {table.name: table for table in rename_tables(TABLES)}
    assert {column.name: column.references for column in renamed["Award"].columns}["discipline_no"] == ("Discipline",
                                                                                                        "discipline_no")
    with pytest.raises(KeyError):
        rename_tables(rename_tables(TABLES))
