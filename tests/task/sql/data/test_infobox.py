"""infobox.py: a context becomes an Infobox, or is refused. The contents of the tables: test_temptabqa.py.
Under other names only the names differ, and no old name is left."""

import re

import pytest

from minigrpo.task.sql.data import athletes, infobox
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.data.infobox import (
    NAMES,
    RENAMED,
    SCHEMA,
    Infobox,
    ask_renamed,
    build_tables,
    parse_context,
    rename_tables,
    with_renamed,
)
from minigrpo.task.sql.engines.sqlite import open_sqlite

BOX = "Ann\n\nCountry Representing: FIJ\nGames\n"


@pytest.mark.parametrize(("context", "line", "got"), [
    ("", 1, "''"),
    ("Ann\nLake Games\n", 2, "'Lake Games'"),                                         # outside any section
    ("Ann\n\nCountry Representing: FIJ\nTeam\tMedalGold | 2012 | Suva\n", 4, "'Team"),  # a format without a tournament
    (BOX + "Team\n", 5, "'Team'"),                                                    # a format without a tab
    (BOX + "Team\tMedalTin | 2012 | Suva\n", 5, "'MedalTin"),
    (BOX + "Team\tMedalGold | 2012 | Suva, MedalTin | 2012 | Suva\n", 5, "'MedalTin"),
    (BOX + "Team\tMedalGold | soon | Suva\n", 5, "'MedalGold"),
    (BOX + "Team\tMedalGold | 2012 | Suva | Lae\n", 5, "'MedalGold"),
    (BOX + "Team\tMedalGold | 2012\n", 5, "'MedalGold"),
    ("Ann\n\nPersonal Information\nBirth Date\nin spring\t\n", 5, "'in spring"),
    ("Ann\n\nPersonal Information\nBirth Date\n1990-1-1\t\n1991-1-1\t\n", 6, "'1991"),
    ("Ann\n\nPersonal Information\nGames\nTeam\tMedalGold | 2012 | Suva\n", 5, "'Team"),       # medals of no country
])
def test_what_is_not_understood_is_refused_with_its_line(context: str, line: int, got: str) -> None:
    with pytest.raises(ValueError, match=f"^line {line} of the context: expected .*, got .*{got[1:5]}"):
        parse_context(context)


def test_an_odd_separator_inside_a_name_ends_no_line() -> None:
    box = parse_context(BOX.replace("Games", "Ga\u2028mes\x85") + "Team\t")
    assert box.tournaments == (("Ga\u2028mes\x85", (("Team", ()),)),)


def test_tables_number_their_rows_in_the_order_of_the_infoboxes() -> None:
    """Ann has a birth date, and Games with two formats of which the first has two medals; Ben has a name only."""
    ann = Infobox("Ann", (1990, 7, 5), (("Games", (("Team", (("MedalGold", 2012, "Suva"), ("MedalSilver", 2013, "Lae"))),
                                                   ("Solo", ()))),))
    tables = {table.name: table for table in build_tables([ann, Infobox("Ben", None, ())])}
    assert {name: table.rows for name, table in tables.items()} == {
        "Athlete": ((1, "Ann"), (2, "Ben")), "Tournament": ((1, 1, "Games"),), "Format": ((1, 1, "Team"), (2, 1, "Solo")),
        "Medal": ((1, 1, "MedalGold", 2012, "Suva"), (2, 1, "MedalSilver", 2013, "Lae")),
        "PersonalInformation": ((1, 1, 1990, 7, 5),)}
    assert {name: table.columns for name, table in tables.items()} == SCHEMA


# ------------------------------------------------------------------------------------------------------ under other names
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
