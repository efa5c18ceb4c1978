"""structure.py: what a query's text names, by hand on the benchmark's schema, and on texts written to mislead; and which
values of a query have a source."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data import athletes
from minigrpo.task.sql.engines.database import Column, Table
from minigrpo.task.sql.engines.guard import MAX_SQL_CHARACTERS
from minigrpo.task.sql.engines.sqlite import open_sqlite
from minigrpo.task.sql.structure import TERMS, Named, invented, read_literals, read_schema, read_sql, structure_terms

TABLES = athletes.load_databases()["original"]
SCHEMA = read_schema(TABLES)
QUESTION = Question("t/0", "t", 0, "How many gold medals did Zoë Wong win in Rome before 2012?", "2", "original", "1")
A, T = ("athlete", "athlete.athlete_id"), ("tournament", "athlete.athlete_id")


# ------------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("rest", [
    "Athlete JOIN Tournament USING (athlete_id) WHERE Athlete.name = 'Zoë Wong' AND Tournament.name = 'Games'",
    "tournament as t inner join athlete a on a.athlete_id = t.athlete_id where a.name='Zoë Wong' and t.name='Games'",
    '"Athlete" a, Tournament t WHERE t.athlete_id = a.athlete_id AND a.name = \'Zoë Wong\' AND `t`.`name` = "Games"',
    "(Athlete JOIN Tournament USING (athlete_id)) WHERE Athlete.name = 'Zoë Wong' AND Tournament.name = 'Games'",
])
def test_one_query_however_it_is_spelled_names_the_same(rest):
    assert read_sql(f"SELECT COUNT(*) FROM {rest}", SCHEMA) == Named(frozenset({"athlete", "tournament"}),
                                          frozenset({("athlete", "name"), ("tournament", "name")}),
                                          frozenset({A, T}), frozenset(), frozenset({"zoë wong", "games"}))


def test_a_key_that_two_tables_refer_to_joins_them_without_the_third():
    """PersonalInformation.athlete_id and Tournament.athlete_id both reference Athlete's key."""
    named = read_sql("SELECT 1 FROM PersonalInformation p JOIN Tournament t ON p.athlete_id = t.athlete_id", SCHEMA)
    assert named.joins == {("personalinformation", "athlete.athlete_id"), T} and not named.strays


@pytest.mark.parametrize("condition, stray", [
    ("ON m.medal_id = t.tournament_id", ("medal.medal_id", "tournament.tournament_id")),
    ("ON t.name = m.location", ("medal.location", "tournament.name")),
])
def test_columns_without_a_key_in_common_are_a_stray(condition, stray):
    named = read_sql(f"SELECT 1 FROM Medal m JOIN Tournament t {condition}", SCHEMA)
    assert named.strays == {stray} and not named.joins


def test_a_comparison_within_one_table_and_one_with_a_value_are_no_joins():
    named = read_sql("SELECT 1 FROM Medal m WHERE m.year = m.medal_id AND year = 2012 AND m.type = 'format_id'", SCHEMA)
    assert not named.joins and not named.strays
    twice = read_sql("SELECT 1 FROM Medal m JOIN Medal n ON m.year = n.year", SCHEMA)           # a value, no key
    assert not twice.joins and not twice.strays


def test_subqueries_and_with_tables_are_read_through():
    sql = ("WITH won AS (SELECT year, location FROM Medal) SELECT won.year, x.location FROM won "
           "JOIN (SELECT location FROM Medal m WHERE m.yeer = 1) AS x ON x.location = won.location")
    named = read_sql(sql, SCHEMA)
    assert named.tables == {"medal"}
    assert named.columns == {("medal", "year"), ("medal", "location"), ("", "m.yeer")}      # with table "": no table has it


def test_columns_and_tables_that_are_not_there_are_named_as_such():
    named = read_sql("SELECT m.colour, q.year FROM Medals JOIN Medal m", SCHEMA)
    assert named.tables == {"medals", "medal"} and named.columns == {("", "m.colour"), ("", "q.year")}


def test_literals_are_texts_and_numbers_but_no_aliases():
    sql = """SELECT name AS "the name", CONCAT(a, ' ', "b") FROM t1 WHERE x LIKE '%O''Neil_s%' AND y IN (7, 7, 2012) LIMIT 1"""
    assert read_literals(sql) == {"b", "o neil_s", "7", "2012", "1"}


# ---------------------------------------------------------------------------------------------------------- to mislead
@pytest.mark.parametrize("sql", [
    "SELECT '5 FROM Athlete'", "SELECT 'x' AS \"from\", \"Athlete\"", "SELECT '5' AS 'from' , 'Athlete'",
    "SELECT '5' FROM (SELECT 1) Athlete", "SELECT '5' FROM (SELECT 1) AS \"Athlete\"",
    "WITH Athlete AS (SELECT 1) SELECT '5' FROM Athlete", "WITH \"athlete\"(n) AS (SELECT 1) SELECT '5' FROM Athlete",
    "SELECT '5' WHERE 1 IS DISTINCT FROM \"Athlete\"", "SELECT TRIM('select' FROM \"Athlete\")",
    "SELECT TRIM('5' FROM 'Athlete')",
    r"SELECT 'x\' FROM Athlete WHERE \''",                  # on MariaDB one text, on SQLite a text and a table
])
def test_no_table_is_read_here(sql):
    assert structure_terms(QUESTION, sql, SCHEMA) == dict.fromkeys(TERMS, 0.0)


def test_that_agrees_with_what_the_engine_reads():
    """On a database without those tables, a query that reads none of them still runs, and one that reads some fails."""
    with open_sqlite({"original": TABLES, "empty": []}) as database:
        for sql in ("SELECT '5 FROM Athlete'", "SELECT 'x' AS \"from\", \"Athlete\"", "SELECT '5' FROM (SELECT 1) Athlete",
                    "WITH Athlete AS (SELECT 1) SELECT '5' FROM Athlete", "SELECT '5' WHERE 1 IS DISTINCT FROM \"Athlete\"",
                    "SELECT '5' FROM Athlete LIMIT 1", "SELECT 5 WHERE EXISTS (SELECT 1 FROM [Medal])",
                    "SELECT t.name FROM (Athlete JOIN Tournament t USING (athlete_id)) LIMIT 1",
                    "SELECT 1 UNION SELECT year FROM Medal"):
            assert database.run(sql, "original").ok, sql
            reads = structure_terms(QUESTION, sql, SCHEMA)["reads"]
            assert reads == (database.run(sql, "empty").status in ("unknown_table", "unknown_column")), sql


@pytest.mark.parametrize("sql", [None, "", "SELECT", "FROM", "USING (", "= = .", "SELECT . = . FROM Athlete",
                                 "SELECT FROM Athlete a, a.", "'", '"'])
def test_scraps_are_read_without_harm(sql):
    assert all(0 <= value <= 1 for value in structure_terms(QUESTION, sql, SCHEMA).values())


words = st.sampled_from("""SELECT FROM JOIN ON USING WHERE AS WITH UNION ( ) , . = * ' " ` [ ] ; -- /* Athlete Medal m name
    year format_id
    athlete_id 'x' "Medal" 2012 distinct""".split())


@given(st.lists(words, max_size=40), st.booleans())
def test_whatever_is_written_the_terms_are_shares(tokens, with_gold):
    question = replace(QUESTION, gold_sql="SELECT name FROM Athlete WHERE athlete_id = 1") if with_gold else QUESTION
    terms = structure_terms(question, " ".join(tokens), SCHEMA)
    assert terms.keys() == TERMS.keys() and all(0 <= value <= 1 for value in terms.values())


@pytest.mark.parametrize("piece", ["(", "'a',", "a", "using (", "m.year,", "from Medal ", "x as ( ", "[", '"', "''",
                                   "a=a and ", ",Medal"])
def test_a_text_written_to_take_long_takes_no_time(piece):
    """The longest text that is sent, and one far longer, are read in milliseconds; a second is a hundred times that."""
    for length in (MAX_SQL_CHARACTERS, 64_000):
        sql = ("WITH a AS (SELECT 1) SELECT 1 FROM Medal m " + piece * length)[:length]
        start = time.perf_counter()
        structure_terms(QUESTION, sql, SCHEMA)
        assert time.perf_counter() - start < 1


def test_a_text_too_long_to_be_sent_names_nothing():
    sql = "SELECT name FROM Athlete"
    assert read_sql(sql.ljust(MAX_SQL_CHARACTERS), SCHEMA).tables and read_sql(sql.ljust(MAX_SQL_CHARACTERS + 1), SCHEMA) == Named()


# ------------------------------------------------------------------------------------------------------------- judging
def test_every_gold_query_agrees_with_itself():
    for question in athletes.load_questions("heldout"):
        assert structure_terms(question, question.gold_sql, SCHEMA) == dict.fromkeys(TERMS, 1.0), question


def test_terms_against_gold_sql_by_hand():
    """Gold has the tables Athlete and Tournament, the column Athlete.name, both sides of one join, one literal. Of the query's
    two tables one is gold's: F1 = 2·1/(2+2); of its two columns one: 2·1/(2+1); no join: 0; both literals are others: 0."""
    gold = "SELECT COUNT(*) FROM Athlete JOIN Tournament USING (athlete_id) WHERE Athlete.name = 'Zoë Wong'"
    sql = "SELECT name, year FROM Athlete, Medal WHERE year = 2012 AND Athlete.name = 'Ana Rossi'"
    assert structure_terms(replace(QUESTION, gold_sql=gold), sql, SCHEMA) == {
        "reads": 1.0, "tables": 0.5, "columns": pytest.approx(2 / 3), "joins": 0.0, "literals": 0.0}


def test_terms_without_gold_sql_by_hand():
    """Medals is no table of the three; m.colour no column of the three named; a key joins two of three tables; of the literals
    "Zoë Wong" and 2012 stand in the question, MedalGold is one of three types, 1 is plain, Oslo is invented."""
    sql = ("SELECT m.year, m.colour, location FROM Medal m JOIN Format f ON m.format_id = f.format_id, Medals WHERE "
           "m.type = 'MedalGold' AND location = 'Oslo' AND m.year < 2012 AND 'ZOË WONG' = f.name LIMIT 1")
    # Columns: medal.year, medal.location, medal.type, format.name, and m.colour, which is none.
    assert structure_terms(QUESTION, sql, SCHEMA) == {"reads": 1.0, "tables": pytest.approx(2 / 3), "columns": 4 / 5,
                                                      "joins": pytest.approx(2 / 3), "literals": 4 / 5}


def test_a_literal_counts_as_a_whole_word_only():
    """The question has 2012, Rome and Wong. 201, Rom and Won are only parts of its words."""
    for literal, found in (("2012", 1), ("201", 0), ("'rome'", 1), ("'Rom'", 0), ("'%Wong%'", 1), ("'Won'", 0)):
        terms = structure_terms(QUESTION, f"SELECT name FROM Athlete WHERE name = {literal}", SCHEMA)
        assert terms["literals"] == found, literal


def test_one_table_needs_no_join_and_a_cross_join_has_none():
    """Comparing names in addition to the key is one wrong part of three: two joined tables and a stray."""
    assert structure_terms(QUESTION, "SELECT name FROM Athlete", SCHEMA)["joins"] == 1
    assert structure_terms(QUESTION, "SELECT Athlete.name FROM Athlete, Medal", SCHEMA)["joins"] == 0
    joined = "SELECT 1 FROM Athlete a JOIN Tournament t ON a.athlete_id = t.athlete_id"
    assert structure_terms(QUESTION, joined, SCHEMA)["joins"] == 1
    assert structure_terms(QUESTION, f"{joined} AND a.name = t.name", SCHEMA)["joins"] == pytest.approx(2 / 3)


def test_names_that_need_quotes_and_links_in_a_row_or_a_circle():
    """C references B, whose key references A's: all three share one key. X and Y reference only each other."""
    tables = (Table("A", (Column("id", "INT"),), ()), Table("`b c`", (Column("`the id`", "INT", ("A", "id")),), ()),
              Table("C", (Column("b_id", "INT", ("`b c`", "`the id`")),), (), key=()),
              Table("X", (Column("x", "INT", ("Y", "y")),), ()), Table("Y", (Column("y", "INT", ("X", "x")),), ()))
    named = read_sql("SELECT 1 FROM C JOIN [b c] ON C.b_id = `b c`.\"the id\" JOIN A ON A.id = C.b_id", read_schema(tables))
    assert named.joins == {("c", "a.id"), ("b_c", "a.id"), ("a", "a.id")} and not named.strays


@given(st.permutations(["Athlete.name = 'Zoë Wong'", "Medal.year < 2012", "Medal.location = 'Rome'"]))
def test_the_order_of_conditions_changes_nothing(conditions):
    def terms(parts):
        return structure_terms(QUESTION, "SELECT COUNT(*) FROM Athlete, Medal WHERE " + " AND ".join(parts), SCHEMA)
    assert terms(conditions) == terms(sorted(conditions))


# --------------------------------------------------------------------------------------------- values without a source
ASKED = "How many medals did Luigi  Busà win in the Women's team between 2010 and 2014, in his early twenties?"
SHOWN = """CREATE TABLE Medal (
  medal_id INT PRIMARY KEY,
  type TEXT, -- 'MedalGold', 'MedalSilver'
  location VARCHAR(64) -- e.g. 'Baku', 'São Paulo'
);"""


@pytest.mark.parametrize("sql", [
    "SELECT COUNT(*) FROM Medal WHERE type = 'MedalGold' AND location = 'São Paulo' AND year = 2010",
    "SELECT 'luigi busà', \"Luigi Busà\", 'Women''s team', 'Women\\'s team', ' Busà'",      # case, spaces, both apostrophes
    "SELECT * FROM t WHERE name LIKE '%Luigi%Busà%' AND x LIKE '%'",                      # pieces of a pattern
    "SELECT * FROM t WHERE age BETWEEN 20 AND 29 OR age < 30",                            # twenties
    "SELECT 0, 1, 100.0 * a / b, COUNT(1) FROM t LIMIT 7 OFFSET 33",
    "SELECT name FROM t LIMIT 7, 12",
    "SELECT CASE WHEN a > 0 THEN 'Yes' ELSE 'No' END, CASE b WHEN 'MedalGold' THEN 3 ELSE -2 END",
    "SELECT CONCAT(name, ' in ', location, ', ', '')",                                    # texts that join two others, or contain no word
    'SELECT COUNT(*) AS "Total 9" FROM "Medal" ORDER BY "Total 9"',                       # names
    "SELECT m2.type, `1999`, [5 a] FROM Medal AS m2",                                     # digits in a name
    "", ";", "'", "SELECT '",
])
def test_what_has_a_source_or_says_nothing_about_the_world(sql):
    assert invented(sql, ASKED, SHOWN) == []


@pytest.mark.parametrize("sql, values", [
    ("SELECT 2", ["2"]),
    ("SELECT COUNT(*) FROM Medal WHERE year IN (2010, 2011, 2014)", ["2011"]),
    ("SELECT * FROM Medal WHERE year = '2011' AND location = 'Suva'", ["'2011'", "'Suva'"]),
    ("SELECT * FROM t WHERE born > '2011-08-01'", ["'2011-08-01'"]),
    ("SELECT 'Yes'", ["'Yes'"]),                                        # written out, not the result of a CASE
    ("SELECT CASE WHEN year = 2011 THEN 'Yes' END", ["2011"]),
    ("SELECT 'Luigi Rossi', 'Bus', 'Busà Luigi'", ["'Luigi Rossi'", "'Bus'", "'Busà Luigi'"]),     # whole words, in order
    ("SELECT * FROM t WHERE age < 40 OR age > 31", ["40", "31"]),       # outside the twenties
    ("SELECT * FROM t WHERE x LIKE '%Luigi%Rossi%'", ["'%Luigi%Rossi%'"]),
    ('SELECT * FROM t WHERE x = "Suva"', ['"Suva"']),                   # text to MariaDB
    ("SELECT * FROM t WHERE year > 1999 LIMIT 3", ["1999"]),
    ("SELECT year FROM t LIMIT 3 UNION SELECT 1999", ["1999"]),         # only the number after LIMIT does not count
])
def test_what_comes_from_nowhere(sql, values):
    assert invented(sql, ASKED, SHOWN) == values


def test_a_phrase_does_not_reach_from_one_source_into_the_next():
    assert invented("SELECT 'gold medal'", "won gold", "medal INT") == ["'gold medal'"]
    assert invented("SELECT 'gold medal'", "won gold medal") == []


@pytest.mark.parametrize("question, known, unknown", [
    ("more than three medals", ["3"], ["2", "4"]),
    ("in the 1990s", ["1990", "1995", "1999", "2000"], ["1989", "2001"]),
    ("in their thirties", ["30", "39", "40"], ["29", "41"]),
])
def test_numbers_in_words_and_decades(question, known, unknown):
    assert invented(f"SELECT {', '.join(known + unknown)}", question) == unknown


def test_no_sql_has_no_values():
    assert invented(None, ASKED) == []
