"""Question and schema → prompt text, and a completion's text → SQL. Knows no tokens.

The templates are written out by hand, so what the model reads is what stands here.
"""

import re
from collections import Counter
from decimal import Decimal

from minigrpo.task.answer import render_cell
from minigrpo.task.database import Table, Tables, table_lines

LONGEST = 100                   # characters of a sample value as SQL: one that is cut short would be none

TEMPLATES = {
    # As on the model card of defog/sqlcoder-7b-2, its grammar included.
    "sqlcoder": """### Task
Generate a SQL query to answer [QUESTION]{question}[/QUESTION]

### Database Schema
The query will run on a database with the following schema:
{schema}

### Answer
Given the database schema, here is the SQL query that [QUESTION]{question}[/QUESTION]
[SQL]
""",
    # Our own: told what the tables are and what is wanted, small models write SELECTs rather than more tables.
    "plain": """The database has these tables:

{schema}

Question: {question}
Answer with a single SELECT query over these tables.
SQL query:
""",
    # Our own, for models that are warmed up on it: fewer tokens.
    "compact": """Tables:
{schema}
Question: {question}
SQL:
""",
}


def render_prompt(template: str, question: str, schema: str) -> str:
    """The prompt of one question, by a template's name. An unknown name: ``ValueError``."""
    if template not in TEMPLATES:
        raise ValueError(f"prompt template: expected one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template].format(question=question.strip(), schema=schema)


def schema_text(template: str, tables: Tables, samples: int) -> str:
    """The schema as a template wants it: DDL, or for "compact" a line ``Table(column, ...)`` each. Columns come with up to
    ``samples`` of their most frequent values; keys have none."""
    if template == "compact":
        return "\n".join(f"{table.name}({', '.join(_signature(table, samples))})" for table in tables)
    return "\n".join(_with_comments(table, samples) + ";" for table in tables)


def _signature(table: Table, samples: int) -> list[str]:
    shown = _shown_values(table, samples)
    return [column.name + (f" ({shown[i]})" if i in shown else "") for i, column in enumerate(table.columns)]


def _with_comments(table: Table, samples: int) -> str:
    """CREATE TABLE's line i + 1 is column i; a comment goes behind it."""
    lines = table_lines(table, {})
    for i, text in _shown_values(table, samples).items():
        lines[i + 1] += f" -- {text}"
    return "\n".join(lines)


def _shown_values(table: Table, samples: int) -> dict[int, str]:
    """Place of a column → its sample values, for the columns that have some to show. "e.g.": there are others."""
    shown = {}
    for i, column in enumerate(table.columns):
        if i in table.key or column.references or not samples:
            continue
        counts = Counter(row[i] for row in table.rows if row[i] is not None)
        values = [text for text in (_literal(value) for value, _ in counts.most_common()) if _fits(text)][:samples]
        if values:
            all_there = table.complete and len(values) == len(counts)
            shown[i] = f"{'' if all_there else 'e.g. '}{', '.join(values)}"
    return shown


def _literal(value: object) -> str:
    """A value as SQL spells it, on either engine: a number as it is, bytes as x'00ff', all else, a date too, as text."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    text = render_cell(value)
    return text if isinstance(value, int | float | Decimal) else "'" + text.replace("'", "''") + "'"


def _fits(literal: str) -> bool:
    """Short, and one line: a line break would end the comment that it stands in."""
    return len(literal) <= LONGEST and not re.search("[\0-\x1f\x7f\x85\u2028\u2029]", literal)


def extract_sql(completion: str) -> str | None:
    """The first statement of a completion, up to the first ; outside quotes; of a ``` fenced block where there is one.

    A single bare fence closes what stands before it (a template may have opened it). None where nothing is left. Whether
    it is SQL is the database's to say.

    >>> extract_sql("```sql\\nSELECT ';' FROM t; SELECT 2\\n```")
    "SELECT ';' FROM t"
    >>> extract_sql("SELECT 1\\n```\\nThis counts")
    'SELECT 1'
    >>> extract_sql("  ;") is None
    True
    """
    block = re.search(r"```sql\b(.*?)(?:```|\Z)|```(.*?)```", completion, re.DOTALL | re.IGNORECASE)
    if block:
        text = block[1] or block[2] or ""
    else:
        before, _, behind = completion.partition("```")
        text = before if before.strip() else behind
    statement = re.match(r"""(?:[^;'"`]|'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z))*""", text)
    return statement[0].strip() or None
