"""Folders that are there whole or not at all, and locks on them. Knows nothing of what is in them."""

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterator


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` to write to; on leaving its files are flushed to disk and it takes the name and place
    of ``folder``. An error leaves ``folder`` as it was; a power cut may leave none, but never half of one."""
    aside, old = (folder.with_name(f"{folder.name}{suffix}.writing") for suffix in ("", ".old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    for file in aside.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def lock_folder(folder: Path) -> IO[str]:
    """Hold ``folder`` against a second process until the returned file is closed or we are gone, however we go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise ValueError(f"run.out: {folder} cannot be written to: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{folder} is in use by another process") from None
    return file
