"""strict_json.py: what a line may be and what it may not, and that no line fills the memory or the time."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.common import strict_json as lines
from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import JsonLines, exact, parse_object, read_lines, read_object

KEYS = {"n": int, "text": str | None}
GOOD = b'{"n": 1, "text": "x"}'


def file_of(folder: Path, *parts: bytes) -> Path:
    (folder / "file.jsonl").write_bytes(b"".join(parts))
    return folder / "file.jsonl"


def complaint(file: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        list(read_lines(file, KEYS, **options))
    assert type(caught.value) is UserError and "\n" not in str(caught.value)
    return str(caught.value)


def test_lines_are_counted_and_blank_ones_left_out(tmp_path):
    """Lines 1 and 4; between them one that is empty and one of blanks. A line ends at a line feed, not at U+2028."""
    file = file_of(tmp_path, b'{"n": 1, "text": "a\xe2\x80\xa8b", "more": [1]}\r\n\n \t\r\n', GOOD)
    assert list(read_lines(file, KEYS)) == [(1, {"n": 1, "text": "a\u2028b", "more": [1]}), (4, {"n": 1, "text": "x"})]


def test_what_is_still_being_written_is_left_out_where_that_is_asked_for(tmp_path):
    """Even where it looks whole: a number may go on."""
    file = file_of(tmp_path, GOOD, b"\n", GOOD)
    assert len(list(read_lines(file, KEYS))) == 2 and len(list(read_lines(file, KEYS, torn=True))) == 1


@pytest.mark.parametrize("line, got", [
    (b"3", "with n (integer) and text (text or null), got 3"),
    (b"[1]", "with n (integer) and text (text or null), got [1]"),
    (b'{"n": 1}', 'with text (text or null), got {"n": 1}'),
    (b'{"n": true, "text": null}', 'with n (integer), got {"n": true}'),
    (b'{"n": 1.0, "text": "x"}', 'with n (integer), got {"n": 1.0}'),
    (b'{"n": 1, "text": ["' + b"x" * 999 + b'"]}', 'with text (text or null), got {"text": ["' + "x" * 69),
    (b'{"n": 1, "text": "\\udc00"}', r"with .* got something else \(.*surrogates not allowed\)"),
    (b'{"n": 1, "text": "\xff"}', r"with .* got something else \(.*can't decode byte 0xff.*\)"),
    (b'{"n": NaN, "text": "x"}', r"with .* got something else \(NaN is no number .*\)"),
    (b'{"n": 1e999, "text": "x"}', r"with .* got something else \(1e999 is no number .*\)"),
    (b'{"n": ' + b"9" * 101 + b', "text": "x"}', r"with .* got something else \(9{20} is no number .*\)"),
    (b"[" * 10**6, r"with .* got something else \(maximum recursion depth.*\)"),
    (b'{"n": ' + b"9" * 10**6 + b"}", r"with .* got something else \(9{20} is no number .*\)")])
def test_anything_else_is_one_sentence_with_its_place(tmp_path, line, got):
    file = file_of(tmp_path, GOOD, b"\n", line, b"\n")
    said = complaint(file)
    assert said.startswith(f"{file}:2: expected a JSON object with ")
    got = got if "\\" in got else re.escape(got)
    assert re.fullmatch(got, said.removeprefix(f"{file}:2: expected a JSON object "))


def test_a_line_without_an_end_is_read_no_further_than_the_longest(tmp_path, monkeypatch):
    """Of one kilobyte where one may have 100 bytes, 101 are read, and none of what comes behind."""
    monkeypatch.setattr(lines, "MAX_BYTES", 100)
    read, file = [], file_of(tmp_path, b'{"n": "', b"x" * 1000)

    class Counting:
        def __init__(self, handle): self.handle = handle
        def __enter__(self): return self
        def __exit__(self, *_): self.handle.close()

        def readline(self, most):
            read.append(most)
            return self.handle.readline(most)

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: Counting(opened(path, mode)))
    assert complaint(file) == f"{file}:1: expected at most 100 bytes and 4,194,304 values, got more"
    assert read == [101]


def test_a_line_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    """One object, four commas and three lists are eight; one comma more is too many, and then nothing is parsed."""
    monkeypatch.setattr(lines, "MAX_VALUES", 8)
    assert len(list(read_lines(file_of(tmp_path, b'{"n": 1, "text": null, "a": [[[1, 2, 3]]]}'), KEYS))) == 1
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    assert "8 values, got more" in complaint(file_of(tmp_path, b'{"n": 1, "text": null, "a": [[[1, 2, 3, 4]]]}'))


def test_fractions_are_exact_where_that_is_asked_for_and_never_longer_than_can_be_written(tmp_path):
    (_, found), = read_lines(file_of(tmp_path, b'{"n": 1, "text": null, "x": 0.10000000000000000001}'), KEYS, number=exact)
    assert str(found["x"]) == "0.10000000000000000001"
    for odd in (b"1e999999999", b"-1e-999999999", b"1E+99999999999999999999", b"NaN", b"-Infinity"):
        assert "is no number that can be written out" in complaint(
            file_of(tmp_path, b'{"n": 1, "text": null, "x": ', odd, b"}"), number=exact)


def test_any_number_is_read_where_a_database_may_have_given_it(tmp_path):
    (_, found), = read_lines(file_of(tmp_path, b'{"n": 1, "text": null, "x": [-Infinity, 1e308]}'), KEYS, number=float)
    assert found["x"] == [float("-inf"), 1e308]


@given(depth=st.integers(1, 1200))
@settings(deadline=None, max_examples=60)
def test_what_is_read_can_be_shown_from_deeper_in_the_stack(tmp_path_factory, depth):
    """However deep: either it is refused, or it can be written again, also some calls further in."""
    file = file_of(tmp_path_factory.getbasetemp(), b'{"n": 1, "text": null, "x": ' + b"[" * depth + b"]" * depth + b"}")
    try:
        (_, found), = read_lines(file, KEYS)
    except ValueError as error:
        assert "maximum recursion depth" in str(error) and depth > 500
        return

    def show(calls: int) -> str:
        return show(calls - 1) if calls else json.dumps(found) + repr(found)

    assert show(20).count("[") == 2 * depth


def test_a_file_of_one_object_has_a_longest_and_a_most_too(tmp_path, monkeypatch):
    """{"n": 1, "text": "x"} has 21 bytes and, by its braces and commas, two values."""
    file = file_of(tmp_path, GOOD)
    for name, limit in (("MAX_BYTES", 20), ("MAX_VALUES", 1)):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="file.jsonl: expected at most .* got more$"):
            patch.setattr(lines, name, limit)
            read_object(file, KEYS)
    monkeypatch.setattr(lines, "MAX_BYTES", 21)
    monkeypatch.setattr(lines, "MAX_VALUES", 2)
    assert read_object(file, KEYS) == {"n": 1, "text": "x"}


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    for place in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(ValueError, match=f"^{re.escape(str(place))} is missing$"):
            read_object(place, {})


def test_a_text_in_memory_may_be_of_any_length(monkeypatch):
    """A run's own samples may be longer than what is read from a stranger."""
    monkeypatch.setattr(lines, "MAX_BYTES", 20)
    assert parse_object(GOOD, KEYS, "here") == {"n": 1, "text": "x"}
    with pytest.raises(ValueError, match="^here: expected a JSON object with n"):
        parse_object(b"[1]", KEYS, "here")


@pytest.mark.parametrize("value, fine", [(None, True), ({"n": 1}, True), ({"n": "1"}, False), ({}, False), (3, False)])
def test_a_value_may_be_of_one_kind_or_another(tmp_path, value, fine):
    file, keys = file_of(tmp_path, json.dumps({"best": value}).encode()), {"best": ({"n": int}, type(None))}
    if fine:
        assert read_object(file, keys) == {"best": value}
    else:
        with pytest.raises(ValueError, match="expected a JSON object with best .object or null., got "):
            read_object(file, keys)


def test_a_file_of_one_object(tmp_path):
    assert read_object(file_of(tmp_path, b'{\n"n": 1,\n"text": null}\n'), KEYS) == {"n": 1, "text": None}
    file = file_of(tmp_path, b"{}")
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: expected a JSON object with n .integer. and text .text"):
        read_object(file, KEYS)


# ------------------------------------------------------------------------------------------------------------ our records
def test_records_are_cut_back_to_a_step_and_a_torn_line_goes(tmp_path):
    file = tmp_path / "m.jsonl"
    lines = JsonLines(file)
    for step in range(4):
        lines.write({"step": step, "é": "ü"})
    lines.close()
    with file.open("a") as torn:
        torn.write('{"step": 1')                       # the machine went down while writing
    again = JsonLines(file, keep=lambda record: record["step"] < 2)
    again.write({"step": 2})
    again.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize("line", ['{"step": 1', "[1]", '{"step": "1"}', '{"reward": 1}', "\x00\x00", "[" * 10**5])
def test_a_record_that_is_none_is_refused_with_its_place_and_the_file_stays(tmp_path, line):
    """Not the torn last line, which goes without a word: one in between, which nobody but a person can have made so."""
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    before = file.read_bytes()
    with pytest.raises(ValueError) as caught:
        JsonLines(file, keep=lambda record: record["step"] < 2)
    assert str(caught.value).startswith(f"{file}:2: expected a JSON object") and file.read_bytes() == before
