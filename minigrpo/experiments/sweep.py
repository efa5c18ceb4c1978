"""Sweeps: runs of one config that differ in a few keys, and what came of them side by side. Knows no model.

    out/EXPERIMENT/start-SEED/             the start that all runs of a seed share, where the config has a warm-up
    out/EXPERIMENT/LABEL-SEED/             a run; one that is whole is left as it is, one that was stopped goes on
    out/EXPERIMENT/table.md, table.json    the table; with the extra plot also compare-*.png
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from minigrpo import config
from minigrpo.common.console import say, table
from minigrpo.common.errors import UserError
from minigrpo.common.messages import unknown
from minigrpo.evaluation.compare import markdown
from minigrpo.experiments.compare_runs import Figures, Runs, compare_runs, layout, measure, measure_costs, plot_costs
from minigrpo.reports.plots import can_draw
from minigrpo.reports.run_reader import Records, phases, read_run
from minigrpo.task.sql.data.renamed import RENAMED
from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.question import Question
from minigrpo.task.sql.reward import PRESETS
from minigrpo.training.assemble import load_split
from minigrpo.training.run import has_steps
from minigrpo.training.starting_model import base_path, start_adapter

AT_ONCE = 2, 8                                                  # candidates: only their order counts; their distances too
FOLDS = 5                                                       # a seed's runs have one kind of question in so many held out
Keys = Sequence[str]                                            # what differs, as for --set


def draw_by_candidates(runs: Runs, out: Path) -> list[Path]:
    """Pictures of the runs with two candidates, and others of those with eight."""
    return [file for K in AT_ONCE for file in compare_runs(
        {label: members for label, members in runs.items() if label.endswith(f" K={K}")}, out / f"K={K}")]


def brevity(question: Question, sql: str | None, execution: Execution) -> float:
    """A reward that the tokens alone decide: minus a hundredth for each character of the SQL, −3 where there is none."""
    return -len(sql) / 100 if sql else -3.0


# ------------------------------------------------------------------------------------------------------------- what differs
@dataclass(frozen=True)
class Experiment:
    """``question``: what it answers. ``variants``: of a seed's config, label → keys that differ, or what makes them when the
    first run is done. ``start``: keys of the start that the runs of a seed share; None: each makes its own."""

    question: str
    variants: Callable[[config.Config], Mapping[str, Keys | Callable[[Records], Keys]]]
    start: Callable[[config.Config], Keys] | None = lambda cfg: ()
    measure: Callable[[Runs], Figures] = measure
    draw: Callable[[Runs, Path], Sequence[Path]] = compare_runs


def kinds_apart(cfg: config.Config) -> list[str]:
    """Every fifth kind of the training questions; each of five seeds has others."""
    kinds, first = sorted({question.kind for question in load_split(cfg.task, cfg.task.split)}), cfg.run.seed % FOLDS
    if first >= len(kinds) or len(kinds) == 1:
        raise UserError(f"--experiment generalise: of the {len(kinds)} kinds of questions in the split {cfg.task.split} seed "
                         f"{cfg.run.seed} would hold out {'none' if first else 'all'}: expected at least {max(2, first + 1)}")
    return kinds[first::FOLDS]


def untaught_kinds(cfg: config.Config) -> Keys:
    """The start has never seen the kinds either, and is shown all gold SQL of the others if there is no more."""
    known, apart = load_split(cfg.task, cfg.task.split, cfg.warmup.source), kinds_apart(cfg)
    left = sum(question.gold_sql is not None and question.kind not in apart for question in known)
    return _held_out(apart), *((f"warmup.examples={min(left, cfg.warmup.examples)}",) if cfg.warmup.source else ())


def with_and_without(cfg: config.Config) -> Mapping[str, Keys]:
    asked = [*cfg.evaluation.report, *([] if cfg.task.kind == "jsonl" else [RENAMED])]
    report = f"evaluation.report={json.dumps(list(dict.fromkeys(asked)))}"
    return {"GRPO on the other kinds": (_held_out(kinds_apart(cfg)), report), "GRPO on all kinds": (report,)}


def _held_out(kinds: Sequence[str]) -> str:
    return f"task.hold_out={json.dumps(kinds)}"


def ways_to_spend(cfg: config.Config) -> Mapping[str, Keys | Callable[[Records], Keys]]:
    """The config as it is, looked at ten times; then gold SQL alone for as many seconds and examples, and answers alone for as
    many examples."""
    if not cfg.warmup.source:
        raise UserError('--experiment costs: it compares with gold SQL, and warmup.source is ""')

    def gold_sql_alone(both: Records) -> Keys:
        seconds, examples, _ = both.costs()[-1]
        step = fmean(phases(record)["update"] for record in both.warmup)
        steps = math.ceil(1.1 * max(seconds / step, examples / cfg.warmup.batch))       # in case the machine is faster then
        epochs = math.ceil(steps * cfg.warmup.batch / cfg.warmup.examples)
        return "run.steps=0", "warmup.stop_at=100", f"warmup.epochs={epochs}"

    def answers_alone(both: Records) -> Keys:
        steps = math.ceil(both.costs()[-1][1] / cfg.grpo.questions)
        return 'warmup.source=""', f"run.steps={steps}", f"run.evaluate_every={max(1, steps // 10)}"

    return {"SFT, then GRPO": (f"run.evaluate_every={max(1, cfg.run.steps // 10)}",), "SFT on gold SQL": gold_sql_alone,
            "GRPO on answers alone": answers_alone}


EXPERIMENTS = {
    "rewards": Experiment(
        "What does each reward teach? Every preset from the same start; K = 2 knows only which of two is better.",
        lambda cfg: {f"{preset} K={K}": (f"reward.preset={preset}", f"generation.completions={K}")
                     for K in AT_ONCE for preset in PRESETS}, draw=draw_by_candidates),
    "candidates": Experiment(
        "How should candidates be written, and how many?",
        lambda cfg: {f"{method} K={K}": (f"generation.method={method}", f"generation.completions={K}")
                     for method in ("beam", "sample") for K in (2, 4, 8)}),
    "mock": Experiment(
        "Is the learner sound? The database always succeeds: without spread nothing may move; a reward of the text's length "
        "alone must be learned.",
        lambda cfg: {"constant reward": ("database.engine=mock",),
                     "shorter is better": ("database.engine=mock", "reward.preset=minigrpo.experiments.sweep.brevity")}),
    "generalise": Experiment(
        "What carries over: to other facts, to kinds of questions that no training has seen, to tables and columns of other "
        "names? GRPO with and without the kinds that the start has not seen.", with_and_without, untaught_kinds),
    "costs": Experiment(
        "What is a second worth, and an example? Gold SQL, answers alone, and answers after some gold SQL, for as many "
        "seconds of training and for as many examples.", ways_to_spend, None, measure_costs, plot_costs),
}


# ---------------------------------------------------------------------------------------------------------------- running it
def run_experiment(name: str, source: str, overrides: Keys, seeds: Sequence[int], train: Callable[..., int]) -> int:
    """Make all runs that are not there yet by ``train(cfg, resume=...)``, then their table and pictures.

    Returns the exit status: that of the first run that was stopped, or 0. ``ValueError``: no such experiment, nothing that
    the runs would report, or folders that hold runs of another config.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"--experiment: {unknown('experiment', name, EXPERIMENTS)}: there are {', '.join(EXPERIMENTS)}")
    cfg, experiment = config.load_config(source, overrides), EXPERIMENTS[name]
    config.require(cfg, "model.path", "run.out")
    if not cfg.evaluation.report:
        raise UserError("--experiment: name the splits to compare the runs on in evaluation.report")
    if not cfg.run.steps:
        raise UserError("--experiment: with run.steps = 0 there is nothing to compare")
    root, runs = Path(cfg.run.out) / name, {}

    def run(label: str, seed: int, *keys: str) -> tuple[int, Path]:
        member = config.load_config(source, [*overrides, f"run.seed={seed}", *keys,
                                             f"run.out={root}/{label.replace(' ', '-').replace(',', '')}-{seed}"])
        say(f"\n{name}: {label}, seed {seed}")
        return train(member, resume=has_steps(Path(member.run.out))), Path(member.run.out)

    for seed in seeds or (cfg.run.seed,):
        seeded, shared = config.load_config(source, [*overrides, f"run.seed={seed}"]), ()
        if experiment.start and (cfg.warmup.source or cfg.model.path == "new"):
            status, made = run("start", seed, *experiment.start(seeded), "run.steps=0", "evaluation.report=[]")
            if status:
                return status
            start = config.load_config(made / "config.toml")
            shared = (f"model.path={base_path(start)}", f"model.adapter={start_adapter(start)}", 'warmup.source=""',
                      f"reward.gold_sql={json.dumps(cfg.warmup.source or cfg.reward.gold_sql)}")
        for label, keys in experiment.variants(seeded).items():
            first = next(iter(runs.values()), [])
            status, folder = run(label, seed, *shared, *(keys(first[-1]) if callable(keys) else keys))
            if status:
                return status
            runs.setdefault(label, []).append(read_run(folder))
    figures = experiment.measure(runs)
    cells = layout(figures)
    say(f"\n{experiment.question}\n\n{table(cells)}")
    numbers = {label: {name: [None if math.isnan(value) else value for value in values] for name, values in of.items()}
               for label, of in figures.items()}
    (root / "table.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (root / "table.md").write_text(f"{experiment.question}\n\n{markdown(cells)}\n", encoding="utf-8")
    if can_draw():
        say("\n" + "\n".join(map(str, experiment.draw(runs, root))))
    return 0
