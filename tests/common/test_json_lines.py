"""An append-only file of records: what is kept of it, what is refused."""

import json

import pytest

from minigrpo.common.json_lines import JsonLines


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
