"""A run's folder: its steps, records, samples, checkpoints, signals and lock; resuming. Knows no loss and no SQL.

    out/config.toml                        the resolved config
    out/metrics.jsonl                      one record a step; evaluations among them ("dev/strict", ...)
    out/samples.jsonl                      now and then a group in full
    out/checkpoints/step-000025/           adapter in peft's layout, optimiser state, state.json

A step is in the records only if it is in the state: resuming cuts the records back to the checkpoint it starts from.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Iterator, Mapping, Sequence

import torch

from minigrpo import config
from minigrpo.metrics import Clock, JsonLines, Metrics, headline, progress, say
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.weights import Policy, load_adapter, load_tensors, save_adapter, save_tensors
from minigrpo.rollout import Group, group_metrics
from minigrpo.runtime import peak_memory
from minigrpo.task.answer import render_answer

FORMAT = 1                                      # of state.json
KEEP = 2                                        # checkpoints kept besides the best one on the evaluation split
# What --resume may change: where things are, how much is done and shown; not what a step computes (but for rounding).
FREE_TO_CHANGE = ("task.path", "database.host", "database.port", "database.socket", "database.user",
                  "database.connections", "grpo.micro_batch_tokens", "evaluation.", "run.steps", "run.out",
                  "run.evaluate_every", "run.save_every", "run.sample_every", "run.threads")


class Run:
    """Use as a context manager. On leaving, however that happens, the last whole step is saved.

    The first SIGINT or SIGTERM ends the run after the step in progress, or at once in an evaluation, which is done again
    on resuming; the second at once (``SystemExit``). At once within the optimiser's step, that step is lost, and the
    newest checkpoint stays the last.
    """

    def __init__(self, cfg: config.Config, policy: Policy, optimizer: torch.optim.Optimizer, adapter_facts: Mapping, *,
                 resume: bool) -> None:
        self.cfg, self.policy, self.optimizer, self.adapter_facts = cfg.run, policy, optimizer, adapter_facts
        self.folder, self.done, self.saved, self.evaluated = Path(cfg.run.out), 0, 0, 0
        self.best: dict[str, float] | None = None
        self.signal: int | None = None
        check_folder(cfg, resume=resume)
        self.lock = lock_folder(self.folder)
        if resume and (kept := checkpoints(self.folder)):       # none yet: it begins again, and draws the same
            self._load(kept[-1])
        (self.folder / "config.toml").write_text(config.dump_config(cfg), encoding="utf-8")
        self.metrics = JsonLines(self.folder / "metrics.jsonl", keep_below=self.done)
        self.samples = JsonLines(self.folder / "samples.jsonl", keep_below=self.done)
        self.moves = self._optimizer_steps()

    # ------------------------------------------------------------------------------------------------- the loop's side
    def steps(self) -> Iterator[int]:
        """The steps that are left, counted from 0, until done or told to stop."""
        while self.done < self.cfg.steps and self.signal is None:
            yield self.done

    def record(self, step: int, groups: Sequence[Group], report: Metrics, clock: Clock) -> None:
        """A step is done: log it, show it, and every ``save_every`` steps save."""
        metrics = {"step": step, **group_metrics(groups), **report, **clock.metrics(),
                   "memory/peak_bytes": peak_memory(self.policy.model.device)}
        self.metrics.write(metrics)
        if self.cfg.sample_every and step % self.cfg.sample_every == 0:
            self.samples.write({"step": step, "question": dataclasses.asdict(groups[0].question),
                                "rollouts": [dataclasses.asdict(rollout) for rollout in groups[0].rollouts]})
            say(f"\nstep {step} · {show(groups[0])}")
        self.done, self.moves = step + 1, self._optimizer_steps()
        self.bar.set_postfix_str(headline(metrics), refresh=False)
        self.bar.update()
        if self.done % self.cfg.save_every == 0:
            self.save()

    def evaluation_due(self) -> bool:
        """After every ``evaluate_every`` steps and the last; also on resuming, where it was not done."""
        every = self.cfg.evaluate_every
        return (bool(every) and self.signal is None and self.evaluated < self.done
                and (self.done % every == 0 or self.done == self.cfg.steps))

    def record_evaluation(self, split: str, summary: Mapping[str, float]) -> None:
        """Log a summary of ``evaluate.summarise`` after the last step; the best so far by ``strict`` keeps its checkpoint."""
        self.evaluated = self.done
        self.metrics.write({"step": self.done - 1, **{f"{split}/{name}": value for name, value in summary.items()
                                                      if not isinstance(value, Mapping)}})
        say(f"step {self.done - 1} · {split}: strict {summary['strict']:.1f} % · EMS {summary['ems']:.1f} · "
            f"REMS {summary['rems']:.1f} · errors {summary['error_rate']:.1f} % · {summary['n']} of {summary['of']}")
        if self.best is None or summary["strict"] > self.best["strict"]:
            self.best = {"step": self.done, "strict": summary["strict"]}
        self.save()

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def save(self) -> None:
        """Write a checkpoint of the last whole step: aside, then renamed into place; prune old ones."""
        folder = checkpoint_folder(self.folder, self.done)
        aside = folder.with_name(folder.name + ".writing")
        shutil.rmtree(aside, ignore_errors=True)
        save_adapter(self.policy.model, aside, **self.adapter_facts)
        save_tensors(aside / "optimizer.safetensors", self._optimizer_tensors())
        state = {"format": FORMAT, "step": self.done, "evaluated": self.evaluated, "best": self.best}
        (aside / "state.json").write_text(json.dumps(state) + "\n")
        for file in aside.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        self.saved = self.done
        kept = {checkpoint_folder(self.folder, self.best["step"])} if self.best else set()
        for old in checkpoints(self.folder)[:-KEEP]:
            if old not in kept:
                shutil.rmtree(old)

    def _load(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"{folder}: checkpoint format {state['format']}, this program reads {FORMAT}")
        load_adapter(self.policy.model, folder)
        tensors = load_tensors(folder / "optimizer.safetensors")
        for name, parameter in adapter_parameters(self.policy.model).items():
            self.optimizer.state[parameter] = {
                key.removeprefix(f"{name}/"): tensor.to("cpu" if tensor.ndim == 0 else parameter.device)
                for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        self.done = self.saved = state["step"]
        self.evaluated, self.best = state["evaluated"], state["best"]

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {f"{name}/{key}": tensor for name, parameter in adapter_parameters(self.policy.model).items()
                for key, tensor in self.optimizer.state.get(parameter, {}).items()}

    def _optimizer_steps(self) -> float:
        """How often the adapters have moved; changed since the last record, the state is in the middle of a step."""
        return sum(float(state["step"]) for state in self.optimizer.state.values())

    # ------------------------------------------------------------------------------------------------ entering, leaving
    def __enter__(self) -> "Run":
        self.handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self.bar = progress(self.cfg.steps, "train", initial=self.done)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.bar.close()
        if self.moves == self._optimizer_steps() and self.saved != self.done:
            self.save()
        self.metrics.close()
        self.samples.close()
        self.lock.close()
        if self.saved:
            say(f"saved: {checkpoint_folder(self.folder, self.saved)} ({self.saved} steps)")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None or self.evaluation_due():
            raise SystemExit(128 + number)
        self.signal = number
        say("stopping after this step (again: at once) ...")


def check_folder(cfg: config.Config, *, resume: bool) -> None:
    """Whether ``run.out`` can take this run: cheap, so it is asked before anything large is loaded. Else ``ValueError``.

    Resuming under another config would make a run that no config describes.
    """
    folder = Path(cfg.run.out)
    if not resume:
        if has_steps(folder):
            raise ValueError(f"{folder} already holds a run: go on with --resume, or choose another run.out")
        return
    if not (folder / "config.toml").exists():
        raise ValueError(f"--resume: {folder} holds no run")
    then, now = _flat(config.load_config(folder / "config.toml")), _flat(cfg)
    for dotted, value in now.items():
        if value != then[dotted] and not dotted.startswith(FREE_TO_CHANGE):
            raise ValueError(f"--resume: {dotted} was {then[dotted]!r} and is now {value!r}; "
                             f"to change it, start another run")


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


def has_steps(run: Path) -> bool:
    """Whether anything was computed there; what failed before its first step may be started anew."""
    metrics = run / "metrics.jsonl"
    return bool(checkpoints(run)) or metrics.exists() and metrics.stat().st_size > 0


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder for folder in run.glob("checkpoints/step-*") if folder.suffix != ".writing")


def show(group: Group, width: int = 79) -> str:
    """A group for the eye: question, gold answer, and each candidate's reward, outcome, SQL and rows; a line each."""
    def line(label: str, text: str) -> str:
        text = f"  {label:<9}" + " ".join(text.split())
        text = "".join(char if char.isprintable() else "\ufffd" for char in text)       # no escape sequences to a terminal
        return text if len(text) <= width else text[:width - 1] + "…"

    lines = [group.question.id, line("question", group.question.text), line("gold", group.question.answer)]
    for number, rollout in enumerate(group.rollouts, start=1):
        execution = rollout.execution
        rows = render_answer(execution.rows) if execution.ok else f"{execution.status}: {execution.error}"
        lines += [line(f"{number} reward", f"{rollout.reward.total:g}"), line("  sql", str(rollout.sql)),
                  line("  rows", rows)]
    return "\n".join(lines)


def _flat(cfg: config.Config) -> dict[str, object]:
    return {f"{section}.{name}": value for section, values in dataclasses.asdict(cfg).items()
            for name, value in values.items()}
