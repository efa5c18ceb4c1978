"""infobox.py: a context becomes an Infobox, or is refused. The contents of the tables: test_temptabqa.py."""

import pytest

from minigrpo.task.sql.data.infobox import SCHEMA, Infobox, build_tables, parse_context

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
