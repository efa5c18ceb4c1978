r"""A MariaDB server of our own, for as long as we live. Knows processes and files; of SQL it knows nothing.

The server lives under a keeper, a shell that waits on a pipe of ours. However we end, the pipe ends with us, and the
keeper kills the server and removes its files.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from select import select
from typing import Callable

from minigrpo.task.database import DatabaseError

SECONDS_TO_START = 30.0         # 1 is usual

KEEPER = r"""
folder=$1; install=$2; server=$3; shift 3
[ "$(id -u)" = 0 ] && user=--user=root              # it refuses to run as root unless told to
mkdir -m 700 "$folder" || exit
if "$install" --no-defaults --datadir="$folder/data" $user --auth-root-authentication-method=normal --skip-test-db \
    --loose-debug-no-sync --innodb-log-file-size=4M </dev/null >"$folder/log" 2>&1
then "$server" --no-defaults --datadir="$folder/data" $user --socket="$folder/socket" --tmpdir="$folder" "$@" \
    </dev/null 2>>"$folder/log" &
fi
exec >&-                    # now the server alone holds our output: it ends when the server does
read -r line                # a line, or the end of the pipe
kill -9 $!; wait
rm -rf "$folder"
"""
# Nothing here outlives us, so nothing needs to be synced: on a disk that is 2.7 s to the first query instead of 6.
FLAGS = ("--loose-debug-no-sync --skip-networking --skip-name-resolve --performance-schema=OFF "
         "--innodb-buffer-pool-size=16M --innodb-log-file-size=4M --innodb-flush-log-at-trx-commit=0 "
         "--innodb-use-native-aio=0 --local-infile=0 --max-allowed-packet=64K --read-only=1")


def start_server(undo: ExitStack, answers: Callable[[str], bool]) -> str:
    """Start a server; the path of its socket once ``answers(socket)``. ``undo`` will end it and remove its files.

    Its root, whom read-only does not bind, has no password: the socket is in a folder that only we can enter.
    ``DatabaseError``: MariaDB is not installed, or did not start (with the end of its log).
    """
    folder = _roomy() / f"minigrpo-{secrets.token_hex(8)}"
    programs = _program("mariadb-install-db", "mysql_install_db"), _program("mariadbd", "mysqld")
    command = ["/bin/sh", "-c", KEEPER, "minigrpo-keeper", str(folder), *programs, *FLAGS.split()]
    # A session of its own: Ctrl-C in the terminal is for us, and we may still be asking.
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              bufsize=0, cwd="/", start_new_session=True)
    undo.callback(_stop, keeper)
    deadline = time.monotonic() + SECONDS_TO_START
    while not select([keeper.stdout], [], [], 0.01)[0] and time.monotonic() < deadline:
        if (folder / "socket").exists() and answers(str(folder / "socket")):
            return str(folder / "socket")
    log = folder / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else [f"{folder} cannot be made"]
    last = [line for line in lines if "ERROR" in line][-5:] or lines[-5:]
    raise DatabaseError("the private MariaDB did not start; the end of its log:\n" + "\n".join(last))


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    with keeper:                                            # which closes the pipes and waits
        with suppress(BrokenPipeError):
            keeper.stdin.write(b"\n")                       # if we have forked, the child holds the pipe open too


def _roomy() -> Path:
    """Memory-backed storage if there is ample room for the server's 35 MB, else the folder for temporary files."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free >= 512 * 2**20:
        return memory
    return Path(tempfile.gettempdir()).resolve()


def _program(*names: str) -> str:
    """The first of these that is on the PATH."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise DatabaseError(f"no {names[0]} on the PATH: install MariaDB (apt-get install mariadb-server) or name a server")
