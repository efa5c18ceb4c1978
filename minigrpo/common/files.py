"""Atomic writes of files and folders, and locks on folders. Does not depend on what is in them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minigrpo.common.errors import UserError

WRITING, OLD = ".writing", ".old.writing"       # suffixes: of a file or folder being written, of the old one it replaces


def write_whole(file: Path, content: bytes) -> None:
    """Write to a temporary file, flush it to disk, then rename it to ``file``: readers see the old content or the new one."""
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
    """Yield a temporary folder to write to; on leaving, its files are flushed to disk and it is renamed to ``folder``. An
    error or Ctrl-C leaves the old or the new one. SIGKILL or a power cut may leave none, but never half of one; then
    ``take_back`` restores the old one."""
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
        shutil.rmtree(aside, ignore_errors=True)            # on a full disk, make room again
    shutil.rmtree(old, ignore_errors=True)


def take_back(folder: Path) -> None:
    """If ``whole_folder`` was interrupted between its two renames, give the old folder its name again."""
    old = folder.with_name(f"{folder.name}{OLD}")
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within the block, an ``OSError`` that names no file, such as that of a full disk, is made to name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> IO[str]:
    """Lock ``folder`` against other processes until the returned file is closed or this process ends, however it ends."""
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
