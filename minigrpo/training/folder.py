"""A run's folder: whether it can take a run, its lock, and what is in it already. Does not depend on any model or task."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.common.files import lock_folder, write_whole
from minigrpo.training.checkpoints import states

# What --resume may change: where things are, how much is done and shown; not what a step computes (except for rounding).
FREE_TO_CHANGE = ("task.path", "database.host", "database.port", "database.socket", "database.user",
                  "database.connections", "grpo.micro_batch_tokens", "evaluation.batch", "run.steps", "run.out",
                  "run.evaluate_every", "run.save_every", "run.sample_every", "run.threads")
# What a start that failed before its first step may leave behind: a new start replaces it.
REPLACED = ("new", "summary.json", "before.jsonl", "after.jsonl")
# All other names that a run writes to.
KEPT = ("metrics.jsonl", "samples.jsonl", "checkpoints", "base", "warmup", "warmup.jsonl", "warmup-state")


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


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return states(run / "checkpoints")
