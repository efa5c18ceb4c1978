"""Questions with known answers, and the order in which training meets them. Knows no file format and no model."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from minigrpo.common.errors import UserError
from minigrpo.common.messages import unknown
from minigrpo.task.sql.question import Question

Item = TypeVar("Item")


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
            raise UserError(f"task.hold_out: {unknown('kind of question', kind, known)}; there are {', '.join(known)}")
    left = [question for question in questions if question.kind not in kinds]
    if not left:
        raise UserError(f"task.hold_out: all {len(questions)} questions of the split {questions[0].split} are of the kinds "
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
            raise UserError("there are no questions to draw a batch from")

    def batch(self, step: int) -> list[Item]:
        """The ``size`` questions of ``step`` (counted from 0)."""
        count = len(self.questions)
        places = range(step * self.size, (step + 1) * self.size)
        orders = {epoch: epoch_order(count, self.seed, epoch) for epoch in {place // count for place in places}}
        return [self.questions[orders[place // count][place % count]] for place in places]
