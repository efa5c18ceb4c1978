"""Makes the runs of an experiment, then their table and pictures. Does not depend on any model.

    out/EXPERIMENT/start-SEED/             the start that all runs of a seed share, if the config has a warm-up
    out/EXPERIMENT/LABEL-SEED/             a run; one that is done is kept, one that was stopped is resumed
    out/EXPERIMENT/table.md, table.json    the table; with the extra plot also compare-*.png
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from minigrpo import config
from minigrpo.common.console import say, table
from minigrpo.common.errors import UserError, unknown
from minigrpo.evaluation.figures import markdown
from minigrpo.experiments.definitions import EXPERIMENTS, Experiment, Keys, layout
from minigrpo.reports.run_reader import Records, read_run
from minigrpo.training.folder import has_steps
from minigrpo.training.starting_model import base_path, start_adapter


def run_experiment(name: str, source: str, overrides: Keys, seeds: Sequence[int], train: Callable[..., int]) -> int:
    """Make all runs that are not there yet by ``train(cfg, resume=...)``, then their table and pictures.

    Returns the exit status: that of the first run that was stopped, or 0. ``UserError``: no such experiment, nothing that the
    runs would report, or folders that hold runs of another config.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"--experiment: {unknown('experiment', name, EXPERIMENTS)}: there are {', '.join(EXPERIMENTS)}")
    cfg = config.load_config(source, overrides)
    config.require(cfg, "model.path", "run.out")
    if not cfg.evaluation.report:
        raise UserError("--experiment: name the splits to compare the runs on in evaluation.report")
    if not cfg.run.steps:
        raise UserError("--experiment: with run.steps = 0 there is nothing to compare")
    sweep = _Sweep(EXPERIMENTS[name], Path(cfg.run.out) / name, source, overrides, cfg, train)
    for seed in seeds or (cfg.run.seed,):
        if status := sweep.make(seed):
            return status
    sweep.write()
    return 0


@dataclass
class _Sweep:
    experiment: Experiment
    root: Path
    source: str
    overrides: Keys
    cfg: config.Config
    train: Callable[..., int]
    runs: dict[str, list[Records]] = field(default_factory=dict)        # label → a run for each seed

    def make(self, seed: int) -> int:
        """Make the runs of a seed; the exit status of the first that was stopped, or 0."""
        seeded, shared = config.load_config(self.source, [*self.overrides, f"run.seed={seed}"]), tuple[str, ...]()
        if self.experiment.start and (self.cfg.warmup.source or self.cfg.model.path == "new"):
            keys = *self.experiment.start(seeded), "run.steps=0", "evaluation.report=[]"
            if status := self._run("start", seed, keys):
                return status
            start = config.load_config(self._folder("start", seed) / "config.toml")
            shared = (f"model.path={base_path(start)}", f"model.adapter={start_adapter(start)}", 'warmup.source=""',
                      f"reward.gold_sql={json.dumps(self.cfg.warmup.source or self.cfg.reward.gold_sql)}")
        for label, more in self.experiment.variants(seeded).items():
            first = next(iter(self.runs.values()), [])
            if status := self._run(label, seed, (*shared, *(more(first[-1]) if callable(more) else more))):
                return status
            self.runs.setdefault(label, []).append(read_run(self._folder(label, seed)))
        return 0

    def _folder(self, label: str, seed: int) -> Path:
        return self.root / f"{label.replace(' ', '-').replace(',', '')}-{seed}"

    def _run(self, label: str, seed: int, keys: Keys) -> int:
        member = config.load_config(self.source, [*self.overrides, f"run.seed={seed}", *keys,
                                                  f"run.out={self._folder(label, seed)}"])
        say(f"\n{self.root.name}: {label}, seed {seed}")
        return self.train(member, resume=has_steps(Path(member.run.out)))

    def write(self) -> None:
        figures = self.experiment.measure(self.runs)
        cells = layout(figures)
        say(f"\n{self.experiment.question}\n\n{table(cells)}")
        numbers = {label: {name: [None if math.isnan(value) else value for value in values] for name, values in of.items()}
                   for label, of in figures.items()}
        (self.root / "table.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        (self.root / "table.md").write_text(f"{self.experiment.question}\n\n{markdown(cells)}\n", encoding="utf-8")
        if find_spec("matplotlib"):
            say("\n" + "\n".join(map(str, self.experiment.draw(self.runs, self.root))))
