"""``task.kind`` of a config → the task. A new kind of task is one row here."""

from collections.abc import Callable

from minigrpo import config
from minigrpo.common.errors import UserError, unknown
from minigrpo.task.contract import Task
from minigrpo.task.sql.task import DATASETS, SQLTask

# A task opens nothing until it is entered. The SQL task has a kind for each of its data sets.
TASKS: dict[str, Callable[[config.Config], Task]] = {
    **dict.fromkeys(DATASETS, SQLTask),
}


def make_task(cfg: config.Config) -> Task:
    """The config's task. An unknown kind: ``UserError``."""
    if cfg.task.kind not in TASKS:
        raise UserError(f"task.kind: {unknown('kind', cfg.task.kind, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[cfg.task.kind](cfg)
