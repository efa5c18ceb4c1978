"""A data set of the SQL task is one file and one row: a toy data set is added, and its questions and tables are loaded."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from minigrpo import config
from minigrpo.common import settings
from minigrpo.common.clock import Clock
from minigrpo.common.errors import UserError
from minigrpo.task.sql.data.dataset import CONSTANT_ANSWER, Dataset, check_gold_sql
from minigrpo.task.sql.task import DATASETS, SQLTask

# The file: two questions on one table, each the same in both splits.
TOY = '''
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.engines.database import Column, Table
from minigrpo.task.sql.answer import Question

PETS = Table("Pet", (Column("id", "INT"), Column("name", "TEXT")), ((1, "Rex"), (2, "Tom")))


def load(path: str, split: str, gold_sql: str) -> list[Question]:
    asked = [("How many pets are there?", "2", "SELECT COUNT(*) FROM Pet"), ("Who is pet 1?", "Rex", None)]
    return [Question(f"{split}/{i}", split, i, text, answer, "pets", "", sql) for i, (text, answer, sql) in enumerate(asked)]


DATASET = Dataset(load=load, has_split=lambda path, split: split in ("train", "test"),
                  test_splits=lambda path, train: ["test"], tables=lambda path: {"pets": (PETS,)}, constant_answer="2, Rex")
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file as a module, with its row in the table of data sets."""
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("toy", tmp_path / "toy.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(DATASETS, "toy", module.DATASET)
    return module


def test_a_data_set_is_one_file_and_one_row(toy: ModuleType) -> None:
    """Only its kind is named. The rows that an engine returns for its gold SQL give its answers."""
    cfg = settings.build(config.Config, {"task.kind": "toy", "database.engine": "sqlite", "reward.preset": "strict"})
    task = SQLTask(cfg)
    questions = task.load("train")
    assert [question.text for question in questions] == ["How many pets are there?", "Who is pet 1?"]
    assert task.test_splits() == ["test"] and [task.has_split(split) for split in ("train", "dev")] == [True, False]
    with task:
        assert list(task.tables) == ["pets"] and task.second == ""
        assert "CREATE TABLE Pet" in task.prompt(questions[0]) and "'Rex'" in task.prompt(questions[0])
        (verdict,) = task.judge([(questions[0], questions[0].gold_sql)], Clock())
        assert (verdict.status, verdict.answer, verdict.terms["strict"]) == ("ok", "2", 1)


def test_every_data_set_says_where_its_databases_are() -> None:
    """Two are loaded; the user's own exist already. A data set that says both, or neither, is refused."""
    assert {kind: dataset.tables is not None for kind, dataset in DATASETS.items()} == {
        "temptabqa": True, "athletes": True, "jsonl": False}
    assert {kind: dataset.second for kind, dataset in DATASETS.items()} == {
        "temptabqa": "", "athletes": "reshuffled", "jsonl": ""}
    assert {dataset.constant_answer for dataset in DATASETS.values()} == {CONSTANT_ANSWER}
    parts = {"load": lambda *_: [], "has_split": lambda *_: False, "test_splits": lambda *_: []}
    for databases in ({}, {"tables": lambda _: {}, "database_names": lambda _: []}):
        with pytest.raises(AssertionError, match="databases are either loaded or exist already"):
            Dataset(**parts, **databases)


def test_the_constant_answer_has_small_numbers_and_years() -> None:
    """0 … 40, Yes, No, 1980 … 2024: 41 + 2 + 45 parts."""
    parts = CONSTANT_ANSWER.split(", ")
    assert len(parts) == len(set(parts)) == 88 and {"0", "40", "Yes", "No", "1980", "2024"} <= set(parts)


def test_gold_sql_of_another_data_set_is_refused() -> None:
    check_gold_sql("toy", "", False, "nowhere")             # no gold SQL is named
    check_gold_sql("toy", "toy", True, '"toy"')
    with pytest.raises(UserError, match='^warmup.source, reward.gold_sql: gold SQL for task.kind = "toy" comes from "toy", got "x"$'):
        check_gold_sql("toy", "x", False, '"toy"')
