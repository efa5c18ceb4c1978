"""Which cases of a test are quick: ``python -m pytest`` runs these, ``python -m pytest -m slow`` the others."""

from collections.abc import Sequence

import pytest


def rest_slow(cases: Sequence[object], quick: int = 1) -> list[object]:
    """For ``parametrize``: the first ``quick`` cases as they are, the others slow. A tuple is a case of several arguments."""
    return [*cases[:quick], *(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
                              for case in cases[quick:])]
