"""lexer.py: which words a text has, which tables they name."""

import pytest

from minigrpo.task.sql.engines.lexer import TOKEN, definitions, sources, word


def test_words_of_a_text():
    """Quotes end where the engines end them, a doubled one joins two; a quoted name is one word, a sign stays a sign."""
    tokens = TOKEN.findall("""SELECT "a""b", 'it''s' FROM[x y] WHERE `c`>1.5""")
    assert tokens == ["SELECT", '"a""b"', ",", "'it''s'", "FROM", "[x y]", "WHERE", "`c`", ">", "1", ".", "5"]
    assert [word(token) for token in ('"a""b"', "[x y]", "`c`", ">", "''")] == ["a_b", "x_y", "c", ">", "_"]


def test_the_names_of_with_tables():
    words = "with a as ( select 1 ) , b ( x , y ) as materialized ( select 2 ) select c as ( d ) from a".split()
    assert definitions(words) == ["a", "b", "c"]            # the last one too many: a bound may be too high


@pytest.mark.parametrize("sql, expected", [
    ("SELECT TRIM ( x FROM y ) FROM Pet", [[("Pet", "Pet")]]),              # a FROM without a SELECT is no table's
    ("SELECT 1 WHERE 1 IS DISTINCT FROM Pet", []),
    ("SELECT 1 FROM ( Pet JOIN Owner o ON 1 = 1 ) , x . Pet AS p WHERE 1",
     [[("Pet", "Pet"), ("Owner", "o")], [("?", "?"), ("Pet", "p")]]),
    ("SELECT 1 FROM Pet UNION SELECT 2 FROM Owner", [[("Pet", "Pet")], [("Owner", "Owner")]]),
])
def test_the_tables_of_each_from(sql, expected):
    assert list(sources(sql.split())) == expected
