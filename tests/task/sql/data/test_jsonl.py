"""jsonl.py: what a line becomes, and one sentence with file and line for every mistake in it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.task.sql.answer import Question, score_answer
from minigrpo.task.sql.data.jsonl import database_names, load_questions

GOOD = {"question": "How many?", "answer": 2, "database": "shop"}


def write(folder: Path, *records: object, split: str = "train") -> Path:
    """Writes a file of records; a record that is not bytes is written as JSON."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    (folder / f"{split}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def sentence(folder: Path, split: str = "train") -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_questions(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ what a line is
def test_a_line_is_a_question(tmp_path):
    write(tmp_path, GOOD, GOOD | {"answer": "Oslo", "database": "other", "gold_sql": "SELECT 'Oslo'", "kind": "lookup"})
    assert load_questions(tmp_path, "train") == [
        Question("train/0", "train", 0, "How many?", "2", "shop", "", None),
        Question("train/1", "train", 1, "How many?", "Oslo", "other", "lookup", "SELECT 'Oslo'")]


@pytest.mark.parametrize("answer, text", [
    ("2", "2"), ("7", "7"), ("-3", "-3"), ("3.50", "3.5"), ("24.0", "24"), ("1e3", "1000"), ('"  as is "', "  as is "),
    ("12345678901234567890.25", "12345678901234567890.25"),            # more digits than a float keeps
    ('["Ana", "Bo"]', "Ana, Bo"), ('[1, 2.50, "x"]', "1, 2.5, x"), ('["Lisbon"]', "Lisbon")])
def test_an_answer_is_what_the_right_cells_are_as_text(tmp_path, answer, text):
    write(tmp_path, f'{{"question": "?", "answer": {answer}, "database": "d"}}'.encode())
    assert load_questions(tmp_path, "train")[0].answer == text


@settings(deadline=None)
@given(st.lists(st.text("ab ,", min_size=1), min_size=1).filter(lambda parts: any(part.strip(" ,") for part in parts)))
def test_a_list_is_right_in_any_order(tmp_path_factory, parts):
    """The order of a query's rows does not matter."""
    folder = write(tmp_path_factory.mktemp("q"), GOOD | {"answer": parts}, GOOD | {"answer": parts[::-1]})
    one, other = load_questions(folder, "train")
    assert score_answer(one.answer, other.answer).strict == 1


def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path):
    """U+2028 and U+0085, at which str.splitlines() would split, are kept; and lines may end in \\r\\n."""
    odd = "one\u2028two\x85three"
    first = json.dumps(GOOD | {"question": odd}, ensure_ascii=False).encode()
    write(tmp_path, first + b"\r", json.dumps(GOOD).encode() + b"\r")
    assert [question.text for question in load_questions(tmp_path, "train")] == [odd, "How many?"]


def test_the_databases_of_all_splits(tmp_path):
    write(tmp_path, GOOD | {"database": "b"}, GOOD | {"database": "a"})
    write(tmp_path, GOOD | {"database": "c"}, GOOD | {"database": "a"}, split="dev")
    assert database_names(tmp_path) == ["a", "b", "c"]


# --------------------------------------------------------------------------------------------------- what is no question
EXPECTED = "expected a JSON object with question, answer and database, got "


@pytest.mark.parametrize("line, complaint", [
    (b'{"question": ', f"{EXPECTED}something else (Expecting value: line 1 column 14 (char 13))"),
    (b"", "expected a question, got a blank line"),
    (b'"\xff"', f"{EXPECTED}something else ('utf-8' codec can't decode byte 0xff in position 1: invalid start byte)"),
    ([1, 2], f"{EXPECTED}[1, 2]"),
    ({"question": "?", "answer": 1}, 'expected a JSON object with database, got {"question": "?", "answer": 1}'),
    (GOOD | {"gold_sq": "SELECT 1"}, "unknown key 'gold_sq' (did you mean 'gold_sql'?): the keys are question, answer, "
                                     "database, gold_sql, kind"),
    (GOOD | {"question": 3}, "question: expected a text, got 3"),
    (GOOD | {"question": " \n"}, 'question: expected a text, got " \\n"'),
    (GOOD | {"database": ""}, 'database: expected a text, got ""'),
    (GOOD | {"gold_sql": None}, "gold_sql: expected a text, got null"),
    (GOOD | {"kind": 7}, "kind: expected a text, got 7"),
    (GOOD | {"question": "\ud800"}, f"{EXPECTED}something else ('utf-8' codec can't encode character '\\ud800' in position "
                                    "14: surrogates not allowed)"),
    (GOOD | {"answer": True}, "answer: expected a text, a number or a list of them, got true"),
    (GOOD | {"answer": None}, "answer: expected a text, a number or a list of them, got null"),
    (GOOD | {"answer": [1, [2.5]]}, 'answer: expected a text, a number or a list of them, got [1, ["2.5"]]'),
    (GOOD | {"answer": float("nan")}, f"{EXPECTED}something else (NaN is no number that can be written out)"),
    (b'{"question": "?", "answer": 1e999999999, "database": "d"}',
     f"{EXPECTED}something else (1e999999999 is no number that can be written out)"),
    (GOOD | {"answer": ""}, 'answer: "" is empty: there is nothing to compare with'),
    (GOOD | {"answer": " , "}, 'answer: " , " is empty: there is nothing to compare with'),
    (GOOD | {"answer": []}, "answer: [] is empty: there is nothing to compare with"),
    (GOOD | {"answer": ["", " "]}, 'answer: ["", " "] is empty: there is nothing to compare with'),
])
def test_a_line_that_is_no_question_is_named(tmp_path, line, complaint):
    write(tmp_path, GOOD, line, GOOD)
    assert sentence(tmp_path) == f"{tmp_path / 'train.jsonl'}:2: {complaint}"


def test_a_file_without_questions(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b" \n\n")
    assert sentence(tmp_path) == f"{tmp_path / 'train.jsonl'} holds no questions"


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    assert sentence(tmp_path) == f"unknown split 'train': {tmp_path} has no *.jsonl"
    write(tmp_path, GOOD)
    write(tmp_path, GOOD, split="dev")
    assert sentence(tmp_path, "trian") == (f"unknown split 'trian' (did you mean 'train'?): {tmp_path} has dev.jsonl, "
                                           f"train.jsonl")
    assert sentence(tmp_path / "nowhere") == f"there is no folder {tmp_path / 'nowhere'} of questions"


@pytest.mark.parametrize("name", ["../train", "inner/../train", "train.jsonl", ""])
def test_a_split_is_a_name_and_no_way_to_a_file(tmp_path, name):
    (tmp_path / "inner").mkdir()
    write(tmp_path, GOOD)
    write(tmp_path / "inner", GOOD, split="dev")
    assert sentence(tmp_path / "inner", name).startswith(f"unknown split {name!r}")
