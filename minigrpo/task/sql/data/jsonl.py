"""A user's own questions: a folder whose ``NAME.jsonl`` is the split NAME, a question a line. Knows no database.

{"question": "How many?", "answer": 2, "database": "shop"}, and where they are known "gold_sql" and "kind". The answer is a
text, a number or a list of them: what the right query's cells are once they are text.
"""

import json
from decimal import Decimal
from pathlib import Path

from minigrpo.common.errors import UserError
from minigrpo.common.messages import unknown
from minigrpo.common.strict_json import Json, exact, read_lines
from minigrpo.task.sql.answer import render_answer, split_answer
from minigrpo.task.sql.question import Question

NEEDED, OPTIONAL = ("question", "answer", "database"), ("gold_sql", "kind")


def load_questions(path: str | Path, split: str) -> list[Question]:
    """The questions of one split, in the file's order; index = line − 1.

    Raises FileNotFoundError (no folder) or ValueError: no such split; a line, by its number, that is no question.
    """
    splits = _splits(Path(path))
    if split not in splits:
        raise UserError(f"{unknown('split', split, splits)}: {path} has "
                         f"{', '.join(file.name for file in splits.values()) or 'no *.jsonl'}")
    file, questions = splits[split], []
    for number, record in read_lines(file, dict.fromkeys(NEEDED, object), number=exact):
        if number - 1 > len(questions):                     # an index is a line's
            raise UserError(f"{file}:{number - 1}: expected a question, got a blank line")
        try:
            questions.append(_question(record, split, number - 1))
        except ValueError as error:
            raise UserError(f"{file}:{number}: {error}") from None
    if not questions:
        raise UserError(f"{file} holds no questions")
    return questions


def database_names(path: str | Path) -> list[str]:
    """Every database that a question of any split is asked of."""
    return sorted({question.database for split in _splits(Path(path)) for question in load_questions(path, split)})


def split_names(path: str | Path) -> list[str]:
    return list(_splits(Path(path)))


def _splits(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path} of questions")
    return {file.stem: file for file in sorted(path.glob("*.jsonl"))}


def _question(record: Json, split: str, index: int) -> Question:
    known = (*NEEDED, *OPTIONAL)
    if strange := [name for name in record if name not in known]:
        raise UserError(f"{unknown('key', strange[0], known)}: the keys are {', '.join(known)}")
    for name in ("question", "database", *record.keys() & set(OPTIONAL)):
        _expect_text(name, record[name])
    answer = _answer(record["answer"])
    return Question(f"{split}/{index}", split, index, record["question"], answer, record["database"],
                    record.get("kind", ""), record.get("gold_sql"))


def _answer(value: object) -> str:
    """As ``render_answer`` writes a column with these cells."""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if type(part) not in (str, int, Decimal):           # a boolean is an int, but what would a database return?
            raise UserError(f"answer: expected a text, a number or a list of them, got {json.dumps(value, default=str)[:80]}")
    text = render_answer((part,) for part in parts)
    if not any(split_answer(text)):
        raise UserError(f"answer: {json.dumps(value)[:80]} is empty: there is nothing to compare with")
    return text


def _expect_text(name: str, value: object) -> None:
    """A text that is not blank; a kind may be."""
    if not isinstance(value, str) or not (value.strip() or name == "kind"):
        raise UserError(f"{name}: expected a text, got {json.dumps(value, default=str)[:80]}")
