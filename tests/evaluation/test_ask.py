"""ask.py: one question at a policy that writes SQL and a real engine; what stands on the console, and within which edges."""

import dataclasses
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.common.device import generator
from minigrpo.config import Config, Generation, load_config
from minigrpo.evaluation.ask import show_candidates, write_candidates
from minigrpo.policy.generation.search import Completion
from minigrpo.rollout import Group, Rollout
from minigrpo.task.contract import Verdict
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.engines.database import Execution, MockDatabase
from minigrpo.task.sql.reward import make_reward
from minigrpo.task.sql.task import SQLTask
from minigrpo.training.starting_model import load_start
from tests.given_task import GivenTask

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
