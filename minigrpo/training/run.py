"""A run under way: its steps, records, samples, checkpoints and signals; resuming. Does not depend on any loss or task.

README.md beside this file lists what is in a run's folder. A step is in the records only if it is in the checkpoint: resuming
starts from the newest undamaged checkpoint and cuts the records back to it.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minigrpo import config
from minigrpo.common.clock import Clock, average
from minigrpo.common.console import headline, labelled, progress, say
from minigrpo.common.device import peak_memory
from minigrpo.common.files import write_whole
from minigrpo.common.grouping import group_by
from minigrpo.common.process import first_signal
from minigrpo.common.strict_json import NUMBER, JsonLines, kind_of, read_object
from minigrpo.policy.files.weights import load_adapter, load_tensors, save_adapter, save_tensors
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.policy import Policy
from minigrpo.rollout import Group, group_metrics
from minigrpo.task.contract import Task
from minigrpo.training import folder
from minigrpo.update import Update

CHECKPOINTS_KEPT = 2                            # the newest ones, besides the best one on the evaluation split
# What a checkpoint's state.json and a summary.json must have.
STATE_FORM = {"evaluated": int, "best": ({"step": int, "strict": NUMBER}, type(None)), "dropped": folder.DROPPED_FORM}
SUMMARY_FORM = {"steps": int, ...: (int, {...: {...: object}})}


class Run:
    """Use as a context manager. On leaving, however that happens, the last whole step is saved.

    The first SIGINT or SIGTERM ends the run after the current step. During an evaluation it ends the run at once, and the
    evaluation is rerun on resume. A second signal exits at once (``SystemExit``); if that hits the optimiser's step, that step
    is lost and the newest checkpoint stays the last.
    """

    def __init__(self, cfg: config.Run, policy: Policy, optimizer: torch.optim.Optimizer, task: Task,
                 adapter_facts: Mapping[str, Any]) -> None:
        """``cfg.out`` is locked by ``open_folder``. If it holds checkpoints, the run continues from the newest sound one."""
        self.cfg, self.policy, self.optimizer, self.task, self.adapter_facts = cfg, policy, optimizer, task, adapter_facts
        self.folder, self.done, self.saved, self.evaluated = Path(cfg.out), 0, 0, 0
        self.best: dict[str, float] | None = None
        self.dropped = folder.DroppedSteps()
        self.met: list[int] = []                        # the signal to stop by, if there was one
        self.reporting = False
        if found := folder.newest_state(self.folder / "checkpoints", STATE_FORM):
            self._load(*found)
        # An evaluation counts only once the checkpoint says so: a record that was written just before is made again.
        self.metrics = JsonLines(self.folder / "metrics.jsonl", keep=lambda record: record["step"] < (
            self.done if kind_of(record) == "step" else self.evaluated))
        self.samples = JsonLines(self.folder / "samples.jsonl", keep=lambda record: record["step"] < self.done)
        self.moves = self._optimizer_steps()

    # ------------------------------------------------------------------------------------------------- the loop's side
    @property
    def signal(self) -> int | None:
        """The signal that told it to stop."""
        return self.met[0] if self.met else None

    def steps(self) -> Iterator[int]:
        """The remaining steps, counted from 0, until done or told to stop."""
        while self.done < self.cfg.steps and self.signal is None:
            yield self.done

    def record(self, step: int, groups: Sequence[Group], advantages: Sequence[Sequence[float]], updates: Sequence[Update],
               clock: Clock) -> None:
        """A step is done: log it, show it, and every ``save_every`` steps save. Too many steps in a row that were dropped end
        the run (``FloatingPointError``)."""
        metrics = {**group_metrics(groups, self.task), **average([done.metrics for done in updates]), **clock.metrics(),
                   "memory/peak_bytes": peak_memory(self.policy.model.device)}
        self.metrics.write({"kind": "step", "step": step, **metrics})
        if self.cfg.sample_every and step % self.cfg.sample_every == 0:
            self.samples.write({"step": step, **sample_record(groups[0], advantages[0], self.task)})
            say(f"\nstep {step} · {show(groups[0])}")
        self.done, self.moves = step + 1, self._optimizer_steps()
        self.dropped.see(step, next((done.fault for done in updates if done.fault), ""))
        self.bar.set_postfix_str(headline(metrics), refresh=False)
        self.bar.update()
        if self.done % self.cfg.save_every == 0:
            self.save()
        self.dropped.check()

    def evaluation_due(self) -> bool:
        """After every ``evaluate_every`` steps and the last one; also on resuming, if it was not done."""
        every = self.cfg.evaluate_every
        return (bool(every) and self.signal is None and self.evaluated < self.done
                and (self.done % every == 0 or self.done == self.cfg.steps))

    def record_evaluation(self, split: str, summary: Mapping[str, Any]) -> None:
        """Log a summary of ``figures.summarise`` after the last step. The best so far by ``strict`` keeps its checkpoint."""
        self.metrics.write({"kind": "evaluation", "split": split, "step": self.done - 1,
                            **{f"{split}/{name}": value for name, value in summary.items() if not isinstance(value, Mapping)}})
        others = "".join(f" · {name.upper()} {summary[name]:.1f}" for name in self.task.scores if name != "strict")
        say(f"step {self.done - 1} · {split}: strict {summary['strict']:.1f} %{others} · errors "
            f"{summary['error_rate']:.1f} % · {summary['n']} of {summary['of']}")
        if self.best is None or summary["strict"] > self.best["strict"]:
            self.best = {"step": self.done, "strict": summary["strict"]}
        self.evaluated = self.done                      # last: an interruption before it has the evaluation made again
        self.save()

    def report(self, moment: str, evaluate: Callable[[], tuple[Iterable[Mapping], Mapping]]) -> dict[str, Any]:
        """Record rows and summary of a moment ("before", "after"), unless they are recorded; returns all of summary.json."""
        file = self.folder / "summary.json"
        record = read_object(file, SUMMARY_FORM) if file.exists() else {}
        if moment not in record or moment == "after" and record["steps"] != self.done:
            self.reporting = True                       # a signal ends it at once: it takes long, and is rerun on resume
            rows, summary = evaluate()
            self.reporting = False
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
        with folder.write_state(self.folder / "checkpoints", self.done, facts) as aside:
            save_adapter(self.policy.model, aside, **self.adapter_facts)
            state = folder.optimizer_tensors(self.optimizer, adapter_parameters(self.policy.model))
            save_tensors(aside / "optimizer.safetensors", state)
        self.saved = self.done
        self._drop()

    def _load(self, newest: Path, state: dict[str, Any]) -> None:
        load_adapter(self.policy.model, newest, base=self.adapter_facts["base"])
        moments = load_tensors(newest / "optimizer.safetensors")
        folder.load_optimizer(self.optimizer, adapter_parameters(self.policy.model), moments)
        self.done = self.saved = state["step"]
        self.evaluated, self.best, self.dropped = state["evaluated"], state["best"], folder.load_dropped(state["dropped"])
        self._drop()                                    # newer ones are torn, and must not be kept in its place

    def _drop(self) -> None:
        best = None if self.best is None else int(self.best["step"])
        folder.drop_states(self.folder / "checkpoints", self.done, keep=CHECKPOINTS_KEPT, best=best)

    def _optimizer_steps(self) -> float:
        """How often the adapters have moved; if it changed since the last record, a step is in progress."""
        return sum(float(state["step"]) for state in self.optimizer.state.values())

    # ------------------------------------------------------------------------------------------------ entering, leaving
    def __enter__(self) -> "Run":
        self.signals = first_signal(lambda: self.reporting or self.evaluation_due())
        self.met = self.signals.__enter__()
        self.bar = progress(self.cfg.steps, "train", initial=self.done)
        return self

    def __exit__(self, *error: object) -> None:
        self.signals.__exit__(None, None, None)
        self.bar.close()
        if self.moves == self._optimizer_steps() and self.saved != self.done:
            self.save()
        self.metrics.close()
        self.samples.close()
        if self.saved:
            say(f"saved: {folder.state_folder(self.folder / 'checkpoints', self.saved)} ({self.saved} steps)")


def sample_record(group: Group, advantages: Sequence[float], task: Task) -> dict[str, Any]:
    """A group in full for samples.jsonl: the question, and for each candidate its completion, verdict and advantage."""
    return {"question": dataclasses.asdict(group.problem),
            "rollouts": [{"completion": dataclasses.asdict(rollout.completion), "text": rollout.text,
                          **task.record(rollout.verdict), "advantage": advantage}
                         for rollout, advantage in zip(group.rollouts, advantages)]}


def show(group: Group) -> str:
    """A group for the console: question, gold answer, and each different candidate with its reward, how often it was written,
    and what it gave."""
    lines = [group.problem.id, *labelled("question", group.problem.text, 2), *labelled("gold", group.problem.answer, 1)]
    for extracted, (first, *others) in group_by(group.rollouts, lambda rollout: rollout.verdict.extracted).items():
        verdict = first.verdict
        gave = verdict.answer if verdict.ok else f"{verdict.status}: {verdict.error}"
        lines += [*labelled(f"{verdict.reward:g} × {1 + len(others)}", str(extracted), 5), *labelled("      →", gave, 1)]
    return "\n".join(lines)
