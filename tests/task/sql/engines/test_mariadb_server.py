"""mariadb_server.py: a private server, from its start until its files are gone. Its queries, and being killed: test_mariadb.py."""

import fcntl
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from minigrpo.task.sql.engines.database import DatabaseError
from minigrpo.task.sql.engines.mariadb_server import LOCK, SECONDS_TO_LOCK, _parent, _sweep, start_server
from tests.mariadb_server import needs_mariadb
from tests.processes import command_lines, eventually


def answers(path: str) -> bool:
    """A MariaDB server speaks first: three bytes of length, a sequence number 0, protocol version 10."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(path)
            return client.recv(5)[3:] == bytes([0, 10])
        except (ConnectionRefusedError, ConnectionResetError, TimeoutError):
            return False


def servers(folder: Path) -> list[str]:
    return [line for line in command_lines().values() if str(folder) in line]


@needs_mariadb
def test_it_is_there_for_us_alone_and_gone_with_its_files():
    """A folder that only we may enter, a socket that answers, no network; afterwards neither process nor file. Twice
    beside each other, they do not meet."""
    with ExitStack() as undo:
        first, second = Path(start_server(undo, answers, 20).socket), Path(start_server(undo, answers, 20).socket)
        assert first != second and answers(str(first)) and answers(str(second))
        assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
        commands = servers(first.parent)
        assert len(commands) == 2 and all("--skip-networking" in line for line in commands)     # the keeper, the server
    for path in (first, second):
        assert not path.parent.exists() and not servers(path.parent)


def test_without_mariadb_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with ExitStack() as undo, pytest.raises(DatabaseError, match=r"^no mariadb\S+ on the PATH: .*apt-get install mariadb-server"):
        start_server(undo, answers, 20)


@needs_mariadb
def test_a_server_that_does_not_start_says_why_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb_server.SERVER_FLAGS", "--no-such-flag")
    with ExitStack() as undo, pytest.raises(DatabaseError, match="^the private MariaDB did not start: .*no-such-flag") as caught:
        start_server(undo, answers, 20)
    assert "\n" not in str(caught.value)
    assert not servers(Path("--no-such-flag"))


def is_held(lock: Path) -> bool:
    """A killed process holds the lock for a while after its command line is gone."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


ABANDONED = """
import os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from minigrpo.task.sql.engines.mariadb_server import SECONDS_TO_LOCK, _sweep, start_server
server = start_server(ExitStack(), lambda socket: True, 20)
print(server._folder, server._keeper.pid, flush=True)
time.sleep(60)
"""


@needs_mariadb
def test_what_a_killed_keeper_and_a_killed_program_leave_the_next_start_removes():
    """Killed at once, nobody is left to remove the folder; while anyone of them lives, its lock keeps it from being removed,
    and so does its being new: its lock may just be about to be taken."""
    with subprocess.Popen([sys.executable, "-c", ABANDONED], stdout=subprocess.PIPE, text=True) as program:
        folder, keeper = program.stdout.readline().split()
        long_ago = time.time() - SECONDS_TO_LOCK - 1
        os.utime(Path(folder, LOCK), (long_ago, long_ago))
        _sweep(Path(folder).parent)
        assert Path(folder).is_dir()                        # it is in use
        os.kill(program.pid, signal.SIGSTOP)                # so that the pipe does not close before the keeper ends
        os.kill(int(keeper), signal.SIGKILL)
        program.kill()
    assert eventually(lambda: not is_held(Path(folder, LOCK))) and Path(folder).is_dir()
    os.utime(Path(folder, LOCK))
    _sweep(Path(folder).parent)
    assert Path(folder).is_dir()                            # it is new
    os.utime(Path(folder, LOCK), (long_ago, long_ago))
    with ExitStack() as undo:
        start_server(undo, answers, 20)
        assert not Path(folder).exists()


def left_behind(folder: Path, lock: str = LOCK) -> Path:
    """A folder as a killed server leaves it: its lock is old, and nobody holds it."""
    (folder / "data").mkdir(parents=True)
    (folder / lock).touch()
    long_ago = time.time() - SECONDS_TO_LOCK - 1
    os.utime(folder / lock, (long_ago, long_ago))
    return folder


def test_only_what_a_server_left_is_removed(tmp_path):
    """A folder with the name of a server's folder and a server's lock that nobody holds."""
    left_behind(tmp_path / f"minigrpo-{'d' * 16}")
    kept = [left_behind(tmp_path / f"minigrpo-{letter * 16}") for letter in "ab"]
    (kept[0] / LOCK).unlink()
    kept += [left_behind(tmp_path / name) for name in ("minigrpo-quickstart", f"minigrpo-{'e' * 17}", f"other-{'e' * 16}")]
    with open(kept[1] / LOCK) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_finished_run_is_no_server_that_was_left(tmp_path):
    """A run's folder may have any name, also a server's, and keeps its lock file forever: it is never removed."""
    runs = [left_behind(tmp_path / name, "lock") for name in ("minigrpo-quickstart", f"minigrpo-{'f' * 16}")]
    _sweep(tmp_path)
    assert all((run / "data").is_dir() for run in runs)


def test_links_are_left_alone_and_end_nothing(tmp_path):
    """A link to a server's folder, a link as lock, and a file stay; a folder that comes after them, in any order, is removed."""
    place = tmp_path / "place"
    target = left_behind(tmp_path / "target")
    for digit in "0f":
        left_behind(place / f"minigrpo-{digit * 16}")
    (place / f"minigrpo-{'1' * 16}").symlink_to(target)
    (place / f"minigrpo-{'2' * 16}").mkdir()
    (place / f"minigrpo-{'2' * 16}" / LOCK).symlink_to(target / LOCK)
    (place / f"minigrpo-{'3' * 16}").touch()
    _sweep(place)
    assert sorted(path.name[-1] for path in place.iterdir()) == ["1", "2", "3"]
    assert (target / "data").is_dir() and (target / LOCK).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
@pytest.mark.parametrize("theirs", ["", LOCK])
def test_another_user_s_folder_is_left_alone(tmp_path, theirs):
    folder = left_behind(tmp_path / f"minigrpo-{'d' * 16}")
    os.chown(folder / theirs, 65534, 65534)
    _sweep(tmp_path)
    assert folder.is_dir()


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_what_was_left_in_either_place_is_removed_before_room_is_looked_for(tmp_path, monkeypatch, place):
    """There is no room in memory until the left-over folder is removed; then the server starts in memory."""
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    left_behind(tmp_path / place / f"minigrpo-{'d' * 16}")
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb_server.MEMORY_FOLDER", memory)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage",
                        lambda _: usage._replace(free=0 if [*memory.iterdir(), *disk.iterdir()] else 2**30))
    assert _parent() == memory


def test_without_room_in_memory_it_is_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb_server.MEMORY_FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _parent() == tmp_path


@needs_mariadb
def test_whoever_waits_for_its_end_keeps_nobody_from_killing_it():
    """A thread that waits sees that another thread ends the server, although this closes the pipe."""
    with ExitStack() as undo, ThreadPoolExecutor() as pool:
        server = start_server(undo, answers, 20)
        waiting = pool.submit(server.has_ended, 30.0)
        time.sleep(0.3)
        assert not waiting.done()
        start = time.monotonic()
        server.kill()
        assert waiting.result() and time.monotonic() - start < 10


@needs_mariadb
def test_its_end_is_seen_by_a_program_with_many_open_files():
    """The pipe's file number is above 1,023, the last that select() can watch."""
    with ExitStack() as undo:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 1200:
            pytest.skip("this machine does not let a program open 1,200 files")
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
        for _ in range(1100):
            undo.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        server = start_server(undo, answers, 20)
        assert not server.has_ended(0.01)
        server.kill()
        assert server.has_ended()


@needs_mariadb
def test_a_restart_begins_with_what_was_frozen():
    """A file that the data folder had when it was frozen is there again, a later one is gone."""
    with ExitStack() as undo:
        server = start_server(undo, answers, 20)
        data = Path(server.socket).parent / "data"
        (data / "before").touch()
        server.freeze()
        (data / "before").unlink()
        (data / "after").touch()
        server.start()                                      # it runs already: nothing happens
        assert (data / "after").exists() and not server.has_ended()
        server.kill()
        assert server.has_ended() and not answers(server.socket)
        server.restart()
        assert answers(server.socket) and (data / "before").exists() and not (data / "after").exists()


@needs_mariadb
def test_a_server_that_ends_is_seen_to_end():
    with ExitStack() as undo:
        server = start_server(undo, answers, 20)
        assert not server.has_ended()
        start = time.monotonic()
        assert not server.has_ended(0.2) and time.monotonic() - start >= 0.2
        (pid,) = [pid for pid, line in command_lines().items() if str(Path(server.socket).parent) in line and "keeper" not in line]
        os.kill(pid, signal.SIGKILL)
        assert server.has_ended(5.0)


@pytest.mark.slow
@needs_mariadb
def test_a_start_that_fails_once_is_tried_again():
    """With a broken file in its frozen data a server does not start. It starts once the file is repaired while the program waits."""
    with ExitStack() as undo, ThreadPoolExecutor() as pool:
        server = start_server(undo, answers, 20)
        server.freeze()
        spoilt = Path(server.socket).parent / "ready/ibdata1"
        whole = spoilt.read_bytes()
        spoilt.write_bytes(b"spoilt")
        server.kill()
        later = pool.submit(server.restart)
        time.sleep(0.8)
        spoilt.write_bytes(whole)
        later.result()
        assert answers(server.socket)
        spoilt.write_bytes(b"spoilt")
        server.kill()
        with pytest.raises(DatabaseError, match="^the private MariaDB did not start: InnoDB: [^\n]+$"):
            server.restart()
