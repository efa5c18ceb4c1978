"""athletes.py: gold SQL and separately computed answers agree on two engines; athletes of each split; answers by hand."""

import os
import re
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from minigrpo.task.sql.answer import Question, render_answer, render_cell, score_answer, split_answer
from minigrpo.task.sql.data.athletes import DATASET, FIRST, KINDS, LAST, Career, Medal, career, load_databases, load_questions
from minigrpo.task.sql.data.infobox import Infobox, build_tables
from minigrpo.task.sql.engines.database import Database, Execution, Limits, Tables, run_all
from minigrpo.task.sql.engines.mariadb import open_private
from minigrpo.task.sql.engines.sqlite import open_sqlite
from tests.mariadb_server import needs_mariadb
from tests.paths import ROOT

SPLITS = ("train", "dev", "heldout", "counterfactual")
LEVELS = Counter(kind.name.partition("/")[0] for kind in KINDS)
KIND = {kind.name: kind for kind in KINDS}

EACH_ENGINE = pytest.mark.parametrize("engine", ["on_sqlite", pytest.param("on_mariadb", marks=[needs_mariadb, pytest.mark.slow])])

Results = dict[tuple[str, str], Execution]


@pytest.fixture(scope="module")
def questions() -> dict[str, list[Question]]:
    return {split: load_questions(split) for split in SPLITS}


@pytest.fixture(scope="module")
def databases() -> dict[str, Tables]:
    return load_databases()


def run_gold(database: Database, questions: dict[str, list[Question]]) -> Results:
    """Every gold query on its question's own database and on the second one."""
    pairs = [(question.gold_sql, name) for asked in questions.values() for question in asked if question.gold_sql
             for name in (question.database, DATASET.second)]
    return dict(zip(pairs, run_all(database, pairs, 2)))


@pytest.fixture(scope="module")
def on_sqlite(questions, databases) -> Results:
    with open_sqlite(databases, Limits(time_limit=30.0)) as database:           # no time limit, however busy the machine is
        return run_gold(database, questions)


@pytest.fixture(scope="module")
def on_mariadb(questions, databases) -> Results:
    with open_private(databases, Limits(time_limit=30.0)) as database:
        return run_gold(database, questions)


def everyone(questions: dict[str, list[Question]]) -> Iterator[Question]:
    return (question for asked in questions.values() for question in asked)


def athlete(question: Question) -> str:
    """The one name in a question's text: a first name and a last name next to each other."""
    name, = re.findall(rf"\b(?:{'|'.join(FIRST)}) (?:{'|'.join(LAST)})\b", question.text)
    return name


def medals_of(tables: Tables) -> dict[str, list[tuple[object, ...]]]:
    """{athlete: [(tournament, format, type, year, city)]}: the tables joined by hand."""
    rows = {table.name: table.rows for table in tables}
    name_of = dict(rows["Athlete"])
    tournament_of = {key: (name_of[athlete], name) for key, athlete, name in rows["Tournament"]}
    format_of = {key: (*tournament_of[tournament], name) for key, tournament, name in rows["Format"]}
    medals = {name: [] for name in name_of.values()}
    for _, format_id, *medal in rows["Medal"]:
        name, *place = format_of[format_id]
        medals[name].append((*place, *medal))
    return medals


def born(tables: Tables) -> dict[str, tuple[int, ...]]:
    rows = {table.name: table.rows for table in tables}
    name_of = dict(rows["Athlete"])
    return {name_of[athlete]: date for _, athlete, *date in rows["PersonalInformation"]}


# -------------------------------------------------------------------------------------------- the gold SQL and the answer
@EACH_ENGINE
def test_gold_sql_gives_exactly_the_answer(questions, request, engine):
    """Two independent computations give the same parts equally often: the answers were not computed by SQL."""
    results = request.getfixturevalue(engine)
    for question in everyone(questions):
        if question.gold_sql:
            execution = results[question.gold_sql, question.database]
            assert execution.ok, (question, execution)
            output = render_answer(execution.rows)
            assert score_answer(question.answer, output).strict == 1, (question, output)
            assert sorted(split_answer(output)) == sorted(split_answer(question.answer)), (question, output)


@pytest.mark.slow
@needs_mariadb
def test_both_engines_give_the_same_set_of_rows(on_sqlite, on_mariadb):
    """Cells compared as answer text: an average is a float on one engine and a Decimal on the other."""
    assert on_sqlite.keys() == on_mariadb.keys()
    for pair in on_sqlite:
        one, other = ({tuple(map(render_cell, row)) for row in results[pair].rows} for results in (on_sqlite, on_mariadb))
        assert one == other, pair


@EACH_ENGINE
def test_on_the_reshuffled_database_every_gold_query_runs_and_says_something(questions, request, engine):
    results = request.getfixturevalue(engine)
    for (sql, name), execution in results.items():
        if name == DATASET.second:
            assert execution.ok, (sql, execution)
            assert execution.rows and all(cell is not None for row in execution.rows for cell in row), (sql, execution)


def test_gold_sql_mostly_gives_another_answer_on_the_reshuffled_database(questions, on_sqlite):
    """To reveal SQL that is right by chance, the second database must have other answers: most of them, in every split."""
    for asked in questions.values():
        moved = [not score_answer(question.answer, render_answer(on_sqlite[question.gold_sql, DATASET.second].rows)).strict
                 for question in asked if question.gold_sql]
        assert sum(moved) > len(moved) / 2


def test_every_question_has_an_answer_without_empty_or_repeated_parts(questions):
    for question in everyone(questions):
        parts = split_answer(question.answer)
        assert parts and all(parts) and len(set(parts)) == len(parts), question


# --------------------------------------------------------------------------------------------------------- what is asked
def test_every_kind_as_often_as_promised_in_each_split(questions):
    # 8 easy, 9 medium and 9 hard kinds, 26 in all. Of each, 130 questions to train on, 10 for dev, 15 held out, and these
    # 15 once more of the other database: 26 · 130 = 3,380, 26 · 10 = 260, 26 · 15 = 390.
    assert LEVELS == {"easy": 8, "medium": 9, "hard": 9}
    assert [len(questions[split]) for split in SPLITS] == [3380, 260, 390, 390]
    for split, each in zip(SPLITS, (130, 10, 15, 15)):
        assert Counter(question.kind for question in questions[split]) == dict.fromkeys(KIND, each)


def test_gold_sql_as_often_as_promised(questions):
    # In train 130 of an easy kind (all there are), 60 of a medium one, 10 of a hard one: 8 · 130 + 9 · 60 + 9 · 10 = 1,670.
    written = Counter(question.kind for question in questions["train"] if question.gold_sql)
    assert written == {name: {"easy": 130, "medium": 60, "hard": 10}[name.partition("/")[0]] for name in KIND}
    assert written.total() == 1670
    for split in SPLITS[1:]:
        assert all(question.gold_sql for question in questions[split])


def test_ids_count_within_a_split_and_the_database_is_the_splits(questions):
    for split, asked in questions.items():
        assert [question.id for question in asked] == [f"{split}/{place}" for place in range(len(asked))]
        assert [question.index for question in asked] == list(range(len(asked)))
        assert {question.split for question in asked} == {split}
        assert {question.database for question in asked} == {"counterfactual" if split == "counterfactual" else "original"}


def test_no_athlete_is_in_two_of_train_dev_and_heldout(questions, databases):
    asked = {split: {athlete(question) for question in questions[split]} for split in SPLITS}
    assert not (asked["train"] & asked["dev"] or asked["train"] & asked["heldout"] or asked["dev"] & asked["heldout"])
    assert set().union(*asked.values()) <= medals_of(databases["original"]).keys()
    for question in everyone(questions):
        if question.gold_sql:                               # the SQL asks about the athlete of the text, and nobody else
            assert re.findall(r"Athlete\.name = '([^']*)'", question.gold_sql) == [athlete(question)]


def test_every_name_of_dev_and_heldout_is_known_from_gold_sql_of_train(questions):
    """A model can only write names that it has seen: not each pair, but each first and each last name."""
    shown = [athlete(question).split() for question in questions["train"] if question.gold_sql]
    for question in questions["dev"] + questions["heldout"]:
        first, last = athlete(question).split()
        assert first in {names[0] for names in shown} and last in {names[1] for names in shown}, question


def test_a_wording_and_the_sql_of_a_kind_ask_for_the_same_things():
    """Two ways to ask differ in words only; and SQL knows nothing that the question does not say, but for the spelling
    of a colour: {type} is what the tables call {colour}, {other_type} what they call {other}."""
    spelled = {"type": "colour", "other_type": "other"}
    for kind in KINDS:
        first, second, sql = ({name for _, name, *_ in string.Formatter().parse(text) if name}
                              for text in (*kind.wordings, kind.sql))
        assert first == second == {spelled.get(name, name) for name in sql}, kind.name


def test_all_braces_are_filled_and_each_wording_is_used_in_every_split(questions):
    for question in everyone(questions):
        assert not re.search("[{}]", question.text + (question.gold_sql or "")), question
    for _split, asked in questions.items():
        for kind in KINDS:
            for wording in kind.wordings:
                pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(wording))
                assert any(re.fullmatch(pattern, question.text) for question in asked if question.kind == kind.name), wording


def test_an_unknown_split_is_one_sentence():
    known = "the made-up athletes have train, dev, heldout, counterfactual"
    for split, sentence in [("held-out", f"unknown split 'held-out' (did you mean 'heldout'?): {known}"),
                            ("zzz", f"unknown split 'zzz': {known}"), (DATASET.second, f"unknown split '{DATASET.second}': {known}")]:
        with pytest.raises(ValueError) as caught:
            load_questions(split)
        assert str(caught.value) == sentence


# ------------------------------------------------------------------------------------------------------ the three databases
def test_counterfactual_asks_what_heldout_does_and_mostly_has_other_answers(questions):
    asked, again = questions["heldout"], questions["counterfactual"]
    assert [(q.text, q.kind, q.gold_sql) for q in asked] == [(q.text, q.kind, q.gold_sql) for q in again]
    assert sum(one.answer != other.answer for one, other in zip(asked, again)) > len(asked) / 2


def test_the_three_databases_know_the_same_athletes_in_the_same_order(databases):
    assert list(databases) == ["original", "counterfactual", "reshuffled"]
    names = [name for _, name in databases["original"][0].rows]
    assert len(set(names)) == len(names) == 280 + 40 + 80
    assert all(tables[0].rows == databases["original"][0].rows for tables in databases.values())


def test_counterfactual_athletes_took_part_in_the_same_and_won_something_else(databases):
    one, other = medals_of(databases["original"]), medals_of(databases["counterfactual"])
    for name in one:
        assert {medal[:2] for medal in one[name]} == {medal[:2] for medal in other[name]}
        assert Counter(one[name]) != Counter(other[name])


def test_reshuffled_everyone_has_somebody_elses_career(databases):
    """The careers, birth dates included, are the same as in "original", and nobody keeps their own."""
    careers = {name: {athlete: (tuple(born(databases[name])[athlete]), tuple(medals)) for athlete, medals in
                      medals_of(databases[name]).items()} for name in ("original", DATASET.second)}
    assert careers["original"].keys() == careers[DATASET.second].keys()
    assert Counter(careers["original"].values()) == Counter(careers[DATASET.second].values())
    assert not [name for name, whole in careers["original"].items() if careers[DATASET.second][name] == whole]
    assert not [name for name, (_, medals) in careers["original"].items() if careers[DATASET.second][name][1] == medals]


# ------------------------------------------------------------------------------------------------------ the same everywhere
DIGEST = """
import hashlib
from minigrpo.task.sql.data.athletes import SPLITS, load_databases, load_questions
print(hashlib.sha256(repr([load_databases()] + [load_questions(split) for split in SPLITS]).encode()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_that_hash_differently_make_the_same():
    digests = [subprocess.run([sys.executable, "-c", DIGEST], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, check=True,
                              capture_output=True, text=True).stdout for seed in ("1", "2")]
    assert digests[0] == digests[1] and len(digests[0].strip()) == 64


def test_the_order_in_which_splits_are_loaded_changes_nothing(questions):
    assert {split: load_questions(split) for split in reversed(SPLITS)} == questions


def test_the_first_athletes_are_the_same_on_every_machine(databases):
    # Python promises what random() gives for a seed, not what choice() and shuffle() make of it. Were they ever to change,
    # scores from before would no longer compare: it must not go unseen.
    assert [name for _, name in databases["original"][0].rows[:3]] == ["Inês Hansen", "Jonas Yilmaz", "Greta Okafor"]


# ----------------------------------------------------------------------------------------------------------- answers by hand
# Five medals, at 20, 23, 23, 24 and 24; three gold, one silver, one bronze. Cities: Oslo twice, Lima, Rome and Kyiv once.
ANN = Infobox("Ann Lee", (1980, 5, 17), (
    ("World Cup", (("Foil", (("MedalGold", 2000, "Oslo"), ("MedalBronze", 2003, "Lima"))),
                   ("Sabre", (("MedalGold", 2003, "Oslo"),)))),
    ("Asian Games", (("Foil", (("MedalGold", 2004, "Rome"), ("MedalSilver", 2004, "Kyiv"))),))))
# Three medals in either format. 1990, the first year, has both Oslo and Rome; 1992, the last, has both tournaments, and Lima
# twice. Four gold: three in 1990, one in 1992.
BEN = Infobox("Ben Ode", (1970, 1, 1), (
    ("Olympic Games", (("Singles", (("MedalGold", 1990, "Oslo"), ("MedalSilver", 1990, "Rome"),
                                    ("MedalBronze", 1992, "Lima"))),)),
    ("World Cup", (("Doubles", (("MedalGold", 1990, "Oslo"), ("MedalGold", 1990, "Rome"), ("MedalGold", 1992, "Lima"))),))))
# One medal, of gold: no other colour has a year, a city or an age.
CAL = Infobox("Cal Roe", (1975, 12, 31), (("World Cup", (("Foil", (("MedalGold", 1999, "Doha"),)),)),))

GOLD, SILVER, BRONZE = ({"type": f"Medal{colour}"} for colour in ("Gold", "Silver", "Bronze"))
CUP, ASIAN = {"tournament": "World Cup"}, {"tournament": "Asian Games"}
CASES = [
    ("easy/count", ANN, {}, [5]), ("easy/count", CAL, {}, [1]),
    ("easy/colour", ANN, GOLD, [3]), ("easy/colour", CAL, BRONZE, [0]),             # none at all is a number too
    ("easy/at", ANN, CUP, [3]), ("easy/at", ANN, ASIAN, [2]),
    ("easy/born", ANN, {}, [1980]),
    ("easy/entered", ANN, {}, ["World Cup", "Asian Games"]),
    ("easy/played", ANN, {}, ["Foil", "Sabre"]),                                    # Foil at two tournaments is one format
    ("easy/cities", ANN, {}, ["Oslo", "Lima", "Rome", "Kyiv"]),                     # Oslo once
    ("easy/years", ANN, {}, [2000, 2003, 2004]),
    ("medium/both", ANN, GOLD | CUP, [2]), ("medium/both", ANN, SILVER | CUP, [0]),
    ("medium/ever", ANN, GOLD | ASIAN, ["Yes"]), ("medium/ever", ANN, BRONZE | ASIAN, ["No"]),
    ("medium/city", ANN, {"city": "Oslo"}, [2]), ("medium/city", ANN, {"city": "Doha"}, [0]),
    ("medium/first", ANN, {}, [2000]),
    ("medium/latest", ANN, BRONZE, [2003]), ("medium/latest", CAL, SILVER, []),
    ("medium/where", ANN, GOLD, ["Oslo", "Rome"]), ("medium/where", CAL, SILVER, []),
    ("medium/which", ANN, CUP, ["Foil", "Sabre"]), ("medium/which", ANN, ASIAN, ["Foil"]), ("medium/which", CAL, ASIAN, []),
    ("medium/when", ANN, GOLD | CUP, [2000, 2003]), ("medium/when", ANN, SILVER | CUP, []),
    ("medium/span", ANN, {}, [4]), ("medium/span", CAL, {}, [0]),                   # 2004 − 2000; one medal spans nothing
    ("hard/young", ANN, {}, [20]), ("hard/young", CAL, {}, [24]),       # 1999 − 1975: years are compared, not birthdays
    ("hard/old", ANN, BRONZE, [23]), ("hard/old", BEN, GOLD, [22]), ("hard/old", CAL, SILVER, []),
    ("hard/average", ANN, GOLD, [22]),                                              # (20 + 23 + 24) / 3 = 22.33, rounded down
    ("hard/average", BEN, GOLD, [20]),                                              # (3 · 20 + 22) / 4 = 20.5
    ("hard/average", CAL, GOLD, [24]), ("hard/average", CAL, BRONZE, []),
    ("hard/before", ANN, {"age": "24"}, [3]), ("hard/before", ANN, {"age": "25"}, [5]),   # at 24 is not before turning 24
    ("hard/before", ANN, {"age": "20"}, [0]),
    ("hard/more", ANN, GOLD | {"other_type": "MedalSilver"}, ["Yes"]),
    ("hard/more", ANN, SILVER | {"other_type": "MedalBronze"}, ["No"]),             # one of each: not more
    ("hard/more", BEN, BRONZE | {"other_type": "MedalGold"}, ["No"]),
    ("hard/start", ANN, {}, ["Oslo"]), ("hard/start", BEN, {}, []),                 # Oslo or Rome: no single answer
    ("hard/last", ANN, {}, ["Asian Games"]),                                        # two medals, both there
    ("hard/last", BEN, {}, []),
    ("hard/best", ANN, {}, ["Foil"]), ("hard/best", BEN, {}, []),                   # 4 to 1; 3 to 3
    ("hard/again", ANN, {}, [1]), ("hard/again", BEN, {}, [3]), ("hard/again", CAL, {}, [0]),
]


def test_the_cases_by_hand_leave_no_kind_out():
    assert {name for name, *_ in CASES} == KIND.keys()


@pytest.mark.parametrize("name, box, slots, expected", CASES)
def test_answers_by_hand(name, box, slots, expected):
    assert KIND[name].answer(career(box), slots) == expected


def test_gold_sql_gives_the_answers_by_hand_too():
    with open_sqlite({"made": build_tables([ANN, BEN, CAL])}, Limits(time_limit=30.0)) as database:
        for name, box, slots, expected in CASES:
            if expected:
                execution = database.run(KIND[name].sql.format(athlete=box.athlete, **slots), "made")
                assert execution.ok, execution
                assert sorted(row[0] for row in execution.rows) == sorted(expected), (name, box.athlete, slots)


def test_a_career_is_the_infobox_medal_by_medal():
    assert career(CAL) == Career(1975, (Medal("World Cup", "Foil", "MedalGold", 1999, "Doha"),))
    assert [medal.city for medal in career(ANN).medals] == ["Oslo", "Lima", "Oslo", "Rome", "Kyiv"]


@pytest.mark.parametrize("name, box, slots, expected", CASES)
def test_the_order_of_the_medals_changes_no_answer(name, box, slots, expected):
    """Rows have no order, so no answer may depend on it."""
    backwards = Career(career(box).born, career(box).medals[::-1])
    assert sorted(KIND[name].answer(backwards, slots)) == sorted(expected)


def test_nothing_is_asked_twice(questions):
    for split, asked in questions.items():
        assert len({question.text for question in asked}) == len(asked), split
