"""compare.py: two evaluations side by side, by hand; evaluations of other questions are refused."""

import json

import pytest

from minigrpo.evaluation.compare import compare, comparison_table, read_rows, show_comparison
from tests.evaluation.rows import row

SEVEN = ["original", "counterfactual", "small", "large", "easy", "medium", "hard"]


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
     "{file}:1: expected a JSON object with question (text), gold (text), status (text) and strict (integer or fraction), "
     "got "),
    (json.dumps(row(0, 1)) + "\n{", "{file}:2: expected a JSON object with split (text), "),
    ("3", "{file}:1: expected a JSON object with split (text), "),
    (json.dumps(row(0, 1) | {"strict": "1"}),
     '{file}:1: expected a JSON object with strict (integer or fraction), got {"strict": "1"}'),
    (json.dumps(row(0, 1) | {"ems": "1"}), "{file}:1: expected ems from 0 to 1, got '1'"),
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
