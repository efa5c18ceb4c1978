"""checkpoints.py: a checkpoint that is as it was written is found again; one that is not is refused, and the one before it
is used."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from minigrpo.training.checkpoints import drop_states, newest_state, states, write_state

KEYS = {"best": int}


def write(folder: Path, *steps: int) -> None:
    """States of two files, one of which is large enough to lose its end."""
    for step in steps:
        with write_state(folder, step, {"best": step // 2}) as aside:
            (aside / "a.bin").write_bytes(bytes([step % 256]) * 10_000)
            (aside / "b.txt").write_text("b")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> str:
    return newest_state(folder, KEYS)[0].name


def test_the_newest_is_found_with_what_it_was_told(tmp_path):
    write(tmp_path, 2, 11)
    assert newest_state(tmp_path, KEYS) == (tmp_path / "step-000011", {"format": 2, "step": 11, "best": 5})
    assert newest_state(tmp_path / "nothing", KEYS) is None


def test_the_checksums_are_sha256_and_the_systems_own_tool_reads_them(tmp_path):
    write(tmp_path, 3)
    lines = (tmp_path / "step-000003/SHA256SUMS").read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(bytes([3]) * 10_000).hexdigest()}  a.bin"
    assert [line[66:] for line in lines] == ["a.bin", "b.txt", "state.json"]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "step-000003", check=True)


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name, change, wrong", [
    ("a.bin", lambda content: content[:-1], "a.bin is not what was written"),
    ("a.bin", lambda content: b"", "a.bin is not what was written"),
    ("a.bin", flip, "a.bin is not what was written"),
    ("b.txt", None, "b.txt is missing"),
    ("state.json", flip, "state.json is not what was written"),
    ("state.json", None, "state.json is missing"),
    ("SHA256SUMS", None, "it has no SHA256SUMS"),
    ("SHA256SUMS", lambda content: b"", "SHA256SUMS is torn"),
    ("SHA256SUMS", lambda content: content[:-30], "SHA256SUMS is torn"),                 # within the last line
    ("SHA256SUMS", lambda content: content[:content.index(b"b.txt") + 6], "SHA256SUMS is torn"),     # after the last but one
    ("SHA256SUMS", lambda content: content[:-1] + b"x", "SHA256SUMS is torn"),
    ("SHA256SUMS", lambda content: flip(content[:1]) + content[1:], "a.bin is not what was written"),
    ("SHA256SUMS", lambda content: b"\xff\x00" * 99, "SHA256SUMS is torn"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_one_that_is_torn_or_altered_is_refused_and_the_one_before_is_used(tmp_path, capsys, name, change, wrong):
    write(tmp_path, 2, 4)
    file = tmp_path / "step-000004" / name
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))
    assert newest(tmp_path) == "step-000002"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"{tmp_path}/step-000004 is not used: ") and wrong in err
    assert err.endswith("; going on from step-000002\n")


def test_where_none_is_whole_that_is_one_sentence_and_nothing_is_removed(tmp_path, capsys):
    write(tmp_path, 2, 4)
    for state in states(tmp_path):
        (state / "a.bin").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        newest_state(tmp_path, KEYS)
    assert str(caught.value) == (f"{tmp_path}/step-000004 is not used: a.bin is not what was written, by its checksum in "
                                 f"SHA256SUMS; no other in {tmp_path} can be used: to begin again, remove that folder")
    assert capsys.readouterr() == ("", "") and names(tmp_path) == ["step-000002", "step-000004"]


def test_those_of_an_older_version_are_refused_and_so_is_another_format(tmp_path):
    """Format 1 had no checksums. Format 3, whose checksums are right, is somebody else's."""
    (tmp_path / "old/step-000002").mkdir(parents=True)
    (tmp_path / "old/step-000002/state.json").write_text('{"format": 1, "step": 2, "evaluated": 0, "best": null}\n')
    with pytest.raises(ValueError, match="no SHA256SUMS .those of an older version have none, and cannot be read"):
        newest_state(tmp_path / "old", KEYS)
    with write_state(tmp_path / "new", 2, {"format": 3}):
        pass
    with pytest.raises(ValueError, match="step-000002: format 3, this program reads 2$"):
        newest_state(tmp_path / "new", KEYS)


@pytest.mark.parametrize("step, options, left", [
    (8, {"keep": 2}, [6, 8]),
    (8, {"keep": 2, "best": 4}, [4, 6, 8]),
    (8, {"keep": 2, "best": 8}, [6, 8]),
    (8, {"keep": 2, "best": 3}, [6, 8]),                # the best is gone: that is no reason to keep another
    (4, {"keep": 1}, [4]),                              # beyond step 4 nothing is of this run any more
])
def test_the_last_ones_and_the_best_are_kept(tmp_path, step, options, left):
    write(tmp_path, 2, 4, 6, 8)
    drop_states(tmp_path, step, **options)
    assert names(tmp_path) == [f"step-{kept:06d}" for kept in left]


def test_what_is_no_state_is_neither_used_nor_removed(tmp_path):
    """Files of like names, and folders of a user's own: seven digits are a million steps, which come after all of six."""
    write(tmp_path, 2, 1_000_000 - 1, 1_000_000)
    for name in ("step-2", "step-000009", "step-000003.writing"):
        (tmp_path / name).write_text("mine")
    for name in ("step-3", "step-000002-copy", "step-best", "mine.writing"):
        (tmp_path / name).mkdir()
    assert [state.name for state in states(tmp_path)] == ["step-000002", "step-999999", "step-1000000"]
    assert newest(tmp_path) == "step-1000000"
    before = names(tmp_path)
    drop_states(tmp_path, 1_000_000, keep=1)
    assert names(tmp_path) == [name for name in before if name not in ("step-000002", "step-999999")]


@pytest.mark.parametrize("content, said", [
    ("{}", "/state.json: expected a JSON object with format (integer), got {}"),
    ("[]", "/state.json: expected a JSON object with format (integer), got []"),
    ("[" * 10**5, "/state.json: expected a JSON object with format (integer), got something else (maximum recursion depth"),
    ('{"format": 2, "step": 4}', '/state.json: expected a JSON object with best (integer), got {"format": 2, "step": 4}'),
    ('{"format": 2, "step": -1, "best": 0}', ": its state.json is one of step -1")])
def test_a_state_that_says_something_else_under_right_checksums_is_one_sentence(tmp_path, content, said):
    """Not torn, then, but somebody's: the one before it is not taken in its place."""
    write(tmp_path, 2, 4)
    state = tmp_path / "step-000004"
    (state / "state.json").write_text(content)
    sums = (state / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(content.encode()).hexdigest()
    (state / "SHA256SUMS").write_text("".join(f"{line}\n" for line in [*sums[:2], f"{digest}  state.json"]))
    with pytest.raises(ValueError) as caught:
        newest_state(tmp_path, KEYS)
    assert str(caught.value).startswith(f"{state}{said}") and "\n" not in str(caught.value)


def test_one_set_aside_for_another_that_never_came_gets_its_name_again(tmp_path):
    """Killed between two renames: the old one of the name is all there is."""
    write(tmp_path, 50)
    (tmp_path / "step-000050").rename(tmp_path / "step-000050.old.writing")
    assert newest_state(tmp_path, KEYS) == (tmp_path / "step-000050", {"format": 2, "step": 50, "best": 25})
    assert names(tmp_path) == ["step-000050"]


def test_what_a_killed_process_left_half_written_goes_too(tmp_path):
    """The one that was being written, and the old one of its name, set aside."""
    write(tmp_path, 2)
    for name in ("step-000004.writing", "step-000002.old.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bin").write_bytes(b"x")
    assert newest(tmp_path) == "step-000002"
    drop_states(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000002"]


def test_a_state_that_fails_to_be_written_leaves_the_others(tmp_path):
    write(tmp_path, 2)
    with pytest.raises(OSError), write_state(tmp_path, 2, {}) as aside:
        (aside / "a.bin").write_bytes(b"half")
        raise OSError("disk")
    assert newest(tmp_path) == "step-000002" and names(tmp_path) == ["step-000002"]


def test_a_number_that_was_refused_is_written_again(tmp_path):
    """Back at step 2 since 4 was torn, the run comes by 4 a second time."""
    write(tmp_path, 2, 4)
    (tmp_path / "step-000004/a.bin").write_bytes(b"")
    drop_states(tmp_path, 3, keep=1)                        # as a warm-up does before it writes: the sound one must stay
    assert newest(tmp_path) == "step-000002"
    write(tmp_path, 4)
    assert newest(tmp_path) == "step-000004"
