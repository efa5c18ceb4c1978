"""A run's folder: its steps, records, samples, checkpoints, signals and lock; resuming. Knows no loss and no SQL.

    out/config.toml                        the resolved config
    out/metrics.jsonl                      one record a step; evaluations among them ("dev/strict", ...)
    out/samples.jsonl                      now and then a group in full
    out/checkpoints/step-000025/           adapter in peft's layout, optimiser state, state.json, SHA256SUMS (states.py)
    out/summary.json                       the report splits before and after; their rows in before.jsonl, after.jsonl
    out/new, out/base, out/warmup          what training starts from, where it was made here (start.py)

A step is in the records only if it is in the state: resuming cuts the records back to the checkpoint it starts from, which is
the newest that is as it was written.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from minigrpo import config
from minigrpo.common.clock import Clock, Metrics
from minigrpo.common.console import headline, labelled, progress, say
from minigrpo.common.device import peak_memory
from minigrpo.common.errors import UserError
from minigrpo.common.files import lock_folder, write_whole
from minigrpo.common.json_lines import JsonLines
from minigrpo.common.process import first_signal
from minigrpo.common.strict_json import NUMBER, Json, read_object
from minigrpo.policy.files.weights import Policy, load_adapter, load_tensors, save_adapter, save_tensors
from minigrpo.policy.lora import adapter_parameters
from minigrpo.rollout import Group, Rollout, group_metrics
from minigrpo.task.sql.answer import render_answer
from minigrpo.training.checkpoints import drop_states, newest_state, state_folder, states, write_state
from minigrpo.update import DROPPED, Dropped, load_dropped, load_optimizer, optimizer_tensors

KEEP = 2                                        # checkpoints kept besides the best one on the evaluation split
# What --resume may change: where things are, how much is done and shown; not what a step computes (but for rounding).
FREE_TO_CHANGE = ("task.path", "database.host", "database.port", "database.socket", "database.user",
                  "database.connections", "grpo.micro_batch_tokens", "evaluation.batch", "run.steps", "run.out",
                  "run.evaluate_every", "run.save_every", "run.sample_every", "run.threads")
# What has to be in a checkpoint's state.json, and in summary.json.
STATE = {"evaluated": int, "best": ({"step": int, "strict": NUMBER}, type(None)), "dropped": DROPPED}
SUMMARY = {"steps": int, ...: (int, {...: {...: object}})}


class Run:
    """Use as a context manager. On leaving, however that happens, the last whole step is saved.

    The first SIGINT or SIGTERM ends the run after the step in progress, or at once in an evaluation, which is done again
    on resuming; the second at once (``SystemExit``). At once within the optimiser's step, that step is lost, and the
    newest checkpoint stays the last.
    """

    def __init__(self, cfg: config.Run, policy: Policy, optimizer: torch.optim.Optimizer, adapter_facts: Mapping) -> None:
        """``cfg.out`` is held by ``open_folder``; the newest sound checkpoint that is there is where it goes on."""
        self.cfg, self.policy, self.optimizer, self.adapter_facts = cfg, policy, optimizer, adapter_facts
        self.folder, self.done, self.saved, self.evaluated = Path(cfg.out), 0, 0, 0
        self.best: dict[str, float] | None = None
        self.dropped = Dropped()
        self.met: list[int] = []                        # the signal to stop by, if there was one
        self.reporting = False
        if found := newest_state(self.folder / "checkpoints", STATE):
            self._load(*found)
        # An evaluation is of the state only once the state says so: written just before, it is made again.
        self.metrics = JsonLines(self.folder / "metrics.jsonl", keep=lambda record: record["step"] < (
            self.done if "reward" in record else self.evaluated))
        self.samples = JsonLines(self.folder / "samples.jsonl", keep=lambda record: record["step"] < self.done)
        self.moves = self._optimizer_steps()

    # ------------------------------------------------------------------------------------------------- the loop's side
    @property
    def signal(self) -> int | None:
        """What told it to stop."""
        return self.met[0] if self.met else None

    def steps(self) -> Iterator[int]:
        """The steps that are left, counted from 0, until done or told to stop."""
        while self.done < self.cfg.steps and self.signal is None:
            yield self.done

    def record(self, step: int, groups: Sequence[Group], report: Metrics, clock: Clock,
               faults: Sequence[str] = ()) -> None:
        """A step is done: log it, show it, and every ``save_every`` steps save. ``faults``: what was not finite in it; too
        many such steps in a row end the run (``FloatingPointError``)."""
        metrics = {"step": step, **group_metrics(groups), **report, **clock.metrics(),
                   "memory/peak_bytes": peak_memory(self.policy.model.device)}
        self.metrics.write(metrics)
        if self.cfg.sample_every and step % self.cfg.sample_every == 0:
            self.samples.write({"step": step, "question": dataclasses.asdict(groups[0].question),
                                "rollouts": [dataclasses.asdict(rollout) for rollout in groups[0].rollouts]})
            say(f"\nstep {step} · {show(groups[0])}")
        self.done, self.moves = step + 1, self._optimizer_steps()
        self.dropped.see(step, faults)
        self.bar.set_postfix_str(headline(metrics), refresh=False)
        self.bar.update()
        if self.done % self.cfg.save_every == 0:
            self.save()
        self.dropped.check()

    def evaluation_due(self) -> bool:
        """After every ``evaluate_every`` steps and the last; also on resuming, where it was not done."""
        every = self.cfg.evaluate_every
        return (bool(every) and self.signal is None and self.evaluated < self.done
                and (self.done % every == 0 or self.done == self.cfg.steps))

    def record_evaluation(self, split: str, summary: Mapping[str, float]) -> None:
        """Log a summary of ``evaluate.summarise`` after the last step; the best so far by ``strict`` keeps its checkpoint."""
        self.metrics.write({"step": self.done - 1, **{f"{split}/{name}": value for name, value in summary.items()
                                                      if not isinstance(value, Mapping)}})
        say(f"step {self.done - 1} · {split}: strict {summary['strict']:.1f} % · EMS {summary['ems']:.1f} · "
            f"REMS {summary['rems']:.1f} · errors {summary['error_rate']:.1f} % · {summary['n']} of {summary['of']}")
        if self.best is None or summary["strict"] > self.best["strict"]:
            self.best = {"step": self.done, "strict": summary["strict"]}
        self.evaluated = self.done                      # last: before it, whatever interrupts us has the evaluation made again
        self.save()

    def report(self, moment: str, evaluate: Callable[[], tuple[Iterable[Mapping], Mapping]]) -> dict[str, Mapping]:
        """Put rows and summary of a moment ("before", "after") on record, unless they are; the whole record so far."""
        file = self.folder / "summary.json"
        record = read_object(file, SUMMARY) if file.exists() else {}
        if moment not in record or moment == "after" and record["steps"] != self.done:
            with self._reporting():
                rows, summary = evaluate()
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_whole(self.folder / f"{moment}.jsonl", lines.encode())
            record |= {"steps": self.done, moment: summary}
            write_whole(file, (json.dumps(record, indent=2) + "\n").encode())
        return record

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def save(self) -> None:
        """Write a checkpoint of the last whole step, after the records that belong to it; remove old ones."""
        for records in (self.metrics, self.samples):
            records.flush()
        facts = {"evaluated": self.evaluated, "best": self.best, "dropped": vars(self.dropped)}
        with write_state(self.folder / "checkpoints", self.done, facts) as aside:
            save_adapter(self.policy.model, aside, **self.adapter_facts)
            save_tensors(aside / "optimizer.safetensors",
                         optimizer_tensors(self.optimizer, adapter_parameters(self.policy.model)))
        self.saved = self.done
        self._drop()

    def _load(self, folder: Path, state: Json) -> None:
        load_adapter(self.policy.model, folder, base=self.adapter_facts["base"])
        load_optimizer(self.optimizer, adapter_parameters(self.policy.model),
                       load_tensors(folder / "optimizer.safetensors"))
        self.done = self.saved = state["step"]
        self.evaluated, self.best, self.dropped = state["evaluated"], state["best"], load_dropped(state["dropped"])
        self._drop()                                    # what is newer is torn, and must not be kept in its place

    def _drop(self) -> None:
        drop_states(self.folder / "checkpoints", self.done, keep=KEEP, best=self.best and self.best["step"])

    def _optimizer_steps(self) -> float:
        """How often the adapters have moved; changed since the last record, the state is in the middle of a step."""
        return sum(float(state["step"]) for state in self.optimizer.state.values())

    # ------------------------------------------------------------------------------------------------ entering, leaving
    def __enter__(self) -> "Run":
        self.signals = first_signal(lambda: self.reporting or self.evaluation_due())
        self.met = self.signals.__enter__()
        self.bar = progress(self.cfg.steps, "train", initial=self.done)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.signals.__exit__(None, None, None)
        self.bar.close()
        if self.moves == self._optimizer_steps() and self.saved != self.done:
            self.save()
        self.metrics.close()
        self.samples.close()
        if self.saved:
            say(f"saved: {state_folder(self.folder / 'checkpoints', self.saved)} ({self.saved} steps)")

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """A signal meanwhile ends the run at once: a report takes long, and is made up for on resuming."""
        self.reporting = True
        yield
        self.reporting = False


def check_folder(cfg: config.Config, *, resume: bool) -> None:
    """Whether ``run.out`` can take this run: cheap, so it is asked before anything large is loaded. Else ``ValueError``."""
    folder = Path(cfg.run.out)
    if (folder / "lock").exists():
        lock_folder(folder).close()                     # in use by another process: that is to be said first
    _check_run(cfg, folder, resume=resume)


def _check_run(cfg: config.Config, folder: Path, *, resume: bool) -> None:
    """Resuming under another config would make a run that no config describes."""
    if not resume:
        if has_steps(folder):
            raise UserError(f"{folder} already holds a run: go on with --resume, or choose another run.out")
        return
    if not (folder / "config.toml").exists():
        raise UserError(f"--resume: {folder} holds no run; to start one, leave --resume out")
    then, now = config.flatten(config.load_config(folder / "config.toml")), config.flatten(cfg)
    for dotted, value in now.items():
        if value != then[dotted] and dotted not in FREE_TO_CHANGE:
            raise UserError(f"--resume: {dotted} was {then[dotted]!r} and is now {value!r}; "
                             f"to change it, start another run")


@contextmanager
def open_folder(cfg: config.Config, *, resume: bool) -> Iterator[Path]:
    """Hold ``run.out`` for this run, with its resolved config in it."""
    check_folder(cfg, resume=resume)
    folder = Path(cfg.run.out)
    with lock_folder(folder):
        _check_run(cfg, folder, resume=resume)          # nobody else can change it any more
        if not resume:                                  # what is left of a start that failed before its first step
            shutil.rmtree(folder / "new", ignore_errors=True)
            for name in ("summary.json", "before.jsonl", "after.jsonl"):
                (folder / name).unlink(missing_ok=True)
        write_whole(folder / "config.toml", config.dump_config(cfg).encode())
        yield folder


def has_steps(run: Path) -> bool:
    """Whether anything was computed there; what failed before its first step may be started anew."""
    records = [run / name for name in ("metrics.jsonl", "warmup.jsonl")]
    return bool(checkpoints(run)) or any(file.exists() and file.stat().st_size > 0 for file in records)


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return states(run / "checkpoints")


def show(group: Group) -> str:
    """A group for the eye: question, gold answer, and each different SQL with its reward, how often it was written, and what
    it gave."""
    alike: dict[str | None, list[Rollout]] = {}
    for rollout in group.rollouts:
        alike.setdefault(rollout.sql, []).append(rollout)
    lines = [group.question.id, *labelled("question", group.question.text, 2), *labelled("gold", group.question.answer, 1)]
    for sql, (first, *others) in alike.items():
        execution = first.execution
        gave = render_answer(execution.rows) if execution.ok else f"{execution.status}: {execution.error}"
        lines += [*labelled(f"{first.reward.total:g} × {1 + len(others)}", str(sql), 5), *labelled("      →", gave, 1)]
    return "\n".join(lines)
