"""A question of the SQL task with its known answer. Does not depend on any file format or model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question and its known answer.

    ``id`` is ``"split/index"``; ``index`` is the zero-based record in the split's file; ``answer`` the gold answer as
    published; ``database`` the name of the database it is asked of; ``kind`` the question's type (a template's number,
    for breakdowns only); ``gold_sql`` a known query, or None: training from answers never looks at it, but under
    the reward "structural".
    """

    id: str
    split: str
    index: int
    text: str
    answer: str
    database: str
    kind: str
    gold_sql: str | None = None
