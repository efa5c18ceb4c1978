"""Checkpoints: numbered folders, written atomically with a checksum of every file; the newest undamaged one is found again.

Does not depend on what else is in them.

    folder/step-000025/state.json     {"format": 2, "step": 25, ...}
    folder/step-000025/SHA256SUMS     of every other file, as ``sha256sum --check`` reads it
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minigrpo.common.console import warn
from minigrpo.common.errors import UserError
from minigrpo.common.files import OLD, WRITING, take_back, whole_folder
from minigrpo.common.strict_json import Json, read_object

FORMAT = 2                                      # 1 had no checksums
SUMS = "SHA256SUMS"


def state_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def states(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first; anything else there is ignored."""
    return sorted(_folders(folder, ""), key=_step)


def _folders(folder: Path, suffix: str) -> list[Path]:
    return [found for found in folder.glob(f"step-*{suffix}")
            if re.fullmatch("step-[0-9]{6,}", found.name.removesuffix(suffix)) and found.is_dir()]


def _step(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


@contextmanager
def write_state(folder: Path, step: int, facts: Mapping[str, object]) -> Iterator[Path]:
    """Yield a folder to write tensors to; on leaving it becomes the checkpoint of ``step``. ``facts`` go to its state.json."""
    with whole_folder(state_folder(folder, step)) as aside:
        yield aside
        (aside / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **facts}) + "\n", encoding="utf-8")
        sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(aside.iterdir()))
        (aside / SUMS).write_text(sums, encoding="utf-8")


def newest_state(folder: Path, keys: Mapping[str, object]) -> tuple[Path, Json] | None:
    """The newest undamaged checkpoint and its state.json, which must have these ``keys`` (see strict_json.py); None if there
    never was one.

    A newer one that is torn or altered is refused with a sentence on stderr. ``UserError``: all are damaged, or an undamaged
    one has another format or lacks a key.
    """
    for old in _folders(folder, OLD):
        take_back(old.with_name(old.name.removesuffix(OLD)))
    refused = []
    for state in reversed(states(folder)):
        if wrong := _damage(state):
            refused.append(f"{state} is not used: {wrong}")
            continue
        if (version := read_object(state / "state.json", {"format": int})["format"]) != FORMAT:
            raise UserError(f"{state}: format {version}, this program reads {FORMAT}")
        facts = read_object(state / "state.json", {"step": int, **keys})
        if facts["step"] != _step(state):
            raise UserError(f"{state}: its state.json is one of step {facts['step']}")
        for sentence in refused:
            warn(f"{sentence}; going on from {state.name}")
        return state, facts
    if refused:
        raise UserError(f"{refused[0]}; no other in {folder} can be used: to begin again, remove that folder")
    return None


def drop_states(folder: Path, step: int, *, keep: int, best: int | None = None) -> None:
    """Remove all checkpoints except the last ``keep`` up to ``step`` and the one of ``best``; also half-written folders that a
    killed process left."""
    upto = [state for state in states(folder) if _step(state) <= step]
    wanted = {*upto[-keep:], *(() if best is None else [state_folder(folder, best)])}
    for old in {*states(folder), *_folders(folder, WRITING), *_folders(folder, OLD)} - wanted:
        shutil.rmtree(old)


def _damage(state: Path) -> str:
    """What is wrong with a checkpoint's files, or ""."""
    if not (state / SUMS).is_file():
        return f"it has no {SUMS} (those of an older version have none, and cannot be read)"
    lines = (state / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if "state.json" not in written or "" in written:        # it is the last line, so a torn file lacks it
        return f"{SUMS} is torn"
    for name, digest in written.items():
        if not (state / name).is_file():
            return f"{name} is missing"
        if _sha256(state / name) != digest:
            return f"{name} is not what was written, by its checksum in {SUMS}"
    return ""


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
