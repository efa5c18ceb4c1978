"""guard.py: which texts are not sent to the engine, and how much of a result is read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.common.errors import UserError
from minigrpo.task.sql.engines.database import Execution, Limits
from minigrpo.task.sql.engines.guard import MAX_SQL_CHARACTERS, check_query, objection, read_rows, too_large

QUOTED = re.compile(r"'[^']*(?:'|\Z)")


@pytest.mark.parametrize("sql", [
    "SELECT 1", " \n(select 1)", "WITH t AS (SELECT 1) SELECT * FROM t", "SELECT 1;", "SELECT 1 ; ",
    "SELECT ';', '--', '@x', '#', '/*'",                # signs in quotes are text
    "SELECT 5 - -3, 6/2*1",                             # minus, divide and times are no comments
    "SELECT t.a, 't.a.b', 1.5 FROM t WHERE t.a=.5-t.b", "SELECT t . * FROM t",        # names of two parts
])
def test_one_select_is_sent(sql):
    assert objection(sql, QUOTED) == ""


@pytest.mark.parametrize("sql, reason", [
    ("DROP TABLE t", "does not begin with"), ("SET STATEMENT x=0 FOR SELECT 1", "does not begin with"),
    ("SELECTED", "does not begin with"), ("", "does not begin with"), ("; SELECT 1", "does not begin with"),
    ("SELECT 1; DROP TABLE t", "more than one"), ("SELECT 1;;", "more than one"),
    ("SELECT ''; SELECT ''", "more than one"),          # the quotes close before the semicolon
    ("SELECT @x", "comments and variables"), ("SELECT 1 -- x", "comments and variables"),
    ("SELECT /*! 1 */", "comments and variables"), ("SELECT 1 # x", "comments and variables"),
    ("SELECT d.t.a FROM t", "a name of three"), ("SELECT d . t\n. a FROM t", "a name of three"),
    ("SELECT d.'t'.a", "a name of three"), ("SELECT d.t.* FROM t", "a name of three"),
    ("SELECT '\0'", "not text"), ("SELECT '\ud800'", "not text"), ("\ufeffSELECT 1", "not text"),
])
def test_anything_else_is_not(sql, reason):
    assert objection(sql, QUOTED).startswith(reason)


def test_the_length_is_capped_at_the_boundary():
    longest = "SELECT " + "1" * (MAX_SQL_CHARACTERS - 7)
    assert objection(longest, QUOTED) == "" and "longer than" in objection(longest + "1", QUOTED)


def test_rows_and_bytes_at_the_boundary():
    """"é" is two bytes of UTF-8, a number eight, NULL nothing, bytes their length: 2 + 8 + 0 + 3 = 13."""
    row = ("é", 7, None, b"abc")
    assert read_rows([row, row], Limits(max_rows=2, max_bytes=26)) == (row, row)
    assert read_rows([row, row], Limits(max_rows=2, max_bytes=25)) is None
    assert read_rows([row, row], Limits(max_rows=1, max_bytes=26)) is None
    assert read_rows([], Limits(max_rows=1, max_bytes=1)) == ()
    assert too_large(Limits(max_rows=2, max_bytes=25)) == Execution("too_large", error="more than 2 rows or 25 bytes")


@given(st.integers(1, 5), st.integers(0, 8))
def test_no_more_is_read_than_is_needed_to_see_that_it_is_too_much(cap, count):
    taken = []
    result = read_rows((taken.append(i) or (i,) for i in range(count)), Limits(max_rows=cap))
    assert (result is None) == (count > cap) and len(taken) == min(count, cap + 1)


def test_what_is_sent_and_what_is_not():
    """None, blanks and semicolons are no SQL, whatever the engine's check would say of them."""
    def check(sql: str | None) -> str | Execution:
        return check_query(sql, "shop", {"shop"}, lambda sql: "not this" if "x" in sql else "")

    assert check("SELECT 1") == "SELECT 1"
    assert {check(sql) for sql in (None, "", " ;\n\v;")} == {Execution("no_sql")}
    assert check("SELECT x") == Execution("refused", error="not this")
    with pytest.raises(UserError, match="^unknown database 'other'; known: a, b$"):
        check_query(None, "other", {"b", "a"}, str)
