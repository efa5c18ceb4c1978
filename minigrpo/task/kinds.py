"""``task.kind`` of a config → the task, and its problems by their use. A new kind of task is one row here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigrpo import config
from minigrpo.common.errors import UserError, unknown
from minigrpo.task.contract import Task
from minigrpo.task.sql.task import DATASETS, SQLTask
from minigrpo.task.stream import without_kinds

# A task opens nothing until it is entered. The SQL task has a kind for each of its data sets.
TASKS: dict[str, Callable[[config.Config], Task]] = {
    **dict.fromkeys(DATASETS, SQLTask),
}


def make_task(cfg: config.Config) -> Task:
    """The config's task. An unknown kind: ``UserError``."""
    if cfg.task.kind not in TASKS:
        raise UserError(f"task.kind: {unknown('kind', cfg.task.kind, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[cfg.task.kind](cfg)


@dataclass(frozen=True)
class Data:
    """``train``: what training may see, with what solutions are known, and no kind that is held out. ``dev``: the evaluation
    split, of which ``asked`` are asked during training. ``report``: the splits that are evaluated before and after."""

    train: Sequence[Any]
    dev: Sequence[Any]
    asked: Sequence[Any]
    report: dict[str, Sequence[Any]]

    @property
    def all(self) -> list[Any]:
        return [*self.train, *self.dev, *(problem for members in self.report.values() for problem in members)]


def load_data(cfg: config.Config, task: Task) -> Data:
    train = without_kinds(task.load(cfg.task.split, cfg.warmup.source or cfg.reward.gold_sql), cfg.task.hold_out)
    dev = task.load(cfg.evaluation.split)
    report = {name: task.load(name) for name in cfg.evaluation.report}
    return Data(train, dev, dev[:cfg.evaluation.questions or len(dev)], report)
