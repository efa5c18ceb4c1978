"""metrics.py: a clock that adds up, a JSONL file that can be cut back, a table that lines up."""

import json

import pytest

from minigrpo.metrics import Clock, JsonLines, verbatim


def test_a_phase_entered_twice_adds_up_and_is_counted_when_it_fails():
    clock = Clock()
    try:
        with clock("a"):
            pass
        first = clock.seconds["a"]
        with clock("a"):
            raise KeyError
    except KeyError:
        pass
    assert clock.seconds["a"] > first > 0
    assert list(clock.metrics()) == ["seconds/a"]


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


def test_verbatim_text_keeps_its_spaces_stays_within_80_columns_and_commands_no_terminal():
    """Four spaces in front of each line, eight where one goes on: with them taken away and the pieces put together, every line
    is as it was, but for the escape character."""
    lines = ["  id INT, -- e.g. 1,  2", "", "x " * 60, "y" * 200, "\x1b[2J"]
    shown = verbatim("\n".join(lines))
    assert max(map(len, shown)) < 80
    text = "".join(line.replace(" " * 8, "", 1) if line.startswith(" " * 8) else "\n" + line[4:] for line in shown)
    assert text == "\n" + "\n".join(lines).replace("\x1b", "\ufffd")
