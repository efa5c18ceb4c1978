"""Question and schema → prompt text, and a completion's text → SQL. Does not depend on any tokenizer.

The templates are written out in full: what stands here is what the model reads.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import read_lines
from minigrpo.task.sql.answer import render_cell
from minigrpo.task.sql.engines.database import Table, Tables, create_table

LONGEST = 100                   # characters of a sample value as SQL: one that is cut short would be none
BREAK = re.compile("[\0-\x1f\x7f\x85\u2028\u2029]")         # it would end the comment that a sample value is in


@dataclass(frozen=True)
class Template:
    """A prompt is ``opening`` and ``asking``. Between them is ``asking`` with its ``answer`` for each example, so that the
    question is asked in the same way as the examples.

    Each of ``markers`` must be one token of the model's tokenizer; the last one ends a turn, and so an answer.
    """

    opening: str
    asking: str
    answer: str
    markers: tuple[str, ...] = ()


TEMPLATES = {
    # As on the model card of defog/sqlcoder-7b-2, its grammar included.
    "sqlcoder": Template("""### Task
Generate a SQL query to answer [QUESTION]{question}[/QUESTION]

### Database Schema
The query will run on a database with the following schema:
{schema}

""", """### Answer
Given the database schema, here is the SQL query that [QUESTION]{question}[/QUESTION]
[SQL]
""", """{sql};
[/SQL]

"""),
    # Our own: told what the tables are and what is wanted, small models write SELECTs rather than more tables.
    "plain": Template("""The database has these tables:

{schema}

""", """Question: {question}
Answer with a single SELECT query over these tables.
SQL query:
""", """{sql};

"""),
    # Our own, for models that are warmed up on it: fewer tokens.
    "compact": Template("""Tables:
{schema}
""", """Question: {question}
SQL:
""", """{sql};
"""),
    # The turns of Qwen and SmolLM2-Instruct; the words are our own, with what is wanted behind the question, as in "plain".
    "chatml": Template("""<|im_start|>system
You translate questions into SQL.<|im_end|>
<|im_start|>user
The database has these tables:

{schema}

""", """{question}
Answer with a single SELECT query over these tables and nothing else.<|im_end|>
<|im_start|>assistant
""", """{sql};<|im_end|>
<|im_start|>user
""", ("<|im_start|>", "<|im_end|>")),
    # The turns of Gemma, which has no system turn; <bos> comes from the tokenizer's post-processor.
    "gemma": Template("""<start_of_turn>user
The database has these tables:

{schema}

""", """{question}
Answer with a single SELECT query over these tables and nothing else.<end_of_turn>
<start_of_turn>model
""", """{sql};<end_of_turn>
<start_of_turn>user
""", ("<start_of_turn>", "<end_of_turn>")),
}


def render_prompt(template: str, question: str, schema: str, *, examples: Sequence[tuple[str, str]] = ()) -> str:
    """The prompt of one question, by a template's name, after ``examples``: (question, SQL) pairs, shown in their order.

    A marker inside a question, a query or the schema gets a space after its first character, so that no text can begin or end
    a turn. An unknown name: ``UserError``.
    """
    if template not in TEMPLATES:
        raise UserError(f"prompt template: expected one of {', '.join(TEMPLATES)}, got {template!r}")
    chosen = TEMPLATES[template]

    def text(given: str) -> str:
        for marker in chosen.markers:
            given = given.replace(marker, f"{marker[0]} {marker[1:]}")
        return given

    question = text(question.strip())
    shown = [chosen.asking.format(question=text(asked.strip())) + chosen.answer.format(sql=text(sql.strip("; \t\r\n")))
             for asked, sql in examples]
    return "".join([chosen.opening.format(question=question, schema=text(schema)), *shown,
                    chosen.asking.format(question=question)])


def read_examples(path: Path) -> list[tuple[str, str]]:
    """{"question", "sql"} a line → (question, SQL) pairs for ``render_prompt``, in file order.

    Raises ``UserError`` that names a line which is anything else; a file without a pair is refused too.
    """
    if not path.is_file():
        raise UserError(f"task.examples: there is no file {path}")
    examples = []
    for number, record in read_lines(path, {"question": str, "sql": str}):
        if len(record) > 2 or not all(text.strip("; \t\r\n") for text in record.values()):
            raise UserError(f"{path}:{number}: expected question and sql, neither empty, and nothing else, got "
                             f"{json.dumps(record, ensure_ascii=False):.80}")
        examples.append((record["question"], record["sql"]))
    if not examples:
        raise UserError(f"{path} holds no examples")
    return examples


def schema_text(template: str, tables: Tables, samples: int) -> str:
    """The schema in a template's form: DDL, or for "compact" a line ``Table(column, ...)`` for each table. Columns show up to
    ``samples`` of their most frequent values; keys show none."""
    if template == "compact":
        return "\n".join(f"{table.name}({', '.join(_signature(table, samples))})" for table in tables)
    return "\n".join(create_table(table, {}, _shown_values(table, samples)) + ";" for table in tables)


def _signature(table: Table, samples: int) -> list[str]:
    shown = _shown_values(table, samples)
    return [column.name + (f" ({shown[i]})" if i in shown else "") for i, column in enumerate(table.columns)]


def _shown_values(table: Table, samples: int) -> dict[int, str]:
    """Index of a column → its sample values, for columns that show some. "e.g.": there are others."""
    shown = {}
    for i, column in enumerate(table.columns):
        if i in table.key or column.references or not samples:
            continue
        counts = Counter(row[i] for row in table.rows if row[i] is not None)
        literals = (_literal(value) for value, _ in counts.most_common())
        values = [text for text in literals if len(text) <= LONGEST and not BREAK.search(text)][:samples]
        if values:
            all_there = table.complete and len(values) == len(counts)
            shown[i] = f"{'' if all_there else 'e.g. '}{', '.join(values)}"
    return shown


def _literal(value: object) -> str:
    """A value as an SQL literal of either engine: a number as it is, bytes as x'00ff', anything else, a date too, as text."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    text = render_cell(value)
    return text if isinstance(value, int | float | Decimal) else "'" + text.replace("'", "''") + "'"


def extract_sql(completion: str) -> str | None:
    """The first statement of a completion, up to the first ; outside quotes; inside a ``` fenced block if there is one.

    A single bare fence opens the text after it if that begins like a query and the text before does not (a stop string has cut
    the block off); otherwise it closes the text before it (a template may have opened the block). None if nothing is left.
    Whether it is SQL is for the database to say.

    >>> extract_sql("```sql\\nSELECT ';' FROM t; SELECT 2\\n```")
    "SELECT ';' FROM t"
    >>> extract_sql("SELECT 1\\n```\\nThis counts")
    'SELECT 1'
    >>> extract_sql("  ;") is None
    True
    """
    block = re.search(r"```\w*sql\w*\b(.*?)(?:```|\Z)|```(.*?)```", completion, re.DOTALL | re.IGNORECASE)
    if block:
        text = block[1] or block[2] or ""
    else:
        before, _, behind = completion.partition("```")
        begins = re.compile(r"\s*(select|with)\b", re.IGNORECASE)
        text = behind if not before.strip() or begins.match(behind) and not begins.match(before) else before
    statement = re.match(r"""(?:[^;'"`]|'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z))*""", text)
    assert statement is not None, "the pattern matches the empty text"
    return statement[0].strip() or None
