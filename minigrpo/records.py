"""What a run wrote into its folder, read back: finished or stopped anywhere. Loads no model."""

import math
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Mapping, Sequence

from minigrpo import config
from minigrpo.task.lines import NUMBER, Json, Number, fits, measured, read_lines, read_object, spell

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


def read_run(folder: Path) -> Records:
    """A run's records, finished or stopped anywhere. ``ValueError`` where there is no run, or nothing to show of it yet."""
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder} holds no run: there is no config.toml in it")
    records = _read_lines(folder / "metrics.jsonl", METRICS)
    steps, warmup = [record for record in records if "reward" in record], _read_lines(folder / "warmup.jsonl", METRICS)
    for file, these in (("metrics", steps), ("warmup", warmup)):
        if (found := [record["step"] for record in these]) != list(range(len(these))):
            odd = next(i for i, number in enumerate(found) if number != i)
            raise ValueError(f"{folder / file}.jsonl: expected the steps 0, 1, ... in order, got {found[odd]} for step {odd}")
    if odd := [record["step"] for record in records if not 0 <= record["step"] < len(steps)]:
        raise ValueError(f"{folder / 'metrics.jsonl'}: expected evaluations of the steps that are there, got one of step {odd[0]}")
    if odd := [record["step"] for record in steps if not (fits(spent := phases(record), {...: NUMBER}) and sum(spent.values()) > 0)]:
        raise ValueError(f"{folder / 'metrics.jsonl'}: expected the seconds of each step's phases, got none of step {odd[0]}")
    evaluations: dict[str, list[Json]] = {}
    for record in records:
        for name in record:
            if name.endswith("/strict"):
                evaluations.setdefault(name.removesuffix("/strict"), []).append(record)
    summary = _read_json(folder / "summary.json")
    moments = {name: _splits(folder / "summary.json", summary[name]) for name in ("before", "after") if name in summary}
    if [split for split, line in moments.get("after", {}).items() if line["n"] and not moments.get("before", {}).get(split, {}).get("n")]:
        raise ValueError(f"{folder / 'summary.json'}: expected the splits of after in before too")
    run = Records(folder, config.load_config(folder / "config.toml"), warmup, steps, evaluations,
                  _read_lines(folder / "samples.jsonl", SAMPLE, float), moments,
                  _splits(folder / "eval/summary.json", _read_json(folder / "eval/summary.json")))
    if not (run.warmup or run.steps or run.moments or run.evaluated):
        raise ValueError(f"{folder} has nothing to report yet: no step of the warm-up or of GRPO is on record there")
    return run


def _read_json(file: Path) -> Json:
    return read_object(file, {}) if file.exists() else {}


def _read_lines(file: Path, keys: Mapping[str, object], number: Number = measured) -> list[Json]:
    """The records of a JSONL file, none where there is no file. What stands behind the last newline is still being written."""
    return [record for _, record in read_lines(file, keys, number=number, torn=True)] if file.exists() else []


def _splits(file: Path, summary: object) -> Summary:
    """What a summary says of splits, or a ``ValueError``: a split without questions has no figures."""
    if not fits(summary, {...: {"n": int, "of": int}}):
        raise ValueError(f"{file}: expected an object of splits, each with n and of")
    for split, line in summary.items():
        ends = line.get("interval", {})
        if line["n"] and not (fits(line, FIGURES) and fits(ends, {...: [NUMBER]}) and all(len(two) == 2 for two in ends.values())):
            raise ValueError(f"{file}: expected {spell(FIGURES)} of the split {split!r:.80}, and intervals of two numbers")
    return summary


def series(records: Sequence[Json], name: str) -> list[float]:
    """A metric's values; NaN where a record has null, which is how NaN and ±inf are written, or none."""
    return [math.nan if record.get(name) is None else float(record[name]) for record in records]


def phases(record: Json) -> dict[str, float]:
    """A step's seconds by phase."""
    return {name.removeprefix("seconds/"): value for name, value in record.items() if name.startswith("seconds/")}
