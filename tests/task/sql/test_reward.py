"""The reward: each preset worked out in words, what no execution may ever change, and rewards of one's own."""

import math
import re
import sys
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.task.sql import structure
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.engines.database import STATUSES, Column, Execution, Table
from minigrpo.task.sql.reward import PRESETS, TERMS, answer_terms, make_reward, weigh

QUESTION = Question("mini/0", "mini", 0, "Which formats?", "Team, Singles", "original", "3")
ERRORS = [status for status in STATUSES if status != "ok"]
TABLES = {"original": [Table("Format", (Column("format_id", "INT"), Column("name", "TEXT")), ())]}
SQL = "SELECT name FROM Format"                 # one table, one column, no join wanted, no literal: all structural terms are 1
NOTHING = {"rems": 0.0, "ems": 0.0, "f1": 0.0, "strict": 0.0, "excess": 0.0}


def ok(*cells: object) -> Execution:
    """An execution whose rows have one cell each."""
    return Execution("ok", rows=tuple((cell,) for cell in cells), columns=("c",))


@pytest.mark.parametrize(("cells", "paper", "strict"), [
    # Everything, and no more: 1 + 100·1 + 1000·1 in both.
    (("Singles", "Team"), 1101.0, 1101.0),
    # One of two. Paper: 1 + 100·0.5. Strict: 1 + 100·F1 with F1 = 2·1/(2+1).
    (("Team",), 51.0, 1 + 200 / 3),
    # Both and two more. Paper subtracts nothing: 1101. Strict: 1 + 100·F1 with F1 = 2·2/(2+4).
    (("Team", "Singles", "a", "b"), 1101.0, 1 + 200 / 3),
    # It runs and is wrong, or returns nothing: 1 for running.
    (("Doubles",), 1.0, 1.0),
    ((), 1.0, 1.0),
])
def test_presets(cells: tuple[object, ...], paper: float, strict: float) -> None:
    assert make_reward("paper")(QUESTION, "SELECT 1", ok(*cells)).total == pytest.approx(paper)
    assert make_reward("strict")(QUESTION, "SELECT 1", ok(*cells)).total == pytest.approx(strict)


@pytest.mark.parametrize(("preset", "everything", "half", "dump"), [
    # Everything; one of two, REMS = 1/2, F1 = 2·1/(2+1); both and two more, F1 = 2·2/(2+4), half of it in excess.
    ("binary", 1.0, 0.0, 0.0),
    ("no_partial", 1001.0, 1.0, 1001.0),
    ("no_error_penalty", 1101.0, 51.0, 1101.0),
    ("execution_only", 1.0, 1.0, 1.0),
    ("concise", 1051.0, 26.0, 1.0),                                      # 1 + 50 + 1000; 1 + 50·0.5; 1 + 50 − 100·0.5
    ("grounded", 1101.0, 1 + 200 / 3, 1 + 200 / 3),
    ("structural", 1141.0, 41 + 200 / 3, 41 + 200 / 3),                  # as "strict", and four terms of 1 at 10 each
])
def test_presets_that_ask_more_or_less(preset: str, everything: float, half: float, dump: float) -> None:
    reward = make_reward(preset, TABLES)
    assert reward(QUESTION, SQL, ok("Singles", "Team")).total == pytest.approx(everything)
    assert reward(QUESTION, SQL, ok("Team")).total == pytest.approx(half)
    assert reward(QUESTION, SQL, ok("Team", "Singles", "a", "b")).total == pytest.approx(dump)


def test_sql_without_a_table_earns_no_answer_under_grounded_and_no_structure_under_structural() -> None:
    right = ok("Team", "Singles")
    assert make_reward("grounded", TABLES)(QUESTION, "SELECT 'Team, Singles'", right).total == 1.0
    assert make_reward("structural", TABLES)(QUESTION, "SELECT 'Team, Singles'", right).total == 1101.0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("status", ERRORS)
def test_an_error_costs_what_the_preset_says_and_earns_nothing(preset: str, status: str) -> None:
    """Of "binary" and "no_error_penalty" nothing, of all others a hundred."""
    reward = make_reward(preset, TABLES)(QUESTION, None, Execution(status, error="no"))
    assert reward.total == (0.0 if preset in ("binary", "no_error_penalty") else -100.0)
    assert reward.terms == {"error": 1.0, "runs": 0.0, **NOTHING, **dict.fromkeys(structure.TERMS, 0.0)}


def test_an_error_with_the_right_tables_is_better_than_one_without_and_worse_than_what_runs() -> None:
    """Under "structural": of four terms, at 10 each, tables, joins and literals are 1, and the column is not there."""
    reward, failed = make_reward("structural", TABLES), Execution("unknown_column", error="no")
    assert reward(QUESTION, "SELECT f.nam FROM Format f", failed).total == -70.0
    assert reward(QUESTION, "SELECT nam FROM Formats", failed).total == -100.0
    assert reward(QUESTION, "SELECT 1", ok("x")).total == 1.0


def test_sql_that_was_refused_is_not_read() -> None:
    """It may hold comments, which hide what it reads."""
    assert make_reward("paper", TABLES)(QUESTION, SQL, Execution("refused")).terms["reads"] == 0


def test_terms_are_unweighted_and_the_same_for_every_preset() -> None:
    # "Team" of {Team, Singles}: half is found; F1 = 2·1/(2+1); shorter than the answer.
    expected = {"error": 0.0, "runs": 1.0, "rems": 0.5, "ems": 0.0, "f1": pytest.approx(2 / 3), "strict": 0.0, "excess": 0.0}
    for preset in PRESETS:
        terms = make_reward(preset, TABLES)(QUESTION, SQL, ok("Team")).terms
        assert terms == expected | dict.fromkeys(structure.TERMS, 1.0) and list(terms) == list(TERMS)
    assert make_reward("paper")(QUESTION, SQL, ok("Team")).terms == expected             # no tables are known: SQL is not read


def test_every_weight_is_of_a_term() -> None:
    assert {name for weights in PRESETS.values() for product in weights for name in product.split(" * ")} <= TERMS.keys()


def test_an_unknown_preset_names_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown reward 'stric' .did you mean 'strict'.*: the presets are paper"):
        make_reward("stric")


@pytest.mark.parametrize("preset", ["grounded", "structural"])
def test_a_preset_that_reads_sql_has_to_know_the_tables(preset: str) -> None:
    with pytest.raises(ValueError, match=f"^the reward '{preset}' reads SQL and has to know the databases' tables$"):
        make_reward(preset)


cells = st.lists(st.sampled_from(["Team", "Singles", "Doubles", "1", ""]), max_size=6)


@given(cells, st.sampled_from(sorted(PRESETS.keys() - {"grounded", "structural"})), st.randoms())
def test_order_of_rows_and_text_of_sql_change_nothing(values: list[str], preset: str, random: Random) -> None:
    reward = make_reward(preset)
    first = reward(QUESTION, "SELECT 1", ok(*values))
    random.shuffle(values)
    assert reward(QUESTION, "SELECT 2", ok(*values)) == first


@given(cells, st.sampled_from(sorted(PRESETS)), st.sampled_from([SQL, "SELECT 1", "SELECT x FROM Format, Format"]))
def test_the_total_is_the_weighted_sum_and_an_error_is_never_better(values: list[str], preset: str, sql: str) -> None:
    """The weights of what is earned add up to less than 1142; no penalty but the one for errors reaches −100."""
    reward = make_reward(preset, TABLES)(QUESTION, sql, ok(*values))
    assert reward.total == pytest.approx(sum(weight * math.prod(reward.terms[name] for name in product.split(" * "))
                                             for product, weight in PRESETS[preset].items()))
    assert all(0.0 <= value <= 1.0 for value in reward.terms.values())
    assert reward.terms["error"] + reward.terms["runs"] == 1.0
    failed = make_reward(preset, TABLES)(QUESTION, sql, Execution("other")).total
    assert reward.total > failed or preset == "binary" and reward.total >= failed
    assert -99.0 <= reward.total < 1142.0


@given(cells)
def test_a_dump_never_pays_under_strict(values: list[str]) -> None:
    dump = [str(number) for number in range(101)]                        # none of them is in the answer
    before, after = (make_reward("strict")(QUESTION, "SELECT 1", ok(*rows)).total for rows in (values, values + dump))
    assert after <= before


# ------------------------------------------------------------------------------------------------------------- one's own
@pytest.fixture
def write(tmp_path, monkeypatch):
    """A module in the current folder, under a name of its own for each test: what was imported stays imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(text: str, name: str = "mine") -> str:
        module = f"{name}_{re.sub('[^a-z0-9]', '_', tmp_path.name.lower())}"
        Path(f"{module}.py").write_text(text, encoding="utf-8")
        return module
    return call


def refusal(call, *arguments: object) -> ValueError:
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_number_is_the_total_and_our_terms_are_beside_it(write) -> None:
    module = write("def half(question, sql, execution):\n"
                   "    return len(execution.rows) / 2 + len(sql) + (question.kind == '3')\n")
    reward = make_reward(f"{module}.half", TABLES)(QUESTION, SQL, ok("Team", "Singles", "a"))
    assert reward.total == 1.5 + len(SQL) + 1
    assert reward.terms == make_reward("paper", TABLES)(QUESTION, SQL, ok("Team", "Singles", "a")).terms


def test_a_reward_may_bring_terms_and_ours_keep_their_meaning(write) -> None:
    module = write("from minigrpo.task.sql.reward import Reward\n"
                   "def mine(question, sql, execution):\n    return Reward(7, {'short': 0.5, 'strict': 9.0})\n")
    reward = make_reward(f"{module}.mine", TABLES)(QUESTION, SQL, ok("Team"))
    assert reward.total == 7.0 and reward.terms["short"] == 0.5
    assert reward.terms["strict"] == 0.0                                # "Team" is not all


def test_presets_and_terms_are_there_to_build_on(write) -> None:
    """As the README has it: "concise", and a point less for each hundred characters of SQL."""
    module = write("from minigrpo.task.sql.reward import PRESETS, answer_terms, weigh\n"
                   "def brief(question, sql, execution):\n"
                   "    return weigh(PRESETS['concise'], answer_terms(question, execution)) - len(sql or '') / 100\n")
    reward = make_reward(f"{module}.brief")
    assert reward(QUESTION, "x" * 300, ok("Team", "Singles")).total == 1051 - 3
    nothing = Execution("no_sql")
    assert reward(QUESTION, None, nothing).total == weigh(PRESETS["concise"], answer_terms(QUESTION, nothing)) == -100


@pytest.mark.parametrize("number", [True, 3, Fraction(1, 2), -1e99])
def test_any_finite_number_will_do(write, number: object) -> None:
    module = write("value = None\ndef mine(*given):\n    return value\n")
    reward = make_reward(f"{module}.mine")
    sys.modules[module].value = number
    assert reward(QUESTION, SQL, ok(1)).total == float(number) and type(reward(QUESTION, SQL, ok(1)).total) is float


@pytest.mark.parametrize("text, name, sentence", [
    ("x = 1\n", "rewrd", "unknown name 'rewrd' in the module {0}"),
    ("def reward(a, b, c): pass\n", "rewrd", "unknown name 'rewrd' .did you mean 'reward'[?]. in the module {0}"),
    ("x = 1\n", "x", "expected a function of .question, sql, execution., got 1"),
    ("def f(question, sql): pass\n", "f", "expected a function of .question, sql, execution., but too many .*"),
    ("def f(a, b, c, d): pass\n", "f", "expected a function of .question, sql, execution., but missing .*'d'"),
    ("import no_such_thing\n", "f", "importing {0} fails: ModuleNotFoundError: .*no_such_thing.* .*{0}.py, line 1."),
    ("\n1 / 0\n", "f", "importing {0} fails: ZeroDivisionError: division by zero .*{0}.py, line 2."),
    ("def f(:\n", "f", "importing {0} fails: SyntaxError: .*"),
])
def test_what_is_wrong_with_a_module_is_said_before_anything_is_run(write, text: str, name: str, sentence: str) -> None:
    module = write(text)
    error = refusal(make_reward, f"{module}.{name}")
    assert re.fullmatch(f"the reward {module}.{name}: {sentence.format(module)}", str(error))


def test_a_module_that_is_not_there_is_looked_for_in_the_current_folder(write, tmp_path) -> None:
    write("")
    assert str(refusal(make_reward, "nowhere.at_all.f")) == (
        f"the reward nowhere.at_all.f: there is no module nowhere, installed or in {tmp_path}")
    for strange in (".f", "nowhere.", ".", "a..b"):
        refusal(make_reward, strange)


def test_what_a_function_raises_is_one_sentence_with_its_place_and_its_cause(write) -> None:
    module = write("def f(question, sql, execution):\n    if execution.rows:\n        return {}['two\\nlines']\n"
                   "    return 1\n")
    reward = make_reward(f"{module}.f")
    assert reward(QUESTION, SQL, ok()).total == 1
    long = "SELECT name\nFROM Format WHERE " + "x" * 200
    error = refusal(reward, QUESTION, long, ok(1))
    shown = "SELECT name FROM Format WHERE " + "x" * 69 + "…"              # 100 characters in all
    assert re.fullmatch(rf"the reward {module}.f of mini/0, SQL '{shown}': KeyError: .* \(.*{module}.py, line 3\)", str(error))
    assert type(error.__cause__) is KeyError and error.__cause__.__traceback__.tb_next.tb_lineno == 3


@pytest.mark.parametrize("given, shown", [
    ("float('nan')", ", got nan"), ("float('-inf')", ", got -inf"), ("10 ** 400", ", got 1000*"), ("1e200", r", got 1e\+200"),
    ("None", ", got None"), ("'1'", ", got '1'"), ("1j", ", got 1j"), ("(1, {})", r", got \(1, {}\)"),
    ("Reward(float('nan'), {})", ", got nan"), ("Reward(1, {'mine': None})", " for the term 'mine', got None"),
])
def test_what_is_no_finite_number_is_refused(write, given: str, shown: str) -> None:
    """1e200 is finite, but its square, and so its group's σ, is not."""
    module = write(f"from minigrpo.task.sql.reward import Reward\ndef f(question, sql, execution):\n    return {given}\n")
    error = refusal(make_reward(f"{module}.f"), QUESTION, None, Execution("no_sql"))
    assert re.fullmatch(f"the reward {module}.f of mini/0, SQL None: expected a finite number{shown}", str(error))
