"""temptabqa.py on a hand-made folder with every oddity, on broken files, and on the real benchmark where it is present."""

import shutil
from pathlib import Path

import pytest

from minigrpo.task.sql.data.temptabqa import NO_CONTEXT, SPLITS, load_databases, load_questions
from minigrpo.task.sql.engines.database import Table
from tests.paths import MINI
from tests.temptabqa import BENCHMARK, needs_benchmark

HEADER = "Questions\tAnswers\tContext\tTypes\n"


def counts(tables: tuple[Table, ...]) -> dict[str, int]:
    return {table.name: len(table.rows) for table in tables}


def rows(tables: tuple[Table, ...], name: str) -> tuple[tuple[object, ...], ...]:
    return next(table.rows for table in tables if table.name == name)


@pytest.fixture
def tree(tmp_path: Path) -> Path:      # a copy of the hand-made folder that a test may change
    return Path(shutil.copytree(MINI, tmp_path / "benchmark"))


# ----------------------------------------------------------------------------------------------------------- questions
def test_questions_are_as_published() -> None:
    first, _, third = load_questions(MINI, "train")
    assert (first.id, first.split, first.index) == ("train/0", "train", 0)
    assert (first.answer, first.database, first.kind, first.gold_sql) == ("2", "original", "13", None)
    # The file doubles the quotes within a quoted field; the answer has a leading space, as many published years do.
    assert third.text == 'In which year did Mirela "Miri" Quandt win his/her first medal in Suva ?'
    assert third.answer == " 2014"


def test_only_the_counterfactual_split_asks_the_counterfactual_database() -> None:
    for split in ("train", "dev", "original", "counterfactual", "small", "easy", "medium"):
        expected = "counterfactual" if split == "counterfactual" else "original"
        assert {question.database for question in load_questions(MINI, split)} == {expected}


def test_gold_sql_is_attached_where_it_is_known_to_be_right() -> None:
    found = load_questions(MINI, "counterfactual", gold_sql=MINI / "gold_sql.jsonl")
    # Records 0 and 1 are answerable. Record 2 has no context: a question still, but its query ("SELECT 0") is wrong.
    assert [question.gold_sql is not None for question in found] == [True, True, False]
    assert "Zeno Appiah" in (found[1].gold_sql or "")


@pytest.mark.parametrize("line", ["not json", "[1]", '{"split": "train", "index": 0}'])
def test_a_broken_line_of_gold_sql_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_text('{"split": "train", "index": 0, "answerable": true, "sql": "SELECT 1"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"gold\.jsonl:2: expected a JSON object with "):
        load_questions(MINI, "train", gold_sql=file)
    with pytest.raises(FileNotFoundError, match="no file of gold SQL"):
        load_questions(MINI, "train", gold_sql=tmp_path / "absent.jsonl")


# ------------------------------------------------------------------------------------------------- what is not there
def test_a_missing_folder_says_how_to_fetch_the_benchmark(tmp_path: Path) -> None:
    place = tmp_path / "my data" / "T"
    for load in (lambda: load_questions(place, "dev"), lambda: load_databases(place)):
        with pytest.raises(FileNotFoundError) as caught:
            load()
        assert f"git clone https://github.com/CoRAL-ASU/TEMPTABQA-C '{place}'" in str(caught.value)     # quoted


def test_a_missing_split_names_those_that_are_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"Hard\.tsv; .* there: train, dev, original, .*, easy, medium"):
        load_questions(MINI, "hard")


def test_an_unknown_split_names_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown split 'trian' .did you mean 'train'.*dev, original.*hard"):
        load_questions(MINI, "trian")


def test_a_folder_without_any_split_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="splits that are there: none"):
        load_databases(tmp_path)


# ------------------------------------------------------------------------------------------------------- broken files
@pytest.mark.parametrize(("body", "expected"), [
    ("Questions\tAnswers\tTypes\nq\ta\t1\n", r"no column Context"),
    ("", r"no column Questions, Answers, Context, Types"),
    (HEADER + "q\ta\tc\t1\nq\ta\tc\n", r"record 1: expected 4 fields, got 3"),
    (HEADER + "q\ta\tc\t1\nq\ta\tc\t1\textra\n", r"record 1: expected 4 fields, got 5"),
    (HEADER + "q\t \tc\t1\n", r"record 0: nothing in the column Answers"),
    (HEADER + 'q\ta\tc\t1\nq\ta\t"no end\t1\n', r"record 1: unexpected end of data \(a quote left open"),
    (HEADER + 'q\ta\t"no end\t1\nq\ta\t"c"\t1\n', r"record 0: .*expected after.*\(a quote left open"),
])
def test_a_broken_file_is_one_sentence_with_its_place(tree: Path, body: str, expected: str) -> None:
    (tree / SPLITS["small"]).write_text(body, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Original_Small_Table\.tsv.*" + expected):
        load_questions(tree, "small")


def test_a_file_that_is_not_utf8_is_named(tree: Path) -> None:
    (tree / SPLITS["small"]).write_bytes(HEADER.encode() + "q\tM\u00fcnchen\tc\t1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"Original_Small_Table\.tsv: not UTF-8"):
        load_questions(tree, "small")


def test_line_ends_of_a_windows_checkout_change_nothing(tree: Path) -> None:
    for file in tree.rglob("*.tsv"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_databases(tree) == load_databases(MINI)
    assert load_questions(tree, "train") == load_questions(MINI, "train")


# --------------------------------------------------------------------------------------------------- contexts → tables
def test_every_athlete_once_with_everything_the_contexts_say() -> None:
    original = load_databases(MINI)["original"]
    # Four athletes. Mirela Quandt: under her first country Lake Games (2 formats; 2 and 1 medals) and River Cup (1
    # format without medals), under her second Lake Games again (1 format, 1 medal); born. Tavo Õun: `url` (1 format,
    # 1 medal) and Hill Series (no format); an empty birth date. Oyela Dube-Marsh: born, nothing else. Hanne Vik: 1
    # tournament, 1 format, 2 medals; no birth date. Tournaments 3+2+0+1, formats 4+1+0+1, medals 4+1+0+2, births 2.
    assert counts(original) == {"Athlete": 4, "Tournament": 6, "Format": 6, "Medal": 7, "PersonalInformation": 2}
    # Order of the splits: train (Mirela, Tavo), dev (Oyela), medium (Hanne).
    assert [name.split()[0] for _, name in rows(original, "Athlete")] == ["Mirela", "Tavo", "Oyela", "Hanne"]


def test_the_counterfactual_database_is_a_world_of_its_own() -> None:
    counterfactual = load_databases(MINI)["counterfactual"]
    # Mirela again, with 2 other medals, her birth date after them; Zeno with 1; the row without a context adds no one.
    assert counts(counterfactual) == {"Athlete": 2, "Tournament": 2, "Format": 2, "Medal": 3, "PersonalInformation": 1}
    assert rows(counterfactual, "PersonalInformation") == ((1, 1, 1990, 4, 9),)
    assert rows(counterfactual, "Medal")[2] == (3, 2, "MedalSilver", 1999, "Suva")


def test_text_stays_as_published() -> None:
    original = load_databases(MINI)["original"]
    assert [row[1:] for row in rows(original, "Tournament")][2:4] == [(1, "Lake Games"), (2, "url")]
    assert rows(original, "Format")[0] == (1, 1, "Women's team ")            # the trailing space is published
    assert rows(original, "Format")[4] == (5, 4, "None")                     # a format of this name, not a NULL
    assert rows(original, "Medal")[0] == (1, 1, "MedalGold", 2012, "Kraków")
    assert rows(original, "Medal")[4] == (5, 5, "MedalSilver", 1500, "m freestyle")
    assert rows(original, "Medal")[5] == (6, 6, "MedalBronze", 2010, "Salt, Lower Moss")     # a comma inside a city


def test_keys_count_from_one_and_references_point_at_rows_of_earlier_tables() -> None:
    for tables in load_databases(MINI).values():
        keys: dict[str, list[object]] = {}
        for table in tables:
            for place, column in enumerate(table.columns):
                if column.references:
                    assert {row[place] for row in table.rows} <= set(keys[column.references[0]])
            keys[table.name] = [row[0] for row in table.rows]
            assert keys[table.name] == list(range(1, len(table.rows) + 1))
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_repeating_a_file_changes_nothing(tree: Path) -> None:
    text = (tree / SPLITS["small"]).read_text(encoding="utf-8")
    (tree / SPLITS["large"]).write_text(text, encoding="utf-8")
    assert load_databases(tree) == load_databases(MINI)


def test_without_the_counterfactual_file_there_is_no_such_database(tree: Path) -> None:
    (tree / SPLITS["counterfactual"]).unlink()
    assert list(load_databases(tree)) == ["original"]


def test_two_contexts_for_one_athlete_are_refused(tree: Path) -> None:
    file = tree / SPLITS["easy"]
    file.write_text(file.read_text(encoding="utf-8").replace("2016 | Port Moss", "2017 | Port Moss"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"Easy\.tsv, record 0: a second, different context for .* 'Mirela Quandt'"):
        load_databases(tree)


def test_a_context_that_is_not_understood_is_named_with_its_file_and_record(tree: Path) -> None:
    """Record 0 has no context, which is no error; record 1 has a format without a tab in its fifth line."""
    context = "Ann\n\nCountry Representing: FIJ\nGames\nTeam\n"
    (tree / SPLITS["large"]).write_text(HEADER + f'q\ta\t{NO_CONTEXT}\t1\nq\ta\t"{context}"\t1\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"Original_Large_Table\.tsv, record 1, line 5 of the context: expected .*, got 'Team'"):
        load_databases(tree)


# --------------------------------------------------------------------------------------------------- the real benchmark
@needs_benchmark
def test_the_real_splits_have_the_published_sizes() -> None:
    # Counted records of each published file. A development copy lacks large, medium and hard.
    sizes = {"train": 2961, "dev": 282, "original": 578, "counterfactual": 699, "small": 855, "large": 538, "easy": 732,
             "medium": 507, "hard": 719}
    for split in (split for split in SPLITS if (BENCHMARK / SPLITS[split]).is_file()):
        assert len(load_questions(BENCHMARK, split)) == sizes[split]


@needs_benchmark
def test_the_real_databases_have_the_known_counts() -> None:
    names = ("Athlete", "Tournament", "Format", "Medal", "PersonalInformation")
    known = {True: (424, 2111, 4236, 7446, 399), False: (423, 2105, 4210, 7407, 398)}      # all files, a part of them
    complete = all((BENCHMARK / place).is_file() for place in SPLITS.values())
    databases = load_databases(BENCHMARK)
    assert counts(databases["original"]) == dict(zip(names, known[complete]))
    assert counts(databases["counterfactual"]) == dict(zip(names, (234, 1086, 3461, 8742, 216)))


@needs_benchmark
def test_the_real_data_have_the_known_oddities() -> None:
    train = load_questions(BENCHMARK, "train")
    assert len({question.text for question in train}) == 2776                # distinct train questions
    stale = [question.text for question in train if question.kind == "1006"]
    assert (len(stale), len(set(stale))) == (63, 1)
    original = load_databases(BENCHMARK)["original"]
    assert {row[2] for row in rows(original, "Medal")} == {"MedalGold", "MedalSilver", "MedalBronze"}
    assert "url" in {row[2] for row in rows(original, "Tournament")}
    assert "None" in {row[2] for row in rows(original, "Format")}


def test_a_line_of_any_length_is_not_taken_into_memory(tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / "mini")
    file = tmp_path / "mini" / "Train_set" / "train_set.tsv"
    file.write_bytes(file.read_bytes().split(b"\n")[0] + b"\n" + b"x" * (2**20 + 1))
    with pytest.raises(ValueError, match="train_set.tsv, record 0: line longer than 1,048,576 characters"):
        load_questions(tmp_path / "mini", "train")
