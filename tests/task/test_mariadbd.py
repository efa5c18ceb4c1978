"""mariadbd.py: a server of our own, from nothing to gone. What it serves, and being killed: test_mariadb.py."""

import os
import shutil
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from minigrpo.task.database import DatabaseError
from minigrpo.task.mariadbd import start_server

from ..processes import command_lines

needs_mariadb = pytest.mark.skipif(shutil.which("mariadbd") is None and "CI" not in os.environ,
                                   reason="no mariadbd on the PATH: apt-get install mariadb-server")


def answers(path: str) -> bool:
    """A MariaDB server speaks first: three bytes of length, a sequence number 0, protocol version 10."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(path)
            return client.recv(5)[3:] == bytes([0, 10])
        except (ConnectionRefusedError, TimeoutError):
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
