"""What the rest of the program knows of a task: problems, a prompt for each, a verdict on what a model wrote.

A task is one class that fulfils ``Task``, and one row in ``kinds.TASKS``. What is written here with a body is a default that
suits a task whose answer is one text; a task overrides what it does better. Does not depend on any task or model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass
from types import TracebackType
from typing import Any, ClassVar, Protocol

from minigrpo.common.clock import Clock
from minigrpo.common.console import labelled
from minigrpo.common.errors import UserError


class Problem(Protocol):
    """One question with its known answer: a frozen dataclass with at least these fields.

    ``id`` is ``"split/index"``, ``index`` the place in the split, ``kind`` a group of questions for breakdowns. ``solution``
    is a text that a model should have written, for the supervised warm-up, or None.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def id(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def solution(self) -> str | None: ...


@dataclass(frozen=True)
class Verdict:
    """What a task makes of one completion.

    ``reward`` trains. ``terms``: its parts by name, unweighted, 0 … 1 for ours; ``strict`` must be one of them: 1 where the
    answer is right and nothing else was said. ``status`` is one of the task's ``outcomes``. ``answer``: what the completion
    came to, as text, empty on an error. ``extracted``: the program or answer found in the text. ``details`` is for the task.
    """

    reward: float
    terms: Mapping[str, float]
    status: str
    answer: str
    extracted: str | None
    error: str = ""
    details: Any = None

    @property
    def ok(self) -> bool:
        return self.status == OK


OK = "ok"                       # the first of every task's outcomes; all others are errors
Try = tuple[Any, str | None]    # a problem of the task, and what was extracted from a completion


class Task(Protocol):
    """Used as a context manager: what a task needs in order to write prompts and to judge (a database server) is open within.

    ``language``: the records' name for what is extracted ("sql"). ``scores``: terms that are logged under their own name, all
    others as "terms/NAME". ``outcomes``: every status that a verdict can have, "ok" first.
    """

    language: str
    outcomes: tuple[str, ...]
    scores: tuple[str, ...] = ("strict",)

    def load(self, split: str, solutions: str = "") -> Sequence[Any]:
        """The problems of a split. ``solutions`` says where known solutions come from, as the config's ``warmup.source``."""

    def test_splits(self) -> list[str]:
        """The names of the splits to report, whether their files are there or not."""

    def has_split(self, split: str) -> bool:
        """Whether ``load`` would find the split."""

    def prompt(self, problem: Any) -> str:
        """The text after which the model writes."""

    def judge(self, tries: Sequence[Try], clock: Clock, *, rewarded: bool = True) -> list[Verdict]:
        """A verdict for each try, in order. Seconds go to the phases "execute" and "reward" of ``clock``. With ``rewarded``
        off nobody knows the answer, and rewards are 0. Whatever a completion does is a verdict; ``TaskError`` is raised only
        if the task's own machinery fails."""

    # ---------------------------------------------------------------------------------------- defaults: what a task may keep
    def __enter__(self) -> "Task":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def extract(self, text: str) -> str | None:
        """What is judged of a completion's text, or None if there is nothing."""
        return text.strip() or None

    def stop_ids(self, token: Callable[[str], int | None], model: str) -> tuple[int, ...]:
        """Ids of special tokens that end a completion besides the model's own. ``token`` gives the id of a special token of
        the tokenizer, or None. ``UserError``: the prompts need a token that ``model`` does not have."""
        return ()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block no data change, so a task may remember what a program gave."""
        yield

    def is_right(self, problem: Any, answer: str) -> bool:
        """Whether ``answer`` is exactly right, however it was found."""
        return answer == problem.answer

    def figures(self, problem: Any, verdict: Verdict) -> dict[str, float]:
        """What an evaluation records of a verdict; ``strict`` is one of them. ``evaluation.figures`` has a label for each."""
        return {"strict": int(verdict.ok and self.is_right(problem, verdict.answer))}

    def further_figures(self, pairs: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[dict[str, float]]:
        """For (problem, evaluation's row) pairs, figures that need the whole evaluation, such as a run on other data."""
        return [{} for _ in pairs]

    def pose(self, text: str, place: str | None, split: str) -> Any:
        """``text`` as a problem that nobody has answered, asked of ``place`` (a database) or of where ``split`` is asked."""
        raise UserError("--ask: this task has no questions without an answer")

    def about(self, problem: Any = None) -> list[tuple[str, str]]:
        """(label, text) pairs: what a problem is asked of, or, without one, what all problems are asked of."""
        return []

    def show(self, verdict: Verdict, lines: int = 8) -> list[str]:
        """What the completion came to, for the console and for reports: lines of at most 80 columns."""
        error = verdict.status + (f": {verdict.error}" if verdict.error else "")
        return labelled("gave", verdict.answer if verdict.ok else error, lines)

    # A verdict in a run's samples.jsonl. ``record_form`` is what ``record`` writes, as ``strict_json`` spells it.
    record_form: Mapping[str, Any] = {"status": str, "answer": str, "error": str, "reward": {"total": float, "terms": {}}}

    def record(self, verdict: Verdict) -> dict[str, Any]:
        return {self.language: verdict.extracted, "status": verdict.status, "answer": verdict.answer, "error": verdict.error,
                "reward": {"total": verdict.reward, "terms": dict(verdict.terms)}}

    def read_record(self, record: Mapping[str, Any]) -> Verdict:
        reward = record["reward"]
        return Verdict(reward["total"], reward["terms"], record["status"], record["answer"], record[self.language],
                       record["error"])
