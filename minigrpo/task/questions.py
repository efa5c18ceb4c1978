"""Questions with known answers, and the order in which training meets them. Knows no file format and no model."""

import random
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Generic, Iterable, Sequence, TypeVar

Item = TypeVar("Item")


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


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """How a sentence about a name that is none begins.

    >>> unknown("split", "trian", ["train", "dev"]), unknown("split", "x", ["dev"])
    ("unknown split 'trian' (did you mean 'train'?)", "unknown split 'x'")
    """
    near = get_close_matches(name[:80], known, n=1)
    return f"unknown {what} {name!r:.80}" + (f" (did you mean {near[0]!r}?)" if near else "")


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of one pass over ``count`` questions: a pure function of (seed, epoch), so resuming needs no state.

    >>> sorted(epoch_order(5, seed=0, epoch=3))
    [0, 1, 2, 3, 4]
    """
    order = list(range(count))
    random.Random(f"minigrpo order {seed} {epoch}").shuffle(order)
    return order


def shuffle_answers(questions: Sequence[Question], seed: int) -> list[Question]:
    """A control: the same questions, the same answers, dealt out anew; nothing can be learned from them."""
    answers = [question.answer for question in questions]
    random.Random(f"minigrpo shuffled answers {seed}").shuffle(answers)
    return [replace(question, answer=answer) for question, answer in zip(questions, answers)]


def without_kinds(questions: Sequence[Question], kinds: Iterable[str]) -> list[Question]:
    """The questions of other kinds. ``ValueError``: a kind that no question is of, or none is left."""
    known = sorted({question.kind for question in questions})
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"task.hold_out: {unknown('kind of question', kind, known)}; there are {', '.join(known)}")
    left = [question for question in questions if question.kind not in kinds]
    if not left:
        raise ValueError(f"task.hold_out: all {len(questions)} questions of the split {questions[0].split} are of the kinds "
                         f"that are held out: nothing is left to train on")
    return left


@dataclass(frozen=True)
class QuestionStream(Generic[Item]):
    """An endless, shuffled, resumable stream of batches: ``batch(step)`` depends on nothing but (seed, step).

    Each epoch visits every question once; a batch may cross from one epoch into the next.
    """

    questions: Sequence[Item]
    size: int
    seed: int

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError("there are no questions to draw a batch from")

    def batch(self, step: int) -> list[Item]:
        """The ``size`` questions of ``step`` (counted from 0)."""
        count = len(self.questions)
        places = range(step * self.size, (step + 1) * self.size)
        orders = {epoch: epoch_order(count, self.seed, epoch) for epoch in {place // count for place in places}}
        return [self.questions[orders[place // count][place % count]] for place in places]
