"""The user's own questions: in a folder, each ``NAME.jsonl`` is the split NAME, with one question a line. Opens no database.

A line is {"question": "How many?", "answer": 2, "database": "shop"}, with "gold_sql" and "kind" where they are known. The
answer is a text, a number or a list of them: the cells that the right query returns, compared as text.
"""

import json
from decimal import Decimal
from pathlib import Path

from minigrpo.common.errors import UserError, unknown
from minigrpo.common.strict_json import Json, exact, read_lines
from minigrpo.task.sql.answer import Question, render_answer, split_answer
from minigrpo.task.sql.data.dataset import Dataset, check_gold_sql

NEEDED, OPTIONAL = ("question", "answer", "database"), ("gold_sql", "kind")


def load_questions(path: str | Path, split: str) -> list[Question]:
    """The questions of one split, in the file's order; index = line − 1.

    ``FileNotFoundError``: there is no folder. ``UserError``: no such split; or a line, named by its number, is no question.
    """
    splits = _splits(path)
    if split not in splits:
        raise UserError(f"{unknown('split', split, splits)}: {path} has "
                         f"{', '.join(file.name for file in splits.values()) or 'no *.jsonl'}")
    file = splits[split]
    questions: list[Question] = []
    for number, record in read_lines(file, dict.fromkeys(NEEDED, object), number=exact):
        if number - 1 > len(questions):                     # an index must match its line
            raise UserError(f"{file}:{number - 1}: expected a question, got a blank line")
        try:
            questions.append(_question(record, split, number - 1))
        except ValueError as error:
            raise UserError(f"{file}:{number}: {error}") from None
    if not questions:
        raise UserError(f"{file} holds no questions")
    return questions


def database_names(path: str | Path) -> list[str]:
    """Every database that a question of any split asks."""
    return sorted({question.database for split in _splits(path) for question in load_questions(path, split)})


def _splits(path: str | Path) -> dict[str, Path]:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {Path(path)} of questions")
    return {file.stem: file for file in sorted(Path(path).glob("*.jsonl"))}


def _question(record: Json, split: str, index: int) -> Question:
    known = (*NEEDED, *OPTIONAL)
    if strange := [name for name in record if name not in known]:
        raise UserError(f"{unknown('key', strange[0], known)}: the keys are {', '.join(known)}")
    text, database = _text(record, "question"), _text(record, "database")
    kind = _text(record, "kind") if "kind" in record else ""
    gold_sql = _text(record, "gold_sql") if "gold_sql" in record else None
    return Question(f"{split}/{index}", split, index, text, _answer(record["answer"]), database, kind, gold_sql)


def _answer(value: object) -> str:
    """The answer as ``render_answer`` writes a column with these cells."""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if type(part) not in (str, int, Decimal):           # a boolean is an int, but databases return it differently
            raise UserError(f"answer: expected a text, a number or a list of them, got {json.dumps(value, default=str)[:80]}")
    text = render_answer((part,) for part in parts)
    if not any(split_answer(text)):
        raise UserError(f"answer: {json.dumps(value)[:80]} is empty: there is nothing to compare with")
    return text


def _text(record: Json, name: str) -> str:
    """The text under a key. It may be blank only for "kind"."""
    value = record[name]
    if not isinstance(value, str) or not (value.strip() or name == "kind"):
        raise UserError(f"{name}: expected a text, got {json.dumps(value, default=str)[:80]}")
    return value


# ------------------------------------------------------------------------------------------------------------ the data set
def _load(path: str, split: str, gold_sql: str) -> list[Question]:
    check_gold_sql("jsonl", gold_sql, gold_sql == "jsonl", '"jsonl"')
    return load_questions(path, split)


DATASET = Dataset(load=_load, has_split=lambda path, split: split in _splits(path), database_names=database_names,
                  test_splits=lambda path, train: [split for split in _splits(path) if split != train])
