"""eval.py: rows and summary of a policy or of a file of SQL, on real engines; what it refuses; the benchmark's figures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.config import load_config
from minigrpo.task.sql.task import SQLTask
from minigrpo.training.folder import checkpoints
from tests.mariadb_server import needs_mariadb
from tests.paths import MINI, ROOT
from tests.temptabqa import BENCHMARK, needs_gold

GOLD = MINI / "gold_sql.jsonl"
FIELDS = ["split", "index", "kind", "question", "gold", "sql", "status", "answer", "ems", "rems", "strict", "invented",
          "blind", "constant"]
ENGINES = ["sqlite", pytest.param("mariadb", marks=needs_mariadb)]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def evaluate(cli, eval_recipe, out):
    """``evaluate("--split", "dev")`` into ``out``; "model.path" points nowhere where predictions are given."""
    def call(*arguments: object, status: int = 0):
        nowhere = ["--set", "model.path=no/such/model"] if "--predictions" in arguments else []
        ended = cli(eval_recipe, "--out", out, *nowhere, *arguments)
        assert ended.status == status, ended
        return ended
    return call


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_bytes().decode().split("\n")[:-1]]


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def predictions(tmp_path: Path, *lines: tuple[str, int, str | None]) -> Path:
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(dict(zip(("split", "index", "sql"), line))) + "\n" for line in lines))
    return file


# --------------------------------------------------------------------------------------------------- questions of one's own
def test_a_model_on_a_database_that_exists(evaluate, out, shop_keys):
    """The model writes a digit; of dev's answers 4, Lisbon, 6.25, 2 and a list only "2" is one that it can write."""
    evaluate(*(word for key in shop_keys for word in ("--set", key)))
    rows = rows_of(out)
    assert [(row["split"], row["index"], row["kind"]) for row in rows] == [
        ("dev", 0, "count"), ("dev", 1, "lookup"), ("dev", 2, "lookup"), ("dev", 3, "count"), ("dev", 4, "list")]
    assert [row["strict"] for row in rows] == [int(row["index"] == 3 and row["answer"] == "2") for row in rows]
    assert summary_of(out)["dev"]["n"] == summary_of(out)["dev"]["of"] == 5


def test_predictions_on_a_database_that_exists(evaluate, out, tmp_path, shop_keys):
    """Right: a count, a decimal, a list in another order. Wrong: half of the list would be REMS 50. An error: a write."""
    file = predictions(tmp_path, ("dev", 0, "SELECT COUNT(*) FROM products"), ("dev", 1, "DELETE FROM customers"),
                       ("dev", 2, "SELECT price FROM products WHERE name = 'Notebook'"),
                       ("dev", 3, "SELECT name FROM clients"),
                       ("dev", 4, "SELECT products.name FROM orders JOIN customers USING (customer_id) JOIN products "
                                  "USING (product_id) WHERE customers.name = 'Dora Klein' ORDER BY price"),
                       ("train", 4, "SELECT name FROM customers WHERE customer_id = 4"))
    evaluate("--predictions", file, *(word for key in shop_keys for word in ("--set", key)))
    assert [(row["split"], row["index"], row["status"], row["answer"], row["rems"], row["strict"]) for row in rows_of(out)] == [
        ("dev", 0, "ok", "4", 1.0, 1), ("dev", 1, "refused", "", 0.0, 0), ("dev", 2, "ok", "6.25", 1.0, 1),
        ("dev", 3, "unknown_table", "", 0.0, 0), ("dev", 4, "ok", "Notebook, Lamp", 1.0, 1),
        ("train", 4, "ok", "Dora Klein", 0.5, 0)]


# ----------------------------------------------------------------------------------------------------------- predictions
@pytest.mark.parametrize("engine", ENGINES)
def test_gold_sql_is_right_where_it_is_marked_answerable(evaluate, out, engine):
    evaluate("--predictions", GOLD, "--set", f"database.engine={engine}")
    answerable = {(gold["split"], gold["index"]): gold["answerable"]
                  for gold in map(json.loads, GOLD.read_text(encoding="utf-8").splitlines())}
    rows = rows_of(out)
    assert {(row["split"], row["index"]): bool(row["strict"]) for row in rows} == answerable
    assert all(row["ems"] == row["strict"] and row["status"] == "ok" for row in rows)
    # Counterfactual: two of three, 66.67 %; of the rest every one.
    assert {split: line["strict"] for split, line in summary_of(out).items()} == {
        "train": 100.0, "dev": 100.0, "original": 100.0, "counterfactual": 66.67, "small": 100.0, "easy": 100.0, "medium": 100.0}


@pytest.mark.parametrize("engine", ENGINES)
def test_figures_by_hand(evaluate, out, tmp_path, engine):
    """train has three questions of the types 13, 34 and 5, gold 2, "m freestyle" and " 2014". Given: a right one, and one that
    fails; nothing for the second. original/0, of type 3, wants "Women's team, Singles": one of two parts is REMS 50. Written
    last question first. Blind guesses come from train itself, where each type has one question, so both are right and none is
    left to be right on unguessed; of type 3 nobody knows a guess. The constant has 2 and 2014, not names. The 4 of 4 / 2 is
    from nowhere; Singles is among the samples of Format.name."""
    file = predictions(tmp_path, ("original", 0, "SELECT 'Singles'"), ("train", 2, "SELECT nowhere FROM Medal"),
                       ("train", 0, "SELECT 4 / 2"))
    ended = evaluate("--predictions", file, "--set", f"database.engine={engine}")
    rows = rows_of(out)
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert [(row["split"], row["index"], row["status"], row["answer"], row["ems"], row["rems"], row["strict"]) for row in rows] \
        == [("original", 0, "ok", "Singles", 0, 0.5, 0), ("train", 0, "ok", "2", 1, 1.0, 1),
            ("train", 2, "unknown_column", "", 0, 0.0, 0)]
    half = {"strict": 0.0, "ems": 0.0, "rems": 50.0, "invented": 0.0, "error_rate": 0.0, "hack": 0.0, "unguessed": 0.0,
            "blind": 0.0, "constant": 0.0}
    guessed = {"hack": 0.0, "blind": 100.0, "constant": 100.0}
    summary = summary_of(out)
    intervals = {split: of.pop("interval") for split, of in summary.items()}
    assert summary == {
        "original": {"n": 1, "of": 2, **half, "status": {"ok": 100.0}, "kinds": {"3": {"n": 1, **half}}},
        "train": {"n": 2, "of": 3, "strict": 50.0, "ems": 50.0, "rems": 50.0, "invented": 50.0, "error_rate": 50.0, **guessed,
                  "status": {"ok": 50.0, "unknown_column": 50.0},
                  "kinds": {"13": {"n": 1, "strict": 100.0, "ems": 100.0, "rems": 100.0, "invented": 100.0, "error_rate": 0.0,
                                   **guessed},
                            "5": {"n": 1, "strict": 0.0, "ems": 0.0, "rems": 0.0, "invented": 0.0, "error_rate": 100.0,
                                  **guessed}}}}
    # One question leaves no doubt; one of two right is 0 or 2 of 2 on a quarter of all resamples each.
    assert intervals["original"]["rems"] == [50.0, 50.0] and intervals["train"]["strict"] == [0.0, 100.0]
    assert [line.split() for line in ended.out.splitlines()[:4]] == [
        ["original", "train"], ["questions", "1", "of", "2", "2", "of", "3"],
        ["strict", "0.0", "50.0"], ["0.0-0.0", "0.0-100"]]


def test_splits_choose_among_the_predictions_and_set_the_order(evaluate, out):
    evaluate("--predictions", GOLD, "--split", "dev,train")
    assert [(row["split"], row["index"]) for row in rows_of(out)] == [("dev", 0), ("train", 0), ("train", 1), ("train", 2)]


def test_text_survives_as_it_is(evaluate, out, tmp_path):
    """Separators that some take for line ends, quotes, diacritics: one line a row, read back equal."""
    sql = "SELECT '\u2028 \x85 Õ \\ \"'"
    evaluate("--predictions", predictions(tmp_path, ("train", 1, sql)))
    row, = rows_of(out)
    assert row["sql"] == sql and row["answer"] == "\u2028 \x85 Õ \\ \""
    # What was written is itself a file of predictions, and gives the same again.
    shutil.copy(out / "rows.jsonl", tmp_path / "again.jsonl")
    evaluate("--predictions", tmp_path / "again.jsonl")
    assert rows_of(out) == [row]


# ----------------------------------------------------------------------------------------------------------------- model
def test_a_model_on_two_splits(evaluate, out):
    evaluate("--split", "train,dev", "--set", "evaluation.batch=2")
    rows = rows_of(out)
    assert [(row["split"], row["index"]) for row in rows] == [("train", 0), ("train", 1), ("train", 2), ("dev", 0)]
    assert all(list(row) == FIELDS and row["sql"] for row in rows)
    assert {split: (line["n"], line["of"]) for split, line in summary_of(out).items()} == {"train": (3, 3), "dev": (1, 1)}
    for row in rows:                                        # "SELECT d" answers d
        assert row["answer"] == row["sql"].removeprefix("SELECT ")


def test_where_results_go_and_that_every_test_split_is_evaluated_unless_told(cli, eval_recipe, tmp_path):
    """Of the benchmark's seven the hand-made copy lacks two, which are named; train and dev are no test."""
    ended = cli(eval_recipe, "--set", f"run.out={tmp_path}/run")
    out, there = tmp_path / "run/eval", ["original", "counterfactual", "small", "easy", "medium"]
    assert ended.status == 0 and list(dict.fromkeys(row["split"] for row in rows_of(out))) == there
    summary = summary_of(out)
    assert list(summary) == ["original", "counterfactual", "small", "large", "easy", "medium", "hard"]
    assert [split for split, of in summary.items() if "absent" in of] == ["large", "hard"]
    assert summary["large"] == {"n": 0, "of": 0, "absent": True}
    assert f"written: {out}/rows.jsonl" in ended.out
    for text in (ended.out, (out / "table.md").read_text().replace("|", "")):
        lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
        assert lines["questions"] == ["2", "3", "1", "absent", "1", "1", "absent"]


@pytest.mark.slow
def test_made_up_athletes_have_two_test_splits_and_a_second_database(cli, eval_recipe, tmp_path):
    """All rows have gold SQL, so suite stands in the table. The model answers with a digit: right by luck on any database."""
    ended = cli(eval_recipe, "--set", "task.kind=athletes", "--set", "task.template=compact", "--out", tmp_path / "out",
                "--set", "evaluation.batch=130")
    assert ended.status == 0
    assert {split: of["n"] for split, of in summary_of(tmp_path / "out").items()} == {"heldout": 390, "counterfactual": 390}
    assert all(of["suite"] <= of["strict"] for of in summary_of(tmp_path / "out").values()) and "\nsuite " in ended.out


def test_by_kind_there_is_a_table_for_each_split(evaluate, out):
    ended = evaluate("--predictions", GOLD, "--split", "train,dev", "--by-kind")
    shown = {tuple(line.split()[:2]) for line in ended.out.splitlines()}
    assert {("train", "n"), ("5", "1"), ("13", "1"), ("34", "1"), ("dev", "n"), ("all", "3"), ("all", "1")} <= shown
    assert "| 34 | 1 | 100 |" in (out / "table.md").read_text()
    assert ("train", "n") not in {tuple(line.split()[:2]) for line in
                                  evaluate("--predictions", GOLD, "--split", "train,dev").out.splitlines()}


def test_an_adapter_changes_what_is_written(train_recipe, small_toml, evaluate, out, tmp_path):
    """A step far too long leaves a policy that writes something else; and with the config's own rank, or another."""
    run = tmp_path / "run"
    train_recipe.train(load_config(small_toml, [f"run.out={run}", "run.steps=1", "grpo.learning_rate=0.3", "run.evaluate_every=0"]))
    evaluate("--split", "train")
    before = rows_of(out)
    evaluate("--split", "train", "--adapter", checkpoints(run)[0], "--set", "lora.rank=2")
    assert [row["sql"] for row in rows_of(out)] != [row["sql"] for row in before]
    odd = Path(shutil.copytree(checkpoints(run)[0], tmp_path / 'a "b" é'))         # a path that is no bare word in TOML
    changed = rows_of(out)
    evaluate("--split", "train", "--adapter", odd)
    assert rows_of(out) == changed


# --------------------------------------------------------------------------------------------------------------- merging
def test_merging_writes_a_model_that_evaluates_alike_and_opens_no_database(train_recipe, cli, eval_recipe, small_toml,
                                                                           tmp_path, monkeypatch):
    run, merged = tmp_path / "run", tmp_path / "merged"
    train_recipe.train(load_config(small_toml, [f"run.out={run}", "run.steps=1", "grpo.learning_rate=0.3",
                                                "run.evaluate_every=0"]))
    with monkeypatch.context() as patched:
        patched.setattr(SQLTask, "__enter__", lambda task: pytest.fail("a database was opened"))
        ended = cli(eval_recipe, "--adapter", checkpoints(run)[0], "--merge", merged, "--set", "run.out=")
    assert (ended.status, ended.out) == (0, f"written: {merged}\n") and not (run / "eval").exists()
    for name, arguments in (("a", ["--adapter", checkpoints(run)[0]]), ("b", ["--set", f"model.path={merged}"])):
        assert cli(eval_recipe, "--split", "train", "--out", tmp_path / name, *arguments).status == 0
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


@pytest.mark.parametrize("arguments", [["--predictions", GOLD], ["--split", "dev"], ["--out", "x"]])
def test_merging_takes_nothing_that_only_an_evaluation_has_a_use_for(cli, eval_recipe, tmp_path, arguments):
    ended = cli(eval_recipe, "--merge", tmp_path / "merged", *arguments)
    assert ended.status == 2 and f"error: argument {arguments[0]}: not allowed with argument --merge" in ended.err


# --------------------------------------------------------------------------------------------------------------- comparing
def test_two_evaluations_are_compared_question_by_question(cli, eval_recipe, evaluate, out, tmp_path):
    """train's three questions: of A the first is right, of B the first and the last. No config, no model, no database."""
    right = {gold["index"]: gold["sql"] for gold in map(json.loads, GOLD.read_text().splitlines()) if gold["split"] == "train"}
    for name, indices in (("a", [0]), ("b", [0, 2])):
        lines = [("train", i, right[i] if i in indices else "SELECT 'x'") for i in range(3)]
        evaluate("--predictions", predictions(tmp_path, *lines))
        out.rename(tmp_path / name)
    ended = cli(eval_recipe, "--compare", tmp_path / "a", tmp_path / "b", "--out", out, config="no.toml")
    assert ended.status == 0, ended
    found = json.loads((out / "compare.json").read_text())["train"]
    assert found["strict"] == {"both": 1, "only_a": 0, "only_b": 1, "neither": 1, "mcnemar_p": 1.0}
    strict = found["figures"]["strict"]
    assert (strict["a"], strict["b"], strict["difference"]) == (33.33, 66.67, 33.34)
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["strict", "33.3", "66.7", "+33.3"] in [line[:4] for line in lines]
    assert "strict on 3 questions: both 1, only A 0, only B 1, neither 1; p = 1" in ended.out
    assert "| strict | 33.3 | 66.7 | +33.3 |" in (out / "compare.md").read_text()
    ended = cli(eval_recipe, "--compare", tmp_path / "a", tmp_path / "b", "--split", "dev")
    assert (ended.status, refusal(ended)) == (1, f"--compare: {tmp_path}/a/rows.jsonl holds no rows of dev")


@pytest.mark.parametrize("arguments, option", [(["--by-kind"], "--by-kind"), (["--adapter", "x"], "--adapter")])
def test_comparing_takes_nothing_that_only_an_evaluation_has_a_use_for(cli, eval_recipe, arguments, option):
    ended = cli(eval_recipe, "--compare", "a", "b", *arguments)
    assert ended.status == 2 and f"error: argument {option}: not allowed with argument --compare" in ended.err


def test_all_but_comparing_needs_a_config(eval_recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval.py", "--split", "dev"])
    with pytest.raises(SystemExit):
        eval_recipe.main()
    assert "error: the following arguments are required: config" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- bad input
def refusal(ended) -> str:
    message, = ended.err.strip("\n").split("\n")
    assert message.startswith("eval.py: ")
    return message.removeprefix("eval.py: ")


@pytest.mark.parametrize("lines, arguments, sentence", [
    ([("train", 3, "SELECT 1")], [], "--predictions: there is no question train/3; train has 3"),
    ([("train", -1, "SELECT 1")], [], "--predictions: there is no question train/-1; train has 3"),
    ([("test", 0, "SELECT 1")], [], "unknown split 'test': the benchmark has train, .*"),
    ([("train", 0, "SELECT 1")], ["--split", "dev,easy"], "--predictions: the file has no row of dev, easy"),
    ([("train", 0, "SELECT 1")], ["--split", "trian"], "unknown split 'trian' .*"),
    ([], [], "--predictions: the file has no row of dev"),
    ([("train", 0, 1)], [], ".*predictions.jsonl:1: expected a JSON object with sql .text or null., got .*"),
    ([("train", 0, "a"), ("train", 0, "b")], [], ".*predictions.jsonl:2: train/0 is given a second time"),
])
def test_predictions_that_do_not_fit(evaluate, tmp_path, lines, arguments, sentence):
    ended = evaluate("--predictions", predictions(tmp_path, *lines), *arguments, status=1)
    assert re.fullmatch(sentence, refusal(ended))


@pytest.mark.parametrize("arguments, sentence", [
    (["--predictions", "no.jsonl"], "--predictions: there is no file no.jsonl"),
    (["--split", "hard"], "split 'hard' has no file .*; splits that are there: .*"),
    (["--adapter", "nowhere"], "nowhere/adapter_config.json is missing"),
    (["--set", "task.path=nowhere"], "there is no benchmark folder nowhere; fetch it with: git clone .* nowhere"),
    (["--set", "model.path=no/such/model"], "model.path: there is no folder no/such/model"),
    (["--set", "generation.max_new_tokens=1000"], "the prompt of original/0 has [0-9]+ tokens; .* task.samples or .*"),
    (["--set", "reward.preset=papers"], "unknown reward 'papers'.*"),
])
def test_other_mistakes(evaluate, arguments, sentence):
    assert re.fullmatch(sentence, refusal(evaluate(*arguments, status=1)))


def test_an_empty_split_is_named(evaluate, tmp_path):
    """A file with a header and no question is not absent: it is broken."""
    folder = Path(shutil.copytree(MINI, tmp_path / "mini"))
    file = folder / "Test_Dataset_with_Splits/Easy.tsv"
    file.write_text(file.read_text(encoding="utf-8").split("\n")[0] + "\n", encoding="utf-8")
    assert refusal(evaluate("--set", f"task.path={folder}", status=1)) == f"{file} holds no questions"


def test_where_every_test_split_is_absent_it_is_said_what_is_there(evaluate, tmp_path):
    folder = Path(shutil.copytree(MINI, tmp_path / "mini", ignore=shutil.ignore_patterns("Test_Dataset*")))
    assert re.fullmatch("split 'original' has no file .*; splits that are there: train, dev",
                        refusal(evaluate("--set", f"task.path={folder}", status=1)))


def test_without_a_training_split_there_is_no_blind_ceiling(evaluate, out, tmp_path):
    folder = Path(shutil.copytree(MINI, tmp_path / "mini", ignore=shutil.ignore_patterns("Train_set")))
    ended = evaluate("--set", f"task.path={folder}", "--predictions", GOLD, "--split", "original")
    assert summary_of(out)["original"].keys() & {"blind", "unguessed", "constant"} == {"constant"}
    assert "\nblind ceiling  " not in ended.out and "\nconstant ceiling  " in ended.out


def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(cli, eval_recipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(eval_recipe, "evaluate_model", lambda *_: pytest.fail("it was computed first"))
    for place in ("file", "file/below"):
        ended = cli(eval_recipe, "--out", tmp_path / place)
        assert ended.status == 1
        assert refusal(ended).startswith(f"--out: {tmp_path / place} cannot be written to: ")


@pytest.mark.parametrize("option", ["--adapter", "--split"])
def test_an_option_without_a_value_is_not_an_option_that_was_left_out(cli, eval_recipe, tmp_path, option):
    """A shell's unset variable would else have the base evaluated for the adapter."""
    ended = cli(eval_recipe, "--out", tmp_path / "out", option, "")
    assert ended.status == 2 and f"argument {option}: expected one argument" in ended.err


def test_an_adapter_has_no_say_in_predictions(cli, eval_recipe, capsys):
    ended = cli(eval_recipe, "--predictions", GOLD, "--adapter", "a")
    assert ended.status == 2 and "not allowed with argument" in ended.err


def test_ctrl_c_is_clean(evaluate, eval_recipe, monkeypatch, out):
    """While it decodes, with a real engine open: status 130, no traceback, and what was done by then is on disk."""
    original = eval_recipe.evaluate_policy

    def interrupted(*arguments):
        yield next(original(*arguments))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(eval_recipe, "evaluate_policy", interrupted)
    ended = evaluate(status=130)
    assert "Traceback" not in ended.err and [file.name for file in out.iterdir()] == ["rows.jsonl"]
    assert len((out / "rows.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_as_a_command(small_toml, out):
    """Nothing on stderr; 100 columns are enough for seven splits (but for a path as long as the user made it)."""
    ended = subprocess.run([sys.executable, str(ROOT / "eval.py"), str(small_toml), "--predictions", str(GOLD), "--out", str(out)],
                           cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0].split() == ["train", "dev", "original", "counterfactual", "small", "easy", "medium"]
    assert max(map(len, lines[:lines.index("")])) <= 100 and max(map(len, lines[lines.index(""):-1])) <= 80


# ------------------------------------------------------------------------------------------------------ the real benchmark
# (EMS, strict) of correct SQL on MariaDB, ± 0.3 for ties that are undefined.
ORACLE = {"original": (98.4, 98.4), "counterfactual": (96.6, 96.6), "small": (98.9, 98.9), "easy": (95.9, 95.9),
          "train": (89.4, 89.1), "dev": (89.0, 88.3)}


@pytest.mark.slow
@needs_gold
@needs_mariadb
def test_the_oracle_figures_of_the_benchmark(evaluate, out):
    evaluate("--predictions", BENCHMARK / "gold_sql.jsonl", "--set", f"task.path={BENCHMARK}", "--set", "database.engine=mariadb",
             "--set", "database.time_limit=2")
    summary = summary_of(out)
    assert {split: line["n"] for split, line in summary.items()} == {split: line["of"] for split, line in summary.items()}
    for split, (ems, strict) in ORACLE.items():
        assert summary[split]["ems"] == pytest.approx(ems, abs=0.3), split
        assert summary[split]["strict"] == pytest.approx(strict, abs=0.3), split
        assert summary[split]["error_rate"] == summary[split]["invented"] == 0.0, split
        low, high = summary[split]["interval"]["strict"]
        wald = 1.96 * (summary[split]["strict"] * (100 - summary[split]["strict"]) / summary[split]["n"]) ** 0.5
        assert high - low == pytest.approx(2 * wald, rel=0.12), split
    # The blind ceilings (ties between answers are open, hence 0.6), and EMS of the constant answer.
    for split, blind in (("original", 28.4), ("counterfactual", 20.2), ("easy", 41.5)):
        assert summary[split]["blind"] == pytest.approx(blind, abs=0.6), split
    assert [round(summary[split]["constant"], 1) for split in ("original", "easy")] == [77.0, 86.5]


CONSTANT_QUERY = ("WITH RECURSIVE n AS (SELECT 0 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 2024) SELECT i FROM n "
                  "WHERE i <= 40 OR i >= 1980 UNION ALL SELECT 'Yes' UNION ALL SELECT 'No'")


@needs_gold
def test_the_constant_query_earns_its_ceiling_in_ems_and_nothing_in_strict(evaluate, out, tmp_path):
    """77.0 on original, 86.5 on easy. All of that is EMS without strict, and its values come from nowhere."""
    lines = [(split, i, CONSTANT_QUERY) for split, size in (("original", 578), ("easy", 732)) for i in range(size)]
    evaluate("--predictions", predictions(tmp_path, *lines), "--set", f"task.path={BENCHMARK}")
    for split, ems in (("original", 77.0), ("easy", 86.5)):
        of = summary_of(out)[split]
        assert round(of["ems"], 1) == ems and of["hack"] == of["constant"] == of["ems"]
        assert (of["strict"], of["unguessed"], of["invented"], of["error_rate"]) == (0.0, 0.0, 100.0, 0.0)
