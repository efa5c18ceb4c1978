"""evaluate.py: rows and figures that can be recomputed by hand, files of predictions that anything may have written."""

import json

import pytest

from minigrpo.assemble import open_judge, start_policy
from minigrpo.config import load_config
from minigrpo.evaluate import evaluate_policy, evaluate_predictions, read_predictions, score_row, summarise
from minigrpo.task.database import Execution
from minigrpo.task.questions import Question
from minigrpo.task.temptabqa import load_questions

FIELDS = ["split", "index", "sql", "status", "answer", "ems", "rems", "strict"]


def question(answer: str, index: int = 0, split: str = "t") -> Question:
    return Question(f"{split}/{index}", split, index, "?", answer, "original", "1")


# ------------------------------------------------------------------------------------------------------------------ rows
def test_a_row_by_hand():
    """Gold "Suva, Kraków"; output "Suva 2012, Suva": one of two parts is found as whole words, so REMS is 0.5 and EMS 0."""
    row = score_row(question("Suva, Kraków", 7), "SELECT ...", Execution("ok", (("Suva", 2012), ("Suva",))))
    assert list(row) == FIELDS
    assert row == {"split": "t", "index": 7, "sql": "SELECT ...", "status": "ok", "answer": "Suva 2012, Suva", "ems": 0,
                   "rems": 0.5, "strict": 0}
    both = score_row(question("Suva, Kraków"), "S", Execution("ok", (("Kraków",), ("Suva",))))
    assert (both["ems"], both["rems"], both["strict"]) == (1, 1.0, 1)
    more = score_row(question("Suva"), "S", Execution("ok", (("Kraków",), ("Suva",))))      # too much is wrong to strict only
    assert (more["ems"], more["rems"], more["strict"]) == (1, 1.0, 0)


@pytest.mark.parametrize("status", ["no_sql", "refused", "syntax", "timeout", "too_large", "other"])
def test_an_error_answers_nothing_even_where_the_answer_is_none(status):
    row = score_row(question("None"), None, Execution(status, (("None",),)))
    assert (row["status"], row["answer"], row["ems"], row["rems"], row["strict"]) == (status, "", 0, 0.0, 0)


# --------------------------------------------------------------------------------------------------------------- summary
def test_a_summary_by_hand():
    """Three of a's nine and one of b's one. a: strict 1 of 3 = 33.33 %, EMS 2 of 3 = 66.67 %, REMS (1 + 1 + 0)/3 = 66.67 %,
    one timeout = 33.33 %. b: all 0, and a syntax error."""
    rows = [{"split": "a", "status": "ok", "ems": 1, "rems": 1.0, "strict": 1},
            {"split": "b", "status": "syntax", "ems": 0, "rems": 0.0, "strict": 0},
            {"split": "a", "status": "ok", "ems": 1, "rems": 1.0, "strict": 0},
            {"split": "a", "status": "timeout", "ems": 0, "rems": 0.0, "strict": 0}]
    assert summarise(rows, {"a": 9, "b": 1}) == {
        "a": {"n": 3, "of": 9, "strict": 33.33, "ems": 66.67, "rems": 66.67, "error_rate": 33.33,
              "status": {"ok": 66.67, "timeout": 33.33}},
        "b": {"n": 1, "of": 1, "strict": 0.0, "ems": 0.0, "rems": 0.0, "error_rate": 100.0, "status": {"syntax": 100.0}}}


# ----------------------------------------------------------------------------------------------------------- predictions
def write(tmp_path, text: str | bytes):
    file = tmp_path / "p.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_predictions_from_anywhere(tmp_path):
    """Blank lines, other keys, Windows line ends, no SQL at all, and separators that are no line ends."""
    file = write(tmp_path, '{"split": "dev", "index": 1, "sql": "SELECT \u2028\x85", "type": 3}\r\n\n'
                           '{"sql": null, "index": 0, "split": "dev"}\r\n{"split": "train", "index": 0, "sql": ""}')
    assert list(read_predictions(file).items()) == [(("dev", 1), "SELECT \u2028\x85"), (("dev", 0), None), (("train", 0), "")]
    assert read_predictions(write(tmp_path, "")) == {}


GOOD = '{"split": "dev", "index": 0, "sql": "SELECT 1"}\n'


@pytest.mark.parametrize("line, sentence", [
    ("SELECT 1", ":2: expected a JSON object with split, index and sql (Expecting value"),
    ('{"split": "dev", "index": 1, "sql": "SEL', ":2: expected a JSON object with split, index and sql (Unterminated string"),
    ('{"split": "dev", "index": 1}', ":2: expected a JSON object with split, index and sql ('sql')"),
    ('["dev", 1, "SELECT 1"]', ":2: expected a JSON object with split, index and sql ("),
    ("3", ":2: expected a JSON object with split, index and sql ("),
    ('{"split": "dev", "index": "1", "sql": "x"}', ":2: split and sql must be strings and index an integer, got "),
    ('{"split": "dev", "index": 1.0, "sql": "x"}', ":2: split and sql must be strings and index an integer, got "),
    ('{"split": "dev", "index": true, "sql": "x"}', ":2: split and sql must be strings and index an integer, got "),
    ('{"split": ["dev"], "index": 1, "sql": "x"}', ":2: split and sql must be strings and index an integer, got "),
    ('{"split": "dev", "index": 1, "sql": ["x"]}', ":2: split and sql must be strings and index an integer, got "),
    ('{"split": "dev", "index": 0, "sql": "x"}', ":2: dev/0 is given a second time"),
    ('{"split": "dev", "index": 1, "sql": "\\ud800"}', ":2: expected a JSON object with split, index and sql ("),
])
def test_a_line_that_is_no_prediction(tmp_path, line, sentence):
    file = write(tmp_path, GOOD + line)
    with pytest.raises(ValueError) as caught:
        read_predictions(file)
    assert str(caught.value).startswith(f"{file}{sentence}") and "\n" not in str(caught.value)


def test_files_that_hold_no_predictions(tmp_path):
    with pytest.raises(ValueError, match=f"--predictions: there is no file {tmp_path}/none.jsonl"):
        read_predictions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=f"--predictions: there is no file {tmp_path}"):
        read_predictions(tmp_path)
    with pytest.raises(ValueError, match="p.jsonl:1: expected a JSON object"):
        read_predictions(write(tmp_path, b"\xff\xfe{\x00"))


def test_predictions_keep_their_order_and_run_on_their_own_database(small_toml):
    """Silver of 2014 exists in the original only; the same SQL on two databases is two queries."""
    cfg = load_config(small_toml, ["run.out=unused"])
    asked = [load_questions(cfg.task.path, split)[0] for split in ("counterfactual", "train", "dev")]
    silver = "SELECT COUNT(*) FROM Medal WHERE type = 'MedalSilver' AND year = 2014"
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
        rows = evaluate_predictions(asked, [silver, silver, None], judge)
    assert [(row["split"], row["answer"], row["status"]) for row in rows] == [
        ("counterfactual", "0", "ok"), ("train", "1", "ok"), ("dev", "", "no_sql")]


# ---------------------------------------------------------------------------------------------------------------- policy
def test_a_policy_is_asked_greedily_and_batches_change_nothing(small_toml):
    """A question's row is the same whatever it is decoded beside, and whatever the config trains with. They come as they
    are decoded, short prompts first."""
    cfg = load_config(small_toml, ["run.out=unused"])
    policy = start_policy(cfg.model, cfg.lora, cfg.generation, 0)
    asked = [question for split in ("train", "counterfactual", "medium") for question in load_questions(cfg.task.path, split)]
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
        def evaluated(questions, generation, batch):
            return sorted(evaluate_policy(questions, policy, judge, generation, batch), key=place)

        def place(row):
            return row["split"], row["index"]

        rows = evaluated(asked, cfg.generation, 16)
        assert [place(row) for row in rows] == sorted((question.split, question.index) for question in asked)
        first = next(evaluate_policy(asked, policy, judge, cfg.generation, 1))
        assert place(first) == min((len(judge.prompt(q)), i, (q.split, q.index)) for i, q in enumerate(asked))[2]
        assert all(list(row) == FIELDS and row["sql"].startswith("SELEC") for row in rows)
        for batch in (1, 3):
            assert evaluated(asked, cfg.generation, batch) == rows
        beams = load_config(small_toml, ["run.out=unused", "generation.method=beam", "generation.temperature=5"])
        assert evaluated(asked, beams.generation, 4) == rows
        assert evaluated(asked[::-1], cfg.generation, 16) == rows
        assert evaluated([], cfg.generation, 16) == []
        assert json.dumps(rows)
