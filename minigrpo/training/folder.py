"""A run's folder: whether it can take a run, its lock, its checkpoints. Does not depend on any loss or task.

A checkpoint is a numbered folder, written atomically with a checksum of every file; the newest undamaged one is found again.
What training keeps in each, whatever its loss, is the optimiser's state and the count of dropped steps.

    checkpoints/step-000025/state.json     {"format": 2, "step": 25, ...}
    checkpoints/step-000025/SHA256SUMS     of every other file, as ``sha256sum --check`` reads it
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigrpo import config
from minigrpo.common.console import warn
from minigrpo.common.errors import UserError
from minigrpo.common.files import OLD, WRITING, lock_folder, take_back, whole_folder, write_whole
from minigrpo.common.strict_json import Json, read_object

# What --resume may change: where things are, how much is done and shown; not what a step computes (except for rounding).
FREE_TO_CHANGE = ("task.path", "database.host", "database.port", "database.socket", "database.user",
                  "database.connections", "grpo.micro_batch_tokens", "evaluation.batch", "run.steps", "run.out",
                  "run.evaluate_every", "run.save_every", "run.sample_every", "run.threads")
# What a start that failed before its first step may leave behind: a new start replaces it.
REPLACED = ("new", "summary.json", "before.jsonl", "after.jsonl")
# All other names that a run writes to.
KEPT = ("metrics.jsonl", "samples.jsonl", "checkpoints", "base", "warmup", "warmup.jsonl", "warmup-state")

FORMAT = 2                                      # of checkpoints; 1 had no checksums
SUMS = "SHA256SUMS"
# A dropped step moves nothing, so the next ones are other batches on the same weights. One batch may be unlucky; if five in a
# row are not finite, the weights are broken, and no further batch would mend them.
MAX_DROPPED_IN_A_ROW = 5
DROPPED_FORM = {"count": int, "first": str}     # as a checkpoint's state.json has it


def check_folder(cfg: config.Config, *, resume: bool) -> None:
    """Check that ``run.out`` can take this run, or raise ``UserError``. It is cheap, so it comes before anything is loaded."""
    folder = Path(cfg.run.out)
    if (folder / "lock").exists():
        lock_folder(folder).close()                     # in use by another process: report that first
    _check_run(cfg, folder, resume=resume)


def _check_run(cfg: config.Config, folder: Path, *, resume: bool) -> None:
    if not resume:
        if has_steps(folder):
            raise UserError(f"{folder} already holds a run: go on with --resume, or choose another run.out")
        _check_ours(folder)
        return
    if not (folder / "config.toml").exists():
        raise UserError(f"--resume: {folder} holds no run; to start one, leave --resume out")
    # Resuming under another config would make a run that no config describes.
    then, now = config.flatten(config.load_config(folder / "config.toml")), config.flatten(cfg)
    for dotted, value in now.items():
        if value != then[dotted] and dotted not in FREE_TO_CHANGE:
            raise UserError(f"--resume: {dotted} was {then[dotted]!r} and is now {value!r}; "
                            f"to change it, start another run")


def _check_ours(folder: Path) -> None:
    """A start may write over what an earlier start left in its folder, and over nothing else. That folder has a config.toml
    exactly as ``open_folder`` writes it: an empty one, or one that was written by hand, is somebody's own."""
    record = folder / "config.toml"
    if not record.exists():
        if found := [name for name in (*REPLACED, *KEPT) if (folder / name).exists()]:
            raise UserError(f"{folder} holds {found[0]} and no config.toml, so it is not of a run, which would write over it: "
                            f"choose another run.out")
        return
    try:
        resolved = config.dump_config(config.load_config(record))
    except UserError as error:
        raise UserError(f"{folder} is not the folder of a run ({error}): choose another run.out") from None
    if record.read_text(encoding="utf-8") != resolved:
        raise UserError(f"{folder} is not the folder of a run (no run has written its config.toml): choose another run.out")


@contextmanager
def open_folder(cfg: config.Config, *, resume: bool) -> Iterator[Path]:
    """Lock ``run.out`` for this run and write the resolved config to it."""
    check_folder(cfg, resume=resume)
    folder = Path(cfg.run.out)
    with lock_folder(folder):
        _check_run(cfg, folder, resume=resume)          # again: now nobody else can change it
        if not resume:
            shutil.rmtree(folder / REPLACED[0], ignore_errors=True)
            for name in REPLACED[1:]:
                (folder / name).unlink(missing_ok=True)
        write_whole(folder / "config.toml", config.dump_config(cfg).encode())
        yield folder


def has_steps(run: Path) -> bool:
    """Whether anything was computed there. A start that failed before its first step may be repeated."""
    records = [run / name for name in ("metrics.jsonl", "warmup.jsonl")]
    return bool(checkpoints(run)) or any(file.exists() and file.stat().st_size > 0 for file in records)


# --------------------------------------------------------------------------------------------------------- its checkpoints
def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return states(run / "checkpoints")


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


# ------------------------------------------------------------------------------------------------- what training keeps there
def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state by names "<parameter>/exp_avg", ...; a parameter that has not moved yet has none."""
    return {f"{name}/{key}": tensor for name, parameter in parameters.items()
            for key, tensor in optimizer.state.get(parameter, {}).items()}


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``. Moments go to their parameter's device, step counts stay on the CPU."""
    for name, parameter in parameters.items():
        if state := {key.removeprefix(f"{name}/"): tensor.to("cpu" if tensor.ndim == 0 else parameter.device)
                     for key, tensor in tensors.items() if key.startswith(f"{name}/")}:
            optimizer.state[parameter] = state


@dataclass
class DroppedSteps:
    """The newest steps in a row that were dropped: how many, and what was not finite in the first of them."""

    count: int = 0
    first: str = ""

    def see(self, step: int, fault: str) -> None:
        """Count a step; one without a ``fault`` starts the count anew."""
        if not fault:
            self.count, self.first = 0, ""
            return
        self.count, self.first = self.count + 1, self.first or f"step {step}: {fault}"
        warn(f"step {step} moves nothing, something in it is not finite: {fault}")

    def enough(self) -> bool:
        """True after every ``MAX_DROPPED_IN_A_ROW`` of them: a resumed run may try as many again."""
        return self.count > 0 and self.count % MAX_DROPPED_IN_A_ROW == 0

    def check(self) -> None:
        """``FloatingPointError`` if there are too many."""
        if self.enough():
            raise FloatingPointError(f"{self.count} steps in a row moved nothing, since something in them was not finite, "
                                     f"first in {self.first}; what was learned until then is saved")


def load_dropped(facts: Mapping[str, Any]) -> DroppedSteps:
    """The inverse of ``vars``; other keys are ignored."""
    return DroppedSteps(**{name: facts[name] for name in DROPPED_FORM})
