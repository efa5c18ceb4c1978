"""A run's problems by their use. Does not depend on any particular task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigrpo import config
from minigrpo.task.contract import Task
from minigrpo.task.stream import without_kinds


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
