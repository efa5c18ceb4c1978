"""evaluate.py: rows and figures that can be recomputed by hand, files of predictions that anything may have written. One question
at a policy that writes SQL and a real engine: what stands on the console, and within which edges."""

import dataclasses
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.common.device import generator
from minigrpo.config import Config, Generation, load_config
from minigrpo.evaluation import evaluate
from minigrpo.evaluation.evaluate import (
    add_ceilings,
    before_after,
    blind_guesses,
    evaluate_policy,
    judge_rows,
    read_predictions,
    report_splits,
    show_candidates,
    show_report,
    write_candidates,
)
from minigrpo.evaluation.figures import summarise
from minigrpo.policy.generation.search import Completion
from minigrpo.rollout import Group, Rollout, generate
from minigrpo.task.contract import Verdict
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data import athletes
from minigrpo.task.sql.data.temptabqa import load_questions
from minigrpo.task.sql.engines.database import STATUSES, Column, Database, Execution, MockDatabase, Table
from minigrpo.task.sql.engines.sqlite import open_sqlite
from minigrpo.task.sql.reward import make_reward
from minigrpo.task.sql.task import SQLTask
from minigrpo.training.starting_model import load_start
from tests.given_task import GivenTask

FIELDS = ["split", "index", "kind", "question", "gold", "sql", "status", "answer", "ems", "rems", "strict", "invented"]


@dataclasses.dataclass(frozen=True)
class Gives:
    """A database that gives the same to every query."""

    execution: Execution

    def run(self, sql: str | None, database_name: str) -> Execution:
        return self.execution

    def close(self) -> None:
        pass


def score_row(question: Question, sql: str | None, execution: Execution) -> dict:
    """The row of a query that gave ``execution``, on a database whose schema has the value 2012."""
    task = GivenTask(lambda asked: asked.text, Gives(execution), make_reward("paper"), schema=lambda database: f"{database}: 2012")
    row, = judge_rows([(question, sql)], task)
    return row


def question(answer: str, index: int = 0, split: str = "t", kind: str = "1", gold: str | None = None) -> Question:
    return Question(f"{split}/{index}", split, index, "?", answer, "original", kind, gold)


# ------------------------------------------------------------------------------------------------------------------ rows
def test_a_row_by_hand():
    """Gold "Suva, Kraków"; output "Suva 2012, Suva": one of two parts is found as whole words, so REMS is 0.5 and EMS 0."""
    row = score_row(question("Suva, Kraków", 7), "SELECT ...", Execution("ok", (("Suva", 2012), ("Suva",))))
    assert list(row) == FIELDS
    assert row == {"split": "t", "index": 7, "kind": "1", "question": "?", "gold": "Suva, Kraków", "sql": "SELECT ...",
                   "status": "ok", "answer": "Suva 2012, Suva", "ems": 0, "rems": 0.5, "strict": 0, "invented": 0}
    both = score_row(question("Suva, Kraków"), "S", Execution("ok", (("Kraków",), ("Suva",))))
    assert (both["ems"], both["rems"], both["strict"]) == (1, 1.0, 1)
    more = score_row(question("Suva"), "S", Execution("ok", (("Kraków",), ("Suva",))))     # too much: wrong if strict
    assert (more["ems"], more["rems"], more["strict"]) == (1, 1.0, 0)


@pytest.mark.parametrize("status", ["no_sql", "refused", "syntax", "timeout", "too_large", "other"])
def test_an_error_answers_nothing_even_where_the_answer_is_none(status):
    row = score_row(question("None"), None, Execution(status, (("None",),)))
    assert (row["status"], row["answer"], row["ems"], row["rems"], row["strict"]) == (status, "", 0, 0.0, 0)


def test_a_value_that_neither_question_nor_its_own_database_has_is_invented():
    """The question "?" has no value, the schema 2012; an error has what its SQL says, and no SQL says nothing."""
    for sql, invented in (("SELECT 2012", 0), ("SELECT 2013", 1), ("SELECT 'original'", 0), ("SELECT 'other'", 1), (None, 0)):
        assert score_row(question("2"), sql, Execution("syntax"))["invented"] == invented, sql


# ------------------------------------------------------------------------------------------------- what luck could have done
def test_who_has_not_read_the_question_says_what_is_said_most_often():
    """Of kind count: 2 twice, 3 once. Of kind yes a tie, which the earlier one wins. An answer counts as a whole text."""
    train = [question(answer, kind=kind) for kind, answer in (
        ("count", "3"), ("yes", "Yes"), ("count", "2"), ("list", "a, b"), ("yes", "No"), ("count", "2"), ("list", "b, a"))]
    assert blind_guesses(train) == {"count": "2", "yes": "Yes", "list": "a, b"}
    assert blind_guesses([]) == {}


PETS = {"first": (Table("Pet", (Column("id", "INT"), Column("name", "TEXT")), ((1, "a"), (2, "b"))),
                  Table("OnlyHere", (Column("id", "INT"),), ((1,), (2,)))),
        "second": (Table("Pet", (Column("id", "INT"), Column("name", "TEXT")), ((4, "b"), (5, "c"), (6, "c"))),)}
COUNT, LIST = "SELECT COUNT(*) FROM Pet", "SELECT name FROM Pet"


def judged(cases: list[tuple[str | None, str, str | None]], *, second: str, guesses: dict[str, str] | None) -> list[dict]:
    """Rows of (our SQL, gold answer, gold SQL), run on "first" and looked at again on ``second``, "" for none."""
    questions = [dataclasses.replace(question(answer, i, gold=gold), database="first")
                 for i, (_, answer, gold) in enumerate(cases)]
    with GivenTask(lambda asked: asked.text, open_sqlite(PETS), make_reward("paper"), second=second) as task:
        rows = judge_rows(list(zip(questions, [sql for sql, _, _ in cases])), task)
        before = [dict(row) for row in rows]
        add_ceilings(rows, questions[::-1], guesses, task)              # questions in any order
    assert all(row.items() >= old.items() and list(row)[:len(old)] == list(old) for row, old in zip(rows, before))
    return rows


SUITE = [
    (COUNT, "2", COUNT, 1, 1),                                  # two pets in the first, three in the second: found in both
    ("SELECT 2", "2", COUNT, 1, 0),                             # right by chance, found out: there it is 3
    ("SELECT COUNT(*) FROM OnlyHere", "2", COUNT, 1, 0),        # right, and an error on the second
    ("SELECT 3", "2", COUNT, 0, 0),                             # right on the second only
    ("SELECT MIN(id) + 1 FROM Pet", "2", COUNT, 1, 0),          # 5 there
    ("SELECT nothing FROM Pet", "2", COUNT, 0, 0),              # an error on both
    (None, "2", COUNT, 0, 0),
    (LIST + " ORDER BY id DESC", "a, b", LIST, 1, 1),           # in another order
    ("SELECT DISTINCT name FROM Pet", "a, b", LIST, 1, 1),      # once what gold SQL says twice
    ("SELECT name FROM Pet WHERE id < 6", "a, b", LIST, 1, 1),  # luck that two databases do not find out
    ("SELECT name, 1 FROM Pet", "a 1, b 1", LIST, 1, 0),        # another column
    ("SELECT 'b' UNION SELECT 'a'", "a, b", LIST, 1, 0),
    # an error there, where gold SQL finds nothing: not the same
    ("SELECT name FROM Pet WHERE id IN (SELECT id FROM OnlyHere)", "a, b", LIST + " WHERE id < 4", 1, 0),
    # nothing there, where gold SQL finds nothing either, and where gold SQL itself fails: the one is right, the other no match
    ("SELECT name FROM Pet WHERE id < 3", "a, b", LIST + " WHERE id < 4", 1, 1),
    ("SELECT name FROM Pet WHERE id < 3", "a, b", "SELECT name FROM Pet, OnlyHere", 1, 0),
]


@pytest.mark.parametrize("sql, answer, gold, strict, suite", SUITE)
def test_a_second_database_finds_out_what_is_right_by_chance(sql, answer, gold, strict, suite):
    row, = judged([(sql, answer, gold)], second="second", guesses={})
    assert (row["strict"], row["suite"]) == (strict, suite)


def test_many_rows_are_judged_as_each_alone():
    rows = judged([(sql, answer, gold) for sql, answer, gold, _, _ in SUITE[:-1]], second="second", guesses={"1": "2"})
    assert [row["suite"] for row in rows] == [suite for *_, suite in SUITE[:-1]]
    assert list(rows[0]) == [*FIELDS, "blind", "constant", "suite"]


def test_no_second_database_or_no_gold_sql_no_suite():
    assert not any("suite" in row for row in judged([(COUNT, "2", COUNT), (None, "2", None)], second="", guesses={}))
    with_gold, without = judged([(COUNT, "2", COUNT), (COUNT, "2", None)], second="second", guesses={})
    assert with_gold["suite"] == 1 and "suite" not in without
    assert "suite" not in summarise([with_gold, without], {"t": 2}, STATUSES)["t"]
    assert judged([], second="second", guesses={}) == []


def test_a_blind_guess_is_right_where_it_is_the_whole_answer():
    """The guess is "2": right for "2" and " 2", not for "2, 3" nor "12"; a kind that training has not seen has no guess."""
    answers = ["2", " 2", "2, 3", "12"]
    rows = judged([(None, answer, None) for answer in answers], second="", guesses={"1": "2"})
    assert [row["blind"] for row in rows] == [1, 1, 0, 0]
    assert [row["blind"] for row in judged([(None, "2", None)], second="", guesses={"other": "2"})] == [0]
    assert not any("blind" in row for row in judged([(None, "2", None)], second="", guesses=None))     # nobody knows a guess


def test_one_answer_to_all_satisfies_ems_for_counts_years_and_yes():
    """0 to 40, Yes, No, 1980 to 2024: the ends are in, what lies beyond or is a name is not, and a list needs every part."""
    answers = {"0": 1, "40": 1, "41": 0, "1979": 0, "1980": 1, "2024": 1, "Yes": 1, "No, 3": 1, "Suva": 0, "3, Suva": 0}
    rows = judged([(None, answer, None) for answer in answers], second="", guesses={})
    assert [row["constant"] for row in rows] == list(answers.values())


# ------------------------------------------------------------------------------------------------------------ before, after
def figures(strict: float, ems: float, rems: float, errors: float, **more: float) -> dict:
    return {"n": 2, "strict": strict, "ems": ems, "rems": rems, "error_rate": errors, **more}


def test_before_and_after_to_the_letter():
    """A line for each kind, by name; all together last. A blind guess is the same before and after."""
    before = figures(20.0, 30.0, 40.0, 10.0, suite=15.0, blind=5.0) | {
        "n": 4, "of": 4, "kinds": {"easy/b": figures(0.0, 0.0, 0.0, 100.0, suite=0.0, blind=0.0),
                                   "easy/a": figures(33.33, 50.0, 66.67, 0.0, suite=33.0, blind=9.6)}}
    after = figures(60.4, 70.0, 80.0, 0.0, suite=55.0, blind=5.0) | {
        "n": 4, "of": 4, "kinds": {"easy/a": figures(66.67, 80.0, 90.0, 0.0, suite=66.0, blind=9.6),
                                   "easy/b": figures(10.0, 20.0, 30.0, 40.0, suite=0.0, blind=0.0)}}
    lines = before_after("dev", before, after).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["dev", "strict", "EMS", "REMS", "errors", "suite", "blind"],
        "easy/a 33→67 50→80 67→90 0→0 33→66 10".split(),
        "easy/b 0→10 0→20 0→30 100→40 0→0 0".split()]
    assert lines[3].split() == "all 4 20.0→60.4 30.0→70.0 40.0→80.0 10.0→0.0 15.0→55.0 5.0".split()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1          # flush on the right


def test_before_and_after_without_a_second_database_to_the_letter():
    before = figures(0.0, 0.0, 50.0, 100.0) | {"n": 1, "of": 1, "kinds": {"1": figures(0.0, 0.0, 50.0, 100.0)}}
    after = figures(100.0, 100.0, 100.0, 0.0) | {"n": 1, "of": 1, "kinds": {"1": figures(100.0, 100.0, 100.0, 0.0)}}
    shown = before_after("dev", before, after)
    assert shown.splitlines()[:2] == [line for line in shown.splitlines() if "all" not in line]
    assert [line.split() for line in shown.splitlines()[:2]] == [["dev", "strict", "EMS", "REMS", "errors"],
                                                                 "1 0→100 0→100 50→100 100→0".split()]


@pytest.mark.parametrize("split", list(athletes.SPLITS))
def test_before_and_after_is_never_wider_than_80_columns(split):
    """The widest there is, all athletes' kinds beside it: 99.9 everywhere, for 100 needs no decimal."""
    every = figures(99.9, 99.9, 99.9, 99.9, suite=99.9, blind=99.9)
    kinds = {kind.name: every for kind in athletes.KINDS}
    summary = every | {"n": 9999, "of": 9999, "kinds": kinds}
    shown = before_after(split, summary, summary).splitlines()
    assert len(shown) == 1 + len(kinds) + 1 and max(map(len, shown)) <= 80


def test_a_report_on_the_console(capsys):
    """A table for each split, in their order, and what the two last columns are."""
    right = figures(100.0, 100.0, 100.0, 0.0, blind=0.0)
    one = right | {"n": 2, "of": 2, "kinds": {"k": right}}
    record = {"steps": 3, "before": {"heldout": one, "dev": one}, "after": {"heldout": one, "dev": one}}
    show_report(record)
    shown = capsys.readouterr().out
    for split in ("heldout", "dev"):
        assert before_after(split, one, one) in shown
    assert shown.index("heldout") < shown.index("dev") and max(map(len, shown.splitlines())) <= 80


# ----------------------------------------------------------------------------------------------------------- predictions
def write(tmp_path, text: str | bytes):
    file = tmp_path / "p.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_predictions_from_anywhere(tmp_path):
    """Blank lines, other keys, Windows line ends, no SQL at all, and separators that are no line ends."""
    file = write(tmp_path, '{"split": "dev", "index": 1, "sql": "SELECT \u2028\x85", "type": 3}\r\n\n'
                           '{"sql": null, "index": 0, "split": "dev"}\r\n{"split": "train", "index": 0, "sql": ""}')
    assert list(read_predictions(file, "sql").items()) == [(("dev", 1), "SELECT \u2028\x85"), (("dev", 0), None), (("train", 0), "")]
    assert read_predictions(write(tmp_path, ""), "sql") == {}


GOOD = '{"split": "dev", "index": 0, "sql": "SELECT 1"}\n'
EXPECTED = "expected a JSON object with split (text), index (integer) and sql (text or null), got "


@pytest.mark.parametrize("line, sentence", [
    ("SELECT 1", f"{EXPECTED}something else (Expecting value"),
    ('{"split": "dev", "index": 1, "sql": "SEL', f"{EXPECTED}something else (Unterminated string"),
    ('["dev", 1, "SELECT 1"]', f"{EXPECTED}[\"dev\", 1"),
    ("3", f"{EXPECTED}3"),
    ('{"split": "dev", "index": 1, "sql": "\\ud800"}', f"{EXPECTED}something else ("),
    ('{"split": "dev", "index": 1}', "expected a JSON object with sql (text or null), got "),
    ('{"split": "dev", "index": "1", "sql": "x"}', 'expected a JSON object with index (integer), got {"index": "1"}'),
    ('{"split": "dev", "index": 1.0, "sql": "x"}', 'expected a JSON object with index (integer), got {"index": 1.0}'),
    ('{"split": "dev", "index": true, "sql": "x"}', 'expected a JSON object with index (integer), got {"index": true}'),
    ('{"split": ["dev"], "index": 1, "sql": "x"}', 'expected a JSON object with split (text), got {"split": ["dev"]}'),
    ('{"split": "dev", "index": 1, "sql": ["x"]}', 'expected a JSON object with sql (text or null), got {"sql": ["x"]}'),
    ('{"split": "dev", "index": 0, "sql": "x"}', "dev/0 is given a second time"),
])
def test_a_line_that_is_no_prediction(tmp_path, line, sentence):
    file = write(tmp_path, GOOD + line)
    with pytest.raises(ValueError) as caught:
        read_predictions(file, "sql")
    assert str(caught.value).startswith(f"{file}:2: {sentence}") and "\n" not in str(caught.value)


def test_files_that_hold_no_predictions(tmp_path):
    with pytest.raises(ValueError, match=f"--predictions: there is no file {tmp_path}/none.jsonl"):
        read_predictions(tmp_path / "none.jsonl", "sql")
    with pytest.raises(ValueError, match=f"--predictions: there is no file {tmp_path}"):
        read_predictions(tmp_path, "sql")
    with pytest.raises(ValueError, match="p.jsonl:1: expected a JSON object"):
        read_predictions(write(tmp_path, b"\xff\xfe{\x00"), "sql")


def test_predictions_keep_their_order_and_run_on_their_own_database(small_toml):
    """Silver of 2014 exists in the original only; the same SQL on two databases is two queries."""
    cfg = load_config(small_toml, ["run.out=unused"])
    asked = [load_questions(cfg.task.path, split)[0] for split in ("counterfactual", "train", "dev")]
    silver = "SELECT COUNT(*) FROM Medal WHERE type = 'MedalSilver' AND year = 2014"
    with make_task(cfg) as task:
        rows = judge_rows(list(zip(asked, [silver, silver, None])), task)
    assert [(row["split"], row["answer"], row["status"]) for row in rows] == [
        ("counterfactual", "0", "ok"), ("train", "1", "ok"), ("dev", "", "no_sql")]


# ---------------------------------------------------------------------------------------------------------------- policy
def test_a_policy_is_asked_greedily_and_batches_change_nothing(small_toml, monkeypatch):
    """A question's row is the same whatever it is decoded beside, and whatever the config trains with. They come as they
    are decoded, short prompts first."""
    cfg = load_config(small_toml, ["run.out=unused"])
    asked = [question for split in ("train", "counterfactual", "medium") for question in load_questions(cfg.task.path, split)]
    with make_task(cfg) as task:
        policy = load_start(cfg, task)

        def evaluated(questions, generation, batch):
            return sorted(evaluate_policy(questions, policy, task, generation, batch), key=place)

        def place(row):
            return row["split"], row["index"]

        rows = evaluated(asked, cfg.generation, 16)
        assert [place(row) for row in rows] == sorted((question.split, question.index) for question in asked)
        first = next(evaluate_policy(asked, policy, task, cfg.generation, 1))
        assert place(first) == min((len(task.prompt(q)), i, (q.split, q.index)) for i, q in enumerate(asked))[2]
        assert all(list(row) == FIELDS and row["sql"].startswith("SELEC") for row in rows)
        for batch in (1, 3):
            assert evaluated(asked, cfg.generation, batch) == rows
        roots, read = [], policy.model.read
        monkeypatch.setattr(policy.model, "read", lambda ids: ids and roots.append(ids) or read(ids))      # () is no root
        evaluated(asked, cfg.generation, 3)
        assert 0 < len(roots) == len(set(roots)) < len(asked) / 3           # what batches share is read once for all
        beams = load_config(small_toml, ["run.out=unused", "generation.method=beam", "generation.temperature=5"])
        assert evaluated(asked, beams.generation, 4) == rows
        assert evaluated(asked[::-1], cfg.generation, 16) == rows
        assert evaluated([], cfg.generation, 16) == []
        assert json.dumps(rows)


@dataclasses.dataclass(frozen=True)
class Counting:
    """A real database that keeps a list of what it is asked."""

    database: Database
    asked: list[tuple[str | None, str]]

    def run(self, sql: str | None, database_name: str) -> Execution:
        self.asked.append((sql, database_name))
        return self.database.run(sql, database_name)

    def close(self) -> None:
        self.database.close()


def test_a_prompt_that_recurs_is_decoded_once_and_each_query_runs_once(small_toml, monkeypatch):
    """Twelve questions: four texts, each asked twice of one database (of which once with another answer) and once of another.
    The two schemas are alike, so that makes four prompts. The model knows five statements, so of ten possible queries none may
    run twice, also not in different batches."""
    cfg = load_config(small_toml, ["run.out=unused"])
    asked = [Question(f"{split}/{i}", split, i, f"How many of {'x' * i}?", answer, database, "k")
             for split, database, answer in (("a", "original", "1"), ("b", "original", "2"), ("c", "counterfactual", "1"))
             for i in range(4)]
    decoded = []

    def watched(policy, prompts, *arguments, **options):
        decoded.extend(policy.tokenizer.decode(prompt) for prompt in prompts)
        return generate(policy, prompts, *arguments, **options)

    monkeypatch.setattr(evaluate, "generate", watched)
    with make_task(cfg) as task:
        task.database = counting = Counting(task.database, [])
        rows = list(evaluate_policy(asked, load_start(cfg, task), task, cfg.generation, 2))
        assert task.database is counting                                # after the evaluation nothing is remembered
        assert set(decoded) == set(map(task.prompt, asked)) and len(decoded) == 4
    assert len(counting.asked) == len(set(counting.asked)) <= 10
    assert {database for _, database in counting.asked} == {"original", "counterfactual"}
    by_place = {(row["split"], row["index"]): row for row in rows}
    assert len(rows) == len(by_place) == 12
    for i in range(4):
        first, again, other = (by_place[split, i] for split in "abc")
        assert (first["sql"], first["answer"]) == (again["sql"], again["answer"]) and other["sql"] == first["sql"]
        assert [first["strict"], again["strict"]] == [int(first["answer"] == wanted) for wanted in "12"]


def test_a_report_is_an_evaluation_with_luck_beside_it(sql_model, small_toml):
    """Athletes of two splits: the same rows as without a report, each with blind and suite; the figures are those rows'."""
    cfg = load_config(small_toml, ["run.out=unused", "task.kind=athletes", "task.template=compact"])
    with make_task(cfg) as task:
        policy, train = load_start(cfg, task), task.load("train")
        splits = {split: task.load(split)[:40] for split in ("heldout", "counterfactual")}
        rows, summary = report_splits(splits, train, policy, task, cfg.generation, 16)
        plain = list(evaluate_policy([*splits["heldout"], *splits["counterfactual"]], policy, task, cfg.generation, 16))
    assert [(row["split"], row["index"]) for row in rows] == [(split, index) for split in splits for index in range(40)]
    assert sorted(plain, key=lambda row: (row["split"] != "heldout", row["index"])) == [
        {name: row[name] for name in FIELDS} for row in rows]
    assert {split: {name: value for name, value in of.items() if name != "interval"} for split, of in summary.items()} \
        == summarise(rows, {"heldout": 40, "counterfactual": 40}, STATUSES) and len(rows) == 80
    for of in summary.values():
        assert of["interval"].keys() == of.keys() - {"n", "of", "status", "kinds", "interval"}
        assert all(low <= of[name] <= high for name, (low, high) in of["interval"].items())
    guesses = blind_guesses(train)
    for row in rows:
        asked = splits[row["split"]][row["index"]]
        assert list(row) == [*FIELDS, "blind", "constant", "suite"]
        assert row["kind"] == asked.kind and row["suite"] <= row["strict"]
        assert row["blind"] == (set(guesses[asked.kind].split(", ")) == set(asked.answer.split(", ")))


# ------------------------------------------------------------------------------------ one question that nobody has answered
ASKED = Question("--ask", "", 0, "How many?", "", "original", "")
TASK = GivenTask(lambda question: question.text, MockDatabase(), make_reward("paper"))


def candidate(sql: str | None, execution: Execution, *logprobs: float, stopped: bool = True) -> Rollout:
    completion = Completion((1,) * len(logprobs), logprobs, stopped)
    return Rollout(completion, f"{sql};", Verdict(0.0, {}, execution.status, "", sql, execution.error, execution))


def group(*rollouts: Rollout, text: str = "How many?") -> Group:
    return Group(dataclasses.replace(ASKED, text=text), (1,), rollouts)


# ------------------------------------------------------------------------------------------------------------- by hand
MEDALS = Execution("ok", (("Ana", Decimal("2.50")), ("Zoë", None)), ("name", "mean"))
WRONG = Execution("unknown_column", error="no such column: x")
THREE = group(candidate("SELECT x", WRONG, -0.25, -0.125),
              candidate("SELECT name, mean FROM t", MEDALS, -0.125, -0.125, -0.125, -0.125),
              candidate("SELECT name, mean FROM t", MEDALS, -0.5, -0.5, -0.5, -0.5))


def test_beams_best_first_by_hand():
    """Scores per token: −0.375 / 2 = −0.1875, −0.5 / 4 = −0.125 and −2 / 4 = −0.5; the same SQL twice stands once, with the
    better of its scores."""
    assert show_candidates(THREE, TASK, Generation(method="beam", completions=3)) == """\
  question  How many?
  database  original
  method    3 beams, scored Σ log-prob / length^1

  score     -0.125, written 2 times
  SQL       SELECT name, mean FROM t
  gave      name  mean
            Ana    2.5
            Zoë   None

  score     -0.188
  SQL       SELECT x
  gave      unknown_column: no such column: x"""


def test_samples_are_scored_by_the_sum_alone():
    """−0.375 is now before −0.5."""
    shown = show_candidates(THREE, TASK, Generation(method="sample", completions=3, temperature=0.6)).split("\n")
    assert shown[2] == "  method    3 samples at temperature 0.6, scored Σ log-prob"
    assert [line for line in shown if "score  " in line] == ["  score     -0.375", "  score     -0.5, written 2 times"]


def test_a_length_penalty_of_nothing_is_the_sum_too():
    shown = show_candidates(THREE, TASK, Generation(method="beam", completions=3, length_penalty=0.0))
    assert "length^0" in shown and re.findall(r"score {5}(\S+)", shown) == ["-0.375", "-0.5,"]


def test_no_sql_no_rows_and_a_candidate_that_was_cut_off():
    shown = show_candidates(group(candidate(None, Execution("no_sql"), -1.0, stopped=False),
                                  candidate("SELECT 1 WHERE 0", Execution("ok", (), ("1",)), -2.0)), TASK, Generation())
    assert shown.split("\n\n")[1:] == [
        "  score     -1, cut off after 1 tokens\n  SQL       nothing\n  gave      no_sql",
        "  score     -2\n  SQL       SELECT 1 WHERE 0\n  gave      no rows"]


# ------------------------------------------------------------------------------------------------------------- its edges
CELLS = st.one_of(st.none(), st.integers(), st.floats(), st.binary(max_size=9), st.text(max_size=200))


@given(st.data())
def test_whatever_a_model_and_a_database_say_stays_within_80_columns_and_commands_no_terminal(data):
    width = data.draw(st.integers(1, 12))
    names = st.tuples(*[st.text(max_size=100)] * width)
    execution = Execution("ok", tuple(data.draw(st.lists(st.tuples(*[CELLS] * width), max_size=12))), data.draw(names))
    failed = Execution("other", error=data.draw(st.text()))
    shown = show_candidates(group(candidate(data.draw(st.text()), execution, -1.0), candidate("x", failed, -1e-9),
                                  text=data.draw(st.text())), TASK, Generation(completions=99, length_penalty=-3.25))
    assert all(len(line) < 80 and line.isprintable() for line in shown.split("\n"))


def test_escape_sequences_are_shown_as_what_they_are():
    execution = Execution("ok", (("\x1b[2J\x07",),), ("\x9b1m",))
    failed = Execution("syntax", error="near \x1b[31m\r\nhere")
    shown = show_candidates(group(candidate("SELECT '\x1b]0;title\x07'", execution, -1.0), candidate("x", failed, -2.0),
                                  text="\u202eWho?"), TASK, Generation())
    assert "\ufffdWho?" in shown and "SELECT '\ufffd]0;title\ufffd'" in shown and "near \ufffd[31m here" in shown
    assert "  gave      \ufffd1m\n            \ufffd[2J\ufffd\n" in shown


# ------------------------------------------------------------------------------------------------------------ the recipe
@pytest.fixture
def ask(cli, eval_recipe, small_toml, tmp_path, monkeypatch):
    """``ask("Who?", "--set", ...)`` in an empty folder and without a run.out; nothing may be there afterwards."""
    def call(*arguments: object, status: int = 0, config: Path = small_toml) -> str:
        monkeypatch.chdir(tmp_path)
        ended = cli(eval_recipe, "--set", "run.out=", "--ask", *arguments, config=config)
        assert ended.status == status, ended
        assert not list(tmp_path.iterdir())
        return ended.err if status else ended.out
    return call


def test_one_question_and_what_each_candidate_gives(ask):
    """Four draws of a policy that writes SELECT and a digit: that digit stands in the one row, under a name that SQLite
    takes from it; together they are four."""
    head, *candidates = ask("  How many medals\x1b?").rstrip().split("\n\n")
    assert head == ("  question  How many medals\ufffd?\n  database  original\n"
                    "  method    4 samples at temperature 1, scored Σ log-prob")
    count, scores = 0, []
    for text in candidates:
        score, sql = re.match(r"  score     (-\d\S*?)(?:,.*)?\n  SQL       (.*)\n  gave      ", text).groups()
        times = re.search(r"written (\d) times", text)
        count, scores = count + (int(times[1]) if times else 1), [*scores, float(score)]
        digit = re.fullmatch(r"SELECT (\d)", sql)
        gave = text.partition("  gave      ")[2]
        assert gave == (f"{digit[1]}\n            {digit[1]}" if digit else "refused: does not begin with SELECT or WITH")
    assert count == 4 and scores == sorted(scores, reverse=True) and len(candidates) > 1


def test_samples_are_drawn_by_the_seed(ask):
    seeds = [ask("Who?", "--set", f"run.seed={seed}") for seed in (0, 0, 1, 2, 3)]
    assert seeds[0] == seeds[1] and len(set(seeds)) > 1


def written(task: SQLTask, cfg: Config) -> Group:
    return write_candidates(task.pose("Who?", "original", "dev"), load_start(cfg, task), task, cfg.generation,
                            generator(0, 0, "ask"))


def test_beams_as_the_search_ranks_them(ask, small_toml):
    """The best two of the policy itself, their SQL in the search's order."""
    shown = ask("Who?", "--set", "generation.method=beam", "--set", "generation.completions=2")
    cfg = load_config(small_toml, ["generation.method=beam", "generation.completions=2"])
    with make_task(cfg) as task:
        found = written(task, cfg)
    assert re.findall(r"SQL {7}(.*)\n", shown) == [rollout.verdict.extracted for rollout in found.rollouts] and len(found.rollouts) == 2


def test_an_answer_needs_no_reward(small_toml):
    """Whatever the config's reward makes of a question without a known answer, it is not asked."""
    cfg = load_config(small_toml)
    with make_task(cfg) as task:
        with pytest.raises(ValueError, match="is empty"):
            task.reward(ASKED, "SELECT 1", Execution("ok", ((1,),)))
        found = written(task, cfg)
    assert [rollout.verdict.reward for rollout in found.rollouts] == [0.0] * 4


def test_which_database_is_asked(ask, small_toml):
    """That of the evaluation split unless one is named; the prompt shows its values: Kraków is in the original alone."""
    assert "  database  original\n" in ask("Who?")
    assert "  database  counterfactual\n" in ask("Who?", "--set", "evaluation.split=counterfactual")
    assert "  database  counterfactual\n" in ask("Who?", "--database", "counterfactual")
    cfg = load_config(small_toml, ["task.samples=3"])
    with make_task(cfg) as task:
        assert list(task.tables) == ["original", "counterfactual", "renamed"]
        assert "'Kraków'" in task.prompt(task.pose("Who?", "original", "dev"))
        assert "'Kraków'" not in task.prompt(task.pose("Who?", "counterfactual", "dev"))


def test_an_adapter_is_looked_for_where_one_is_given(ask):
    assert "nowhere/adapter_config.json is missing" in ask("Who?", "--adapter", "nowhere", status=1)


@pytest.mark.parametrize("arguments, sentence", [
    ([""], "--ask: the question is empty"),
    ([" \n"], "--ask: the question is empty"),
    (["caf\udce9?"], "--ask: the question is not UTF-8"),
    (["Who?", "--database", "orginal"],
     "--database: unknown database 'orginal' (did you mean 'original'?): there are original, counterfactual, renamed"),
    (["Who?", "--database", ""], "--database: unknown database '': there are original, counterfactual, renamed"),
])
def test_mistakes_are_one_sentence(ask, arguments, sentence):
    assert ask(*arguments, status=1) == f"eval.py: {sentence}\n"


def test_a_question_too_long_for_the_context_is_said(ask):
    assert re.fullmatch(r"eval.py: the prompt of --ask has \d+ tokens; .* context of 1024: lower it, .*\n",
                        ask("why " * 1000 + "?", status=1))


@pytest.mark.parametrize("arguments, sentence", [
    (["--ask", "Who?", "--predictions", "f"], "argument --predictions: not allowed with argument --ask"),
    (["--ask", "", "--split", "dev"], "argument --split: not allowed with argument --ask"),
    (["--ask", "Who?", "--out", "d"], "argument --out: not allowed with argument --ask"),
    (["--database", "original"], "argument --database: not allowed without argument --ask"),
])
def test_what_does_not_go_together(cli, eval_recipe, arguments, sentence):
    ended = cli(eval_recipe, *arguments)
    assert ended.status == 2 and sentence in ended.err


@pytest.mark.slow
def test_a_real_chat_model_is_asked_in_its_own_turns(ask, tmp_path_factory, smollm2: Path):
    """SmolLM2 by ChatML and two beams. Without examples it is hardly ever right: looked at is what is shown."""
    config = tmp_path_factory.mktemp("chat") / "chat.toml"
    config.write_text(f'''
[task]
kind = "athletes"
template = "chatml"
[database]
engine = "sqlite"
[model]
path = "{smollm2}"
[generation]
max_new_tokens = 96
''', encoding="utf-8")
    shown = ask("How many gold medals has Walter Rossi won?", config=config)
    assert shown.count("\n  SQL       ") == shown.count("\n  gave      ") == 2 and "<|im" not in shown
    assert all(len(line) < 80 for line in shown.split("\n"))
