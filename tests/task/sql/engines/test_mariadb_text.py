"""mariadb_text.py: which texts are not sent to MariaDB. What MariaDB itself would do with them: test_hostile.py."""

import time

import pytest

from minigrpo.task.sql.engines.mariadb_text import FUNCTIONS, PERMITTED, text_objection


@pytest.mark.parametrize("sql", [
    "SELECT COUNT(*), MAX (year), `Max`.x FROM t AS `Max`",
    "SELECT name FROM t WHERE id IN (1, 2) AND (a OR (b)) AND NOT (c) AND EXISTS (SELECT 1)",
    "SELECT CASE WHEN (a) THEN (1) ELSE (2) END, CAST(a AS DECIMAL(10, 2)), CONVERT(a, CHAR(3)) FROM t",
    "SELECT ROW_NUMBER() OVER (PARTITION BY (a) ORDER BY b), a BETWEEN (1) AND (2), a DIV (b), a LIKE ('x') FROM t",
    "WITH a (x) AS (SELECT 1), `b` (y, z) AS (SELECT 2, 3) SELECT * FROM a JOIN (b) ON (x = y) JOIN c USING (z)",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION (SELECT i + 1 FROM n)) SELECT i FROM n ORDER BY (i) LIMIT 3",
    "SELECT 'sleep(9)', \"benchmark(1)\", 'x' AS `sleep (9)`", "SELECT 1 WHERE 'a' IN ('into', 'outfile')",
    "SELECT id FROM t WHERE a=1.5and(b) OR c=2.or(d) AND e>.5and(f) OR g<1e1or(h)",     # a letter may follow a number directly
    "SELECT 1into, t.1into, x1.5into_, 0x1into FROM t",       # to the server each is one name or number
    "SELECT `current_user`, 'session_user', user, role, \"CURRENT_ROLE\", current_date, a.current_users FROM a",
    "SELECT into_, `into` FROM t", "SELECT a.year FROM a WHERE (a.x, a.y) IN ((1, 2), (3, 4))"])
def test_what_an_honest_query_is_made_of(sql: str) -> None:
    assert text_objection(sql) == ""


@pytest.mark.parametrize("sql, reason", [
    ("SELECT SLEEP(9)", "the function sleep is not permitted"), ("SELECT ABS(sLeEp \n (9))", "the function sleep is not permitted"),
    ("SELECT `sleep`(9)", "a quoted function is not permitted"), ("SELECT `abs` (9)", "a quoted function is not permitted"),
    ("SELECT 1, sleep(9) AS (x)", "the function sleep is not permitted"),           # there is no WITH, so this is no WITH table
    ("WITH a AS (SELECT sleep(9)) SELECT 1", "the function sleep is not permitted"),
    ("WITH a (x) AS (SELECT 1), b AS (SELECT load_file(x) FROM a) SELECT 1", "the function load_file is not permitted"),
    ("SELECT {fn sleep(9)}", "the function sleep is not permitted"), ("SELECT ſleep(9)", "the function ſleep is not permitted"),
    ("SELECT x$abs(9)", "the function x$abs is not permitted"), ("SELECT f.sleep(9)", "the function sleep is not permitted"),
    ("SELECT 'it''s', `a``b`, \"\\\"\", sleep(9)", "the function sleep is not permitted"),      # quotes end where they end
    ("SELECT 1 INTO OUTFILE 'x'", "INTO is not permitted"), ("SELECT 1 iNtO x", "INTO is not permitted"),
    *[(f"SELECT {glued}into outfile 'x'", "INTO is not permitted") for glued in (
        "1.5", "1.", ".5", "1e1", "1E+1", "1.5e-1", "\\N", "'x'", "x'ff'", "(1)", "1+1.5", "t.a,1.5")],
    ("SELECT CURRENT_USER", "CURRENT_USER is not permitted"), ("SELECT 1 WHERE Current_Role='x'", "CURRENT_ROLE is not permitted"),
    ("SELECT session_user", "SESSION_USER is not permitted"), ("SELECT(SYSTEM_USER)", "SYSTEM_USER is not permitted"),
    ("SELECT 1.5sleep(9)", "the function sleep is not permitted"), ("SELECT 1and(1)", "the function 1and is not permitted"),
    ("SELECT * FROM Information_Schema.tables", "the server's own tables are not permitted"),
    ("SELECT * FROM `performance_schema` . threads", "the server's own tables are not permitted"),
    ("SELECT 1; SELECT 2", "more than one statement"),                              # the checks of guard.py come first
])
def test_what_is_not_sent(sql: str, reason: str) -> None:
    assert text_objection(sql) == reason


@pytest.mark.parametrize("function", ["sleep", "benchmark", "get_lock", "release_lock", "load_file", "last_insert_id", "regexp_replace",
                                      "repeat", "json_table", "master_pos_wait", "connection_id", "uuid", "rand", "setval", "sys_exec"])
def test_what_is_left_out_of_the_list_on_purpose(function: str) -> None:
    assert function not in PERMITTED


def test_the_lists_are_lower_case_words() -> None:
    """Lower case, as they are looked up."""
    assert all(word == word.lower() and word.isidentifier() for word in PERMITTED) and len(FUNCTIONS) > 150


@pytest.mark.parametrize("sql", ["SELECT " + "a" * 9_900, "SELECT " + "with," * 1_900, "WITH " + "a(" * 4_900, "WITH a" + " " * 9_900,
                                 "WITH " + ",a(b,c) as " * 800, "SELECT " + "``" * 4_900, "SELECT " + "a " * 4_900, "SELECT " + "1" * 9_900, "SELECT " + "1." * 4_900, "SELECT " + "1e" * 4_900, "SELECT " + "'" * 9_991])
def test_no_text_takes_long(sql: str) -> None:
    """A quadratic scan of 10,000 characters takes half a second and more."""
    start = time.thread_time()
    text_objection(sql)
    assert time.thread_time() - start < 0.1
