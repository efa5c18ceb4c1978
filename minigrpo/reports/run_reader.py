"""What a run wrote into its folder, read back, whether it is finished or not. Loads no model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.common.grouping import group_by
from minigrpo.common.strict_json import NUMBER, Form, Json, Number, fits, kind_of, measured, read_lines, read_object, spell
from minigrpo.evaluation.figures import LABELS
from minigrpo.task.contract import Verdict
from minigrpo.task.kinds import make_task

Summary = Mapping[str, Mapping[str, Any]]                # split → what evaluate.summarise says of it
# What has to be in them for a report; figures are those of a split with questions. In metrics only TEXTS may be text.
METRICS_FORM = {"step": int, ...: int | float | bool | str | None}
TEXTS = "kind", "split"
FIGURES_FORM = {"strict": NUMBER, "error_rate": NUMBER}


@dataclass(frozen=True)
class Candidate:
    """One completion of a sampled group. Groups of older runs have no ``advantage``."""

    text: str
    verdict: Verdict
    advantage: float | None


@dataclass(frozen=True)
class Sample:
    step: int
    question: Json
    candidates: list[Candidate]


@dataclass(frozen=True)
class Records:
    """The records in a run's folder. ``evaluations``: by split. ``moments``: summaries "before" and "after", if there."""

    folder: Path
    cfg: config.Config
    warmup: list[Json]
    steps: list[Json]
    evaluations: dict[str, list[Json]]
    samples: list[Sample]
    moments: Mapping[str, Summary]
    evaluated: Summary

    def seconds(self) -> list[float]:
        """Wall-clock seconds after 0, 1, ... steps, without evaluations and warm-up."""
        return list(accumulate((sum(phases(record).values()) for record in self.steps), initial=0.0))

    def curve(self, split: str) -> tuple[list[int], list[float]]:
        """Steps taken and percent strict at each evaluation on ``split``; for "", of the candidates at each step."""
        if split:
            records = self.evaluations[split]
            return [record["step"] + 1 for record in records], series(records, f"{split}/strict")
        return [record["step"] for record in self.steps], [100 * value for value in series(self.steps, "strict")]

    def costs(self) -> list[tuple[float, int, float]]:
        """(seconds of training, examples seen, percent strict) at each evaluation on the evaluation split, warm-up included;
        the seconds of evaluations are not counted."""
        taught = list(accumulate((sum(phases(record).values()) for record in self.warmup), initial=0.0))
        shown, strict = len(self.warmup) * self.cfg.warmup.batch, f"{self.cfg.evaluation.split}/strict"
        looks = [(taught[i], i * self.cfg.warmup.batch, record["strict"])
                 for i, record in enumerate(self.warmup, start=1) if "strict" in record]
        seconds = self.seconds()
        return looks + [(taught[-1] + seconds[record["step"] + 1], shown + (record["step"] + 1) * self.cfg.grpo.questions,
                         record[strict]) for record in self.evaluations.get(self.cfg.evaluation.split, [])]


def read_run(folder: Path) -> Records:
    """The records of a run, finished or not. ``UserError``: there is no run, or nothing to show of it yet."""
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder} holds no run: there is no config.toml in it")
    cfg = config.load_config(folder / "config.toml")
    metrics, warmup = (_read_lines(folder / f"{name}.jsonl", METRICS_FORM) for name in ("metrics", "warmup"))
    steps, samples = [record for record in metrics if kind_of(record) == "step"], _read_samples(folder / "samples.jsonl", cfg)
    _refuse(folder / "metrics.jsonl", 'the kind "step" or "evaluation"',
            (kind_of(record) for record in metrics if kind_of(record) not in ("step", "evaluation")))
    for name, these, ordered in (("metrics", metrics, steps), ("warmup", warmup, warmup)):
        _refuse(folder / f"{name}.jsonl", "a number", ({key: value} for record in these for key, value in record.items()
                                                       if type(value) is str and key not in TEXTS))
        _refuse(folder / f"{name}.jsonl", "the steps 0, 1, ... in order",
                (record["step"] for i, record in enumerate(ordered) if record["step"] != i))
    _refuse(folder / "metrics.jsonl", "evaluations of steps that are there",
            (record["step"] for record in metrics if not 0 <= record["step"] < len(steps)))
    _refuse(folder / "metrics.jsonl", "seconds by phase",
            (spent for record in steps if not (fits(spent := phases(record), {...: NUMBER}) and sum(spent.values()) > 0)))
    evaluations = group_by((record for record in metrics if kind_of(record) == "evaluation"),
                           partial(_evaluated_split, folder / "metrics.jsonl"))
    summary, evaluated = (read_object(folder / name, {}) if (folder / name).exists() else {}
                          for name in ("summary.json", "eval/summary.json"))
    moments: dict[str, Summary] = {name: _splits(folder / "summary.json", summary[name]) for name in ("before", "after")
                                   if name in summary}
    before, after = (moments.get(name, {}) for name in ("before", "after"))
    _refuse(folder / "summary.json", "splits before as after",
            (split for split, line in after.items() if line["n"] and not before.get(split, {}).get("n")))
    run = Records(folder, cfg, warmup, steps, evaluations, samples, moments,
                  _splits(folder / "eval/summary.json", evaluated))
    if not (run.warmup or run.steps or run.moments or run.evaluated):
        raise UserError(f"{folder} has nothing to report yet: no step of the warm-up or of GRPO is on record there")
    return run


def _read_lines(file: Path, keys: Form, number: Number = measured) -> list[Json]:
    """The records of a JSONL file, or none if there is no file. Text after the last newline is still being written."""
    return [record for _, record in read_lines(file, keys, number=number, torn=True)] if file.exists() else []


def _read_samples(file: Path, cfg: config.Config) -> list[Sample]:
    """The groups in samples.jsonl, their verdicts read by the config's task."""
    task = make_task(cfg)
    rollout = {"text": str, task.language: str | None, **task.record_form}
    form = {"step": int, "question": {"id": str, "text": str, "answer": str}, "rollouts": [rollout]}
    samples = []
    for record in _read_lines(file, form, float):
        _refuse(file, "candidates", [] if record["rollouts"] else [record["step"]])
        for candidate in record["rollouts"]:
            fine = fits(candidate, {"advantage": NUMBER}) or "advantage" not in candidate
            _refuse(file, "advantage (integer or fraction)", [] if fine else [candidate["advantage"]])
        try:
            candidates = [Candidate(candidate["text"], task.read_record(candidate), candidate.get("advantage"))
                          for candidate in record["rollouts"]]
        except UserError as error:
            raise UserError(f"{file}: {error}, in the group of step {record['step']}") from None
        samples.append(Sample(record["step"], record["question"], candidates))
    return samples


def _evaluated_split(file: Path, record: Json) -> str:
    """The split of an evaluation's record. Older runs do not name it, but the names of their figures begin with it."""
    split = record.get("split") or next((name.removesuffix("/strict") for name in record if name.endswith("/strict")), None)
    _refuse(file, "an evaluation's split and its strict", [] if f"{split}/strict" in record else [record])
    return str(split)


def _splits(file: Path, summary: Summary) -> Summary:
    """A summary, checked; a split without questions has no figures."""
    _refuse(file, "splits with n and of", [summary] if not fits(summary, {...: {"n": int, "of": int}}) else ())
    for line in summary.values():
        ends = line.get("interval", {})
        form = FIGURES_FORM | {name: NUMBER for name in LABELS if name in line}
        fine = fits(line, form) and fits(ends, {...: [NUMBER]}) and all(len(two) == 2 for two in ends.values())
        _refuse(file, f"{spell(form)} of a split, and intervals of two numbers", [line] if line["n"] and not fine else ())
    return summary


def _refuse(file: Path, expected: str, odd: Iterable[object]) -> None:
    for got in odd:
        raise UserError(f"{file}: expected {expected}, got {got!r:.80}")


def series(records: Sequence[Json], name: str) -> list[float]:
    """A metric's values; NaN if a record has null (which stands for NaN and ±inf) or lacks the metric."""
    return [math.nan if record.get(name) is None else float(record[name]) for record in records]


def phases(record: Json) -> dict[str, float]:
    """A step's seconds by phase."""
    return {name.removeprefix("seconds/"): value for name, value in record.items() if name.startswith("seconds/")}
