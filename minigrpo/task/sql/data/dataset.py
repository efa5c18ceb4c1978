"""What a data set of the SQL task offers. Each file beside this one ends with a ``DATASET`` of its own.

To add a data set, write such a file and add a row for it to ``DATASETS`` in task.py, one folder up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minigrpo.common.errors import UserError
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.engines.database import Tables

# One answer that contains most numbers and years: it satisfies EMS for most of the benchmark's questions.
CONSTANT_ANSWER = ", ".join([*map(str, range(41)), "Yes", "No", *map(str, range(1980, 2025))])


@dataclass(frozen=True)
class Dataset:
    """Where questions come from, and the databases that they ask. ``path`` is always the config key ``task.path``.

    - ``load(path, split, gold_sql)``: the questions of a split. ``gold_sql`` is the config key ``warmup.source`` or
      ``reward.gold_sql``, or "". ``UserError`` or ``OSError``: no such split, a broken file, or another data set's gold SQL.
    - ``has_split(path, split)``: whether the split's file exists.
    - ``test_splits(path, train)``: the splits to test on after training on the split ``train``, in the order of reports. Their
      files may be missing.
    - ``tables(path)``: the databases, which an engine then loads; or, if they exist already,
    - ``database_names(path)``: only their names. The other of the two is None.
    - ``second``: a database with the same tables and other rows, or "". Reports run each query there too, to find answers that
      are right by chance.
    - ``constant_answer``: the one answer to all questions whose EMS reports show as a baseline.
    """

    load: Callable[[str, str, str], list[Question]]
    has_split: Callable[[str, str], bool]
    test_splits: Callable[[str, str], Sequence[str]]
    tables: Callable[[str], Mapping[str, Tables]] | None = None
    database_names: Callable[[str], Sequence[str]] | None = None
    second: str = ""
    constant_answer: str = CONSTANT_ANSWER

    def __post_init__(self) -> None:
        assert (self.tables is None) != (self.database_names is None), "databases are either loaded or exist already"


def check_gold_sql(kind: str, gold_sql: str, accepted: bool, expected: str) -> None:
    """Raise ``UserError`` if gold SQL is named that does not belong to the data set ``kind``."""
    if gold_sql and not accepted:
        raise UserError(f'warmup.source, reward.gold_sql: gold SQL for task.kind = "{kind}" comes from {expected}, got '
                        f'"{gold_sql}"')
