"""prompt.py: what the model reads, to the letter, and what is taken from what it writes."""

import datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.task.database import Column, Table
from minigrpo.task.prompt import TEMPLATES, extract_sql, render_prompt, schema_text

OWNER = Table("Owner", (Column("owner_id", "INT"), Column("name", "TEXT")),
              ((1, "Zoë"), (2, "O'Hara"), (3, "O'Hara"), (4, "Ann"), (5, None)))
PET = Table("Pet", (Column("pet_id", "INT"), Column("owner_id", "INT", ("Owner", "owner_id")), Column("born", "INT")),
            ((1, 1, 2001), (2, 1, 2002)))

# O'Hara is there twice, so it leads; then the order of the rows. Three distinct names with two shown are examples
# ("e.g."), two birth years with two shown are all there are. NULL is no sample, keys have none.
SCHEMA = """\
CREATE TABLE Owner (
  owner_id INT PRIMARY KEY,
  name TEXT -- e.g. 'O''Hara', 'Zoë'
);
CREATE TABLE Pet (
  pet_id INT PRIMARY KEY,
  owner_id INT REFERENCES Owner(owner_id),
  born INT -- 2001, 2002
);"""


def test_schema_with_samples():
    assert schema_text("plain", [OWNER, PET], 2) == SCHEMA


def test_schema_without_samples_is_plain_ddl():
    assert "--" not in schema_text("plain", [OWNER, PET], 0)


def test_a_column_without_values_has_no_samples():
    assert "--" not in schema_text("plain", [Table("T", OWNER.columns, ((1, None),))], 3)


# The same values in the same order; a line for a table, and neither types nor references: the names say which key is which.
COMPACT = """\
Owner(owner_id, name (e.g. 'O''Hara', 'Zoë'))
Pet(pet_id, owner_id, born (2001, 2002))"""


def test_the_compact_schema_with_samples():
    assert schema_text("compact", [OWNER, PET], 2) == COMPACT


def test_the_compact_schema_without_samples_is_names_alone():
    assert schema_text("compact", [OWNER, PET], 0) == "Owner(owner_id, name)\nPet(pet_id, owner_id, born)"


def test_a_column_without_values_has_no_samples_in_the_compact_schema():
    assert schema_text("compact", [Table("T", OWNER.columns, ((1, None),))], 3) == "T(owner_id, name)"


def test_keys_are_where_they_are_and_have_no_samples():
    """A table of pairs, whose key is both columns, and one without a key, whose first column then has samples."""
    pairs = Table("Pair", (Column("a", "INT"), Column("b", "INT"), Column("since", "INT")), ((1, 2, 1990),), key=(1, 0))
    assert schema_text("plain", [pairs], 3) == (
        "CREATE TABLE Pair (\n  a INT,\n  b INT,\n  since INT, -- 1990\n  PRIMARY KEY (b, a)\n);")
    assert schema_text("compact", [pairs, Table("Log", pairs.columns, pairs.rows, key=())], 3) == (
        "Pair(a, b, since (1990))\nLog(a (1), b (2), since (1990))")


@pytest.mark.parametrize("value, literal", [
    (Decimal("3.50"), "3.5"), (2.5, "2.5"), (datetime.date(2023, 1, 10), "'2023-01-10'"),
    (datetime.datetime(2023, 1, 10, 9, 30), "'2023-01-10 09:30:00'"), (b"\x00'", "x'0027'"), ("O'Hara", "'O''Hara'")])
def test_a_sample_is_what_sql_would_compare_with(value, literal):
    assert schema_text("compact", [Table("T", OWNER.columns, ((1, value),))], 3) == f"T(owner_id, name ({literal}))"


@pytest.mark.parametrize("awkward", ["x" * 99, "x" * 10_000, "two\nlines", "two\u2028lines", "a\x00b", b"x" * 49])
@pytest.mark.parametrize("template", ["plain", "compact"])
def test_a_value_too_long_or_of_several_lines_is_left_out(template, awkward):
    """Most frequent, it makes place for the next, which is then an example among others. 98 signs and two quotes are 100."""
    rows = tuple(enumerate([awkward, awkward, "y" * 98]))
    text = schema_text(template, [Table("T", OWNER.columns, rows)], 1)
    assert f"e.g. '{'y' * 98}'" in text and len(text.splitlines()) == (4 if template == "plain" else 1) and len(text) < 200
    assert schema_text("compact", [Table("T", OWNER.columns, rows[:2])], 1) == "T(owner_id, name)"


def test_values_of_a_part_of_the_rows_are_examples():
    """Both names that are known are shown, but there may be others in the rest."""
    table = Table("T", OWNER.columns, ((1, "a"), (2, "b")), complete=False)
    assert schema_text("compact", [table], 3) == "T(owner_id, name (e.g. 'a', 'b'))"


def test_only_compact_has_a_schema_of_its_own():
    assert schema_text("sqlcoder", [OWNER, PET], 2) == schema_text("plain", [OWNER, PET], 2) == SCHEMA


@given(st.integers(0, 6))
def test_both_schemas_show_the_same_samples(samples):
    """Told apart by their signs only: what stands behind "--" in DDL stands in brackets in the compact schema."""
    shown = [line.partition(" -- ")[2] for line in schema_text("plain", [OWNER, PET], samples).splitlines() if " -- " in line]
    compact = schema_text("compact", [OWNER, PET], samples)
    assert all(f" ({text})" in compact for text in shown)
    assert compact.count(" (") == len(shown) == (2 if samples else 0)


def test_templates_to_the_letter():
    assert render_prompt("plain", " Who? ", "S") == (
        "The database has these tables:\n\nS\n\nQuestion: Who?\n"
        "Answer with a single SELECT query over these tables.\nSQL query:\n")
    assert render_prompt("compact", " Who? ", "S(a)\nT(b)") == "Tables:\nS(a)\nT(b)\nQuestion: Who?\nSQL:\n"
    sqlcoder = render_prompt("sqlcoder", "Who?", "S")
    assert sqlcoder.startswith("### Task\nGenerate a SQL query to answer [QUESTION]Who?[/QUESTION]\n\n### Database Schema\n")
    assert sqlcoder.endswith("here is the SQL query that [QUESTION]Who?[/QUESTION]\n[SQL]\n")


def test_braces_in_question_and_schema_are_text():
    for template in TEMPLATES:
        rendered = render_prompt(template, "{question} {0}", "{schema}")
        assert "{question} {0}" in rendered and "{schema}" in rendered


def test_an_unknown_template_names_the_known():
    with pytest.raises(ValueError, match="expected one of sqlcoder, plain, compact, got 'chatml'"):
        render_prompt("chatml", "q", "s")


@pytest.mark.parametrize("completion, sql", [
    ("SELECT 1;", "SELECT 1"),
    ("SELECT 1", "SELECT 1"),                                       # cut off before its end
    ("\n SELECT 1 ; SELECT 2;", "SELECT 1"),                        # the first statement
    ("SELECT 'a;b' FROM t; x", "SELECT 'a;b' FROM t"),              # a semicolon inside quotes ends nothing
    ('SELECT "a;b", `c;d`; x', 'SELECT "a;b", `c;d`'),
    ("SELECT 'it''s; ok'; x", "SELECT 'it''s; ok'"),                # a doubled quote
    ("SELECT 'open; quote", "SELECT 'open; quote"),
    ("```sql\nSELECT 1;\n```", "SELECT 1"),
    ("```SQL\nSELECT 1", "SELECT 1"),                               # a fence that never closes
    ("Here it is:\n```\nSELECT 1\n```\nIt counts.", "SELECT 1"),
    ("SELECT 1\n```\nIt counts.", "SELECT 1"),                      # the template may have opened the fence
    ("```SELECT 1", "SELECT 1"),
    ("", None), (";", None), ("  \n", None), ("```sql\n```", None), ("```", None),
])
def test_extract_sql(completion, sql):
    assert extract_sql(completion) == sql


@given(st.text())
def test_extraction_never_fails_and_is_stripped_text_of_the_completion(completion):
    sql = extract_sql(completion)
    assert sql is None or (sql and sql == sql.strip() and sql in completion)


@given(st.text(alphabet="SELECT 1'\"\n", min_size=1).filter(str.strip))
def test_what_stands_behind_a_semicolon_outside_quotes_changes_nothing(statement):
    # A statement whose quotes are closed, then ";" and anything: the same statement.
    statement = statement.replace("'", "''").replace('"', '""')
    assert extract_sql(statement + "; SELECT 'other'") == extract_sql(statement)
