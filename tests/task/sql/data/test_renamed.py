"""renamed.py: only the names differ, and no old name is left."""

import re

import pytest

from minigrpo.task.sql.data import athletes, infobox
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.data.renamed import NAMES, RENAMED, ask_renamed, rename_tables, with_renamed
from minigrpo.task.sql.engines.sqlite import open_sqlite

TABLES = athletes.load_databases()["original"]


def test_every_name_of_the_schema_has_another_and_no_two_the_same():
    names = {*infobox.SCHEMA, *(column.name for columns in infobox.SCHEMA.values() for column in columns)}
    assert set(NAMES) == names and len(set(NAMES.values())) == len(names)
    assert not {name.lower() for name in NAMES.values()} & {name.lower() for name in names}


def test_gold_sql_in_the_other_names_gives_the_same_rows():
    """Each name outside quotes is replaced word by word; quotes enclose values. Queries with the old names fail."""
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


def test_a_data_set_gets_one_more_split_and_one_more_database():
    """"renamed" has the questions of the split ``asked``. Other splits stay. Without "original" there is no database to rename."""
    asked = athletes.load_questions("dev")
    tables = {"original": TABLES, "other": ()}
    dataset = with_renamed(Dataset(load=lambda path, split, gold_sql: asked if split == "dev" else [],
                                   has_split=lambda path, split: split == "dev", test_splits=lambda path, train: ["dev"],
                                   tables=lambda path: tables), asked="dev")
    assert dataset.load("", RENAMED, "") == ask_renamed(asked) and dataset.load("", "dev", "") == asked
    assert [dataset.has_split("", split) for split in ("dev", RENAMED, "train")] == [True, True, False]
    assert dataset.tables("") == tables | {RENAMED: rename_tables(TABLES)} and list(tables) == ["original", "other"]
    del tables["original"]
    assert list(dataset.tables("")) == ["other"] == list(with_renamed(dataset, asked="dev").tables(""))
