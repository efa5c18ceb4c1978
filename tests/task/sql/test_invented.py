"""invented.py: which values of a query have a source."""

import pytest

from minigrpo.task.sql.invented import invented

QUESTION = "How many medals did Luigi  Busà win in the Women's team between 2010 and 2014, in his early twenties?"
SCHEMA = """CREATE TABLE Medal (
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
    assert invented(sql, QUESTION, SCHEMA) == []


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
    assert invented(sql, QUESTION, SCHEMA) == values


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
    assert invented(None, QUESTION) == []
