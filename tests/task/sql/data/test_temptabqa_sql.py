"""SQL for question templates: every question of the benchmark has its query, which gives the answer as far as any does."""

import re
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.task.sql.answer import render_answer, score_answer
from minigrpo.task.sql.data import athletes
from minigrpo.task.sql.data.temptabqa import load_databases, load_questions
from minigrpo.task.sql.data.temptabqa_sql import TEMPLATES, template_sql
from minigrpo.task.sql.engines.database import Limits, run_all
from minigrpo.task.sql.engines.mariadb import open_private
from minigrpo.task.sql.engines.sqlite import open_sqlite
from tests.mariadb_server import needs_mariadb
from tests.paths import MINI
from tests.temptabqa import BENCHMARK, needs_benchmark

EXAMPLE = {"player": "Ann O'Neil", "tournament": "Games (SC)", "format": "Team", "event": "Team Games (SC)", "year": "2016",
           "medal": "Gold", "other": "Silver"}
KINDS = pytest.mark.parametrize("kind", TEMPLATES)


def asked(kind, slots=EXAMPLE):
    """A question of this kind."""
    return re.sub(r"<(\w+)>", lambda slot: slots[slot[1]], TEMPLATES[kind][0])


@KINDS
def test_the_querys_literals_are_the_questions_words(kind):
    """What a question names, and nothing else, is in its query, quoted; medals as the column has them, a year as a number."""
    sql, slots = template_sql(kind, asked(kind)), re.findall(r"<(\w+)>", TEMPLATES[kind][0])
    expected = {"player": "'Ann O''Neil'", "tournament": "'Games (SC)'", "format": "'Team'", "event": "'Team Games (SC)'",
                "year": "2016", "medal": "'MedalGold'", "other": "'MedalSilver'"}
    assert "<player>" not in sql and all(expected[slot] in sql for slot in slots)
    for slot in EXAMPLE.keys() - {*slots} - {"medal", "other"}:         # medals of its own has "followed by silver"
        assert expected[slot] not in sql


@given(st.sampled_from(sorted(TEMPLATES)), st.text("ab' <>%;-", max_size=8), st.integers(1, 4))
def test_no_name_gets_out_of_its_literal(kind, name, blanks):
    """A quote in a name is doubled, so that outside of literals there is none, however many blanks a question has."""
    name = f"A{name}Z"
    sql = template_sql(kind, asked(kind, EXAMPLE | {"player": name}).replace(" win ", " win" + " " * blanks))
    assert "'" + name.replace("'", "''") + "'" in sql and "'" not in re.sub(r"'(?:[^']|'')*'", "", sql)


def test_a_question_of_no_template_has_no_query():
    assert template_sql("13", "How many medals are there?") is None and template_sql("7", asked("13")) is None
    assert [question.gold_sql is not None for question in load_questions(MINI, "train", "templates")] == [True, True, False]


@pytest.mark.parametrize("opened", [open_sqlite, pytest.param(open_private, marks=[needs_mariadb, pytest.mark.slow])])
def test_all_are_allowed_and_run(opened):
    tables = athletes.load_databases()
    with opened(tables) as database:
        executions = run_all(database, [(template_sql(kind, asked(kind)), next(iter(tables))) for kind in TEMPLATES], 2)
    assert {execution.status for execution in executions} == {"ok"}


@pytest.mark.slow
@needs_benchmark
@pytest.mark.parametrize("opened", [open_sqlite, pytest.param(open_private, marks=needs_mariadb)])
def test_it_answers_as_many_questions_as_gold_sql_does(opened):
    """EMS and strict, in percent of all rows: what SQL written for each question reaches on MariaDB (a few ties are undefined:
    0.3)."""
    reached = {"train": (89.4, 89.1), "dev": (89.0, 88.3), "original": (98.4, 98.4), "counterfactual": (96.6, 96.6),
               "small": (98.9, 98.9), "easy": (95.9, 95.9)}
    with opened(load_databases(BENCHMARK), Limits(time_limit=30.0)) as database:
        for split, expected in reached.items():
            questions = load_questions(BENCHMARK, split, "templates")
            executions = run_all(database, [(question.gold_sql, question.database) for question in questions], 2)
            assert {execution.status for execution in executions} == {"ok"}
            scores = [score_answer(q.answer, render_answer(execution.rows)) for q, execution in zip(questions, executions)]
            assert [100 * fmean(figures) for figures in zip(*((score.ems, score.strict) for score in scores))] == \
                pytest.approx(expected, abs=0.3), split
