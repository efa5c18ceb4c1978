"""A question of the SQL task with its known answer. Does not depend on any file format or model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """``id`` is ``"split/index"``, and ``index`` the zero-based record in the split's file. ``answer``: the gold answer as
    published. ``database``: the name of the database that the question is asked of. ``kind``: the type of question, for
    breakdowns (in the benchmark, its template's number). ``gold_sql``: a known query, or None; GRPO reads it only with the
    reward "structural".
    """

    id: str
    split: str
    index: int
    text: str
    answer: str
    database: str
    kind: str
    gold_sql: str | None = None

    @property
    def solution(self) -> str | None:
        """What a model should write before a stop string: the known query without its end."""
        return None if self.gold_sql is None else self.gold_sql.rstrip("; \t\r\n")
