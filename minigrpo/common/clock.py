"""Seconds by phase, and the means of some records. Does not depend on what any number means."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Metrics = dict[str, float]


class Clock:
    """Wall-clock seconds by phase: ``with clock("sql"): ...`` adds to ``clock.seconds["sql"]``.

    ``settle`` is called before the clock is read: an accelerator must have finished what it was given.
    """

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self.settle = settle

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.settle()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def metrics(self) -> Metrics:
        return {f"seconds/{phase}": round(seconds, 6) for phase, seconds in self.seconds.items()}


def average(records: Sequence[Metrics]) -> Metrics:
    """The mean of each number over records with the same names.

    >>> average([{"kl": 0.0, "skipped": 1.0}, {"kl": 0.5, "skipped": 0.0}])
    {'kl': 0.25, 'skipped': 0.5}
    """
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}
