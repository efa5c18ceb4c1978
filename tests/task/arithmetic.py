"""A toy task without any SQL, in one file: sums of two numbers. With one row in ``kinds.TASKS`` it trains, is evaluated, reported."""

from collections.abc import Sequence
from dataclasses import dataclass

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.task.contract import Task, Try, Verdict

SPLITS = {"train": range(0, 60), "dev": range(60, 80), "test": range(80, 100)}


@dataclass(frozen=True)
class Sum:
    """3+4=7 of the kind "one digit"."""

    id: str
    split: str
    index: int
    text: str
    answer: str
    kind: str

    @property
    def solution(self) -> str:
        return self.answer


class Arithmetic(Task):
    language = "number"
    outcomes = ("ok", "no_number")

    def __init__(self, cfg: config.Config) -> None:
        self.opened = 0

    def __enter__(self) -> "Arithmetic":
        self.opened += 1
        return self

    def load(self, split: str, solutions: str = "") -> list[Sum]:
        pairs = [(n // 10, n % 10) for n in SPLITS[split]]
        return [Sum(f"{split}/{i}", split, i, f"{a}+{b}", str(a + b), "carry" if a + b > 9 else "one digit")
                for i, (a, b) in enumerate(pairs)]

    def test_splits(self) -> list[str]:
        return ["test"]

    def has_split(self, split: str) -> bool:
        return split in SPLITS

    def prompt(self, problem: Sum) -> str:
        assert self.opened, "a prompt is asked for only within the task"
        return f"{problem.text}="

    def judge(self, tries: Sequence[Try], clock: Clock, *, rewarded: bool = True) -> list[Verdict]:
        with clock("execute"):
            return [self._verdict(problem, number, rewarded) for problem, number in tries]

    def _verdict(self, problem: Sum, number: str | None, rewarded: bool) -> Verdict:
        if number is None or not number.isdecimal():
            return Verdict(-1.0 * rewarded, {"strict": 0.0, "near": 0.0}, "no_number", "", number, f"{number!r:.20} is no number")
        near = 1 / (1 + abs(int(number) - int(problem.answer))) if rewarded else 0.0
        return Verdict(near, {"strict": float(number == problem.answer), "near": near}, "ok", number, number)

    def pose(self, text: str, place: str | None, split: str) -> Sum:
        return Sum("--ask", "", 0, text, "", "")
