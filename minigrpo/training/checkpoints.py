"""States to go on from: numbered folders, each written whole and with a checksum of every file, of which the newest sound one
is found again. Knows nothing of what else is in them.

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
    """The states in ``folder``, oldest first; what else lies there is not looked at."""
    return sorted(_folders(folder, ""), key=_step)


def _folders(folder: Path, suffix: str) -> list[Path]:
    return [found for found in folder.glob(f"step-*{suffix}")
            if re.fullmatch("step-[0-9]{6,}", found.name.removesuffix(suffix)) and found.is_dir()]


def _step(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


@contextmanager
def write_state(folder: Path, step: int, facts: Mapping[str, object]) -> Iterator[Path]:
    """Yield a folder to write a state's tensors to; on leaving it is that of ``step``. ``facts`` go into its state.json."""
    with whole_folder(state_folder(folder, step)) as aside:
        yield aside
        (aside / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **facts}) + "\n", encoding="utf-8")
        sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(aside.iterdir()))
        (aside / SUMS).write_text(sums, encoding="utf-8")


def newest_state(folder: Path, keys: Mapping[str, object]) -> tuple[Path, Json] | None:
    """The newest state that is as it was written, and what its state.json says, these ``keys`` (see lines.py) among it; None
    where there never was one.

    A newer one that is torn or altered is refused with a sentence on stderr. ``ValueError``: all are, or one that is sound has
    another format or says something else.
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
    """Remove all states but the last ``keep`` up to ``step`` and the one of ``best``; also what a killed process left half
    written."""
    upto = [state for state in states(folder) if _step(state) <= step]
    wanted = {*upto[-keep:], *(() if best is None else [state_folder(folder, best)])}
    for old in {*states(folder), *_folders(folder, WRITING), *_folders(folder, OLD)} - wanted:
        shutil.rmtree(old)


def _damage(state: Path) -> str:
    """What is wrong with a state's files; nothing: ""."""
    if not (state / SUMS).is_file():
        return f"it has no {SUMS} (those of an older version have none, and cannot be read)"
    lines = (state / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if "state.json" not in written or "" in written:        # it is the last of them: torn, they lack it
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
