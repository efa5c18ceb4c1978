r"""A MariaDB server of our own, for as long as we live. Knows processes and files; of SQL it knows nothing.

The server lives under a keeper, a shell that waits on a pipe of ours. However we end, the pipe ends with us, and the
keeper kills the server and removes its files; if the keeper is killed, the kernel kills the server. Files that are left
even so, all of us having been killed at once, the next server that is started removes: nobody holds their lock.
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

from minigrpo.task.sql.engines.database import DatabaseError

SECONDS_TO_START = 30.0         # 1 is usual
STARTS = 3                      # attempts to start again what was up before
SECONDS_TO_LOCK = 60.0          # age from which a folder whose lock nobody holds is one that was left
MEMORY = Path("/dev/shm")
# Nobody but us makes a folder of this name with a lock of this one: a run's folder has its own name and lock.
FOLDER = re.compile("minigrpo-[0-9a-f]{16}")
LOCK = "server.lock"

KEEPER = r"""
folder=$1; install=$2; server=$3; shift 3
[ "$(id -u)" = 0 ] && user=--user=root              # it refuses to run as root unless told to
setpriv --pdeathsig KILL true 2>/dev/null && leash='setpriv --pdeathsig KILL'       # so that it dies with this shell
trap '' XFSZ; ulimit -f 262144                      # no file beyond 128 MiB: a sort that spills more is an error
export MALLOC_ARENA_MAX=2                           # what its many threads give back, another of them takes
if if [ -d "$folder/ready" ]
    then rm -rf "$folder/data" "$folder/socket" && cp -R "$folder/ready" "$folder/data"
    else "$install" --no-defaults --datadir="$folder/data" $user --auth-root-authentication-method=normal --skip-test-db \
        --loose-debug-no-sync --innodb-log-file-size=4M
    fi </dev/null >>"$folder/log" 2>&1
then $leash "$server" --no-defaults --datadir="$folder/data" $user --socket="$folder/socket" --tmpdir="$folder" "$@" \
    </dev/null 2>>"$folder/log" &
fi
exec >&-                    # now the server alone holds our output: it ends when the server does
read -r line                # a line, or the end of the pipe
kill -9 $!; wait
[ "$line" = again ] || rm -rf "$folder"
"""
# Nothing here outlives us, so nothing needs to be synced: on a disk that is 2.7 s to the first query instead of 6. What is
# committed is written all the same, for a server that is killed.
FLAGS = ("--loose-debug-no-sync --skip-networking --skip-name-resolve --performance-schema=OFF --skip-stack-trace "
         "--innodb-buffer-pool-size=16M --innodb-log-file-size=4M --innodb-flush-log-at-trx-commit=2 --log-warnings=0 "
         "--innodb-use-native-aio=0 --local-infile=0 --max-allowed-packet=64K --read-only=1 --loose-sequence=OFF")


def start_server(undo: ExitStack, answers: Callable[[str], bool], max_connections: int) -> "Server":
    """A server that is up: ``answers(socket)``. ``undo`` will end it and remove its files.

    ``DatabaseError``: MariaDB is not installed, or did not start (with the first error of its log).
    """
    programs = _program("mariadb-install-db", "mysql_install_db"), _program("mariadbd", "mysqld")
    server = Server(_parent() / f"minigrpo-{secrets.token_hex(8)}", programs, answers, max_connections)
    undo.callback(server.close)
    server.start()
    return server


class Server:
    """A server in a folder that only we can enter; its socket is the same for its whole life, restarts included. Its root,
    whom read-only does not bind, has no password. Safe to call from several threads."""

    def __init__(self, folder: Path, programs: tuple[str, str], answers: Callable[[str], bool],
                 max_connections: int) -> None:
        self.socket = str(folder / "socket")
        self._folder, self._answers, self._busy = folder, answers, Lock()
        self._command = ["/bin/sh", "-c", KEEPER, "minigrpo-keeper", str(folder), *programs, *FLAGS.split(),
                         f"--max-connections={max_connections}"]
        self._keeper: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700)
        self._lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)              # ours, the keeper's and the server's, until the last has ended

    def start(self) -> None:
        """Start it, unless it is up."""
        with self._busy:
            if self._has_ended():
                self._end(b"again\n")
                self._start()

    def restart(self) -> None:
        """Start it again if it has ended, with what was frozen. It may be killed while it starts, but not again and again."""
        for attempt in range(1, STARTS + 1):
            try:
                return self.start()
            except DatabaseError:
                if attempt == STARTS:
                    raise
                time.sleep(attempt)

    def freeze(self) -> None:
        """What is committed by now is what it begins with after each restart; the first is now."""
        with self._busy:
            self._end(b"again\n")
            (self._folder / "data").rename(self._folder / "ready")
            self._start()

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does within so many seconds. Others may kill it meanwhile."""
        with self._busy:
            if self._has_ended():
                return True
            pipe = os.dup(self._keeper.stdout.fileno())     # whoever kills it closes his end, not this one
        with open(pipe, "rb", buffering=0):
            return _is_at_end(pipe, seconds)

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        with self._busy:
            self._end(b"again\n")

    def close(self) -> None:
        """End it and remove its files."""
        with self._busy:
            self._end(b"\n")
            shutil.rmtree(self._folder, ignore_errors=True)             # the keeper has done it, unless it was killed
            os.close(self._lock)

    def _has_ended(self, seconds: float = 0.0) -> bool:
        keeper = self._keeper
        return not keeper or keeper.stdout.closed or _is_at_end(keeper.stdout.fileno(), seconds)

    def _end(self, line: bytes) -> None:
        if self._keeper and not self._keeper.stdout.closed:
            with self._keeper:                              # which closes the pipes and waits
                with suppress(BrokenPipeError):             # it was killed
                    self._keeper.stdin.write(line)          # if we have forked, the child holds the pipe open too

    def _start(self) -> None:
        # A session of its own: Ctrl-C in the terminal is for us, and we may still be asking.
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


def _is_at_end(pipe: int, seconds: float) -> bool:
    """Whether nobody holds the other end of the pipe any more, now or within so many seconds."""
    ends = poll()                                           # to select(), a number beyond 1023 is an error
    ends.register(pipe, POLLIN)
    return bool(ends.poll(seconds * 1000))


def _parent() -> Path:
    """Memory-backed storage if there is ample room for the server's 60 MB, else the folder for temporary files; what servers
    left in either is removed first, for it may be what takes the room."""
    disk = Path(tempfile.gettempdir()).resolve()
    for place in (MEMORY, disk):
        _sweep(place)
    roomy = os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= 512 * 2**20
    return MEMORY if roomy else disk


def _sweep(parent: Path) -> None:
    """Remove the folders of servers that were killed together with their keepers and with whoever started them."""
    for folder in parent.glob("minigrpo-*"):
        lock = folder / LOCK
        with suppress(FileNotFoundError, PermissionError, BlockingIOError):     # gone meanwhile; another's; in use
            if FOLDER.fullmatch(folder.name) and _is_ours(folder, stat.S_ISDIR) and _is_ours(lock, stat.S_ISREG):
                if time.time() - lock.stat().st_mtime > SECONDS_TO_LOCK:
                    with lock.open() as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(folder)


def _is_ours(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether it is of this kind, no link to one, and belongs to our user."""
    found = path.lstat()
    return kind(found.st_mode) and found.st_uid == os.getuid()


def _program(*names: str) -> str:
    """The first of these that is on the PATH."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise DatabaseError(f"no {names[0]} on the PATH: install MariaDB (apt-get install mariadb-server) or name a server")
