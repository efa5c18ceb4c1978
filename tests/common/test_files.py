"""files.py: a folder is the old one or the new one whatever happens meanwhile, and belongs to one process at a time."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.common.files import lock_folder, whole_folder, write_whole
from tests.paths import ROOT

OLD, NEW = {"a": "old a", "b": "old b", "only old": "x"}, {"a": "new a", "b": "new b"}


def fill(folder: Path, content: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str] | None:
    return {file.name: file.read_text() for file in folder.iterdir()} if folder.is_dir() else None


def python(code: str, *arguments: object) -> subprocess.Popen:
    """Another process; it says something when it is where the test wants it."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE)


def kill(process: subprocess.Popen) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


# ---------------------------------------------------------------------------------------------------------- whole folders
def test_a_folder_is_made_with_all_above_it_and_holds_what_was_written(tmp_path):
    folder = tmp_path / "not/yet/there"
    with whole_folder(folder) as aside:
        assert aside.parent == folder.parent and aside != folder        # beside it: a rename needs one disk
        fill(aside, NEW)
        (aside / "bytes").write_bytes(b"\xff\x00")
        assert not folder.exists()
    assert (folder / "bytes").read_bytes() == b"\xff\x00"
    (folder / "bytes").unlink()
    assert content(folder) == NEW and [path.name for path in folder.parent.iterdir()] == ["there"]


def test_an_old_folder_is_replaced_as_a_whole(tmp_path):
    """Nothing is merged: a file that is not written again is gone; until then readers have the old one."""
    fill(tmp_path / "f", OLD)
    with whole_folder(tmp_path / "f") as aside:
        assert content(aside) == {}
        fill(aside, NEW)
        assert content(tmp_path / "f") == OLD
    assert content(tmp_path / "f") == NEW and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_may_be_empty_and_is_there_nevertheless(tmp_path):
    fill(tmp_path / "f", OLD)
    with whole_folder(tmp_path / "f"):
        pass
    assert content(tmp_path / "f") == {}


def test_folders_of_like_names_do_not_disturb_each_other(tmp_path):
    """Written one within the other's writing: "step-1" and "step-10", a name with a dot, one without."""
    names = ["step-1", "step-10", "v1.5", "v1"]
    with whole_folder(tmp_path / names[0]) as one, whole_folder(tmp_path / names[1]) as two, \
         whole_folder(tmp_path / names[2]) as three, whole_folder(tmp_path / names[3]) as four:
        for folder, name in zip((one, two, three, four), names):
            fill(folder, {"name": name})
    assert {path.name: content(path) for path in tmp_path.iterdir()} == {name: {"name": name} for name in names}


@pytest.mark.parametrize("error", [ValueError("disk"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_an_error_in_the_middle_leaves_the_old_one_and_goes_on_as_itself(tmp_path, error):
    fill(tmp_path / "f", OLD)
    with pytest.raises(type(error)) as caught, whole_folder(tmp_path / "f") as aside:
        fill(aside, {"a": "new a"})
        raise error
    assert caught.value is error and content(tmp_path / "f") == OLD
    with whole_folder(tmp_path / "f") as aside:             # and what it left is in nobody's way
        assert content(aside) == {}
        fill(aside, NEW)
    assert content(tmp_path / "f") == NEW and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_error_leaves_no_folder_where_there_was_none(tmp_path):
    with pytest.raises(ValueError), whole_folder(tmp_path / "f") as aside:
        fill(aside, NEW)
        raise ValueError("disk")
    assert not (tmp_path / "f").exists()


def test_killed_while_writing_the_old_one_stays_and_the_leftovers_are_cleared(tmp_path):
    """SIGKILL after the first of two files: no handler runs, no ``finally``."""
    fill(tmp_path / "f", OLD)
    process = python("import sys, time; from pathlib import Path; from minigrpo.common.files import whole_folder\n"
                     "with whole_folder(Path(sys.argv[1])) as aside:\n"
                     "    (aside / 'a').write_text('new a'); (aside / 'torn').write_text('x')\n"
                     "    print(flush=True); time.sleep(60)", tmp_path / "f")
    process.stdout.readline()
    kill(process)
    assert content(tmp_path / "f") == OLD and len(list(tmp_path.iterdir())) == 2
    with whole_folder(tmp_path / "f") as aside:
        assert content(aside) == {}
        fill(aside, NEW)
    assert content(tmp_path / "f") == NEW and [path.name for path in tmp_path.iterdir()] == ["f"]


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from minigrpo.common.files import whole_folder

folder, left = Path(sys.argv[1]), int(sys.argv[2])

def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir") or event == "open" and sys.argv[1] in str(arguments[0]):
        left -= 1
        if left == -1:
            if sys.argv[3] == "interrupted":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)

with whole_folder(folder) as aside:
    for name in ("a", "b"):
        (aside / name).write_text(f"new {name}")
    sys.addaudithook(count)
"""


def exchanged(folder: Path, moment: int, how: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", KILLED_AT, str(folder), str(moment), how], cwd=ROOT, stderr=subprocess.PIPE)


def test_interrupted_at_any_moment_of_the_exchange_a_folder_is_the_old_one_or_the_new(tmp_path):
    """Ctrl-C before the first, the second, ... thing that is done to the disk: here there is time to put things right, so none
    of the moments leaves nothing, and what was set aside is gone again."""
    seen, code = [], 1
    while code != 0:
        assert len(seen) < 50
        place = tmp_path / str(len(seen))
        fill(place / "f", OLD)
        code = exchanged(place / "f", len(seen), "interrupted").returncode
        seen.append(content(place / "f"))
        assert not (place / "f.writing").exists()
    assert seen[0] == OLD and seen[-1] == NEW and len(seen) > 3 and all(state in (OLD, NEW) for state in seen), seen


def test_killed_at_any_moment_of_the_exchange_a_folder_is_never_half_there(tmp_path):
    """SIGKILL before the first, the second, ... thing that is done to the disk once everything is written, until none is left
    to be killed before. The folder is then the old one or the new one, or (between two renames there is no way round it) not
    there at all; with files missing it would be taken for a checkpoint, and nothing could be resumed from it."""
    seen, code = [], -signal.SIGKILL
    while code == -signal.SIGKILL:
        assert len(seen) < 50
        place = tmp_path / str(len(seen))
        fill(place / "f", OLD)
        code = exchanged(place / "f", len(seen), "killed").returncode
        seen.append(content(place / "f"))
    assert code == 0 and seen[0] == OLD and seen[-1] == NEW and len(seen) > 3
    assert all(state in (OLD, NEW, None) for state in seen), seen
    assert seen.count(None) <= 1


# ------------------------------------------------------------------------------------------------------------------ locks
LOCK = "import sys, time; from pathlib import Path; from minigrpo.common.files import lock_folder\n" \
       "file = lock_folder(Path(sys.argv[1])); print(flush=True); time.sleep(60)"


def test_a_second_process_is_refused_until_the_first_is_gone_even_killed(tmp_path):
    process = python(LOCK, tmp_path / "run")
    process.stdout.readline()
    for _ in range(2):                                      # asking does not take it away
        with pytest.raises(ValueError) as caught:
            lock_folder(tmp_path / "run")
        assert str(caught.value) == f"{tmp_path}/run is in use by another process"
    kill(process)
    with lock_folder(tmp_path / "run"):                     # the file "lock" is still there, and means nothing
        pass


def test_we_hold_it_against_others_until_the_file_is_closed(tmp_path):
    def asked() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", LOCK.replace("time.sleep(60)", "pass"), str(tmp_path / "run")], cwd=ROOT,
                              capture_output=True, text=True)

    with lock_folder(tmp_path / "run"):
        assert "run is in use by another process" in asked().stderr.splitlines()[-1]
    assert asked().returncode == 0


def test_what_is_in_a_folder_stays_and_other_folders_are_others(tmp_path):
    fill(tmp_path / "run", OLD)
    with lock_folder(tmp_path / "run") as one, lock_folder(tmp_path / "run/deeper/still") as two:
        assert one.name != two.name
        assert {name: (tmp_path / "run" / name).read_text() for name in OLD} == OLD
    assert (tmp_path / "run/deeper/still").is_dir()


def test_replacing_a_folder_does_not_need_its_lock(tmp_path):
    """A run holds run.out and replaces folders in it."""
    with lock_folder(tmp_path / "run"):
        with whole_folder(tmp_path / "run/base") as aside:
            fill(aside, NEW)
        with pytest.raises(ValueError, match="in use"):
            lock_folder(tmp_path / "run")
    assert content(tmp_path / "run/base") == NEW


@pytest.mark.parametrize("place, why", [("file", "File exists"), ("file/below", "Not a directory"),
                                        ("/proc/nowhere", "No such file or directory"), ("nothing\x00", "embedded null byte")])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, place, why):
    (tmp_path / "file").write_text("")
    out = tmp_path / place                                  # /proc stays /proc: an absolute path wins
    with pytest.raises(ValueError) as caught:
        lock_folder(out)
    if "\x00" not in place:                                 # which TOML can write and no file system has
        assert str(caught.value) == f"run.out: {out} cannot be written to: {why}"
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
@pytest.mark.parametrize("folder", ["/usr/lib", "/usr/lib/below"])
def test_a_folder_without_permission_is_one_sentence(folder):
    """As somebody who is not root: a folder that belongs to root, and one that could only be made there."""
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    ended = subprocess.run([*as_nobody, sys.executable, "-B", "-c", LOCK, folder], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(f"minigrpo.common.errors.UserError: run.out: {folder} cannot be written to: (Permission denied|Read-only file system)",
                        ended.stderr.splitlines()[-1])


# ------------------------------------------------------------------------------------------------------------- whole files
def test_a_file_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "f").write_text("old and longer")
    write_whole(tmp_path / "f", "Õ\n".encode())
    assert (tmp_path / "f").read_bytes() == b"\xc3\x95\n" and [path.name for path in tmp_path.iterdir()] == ["f"]


FILE_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from minigrpo.common.files import write_whole

file, left = Path(sys.argv[1]), int(sys.argv[2])

def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove") or event == "open" and sys.argv[1] in str(arguments[0]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
write_whole(file, b"new")
"""


def test_killed_at_any_moment_a_file_is_the_old_one_or_the_new(tmp_path):
    seen, code = [], -signal.SIGKILL
    while code == -signal.SIGKILL:
        assert len(seen) < 20
        file = tmp_path / str(len(seen))
        file.write_bytes(b"old")
        code = subprocess.run([sys.executable, "-c", FILE_KILLED_AT, str(file), str(len(seen))], cwd=ROOT).returncode
        seen.append(file.read_bytes())
    assert code == 0 and seen[0] == b"old" and seen[-1] == b"new" and len(seen) > 2 and set(seen) == {b"old", b"new"}


def test_names_reach_the_disk_and_not_content_alone(tmp_path, monkeypatch):
    """After a power cut a name may stand for nothing: all files and the folder that holds their names are flushed before the
    rename, and the folder in which it happens, after it."""
    done = []
    sync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(Path(os.readlink(f"/proc/self/fd/{file}")).name), sync(file)))
    monkeypatch.setattr(Path, "rename", lambda *paths: (done.append("renamed"), rename(*paths))[1])
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("renamed"), replace(*paths))[1])
    with whole_folder(tmp_path / "in/f") as aside:
        fill(aside, NEW)
    assert sorted(done[:2]) == ["a", "b"] and done[2:] == ["f.writing", "renamed", "in"]
    done.clear()
    write_whole(tmp_path / "in/file", b"x")
    assert done == ["file.writing", "renamed", "in"]


def test_an_error_that_names_no_file_is_told_which(tmp_path):
    """The system does not say which file found the disk full; an error that does say, or is none of the system's, stays."""
    for error, said in ((OSError(28, "No space left on device"), f"[Errno 28] No space left on device: '{tmp_path}/f'"),
                        (OSError(2, "No such file", "other"), "[Errno 2] No such file: 'other'"), (OSError("odd"), "odd")):
        with pytest.raises(OSError) as caught, whole_folder(tmp_path / "f"):
            raise error
        assert str(caught.value) == said and list(tmp_path.iterdir()) == []         # nor is room taken by what was begun
