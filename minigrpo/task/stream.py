"""The order in which training meets the problems, and which of them it meets. Does not depend on any task or model."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from minigrpo.common.errors import UserError, unknown
from minigrpo.task.contract import Problem

Item = TypeVar("Item")
Kind = TypeVar("Kind", bound=Problem)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of one pass over ``count`` questions: a pure function of (seed, epoch), so resuming needs no state.

    >>> sorted(epoch_order(5, seed=0, epoch=3))
    [0, 1, 2, 3, 4]
    """
    order = list(range(count))
    random.Random(f"minigrpo order {seed} {epoch}").shuffle(order)
    return order


def shuffle_answers(problems: Sequence[Kind], seed: int) -> list[Kind]:
    """A control: the same questions with their answers shuffled among them, so that nothing can be learned."""
    answers = [problem.answer for problem in problems]
    random.Random(f"minigrpo shuffled answers {seed}").shuffle(answers)
    return [replace(problem, answer=answer) for problem, answer in zip(problems, answers)]


def without_kinds(problems: Sequence[Kind], kinds: Iterable[str]) -> list[Kind]:
    """The problems of other kinds. ``UserError``: a kind that no problem is of, or nothing is left."""
    known = sorted({problem.kind for problem in problems})
    for kind in kinds:
        if kind not in known:
            raise UserError(f"task.hold_out: {unknown('kind of question', kind, known)}; there are {', '.join(known)}")
    left = [problem for problem in problems if problem.kind not in kinds]
    if not left:
        raise UserError(f"task.hold_out: all {len(problems)} questions of the split {problems[0].split} are of the kinds "
                         f"that are held out: nothing is left to train on")
    return left


@dataclass(frozen=True)
class ProblemStream(Generic[Item]):
    """An endless, shuffled stream of batches: ``batch(step)`` depends on (seed, step) alone, so resuming needs no state.

    Each epoch visits every item once; a batch may cross from one epoch into the next.
    """

    items: Sequence[Item]
    size: int
    seed: int

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError("there are no questions to draw a batch from")

    def batch(self, step: int) -> list[Item]:
        """The ``size`` items of ``step`` (counted from 0)."""
        count = len(self.items)
        places = range(step * self.size, (step + 1) * self.size)
        orders = {epoch: epoch_order(count, self.seed, epoch) for epoch in {place // count for place in places}}
        return [self.items[orders[place // count][place % count]] for place in places]
