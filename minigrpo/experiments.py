"""Sweeps: runs of one config that differ in a few keys, from one start, and what came of them side by side. Knows no model.

    out/EXPERIMENT/start-SEED/             the start that all runs of a seed share, where the config has a warm-up
    out/EXPERIMENT/LABEL-SEED/             a run; one that is whole is left as it is, one that was stopped goes on
    out/EXPERIMENT/table.md, table.json    the table; with the extra plot also compare-curves.png and compare-ends.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Callable, Mapping, Sequence

from minigrpo import config
from minigrpo.metrics import say, table
from minigrpo.pictures import can_draw, compare_runs
from minigrpo.records import Records, read_run, series
from minigrpo.run import has_steps
from minigrpo.start import base_path, start_adapter
from minigrpo.tables import markdown
from minigrpo.task.database import Execution
from minigrpo.task.questions import Question, unknown
from minigrpo.task.reward import PRESETS

Runs = Mapping[str, Sequence[Path]]             # label → a folder for each seed
LAST = 0.1                                      # of the steps: over these a metric of the candidates is averaged


@dataclass(frozen=True)
class Experiment:
    """``question``: what it answers; ``variants``: label → keys that differ, as for ``--set``."""

    question: str
    variants: Mapping[str, tuple[str, ...]]


def brevity(question: Question, sql: str | None, execution: Execution) -> float:
    """A reward that the tokens alone decide: minus a hundredth for each character of the SQL, −3 where there is none."""
    return -len(sql) / 100 if sql else -3.0


EXPERIMENTS = {
    "rewards": Experiment(
        "What does each reward teach? Every preset from the same start.",
        {preset: (f"reward.preset={preset}",) for preset in PRESETS}),
    "candidates": Experiment(
        "How should candidates be written, and how many? K = 2 knows only which of two is better.",
        {f"{method} K={K}": (f"generation.method={method}", f"generation.completions={K}")
         for method in ("beam", "sample") for K in (2, 4, 8)}),
    "mock": Experiment(
        "Is the learner sound? The database always succeeds: without spread nothing may move; a reward of the text's length "
        "alone must be learned.",
        {"constant reward": ("database.engine=mock",),
         "shorter is better": ("database.engine=mock", "reward.preset=minigrpo.experiments.brevity")}),
}


def run_experiment(name: str, source: str, overrides: Sequence[str], seeds: Sequence[int],
                   train: Callable[..., int]) -> int:
    """Make all runs that are not there yet by ``train(cfg, resume=...)``, then their table and pictures.

    Returns the exit status: that of the first run that was stopped, or 0. ``ValueError``: no such experiment, nothing that
    the runs would report, or folders that hold runs of another config.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"--experiment: {unknown('experiment', name, EXPERIMENTS)}: there are {', '.join(EXPERIMENTS)}")
    cfg, experiment = config.load_config(source, overrides), EXPERIMENTS[name]
    config.require(cfg, "model.path", "run.out")
    if not cfg.evaluation.report:
        raise ValueError("--experiment: name the splits to compare the runs on in evaluation.report")
    root, runs = Path(cfg.run.out) / name, {}
    for seed in seeds or (cfg.run.seed,):
        seeded = [*overrides, f"run.seed={seed}"]
        start = config.load_config(source, [*seeded, f"run.out={root}/start-{seed}", "run.steps=0", "evaluation.report=[]"])
        made = bool(start.warmup.source) or start.model.path == "new"
        from_start = [f"model.path={base_path(start)}", f"model.adapter={start_adapter(start)}", 'warmup.source=""']
        members = {label: config.load_config(source, [
            *seeded, *(from_start if made else ()), *keys, f"run.out={root}/{label.replace(' ', '-')}-{seed}"])
            for label, keys in experiment.variants.items()}
        for label, member in {**({"start": start} if made else {}), **members}.items():
            say(f"\n{name}: {label}, seed {seed}")
            if status := train(member, resume=has_steps(Path(member.run.out))):
                return status
        for label, member in members.items():
            runs.setdefault(label, []).append(Path(member.run.out))
    cells, figures = compare(runs)
    say(f"\n{experiment.question}\n\n{table(cells)}")
    (root / "table.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (root / "table.md").write_text(f"{experiment.question}\n\n{markdown(cells)}\n", encoding="utf-8")
    if can_draw():
        say("\n" + "\n".join(map(str, compare_runs(runs, root))))
    return 0


def compare(runs: Runs) -> tuple[list[list[str]], dict[str, dict[str, list[float]]]]:
    """A line for each label: strict before and after on each split that the runs report, errors after, and reward, zero
    spread and length of the last tenth of the steps; means over the seeds. The figures beside it are those of each seed."""
    figures = {label: _figures([read_run(folder) for folder in folders]) for label, folders in runs.items()}
    columns = list(next(iter(figures.values())))
    return [["", *columns], *([label, *(_cell(of[column]) for column in columns)] for label, of in figures.items())], figures


def _figures(members: Sequence[Records]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for split, summary in members[0].moments["after"].items():
        if summary["n"]:
            found[f"{split}: start"] = [run.moments["before"][split]["strict"] for run in members]
            found[f"{split}: strict"] = [run.moments["after"][split]["strict"] for run in members]
            found[f"{split}: errors"] = [run.moments["after"][split]["error_rate"] for run in members]
    for name, label in (("reward", "reward"), ("frac_reward_zero_std", "zero spread"), ("completions/mean_length", "tokens")):
        found[label] = [fmean(series(run.steps, name)[-max(1, round(LAST * len(run.steps))):]) for run in members]
    return found


def _cell(values: Sequence[float]) -> str:
    """The mean, and where there are several seeds the lowest and the highest."""
    spread = f" ({min(values):.1f}…{max(values):.1f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f}" if abs(fmean(values)) < 1 and not spread else f"{fmean(values):.1f}{spread}"
