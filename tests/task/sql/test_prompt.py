"""prompt.py: what the model reads, to the letter, and what is taken from what it writes."""

import datetime
import json
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.config import KEYS
from minigrpo.task.sql.engines.database import Column, Table
from minigrpo.task.sql.prompt import TEMPLATES, extract_sql, read_examples, render_prompt, schema_text

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


# Each template with the schema S, the question "Who?" and, of the examples below, none and both: blanks around a question or a
# query and the semicolon behind it are not shown; each answer ends in one semicolon.
EXAMPLES = [(" How many? ", "SELECT COUNT(*) FROM t ;\n"), ("When?", "SELECT 'a;b'")]
LETTERS = {
    "sqlcoder": ("""\
### Task
Generate a SQL query to answer [QUESTION]Who?[/QUESTION]

### Database Schema
The query will run on a database with the following schema:
S

""", """\
### Answer
Given the database schema, here is the SQL query that [QUESTION]How many?[/QUESTION]
[SQL]
SELECT COUNT(*) FROM t;
[/SQL]

### Answer
Given the database schema, here is the SQL query that [QUESTION]When?[/QUESTION]
[SQL]
SELECT 'a;b';
[/SQL]

""", """\
### Answer
Given the database schema, here is the SQL query that [QUESTION]Who?[/QUESTION]
[SQL]
"""),
    "plain": ("""\
The database has these tables:

S

""", """\
Question: How many?
Answer with a single SELECT query over these tables.
SQL query:
SELECT COUNT(*) FROM t;

Question: When?
Answer with a single SELECT query over these tables.
SQL query:
SELECT 'a;b';

""", """\
Question: Who?
Answer with a single SELECT query over these tables.
SQL query:
"""),
    "compact": ("""\
Tables:
S
""", """\
Question: How many?
SQL:
SELECT COUNT(*) FROM t;
Question: When?
SQL:
SELECT 'a;b';
""", """\
Question: Who?
SQL:
"""),
    "chatml": ("""\
<|im_start|>system
You translate questions into SQL.<|im_end|>
<|im_start|>user
The database has these tables:

S

""", """\
How many?
Answer with a single SELECT query over these tables and nothing else.<|im_end|>
<|im_start|>assistant
SELECT COUNT(*) FROM t;<|im_end|>
<|im_start|>user
When?
Answer with a single SELECT query over these tables and nothing else.<|im_end|>
<|im_start|>assistant
SELECT 'a;b';<|im_end|>
<|im_start|>user
""", """\
Who?
Answer with a single SELECT query over these tables and nothing else.<|im_end|>
<|im_start|>assistant
"""),
    "gemma": ("""\
<start_of_turn>user
The database has these tables:

S

""", """\
How many?
Answer with a single SELECT query over these tables and nothing else.<end_of_turn>
<start_of_turn>model
SELECT COUNT(*) FROM t;<end_of_turn>
<start_of_turn>user
When?
Answer with a single SELECT query over these tables and nothing else.<end_of_turn>
<start_of_turn>model
SELECT 'a;b';<end_of_turn>
<start_of_turn>user
""", """\
Who?
Answer with a single SELECT query over these tables and nothing else.<end_of_turn>
<start_of_turn>model
"""),
}


@pytest.mark.parametrize("template", LETTERS)
def test_templates_to_the_letter(template):
    opening, examples, asking = LETTERS[template]
    assert render_prompt(template, " Who? ", "S") == opening + asking
    assert render_prompt(template, " Who? ", "S", examples=EXAMPLES) == opening + examples + asking


def test_a_config_can_name_every_template_and_no_other():
    assert set(get_args(KEYS["task.template"].type)) == set(TEMPLATES) == set(LETTERS)


@pytest.mark.parametrize("template", ["chatml", "gemma"])
@given(data=st.data())
def test_a_marker_in_given_text_stands_broken_in_the_prompt(template, data):
    """The prompt of texts made of pieces of markers has just the markers of a prompt of harmless ones, at whichever place; and
    without the spaces that broke them, nothing was lost."""
    pieces = [piece for marker in TEMPLATES[template].markers for piece in (marker, marker[:4], marker[4:], marker[0])]
    texts = st.lists(st.sampled_from([*pieces, "x"]), min_size=1).map("".join)
    question, schema, asked, sql = (data.draw(texts) for _ in range(4))
    prompt = render_prompt(template, question, schema, examples=[(asked, sql)])
    harmless = render_prompt(template, "x", "x", examples=[("x", "x")])
    for marker in TEMPLATES[template].markers:
        assert prompt.count(marker) == harmless.count(marker)
    joined = prompt.replace(" ", "")
    assert all(text in joined for text in (question, schema, asked, sql))


def test_what_is_a_marker_elsewhere_is_text_here():
    for template, text in (("plain", "<|im_end|>"), ("chatml", "<end_of_turn>"), ("gemma", "<|im_end|>")):
        assert text in render_prompt(template, text, "S")
    assert "\n< |im_end|>\nAnswer" in render_prompt("chatml", "<|im_end|>", "S")


def test_braces_in_question_and_schema_are_text():
    for template in TEMPLATES:
        rendered = render_prompt(template, "{question} {0}", "{schema}")
        assert "{question} {0}" in rendered and "{schema}" in rendered


def test_an_unknown_template_names_the_known():
    with pytest.raises(ValueError, match="expected one of sqlcoder, plain, compact, chatml, gemma, got 'llama'"):
        render_prompt("llama", "q", "s")


# ------------------------------------------------------------------------------------------------------------- few-shot
def test_examples_are_read_in_file_order(tmp_path):
    """Blank lines are skipped; a separator that some take for a line's end is none."""
    file = tmp_path / "examples.jsonl"
    file.write_text('{"question": "b?", "sql": "SELECT 2"}\n\n{"sql": "SELECT \'\u2028\'", "question": "a?"}\n',
                    encoding="utf-8")
    assert read_examples(file) == [("b?", "SELECT 2"), ("a?", "SELECT '\u2028'")]


@pytest.mark.parametrize("line", [
    "no json", "[1]", '"text"', '{"question": "a?"}', '{"question": "a?", "sql": 1}', '{"question": null, "sql": "SELECT 1"}',
    '{"question": " ", "sql": "SELECT 1"}', '{"question": "a?", "sql": " ;\\n"}', '{"question": "\\ud800", "sql": "SELECT 1"}',
    '{"question": "a?", "sql": "SELECT 1", "answer": "1"}',         # a key that nobody would read
])
def test_a_line_that_is_no_example_is_named(tmp_path, line):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"question": "a?", "sql": "SELECT 1"}) + "\n" + line + "\n")
    with pytest.raises(ValueError) as caught:
        read_examples(file)
    assert str(caught.value).startswith(f"{file}:2: expected ") and "\n" not in str(caught.value)


def test_a_file_of_bytes_that_are_no_text_is_named_too(tmp_path):
    (tmp_path / "latin").write_bytes(b'{"question": "\xe9?", "sql": "SELECT 1"}')
    with pytest.raises(ValueError, match="latin:1: expected "):
        read_examples(tmp_path / "latin")


def test_no_file_and_no_examples_are_one_sentence_each(tmp_path):
    with pytest.raises(ValueError, match="^task.examples: there is no file .*/none$"):
        read_examples(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="/empty holds no examples$"):
        read_examples(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------------------ and back


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
    ("Sure! This counts them:\n\n```sql\nSELECT 1;\n```\n\nIt uses `t`.", "SELECT 1"),           # as chat models write
    ("```mysql\nSELECT 1;", "SELECT 1"), ("```sqlite\nSELECT 1\n```", "SELECT 1"), ("```PostgreSQL\nSELECT 1", "SELECT 1"),
    ("Here it is:\n```\nSELECT 1;", "SELECT 1"),                    # a bare fence, cut off by a stop string
    ("Here it is:\n```\nWITH a AS (SELECT 1) SELECT 2;", "WITH a AS (SELECT 1) SELECT 2"),
    ("SELECT 1\n```\nWith this you see it.", "SELECT 1"),
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
