"""The experiments: which keys their runs differ in, and what is measured of them. A new experiment is one row."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.experiments.compare_runs import Figures, Runs, compare_runs, measure, measure_costs, plot_costs
from minigrpo.reports.run_reader import Records, phases
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.data.renamed import RENAMED
from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.question import Question
from minigrpo.task.sql.reward import PRESETS

K_COMPARED = 2, 8                               # with 2 candidates only the order of rewards counts, with 8 their distances
FOLDS = 5                                       # one kind of question in so many is held out
Keys = Sequence[str]                            # overrides, as for --set


def draw_by_candidates(runs: Runs, out: Path) -> list[Path]:
    """Separate pictures of the runs with two candidates and of those with eight."""
    return [file for K in K_COMPARED for file in compare_runs(
        {label: members for label, members in runs.items() if label.endswith(f" K={K}")}, out / f"K={K}")]


def brevity(question: Question, sql: str | None, execution: Execution) -> float:
    """A reward that depends on the text alone: minus a hundredth for each character of the SQL, −3 if there is none."""
    return -len(sql) / 100 if sql else -3.0


@dataclass(frozen=True)
class Experiment:
    """``question``: what it answers. ``variants``: for a seed's config, label → overrides, or a function that makes them from
    the seed's first run. ``start``: overrides of the start that the runs of a seed share; None: each makes its own."""

    question: str
    variants: Callable[[config.Config], Mapping[str, Keys | Callable[[Records], Keys]]]
    start: Callable[[config.Config], Keys] | None = lambda cfg: ()
    measure: Callable[[Runs], Figures] = measure
    draw: Callable[[Runs, Path], Sequence[Path]] = compare_runs


def kinds_apart(cfg: config.Config) -> list[str]:
    """Every fifth kind of the training questions; five seeds in a row hold out different ones."""
    kinds, first = sorted({problem.kind for problem in make_task(cfg).load(cfg.task.split)}), cfg.run.seed % FOLDS
    if first >= len(kinds) or len(kinds) == 1:
        raise UserError(f"--experiment generalise: of the {len(kinds)} kinds of questions in the split {cfg.task.split} seed "
                         f"{cfg.run.seed} would hold out {'none' if first else 'all'}: expected at least {max(2, first + 1)}")
    return kinds[first::FOLDS]


def untaught_kinds(cfg: config.Config) -> Keys:
    """The start has not seen the held-out kinds either; its warm-up has at most as many examples as the other kinds offer."""
    known, apart = make_task(cfg).load(cfg.task.split, cfg.warmup.source), kinds_apart(cfg)
    left = sum(problem.solution is not None and problem.kind not in apart for problem in known)
    return _held_out(apart), *((f"warmup.examples={min(left, cfg.warmup.examples)}",) if cfg.warmup.source else ())


def with_and_without(cfg: config.Config) -> Mapping[str, Keys]:
    asked = [*cfg.evaluation.report, *([RENAMED] if make_task(cfg).has_split(RENAMED) else [])]
    report = f"evaluation.report={json.dumps(list(dict.fromkeys(asked)))}"
    return {"GRPO on the other kinds": (_held_out(kinds_apart(cfg)), report), "GRPO on all kinds": (report,)}


def _held_out(kinds: Sequence[str]) -> str:
    return f"task.hold_out={json.dumps(kinds)}"


def ways_to_spend(cfg: config.Config) -> Mapping[str, Keys | Callable[[Records], Keys]]:
    """The config as it is, evaluated ten times; then gold SQL alone for as many seconds and examples, and answers alone for as
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
                     for K in K_COMPARED for preset in PRESETS}, draw=draw_by_candidates),
    "candidates": Experiment(
        "How should candidates be written, and how many?",
        lambda cfg: {f"{method} K={K}": (f"generation.method={method}", f"generation.completions={K}")
                     for method in ("beam", "sample") for K in (2, 4, 8)}),
    "mock": Experiment(
        "Is the learner sound? The database always succeeds: without spread nothing may move; a reward of the text's length "
        "alone must be learned.",
        lambda cfg: {"constant reward": ("database.engine=mock",),
                     "shorter is better": ("database.engine=mock", "reward.preset=minigrpo.experiments.definitions.brevity")}),
    "generalise": Experiment(
        "What carries over: to other facts, to kinds of questions that no training has seen, to tables and columns of other "
        "names? GRPO with and without the kinds that the start has not seen.", with_and_without, untaught_kinds),
    "costs": Experiment(
        "What is a second worth, and an example? Gold SQL, answers alone, and answers after some gold SQL, for as many "
        "seconds of training and for as many examples.", ways_to_spend, None, measure_costs, plot_costs),
}
