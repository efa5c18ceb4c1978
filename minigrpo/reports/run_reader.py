"""What a run wrote into its folder, read back: finished or stopped anywhere. Loads no model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import NUMBER, Json, Number, fits, measured, read_lines, read_object, spell

Summary = Mapping[str, Mapping]                 # split → what evaluate.summarise says of it
# What has to be in them for a report; figures are those of a split with questions.
METRICS = {"step": int, ...: int | float | bool | None}
SAMPLE = {"step": int, "question": {"id": str, "text": str, "answer": str},
          "rollouts": [{"text": str, "sql": str | None, "reward": {"total": NUMBER, "terms": {...: NUMBER}},
                        "execution": {"status": str, "error": str, "columns": [str],
                                      "rows": [[str | int | float | bool | None]]}}]}
FIGURES = {"strict": NUMBER, "ems": NUMBER, "rems": NUMBER, "error_rate": NUMBER}


@dataclass(frozen=True)
class Records:
    """What lies in a run's folder. ``evaluations``: by split. ``moments``: "before" and "after", as far as it came."""

    folder: Path
    cfg: config.Config
    warmup: list[Json]
    steps: list[Json]
    evaluations: dict[str, list[Json]]
    samples: list[Json]
    moments: dict[str, Summary]
    evaluated: Summary

    def seconds(self) -> list[float]:
        """Wall-clock seconds after 0, 1, ... steps: of the steps alone, evaluations and warm-up left out."""
        return list(accumulate((sum(phases(record).values()) for record in self.steps), initial=0.0))

    def curve(self, split: str) -> tuple[list[int], list[float]]:
        """Steps taken and percent strict at each evaluation on ``split``; for "", of the candidates at each step."""
        if split:
            records = self.evaluations[split]
            return [record["step"] + 1 for record in records], series(records, f"{split}/strict")
        return [record["step"] for record in self.steps], [100 * value for value in series(self.steps, "strict")]

    def costs(self) -> list[tuple[float, int, float]]:
        """(seconds of training, examples seen, percent strict) at each look at the evaluation split, warm-up included; what
        the looks themselves took is left out."""
        taught = list(accumulate((sum(phases(record).values()) for record in self.warmup), initial=0.0))
        shown, strict = len(self.warmup) * self.cfg.warmup.batch, f"{self.cfg.evaluation.split}/strict"
        looks = [(taught[i], i * self.cfg.warmup.batch, record["strict"])
                 for i, record in enumerate(self.warmup, start=1) if "strict" in record]
        seconds = self.seconds()
        return looks + [(taught[-1] + seconds[record["step"] + 1], shown + (record["step"] + 1) * self.cfg.grpo.questions,
                         record[strict]) for record in self.evaluations.get(self.cfg.evaluation.split, [])]


def read_run(folder: Path) -> Records:
    """A run's records, finished or stopped anywhere. ``ValueError`` where there is no run, or nothing to show of it yet."""
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder} holds no run: there is no config.toml in it")
    metrics, warmup = (_read_lines(folder / f"{name}.jsonl", METRICS) for name in ("metrics", "warmup"))
    steps, samples = [record for record in metrics if "reward" in record], _read_lines(folder / "samples.jsonl", SAMPLE, float)
    for name, these in (("metrics", steps), ("warmup", warmup)):
        _refuse(folder / f"{name}.jsonl", "the steps 0, 1, ... in order",
                (record["step"] for i, record in enumerate(these) if record["step"] != i))
    _refuse(folder / "metrics.jsonl", "evaluations of steps that are there",
            (record["step"] for record in metrics if not 0 <= record["step"] < len(steps)))
    _refuse(folder / "metrics.jsonl", "seconds by phase",
            (spent for record in steps if not (fits(spent := phases(record), {...: NUMBER}) and sum(spent.values()) > 0)))
    _refuse(folder / "samples.jsonl", "candidates, and as many columns as cells in a row",
            (sample["step"] for sample in samples if not sample["rollouts"] or any(
                len(row) != len(ran["columns"]) for ran in (of["execution"] for of in sample["rollouts"])
                for row in ran["rows"])))
    evaluations: dict[str, list[Json]] = {}
    for record in metrics:
        for name in record:
            if name.endswith("/strict"):
                evaluations.setdefault(name.removesuffix("/strict"), []).append(record)
    summary, evaluated = (_read_json(folder / name) for name in ("summary.json", "eval/summary.json"))
    moments = {name: _splits(folder / "summary.json", summary[name]) for name in ("before", "after") if name in summary}
    before, after = (moments.get(name, {}) for name in ("before", "after"))
    _refuse(folder / "summary.json", "splits before as after",
            (split for split, line in after.items() if line["n"] and not before.get(split, {}).get("n")))
    run = Records(folder, config.load_config(folder / "config.toml"), warmup, steps, evaluations, samples, moments,
                  _splits(folder / "eval/summary.json", evaluated))
    if not (run.warmup or run.steps or run.moments or run.evaluated):
        raise UserError(f"{folder} has nothing to report yet: no step of the warm-up or of GRPO is on record there")
    return run


def _read_json(file: Path) -> Json:
    return read_object(file, {}) if file.exists() else {}


def _read_lines(file: Path, keys: Mapping[str, object], number: Number = measured) -> list[Json]:
    """The records of a JSONL file, none where there is no file. What stands behind the last newline is still being written."""
    return [record for _, record in read_lines(file, keys, number=number, torn=True)] if file.exists() else []


def _splits(file: Path, summary: object) -> Summary:
    """What a summary says of splits; one without questions has no figures."""
    _refuse(file, "splits with n and of", [summary] if not fits(summary, {...: {"n": int, "of": int}}) else ())
    for line in summary.values():
        ends = line.get("interval", {})
        fine = fits(line, FIGURES) and fits(ends, {...: [NUMBER]}) and all(len(two) == 2 for two in ends.values())
        _refuse(file, f"{spell(FIGURES)} of a split, and intervals of two numbers", [line] if line["n"] and not fine else ())
    return summary


def _refuse(file: Path, expected: str, odd: Iterable[object]) -> None:
    for got in odd:
        raise UserError(f"{file}: expected {expected}, got {got!r:.80}")


def series(records: Sequence[Json], name: str) -> list[float]:
    """A metric's values; NaN where a record has null, which is how NaN and ±inf are written, or none."""
    return [math.nan if record.get(name) is None else float(record[name]) for record in records]


def phases(record: Json) -> dict[str, float]:
    """A step's seconds by phase."""
    return {name.removeprefix("seconds/"): value for name, value in record.items() if name.startswith("seconds/")}
