"""mariadbd.py: a server of our own, from nothing to gone. What it serves, and being killed: test_mariadb.py."""

import fcntl
import os
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

from minigrpo.task.database import DatabaseError
from minigrpo.task.mariadbd import SECONDS_TO_LOCK, _sweep, start_server

from ..processes import command_lines, eventually

needs_mariadb = pytest.mark.skipif(shutil.which("mariadbd") is None and "CI" not in os.environ,
                                   reason="no mariadbd on the PATH: apt-get install mariadb-server")


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
        first, second = Path(start_server(undo, answers).socket), Path(start_server(undo, answers).socket)
        assert first != second and answers(str(first)) and answers(str(second))
        assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
        commands = servers(first.parent)
        assert len(commands) == 2 and all("--skip-networking" in line for line in commands)     # the keeper, the server
    for path in (first, second):
        assert not path.parent.exists() and not servers(path.parent)


def test_without_mariadb_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with ExitStack() as undo, pytest.raises(DatabaseError, match=r"^no mariadb\S+ on the PATH: .*apt-get install mariadb-server"):
        start_server(undo, answers)


@needs_mariadb
def test_a_server_that_does_not_start_says_why_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr("minigrpo.task.mariadbd.FLAGS", "--no-such-flag")
    with ExitStack() as undo, pytest.raises(DatabaseError, match="^the private MariaDB did not start: .*no-such-flag") as caught:
        start_server(undo, answers)
    assert "\n" not in str(caught.value)
    assert not servers(Path("--no-such-flag"))


ABANDONED = """
import os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from minigrpo.task.mariadbd import SECONDS_TO_LOCK, _sweep, start_server
server = start_server(ExitStack(), lambda socket: True)
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
        os.utime(Path(folder, "lock"), (long_ago, long_ago))
        _sweep(Path(folder).parent)
        assert Path(folder).is_dir()                        # it is in use
        os.kill(program.pid, signal.SIGSTOP)                # so that the pipe does not end before the keeper does
        os.kill(int(keeper), signal.SIGKILL)
        program.kill()
    assert eventually(lambda: not servers(Path(folder))) and Path(folder).is_dir()
    os.utime(Path(folder, "lock"))
    _sweep(Path(folder).parent)
    assert Path(folder).is_dir()                            # it is new
    os.utime(Path(folder, "lock"), (long_ago, long_ago))
    with ExitStack() as undo:
        start_server(undo, answers)
        assert not Path(folder).exists()


def test_only_folders_with_a_lock_of_ours_that_nobody_holds_are_removed(tmp_path):
    long_ago = time.time() - SECONDS_TO_LOCK - 1
    for name in ("minigrpo-dead", "minigrpo-held", "minigrpo-without", "other-dead"):
        (tmp_path / name / "data").mkdir(parents=True)
        if name != "minigrpo-without":
            (tmp_path / name / "lock").touch()
            os.utime(tmp_path / name / "lock", (long_ago, long_ago))
    with open(tmp_path / "minigrpo-held/lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minigrpo-held", "minigrpo-without", "other-dead"]


@needs_mariadb
def test_a_restart_begins_with_what_was_frozen():
    """A file that the data folder had then is there again, one that came later is gone."""
    with ExitStack() as undo:
        server = start_server(undo, answers)
        data = Path(server.socket).parent / "data"
        (data / "before").touch()
        server.freeze()
        (data / "before").unlink()
        (data / "after").touch()
        server.start()                                      # it is up: nothing happens
        assert (data / "after").exists() and not server.has_ended()
        server.kill()
        assert server.has_ended() and not answers(server.socket)
        server.restart()
        assert answers(server.socket) and (data / "before").exists() and not (data / "after").exists()


@needs_mariadb
def test_a_server_that_ends_is_seen_to_end():
    with ExitStack() as undo:
        server = start_server(undo, answers)
        assert not server.has_ended()
        start = time.monotonic()
        assert not server.has_ended(0.2) and time.monotonic() - start >= 0.2
        (pid,) = [pid for pid, line in command_lines().items() if str(Path(server.socket).parent) in line and "keeper" not in line]
        os.kill(pid, signal.SIGKILL)
        assert server.has_ended(5.0)


@needs_mariadb
def test_a_start_that_fails_once_is_tried_again():
    """With a spoilt file among its frozen data a server does not start; mended while the program waits, it does."""
    with ExitStack() as undo, ThreadPoolExecutor() as pool:
        server = start_server(undo, answers)
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
