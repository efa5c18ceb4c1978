"""Files and folders that are there whole or not at all, and locks on folders. Knows nothing of what is in them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minigrpo.common.errors import UserError

WRITING, OLD = ".writing", ".old.writing"       # behind the name of what is written aside, of what is set aside for it


def write_whole(file: Path, content: bytes) -> None:
    """Write aside, flush to disk, then take the name and place of ``file``: the old content is there or the new, no part."""
    aside = file.with_name(file.name + WRITING)
    try:
        with named(file):
            aside.write_bytes(content)
            flush(aside)
            aside.replace(file)
            flush(file.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` to write to; on leaving its files are flushed to disk and it takes the name and place
    of ``folder``. An error or Ctrl-C leaves the old or the new; SIGKILL or a power cut may leave none, but never half of one,
    and the old one can be had by ``take_back``."""
    aside, old = (folder.with_name(f"{folder.name}{suffix}") for suffix in (WRITING, OLD))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with named(folder):
            aside.mkdir(parents=True)
            yield aside
            for file in (*aside.iterdir(), aside):
                flush(file)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            aside.rename(folder)
            flush(folder.parent)
    finally:
        take_back(folder)
        shutil.rmtree(aside, ignore_errors=True)            # on a full disk it would stand in the way of what comes next
    shutil.rmtree(old, ignore_errors=True)


def take_back(folder: Path) -> None:
    """Where ``whole_folder`` was left between its two renames, the old one gets its name again."""
    old = folder.with_name(f"{folder.name}{OLD}")
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within the block an error of the system's that names no file, as that of a full disk, is one of ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> IO[str]:
    """Hold ``folder`` against a second process until the returned file is closed or we are gone, however we go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"run.out: {folder} cannot be written to: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{folder} is in use by another process") from None
    return file
