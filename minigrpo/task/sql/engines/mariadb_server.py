r"""A private MariaDB server that ends when this program ends. Here are its processes and files, and no SQL.

The server runs under a keeper, a shell that waits on a pipe from this program. However this program ends, the pipe closes, and
the keeper kills the server and removes its files. If the keeper is killed, the kernel kills the server. If program, keeper and
server are all killed at once, files remain, but nobody holds their lock: the next server that starts removes them.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from select import POLLIN, poll
from threading import Lock
from typing import IO

from minigrpo.task.sql.engines.database import DatabaseError

SECONDS_TO_START = 30.0         # 1 is usual
MAX_RESTARTS = 3                # attempts to restart a server that has run before
SECONDS_TO_LOCK = 60.0          # a folder older than this whose lock nobody holds was left behind
MEMORY_FOLDER = Path("/dev/shm")
# Only this module creates folders with this name and this lock in them. A run's folder has another name and lock.
FOLDER_NAME = re.compile("minigrpo-[0-9a-f]{16}")
LOCK = "server.lock"

KEEPER = r"""
folder=$1; install=$2; server=$3; shift 3
[ "$(id -u)" = 0 ] && user=--user=root              # it runs as root only if told to
setpriv --pdeathsig KILL true 2>/dev/null && tied='setpriv --pdeathsig KILL'        # so that it dies with this shell
trap '' XFSZ; ulimit -f 262144                      # no file beyond 128 MiB: a sort that spills more fails
export MALLOC_ARENA_MAX=2                           # so that its threads reuse memory that others free
if if [ -d "$folder/ready" ]
    then rm -rf "$folder/data" "$folder/socket" && cp -R "$folder/ready" "$folder/data"
    else "$install" --no-defaults --datadir="$folder/data" $user --auth-root-authentication-method=normal --skip-test-db \
        --loose-debug-no-sync --innodb-log-file-size=4M
    fi </dev/null >>"$folder/log" 2>&1
then $tied "$server" --no-defaults --datadir="$folder/data" $user --socket="$folder/socket" --tmpdir="$folder" "$@" \
    </dev/null 2>>"$folder/log" &
fi
exec >&-                    # now only the server holds our output, which ends when it does
read -r line                # waits for a line, or for the end of the pipe
kill -9 $!; wait
[ "$line" = again ] || rm -rf "$folder"
"""
# No file outlives this program, so none needs to be synced: on a disk the first query comes after 2.7 s instead of 6. What is
# committed is still written, so a killed server does not lose it.
SERVER_FLAGS = ("--loose-debug-no-sync --skip-networking --skip-name-resolve --performance-schema=OFF --skip-stack-trace "
                "--innodb-buffer-pool-size=16M --innodb-log-file-size=4M --innodb-flush-log-at-trx-commit=2 --log-warnings=0 "
                "--innodb-use-native-aio=0 --local-infile=0 --max-allowed-packet=64K --read-only=1 --loose-sequence=OFF")


def start_server(undo: ExitStack, answers: Callable[[str], bool], max_connections: int) -> "Server":
    """Start a server and wait until ``answers(socket)``. ``undo`` will end it and remove its files.

    ``DatabaseError``: MariaDB is not installed, or did not start (with the first error of its log).
    """
    programs = _program("mariadb-install-db", "mysql_install_db"), _program("mariadbd", "mysqld")
    server = Server(_parent() / f"minigrpo-{secrets.token_hex(8)}", programs, answers, max_connections)
    undo.callback(server.close)
    server.start()
    return server


class Server:
    """A server in a folder that only our user can enter. Its socket stays the same across restarts. Its root account has no
    password and may write although the server is read-only. Safe to call from several threads."""

    def __init__(self, folder: Path, programs: tuple[str, str], answers: Callable[[str], bool],
                 max_connections: int) -> None:
        self.socket = str(folder / "socket")
        self._folder, self._answers, self._busy = folder, answers, Lock()
        self._command = ["/bin/sh", "-c", KEEPER, "minigrpo-keeper", str(folder), *programs, *SERVER_FLAGS.split(),
                         f"--max-connections={max_connections}"]
        self._keeper: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700)
        self._lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)              # held by us, the keeper and the server, until the last ends

    def start(self) -> None:
        """Start it, unless it runs."""
        with self._busy:
            if self._has_ended():
                self._end(b"again\n")
                self._start()

    def restart(self) -> None:
        """Start it again if it has ended, with the data of ``freeze``. ``DatabaseError``: it failed ``MAX_RESTARTS`` times."""
        for attempt in range(1, MAX_RESTARTS + 1):
            try:
                return self.start()
            except DatabaseError:
                if attempt == MAX_RESTARTS:
                    raise
                time.sleep(attempt)

    def freeze(self) -> None:
        """Keep what is committed by now as the data that each restart begins with; then restart."""
        with self._busy:
            self._end(b"again\n")
            (self._folder / "data").rename(self._folder / "ready")
            self._start()

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or ends within so many seconds. Other threads may kill it meanwhile."""
        with self._busy:
            pipes = self._pipes()
            if not pipes or _is_at_end(pipes[1], 0.0):
                return True
            pipe = open(os.dup(pipes[1].fileno()), "rb", buffering=0)       # of our own: who kills the server closes the other
        with pipe:
            return _is_at_end(pipe, seconds)

    def kill(self) -> None:
        """End it at once, also during a query."""
        with self._busy:
            self._end(b"again\n")

    def close(self) -> None:
        """End it and remove its files."""
        with self._busy:
            self._end(b"\n")
            shutil.rmtree(self._folder, ignore_errors=True)             # the keeper did this, unless it was killed
            os.close(self._lock)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]] | None:
        """The keeper's input and output; None if no keeper runs."""
        if self._keeper is None:
            return None
        assert self._keeper.stdin and self._keeper.stdout
        return None if self._keeper.stdout.closed else (self._keeper.stdin, self._keeper.stdout)

    def _has_ended(self, seconds: float = 0.0) -> bool:
        pipes = self._pipes()
        return not pipes or _is_at_end(pipes[1], seconds)

    def _end(self, line: bytes) -> None:
        if self._keeper and (pipes := self._pipes()):
            with self._keeper:                              # on leaving, it closes the pipes and waits
                with suppress(BrokenPipeError):             # the keeper was killed
                    pipes[0].write(line)                    # needed if we have forked: the child holds the pipe open too

    def _start(self) -> None:
        # In a session of its own, so that Ctrl-C in the terminal does not end it while we still send queries.
        self._keeper = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", bufsize=0,
                                        stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=(self._lock,))
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._has_ended(0.01) and time.monotonic() < deadline:
            if os.path.exists(self.socket) and self._answers(self.socket):
                return
        log = self._folder / "log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        errors = [line.partition("[ERROR] ")[2] for line in lines if "[ERROR] " in line]
        raise DatabaseError(f"the private MariaDB did not start: {[*errors, 'its log names no error'][0]}")


def _is_at_end(pipe: IO[bytes], seconds: float) -> bool:
    """Whether nobody holds the other end of the pipe, now or within so many seconds."""
    ends = poll()                                           # select() fails for a file number above 1023
    ends.register(pipe, POLLIN)
    return bool(ends.poll(seconds * 1000))


def _parent() -> Path:
    """Memory-backed storage if it has ample room for the server's 60 MB, otherwise the folder for temporary files. Files that
    servers left behind in either are removed first: they may be what takes the room."""
    disk = Path(tempfile.gettempdir()).resolve()
    for place in (MEMORY_FOLDER, disk):
        _sweep(place)
    roomy = os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY_FOLDER).free >= 512 * 2**20
    return MEMORY_FOLDER if roomy else disk


def _sweep(parent: Path) -> None:
    """Remove the folders of servers that were killed together with their keeper and the program that started them."""
    for folder in parent.glob("minigrpo-*"):
        lock = folder / LOCK
        with suppress(FileNotFoundError, PermissionError, BlockingIOError):     # gone meanwhile; someone else's; in use
            if FOLDER_NAME.fullmatch(folder.name) and _is_ours(folder, stat.S_ISDIR) and _is_ours(lock, stat.S_ISREG):
                if time.time() - lock.stat().st_mtime > SECONDS_TO_LOCK:
                    with lock.open() as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(folder)


def _is_ours(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether the path itself, not what it links to, is of this kind and belongs to our user."""
    found = path.lstat()
    return kind(found.st_mode) and found.st_uid == os.getuid()


def _program(*names: str) -> str:
    """The first of these programs that is on the PATH."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise DatabaseError(f"no {names[0]} on the PATH: install MariaDB (apt-get install mariadb-server) or name a server")
