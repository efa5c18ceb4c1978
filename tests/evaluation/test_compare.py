"""tables.py: figures where they belong, whatever their number; two evaluations of other questions are refused."""

import json

import pytest

from minigrpo.common.console import table
from minigrpo.evaluation.compare import (
    FIGURES,
    NOTES,
    compare,
    comparison_table,
    kind_table,
    markdown,
    read_rows,
    show_comparison,
    split_tables,
)
from minigrpo.evaluation.evaluate import add_intervals, summarise

SEVEN = ["original", "counterfactual", "small", "large", "easy", "medium", "hard"]


def row(index: int, strict: int, *, split: str = "dev", kind: str = "1", status: str = "ok", ems: int | None = None,
        **more: int) -> dict:
    ems = strict if ems is None else ems
    return {"split": split, "index": index, "kind": kind, "question": f"{index}?", "gold": "x", "status": status, "ems": ems,
            "rems": float(ems), "strict": strict, **more}


def summary_of(rows: list[dict], **sizes: int) -> dict:
    summary = summarise(rows, sizes)
    add_intervals(summary, rows)
    return summary


def full(index: int, split: str) -> dict:
    """A row with all figures and every kind of error in turn."""
    statuses = ("ok", "ok", "no_sql", "refused", "syntax", "unknown_column", "unknown_table", "other", "timeout", "too_large")
    return row(index, int(index % 10 == 0), split=split, status=statuses[index % 10], suite=0, blind=index % 2, constant=1,
               invented=1)


# -------------------------------------------------------------------------------------------------------------- one policy
def test_a_table_to_the_letter():
    """Four of five questions: one right, one EMS without strict, one wrong, one error; no figure of luck is known. EMS is 2 of
    4, 50; its interval holds all from 0 (probability 1/16 for none, as for all). easy has no rows, hard is absent."""
    rows = [row(0, 1), row(1, 0, ems=1), row(2, 0), row(3, 0, status="timeout")]
    cells, = split_tables(summary_of(rows, dev=5, easy=3, hard=0))
    assert cells == [["", "dev", "easy", "hard"], ["questions", "4 of 5", "0 of 3", "absent"],
                     ["strict", "25.0", "", ""], ["", "0.0-75.0", "", ""], ["EMS", "50.0", "", ""], ["", "0.0-100", "", ""],
                     ["REMS", "50.0", "", ""], ["", "0.0-100", "", ""], ["errors", "25.0", "", ""], ["", "0.0-75.0", "", ""],
                     ["  timeout", "25.0", "", ""], ["EMS, not strict", "25.0", "", ""], ["", "0.0-75.0", "", ""]]


def test_seven_splits_fit_a_hundred_columns_and_the_kinds_of_one_too():
    rows = [full(i, split) for split in SEVEN for i in range(999)]
    summary = summary_of(rows, **dict.fromkeys(SEVEN, 999))
    one, = split_tables(summary)
    assert all(label in [line[0] for line in one] for label, _ in FIGURES.values())
    assert max(map(len, table(one).split("\n"))) <= 100
    assert max(map(len, table(kind_table("counterfactual", summary["counterfactual"])).split("\n"))) <= 100
    assert max(map(len, NOTES.split("\n"))) <= 80


def test_more_splits_stand_below():
    nine = [*SEVEN, "train", "dev"]
    first, second = split_tables(summary_of([full(0, split) for split in nine], **dict.fromkeys(nine, 1)))
    assert first[0][1:] == SEVEN and second[0][1:] == ["train", "dev"]


def test_kinds_are_in_order_and_all_is_last():
    """5, 34, 1001 as numbers go. Kind 5 has no wrong guess, so nothing of unguessed; all: the one wrong guess is strict."""
    rows = [row(0, 1, kind="1001", blind=0), row(1, 0, kind="5", blind=1), row(2, 0, kind="34", blind=1)]
    cells = kind_table("dev", summary_of(rows, dev=3)["dev"])
    assert cells[0] == ["dev", "n", "strict", "EMS", "REMS", "errors", "hacks", "unguess.", "blind"]
    assert [line[0] for line in cells[1:]] == ["5", "34", "1001", "all"]
    assert cells[1] == ["5", "1", "0.0", "0.0", "0.0", "0.0", "0.0", "", "100"]
    assert cells[-1] == ["all", "3", "33.3", "33.3", "33.3", "0.0", "0.0", "100", "66.7"]


def test_markdown_to_the_letter():
    assert markdown([["", "n"], ["  a|b", "3"]]) == "|  | n |\n| --- | ---: |\n| a\\|b | 3 |"


# ------------------------------------------------------------------------------------------------------------ two policies
def by_id(*rows: dict) -> dict[str, dict]:
    return {f"{row['split']}/{row['index']}": row for row in rows}


def test_a_comparison_by_hand():
    """Both right on 0, A alone on 1, B alone on 2, 3 and 4, neither on 5; B has an error on 5. Strict 2 and 4 of 6: 33.33 and
    66.67. p: one against three, 2 (1 + 4) / 16. The order of B's rows is nothing."""
    a = by_id(*(row(i, strict) for i, strict in enumerate([1, 1, 0, 0, 0, 0])))
    b = by_id(*(row(i, [1, 0, 1, 1, 1, 0][i], status="other" if i == 5 else "ok") for i in reversed(range(6))))
    found = compare(a, b, ("A", "B"))["dev"]
    assert found["n"] == 6
    assert found["strict"] == {"both": 1, "only_a": 1, "only_b": 3, "neither": 1, "mcnemar_p": 10 / 16}
    strict, errors = found["figures"]["strict"], found["figures"]["error_rate"]
    assert (strict["a"], strict["b"], strict["difference"]) == (33.33, 66.67, 33.34)
    assert (errors["a"], errors["b"], errors["difference"]) == (0.0, 16.67, 16.67)
    assert strict["interval"][0] < 33.34 < strict["interval"][1] and errors["interval"][0] == 0.0


def test_turned_round_a_comparison_has_the_other_signs():
    a, b = (by_id(*(row(i, int(i % k == 0)) for i in range(90))) for k in (2, 3))
    there, back = compare(a, b, ("A", "B"))["dev"], compare(b, a, ("B", "A"))["dev"]
    for name, found in there["figures"].items():
        assert found["difference"] == -back["figures"][name]["difference"]
        assert found["interval"] == pytest.approx([-end for end in back["figures"][name]["interval"][::-1]], abs=0.011)
    assert there["strict"]["only_a"] == back["strict"]["only_b"] == 30 and there["strict"]["mcnemar_p"] == \
        back["strict"]["mcnemar_p"]


def test_each_split_is_compared_for_itself_and_shown_within_80_columns():
    rows = [row(i, i % 2, split=split, blind=0, invented=0, suite=0) for split in SEVEN for i in range(9)]
    found = compare(by_id(*rows), by_id(*rows), ("A", "B"))
    assert list(found) == SEVEN and all(of["n"] == 9 for of in found.values())
    assert comparison_table("hard", found["hard"])[1] == ["strict", "44.4", "44.4", "+0.0", "+0.0 to +0.0"]
    assert max(map(len, show_comparison(found).split("\n"))) <= 80


@pytest.mark.parametrize("others, sentence", [
    ([row(0, 1)], "--compare: B has no row of dev/1, which A has; --split names what both have"),
    ([row(i, 1) for i in range(3)], "--compare: A has no row of dev/2, which B has; --split names what both have"),
    ([row(0, 1), row(1, 0) | {"question": "else?"}], "--compare: dev/1 is not the same question in A and B"),
    ([row(0, 1) | {"gold": "y"}, row(1, 0)], "--compare: dev/0 is not the same question in A and B"),
])
def test_other_questions_are_not_compared(others, sentence):
    with pytest.raises(ValueError) as caught:
        compare(by_id(row(0, 1), row(1, 0)), by_id(*others), ("A", "B"))
    assert str(caught.value) == sentence


def test_rows_are_read_from_a_folder_or_a_file_and_by_split(tmp_path):
    rows = [row(0, 1), row(0, 0, split="easy") | {"sql": "SELECT '\u2028'"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_rows(tmp_path, []) == read_rows(tmp_path / "rows.jsonl", []) == by_id(*rows)
    assert read_rows(tmp_path, ["easy"]) == by_id(rows[1])


@pytest.mark.parametrize("text, sentence", [
    ("", "--compare: {file} holds no rows"),
    ('{"split": "dev", "index": 0, "sql": "SELECT 1"}',
     "{file}:1: expected a JSON object with question (text), gold (text), status (text), ems (integer or fraction) "
     "and strict (integer or fraction), got "),
    (json.dumps(row(0, 1)) + "\n{", "{file}:2: expected a JSON object with split (text), "),
    ("3", "{file}:1: expected a JSON object with split (text), "),
    (json.dumps(row(0, 1) | {"ems": "1"}),
     '{file}:1: expected a JSON object with ems (integer or fraction), got {"ems": "1"}'),
    (json.dumps(row(0, 1) | {"rems": 1.5}), "{file}:1: expected rems from 0 to 1, got 1.5"),
    (json.dumps(row(0, 1) | {"suite": None}), "{file}:1: expected suite from 0 to 1, got None"),
    (2 * (json.dumps(row(0, 1)) + "\n"), "{file}:2: dev/0 is given a second time"),
])
def test_what_is_no_evaluation(tmp_path, text, sentence):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_rows(tmp_path, [])
    assert str(caught.value).startswith(sentence.replace("{file}", str(file))) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"--compare: there is no file {tmp_path}/none"):
        read_rows(tmp_path / "none", [])
