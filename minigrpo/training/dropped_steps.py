"""Steps that were dropped because something in them was not finite: counted, and after five in a row the end of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigrpo.common.console import warn

# A dropped step moves nothing, so the next ones are other batches on the same weights. One batch may be unlucky; if five in a
# row are not finite, the weights are broken, and no further batch would mend them.
MAX_DROPPED_IN_A_ROW = 5


@dataclass
class DroppedSteps:
    """The newest steps in a row that were dropped: how many, and what was not finite in the first of them."""

    count: int = 0
    first: str = ""

    def see(self, step: int, fault: str) -> None:
        """Count a step; one without a ``fault`` starts the count anew."""
        if not fault:
            self.count, self.first = 0, ""
            return
        self.count, self.first = self.count + 1, self.first or f"step {step}: {fault}"
        warn(f"step {step} moves nothing, something in it is not finite: {fault}")

    def enough(self) -> bool:
        """True after every ``MAX_DROPPED_IN_A_ROW`` of them: a resumed run may try as many again."""
        return self.count > 0 and self.count % MAX_DROPPED_IN_A_ROW == 0

    def check(self) -> None:
        """``FloatingPointError`` if there are too many."""
        if self.enough():
            raise FloatingPointError(f"{self.count} steps in a row moved nothing, since something in them was not finite, "
                                     f"first in {self.first}; what was learned until then is saved")


DROPPED_FORM = {"count": int, "first": str}     # as a checkpoint's state.json has it


def load_dropped(facts: Mapping[str, Any]) -> DroppedSteps:
    """The inverse of ``vars``; other keys are ignored."""
    return DroppedSteps(**{name: facts[name] for name in DROPPED_FORM})
