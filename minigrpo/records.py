"""What a run wrote into its folder, read back: finished or stopped anywhere. Loads no model."""

import json
import math
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Mapping, Sequence

from minigrpo import config

Json = dict[str, object]
Summary = Mapping[str, Mapping]                 # split → what evaluate.summarise says of it


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
        raise ValueError(f"{folder} holds no run: there is no config.toml in it")
    records = _read_lines(folder / "metrics.jsonl")
    steps = [record for record in records if "reward" in record]
    evaluations: dict[str, list[Json]] = {}
    for record in records:
        for name in record:
            if name.endswith("/strict"):
                evaluations.setdefault(name.removesuffix("/strict"), []).append(record)
    summary = _read_json(folder / "summary.json")
    moments = {name: summary[name] for name in ("before", "after") if name in summary}
    run = Records(folder, config.load_config(folder / "config.toml"), _read_lines(folder / "warmup.jsonl"), steps, evaluations,
                  _read_lines(folder / "samples.jsonl"), moments, _read_json(folder / "eval/summary.json"))
    if not (run.warmup or run.steps or run.moments or run.evaluated):
        raise ValueError(f"{folder} has nothing to report yet: no step of the warm-up or of GRPO is on record there")
    return run


def _read_json(file: Path) -> Json:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _read_lines(file: Path) -> list[Json]:
    """The records of a JSONL file, none where there is no file. What stands behind the last newline is still being written."""
    found: list[Json] = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else (), start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: expected a JSON object ({error})") from None
    return found


def series(records: Sequence[Json], name: str) -> list[float]:
    """A metric's values; NaN where a record has null, which is how NaN and ±inf are written, or none."""
    return [math.nan if record.get(name) is None else float(record[name]) for record in records]


def phases(record: Json) -> dict[str, float]:
    """A step's seconds by phase."""
    return {name.removeprefix("seconds/"): value for name, value in record.items() if name.startswith("seconds/")}
