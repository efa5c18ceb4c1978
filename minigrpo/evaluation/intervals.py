"""95 % confidence intervals by the bootstrap over questions, of one policy or of the difference of two on the same questions.

A figure is a ratio of sums over questions, Σ value / Σ weight: a mean if all weights are 1. Its interval is the middle 95 % of
its values on RESAMPLES sets of as many questions, drawn with replacement (percentile bootstrap, Efron, 1979). Questions are
taken to be independent. A figure on which all questions agree has an interval of width 0.
Axes: E resamples, Q questions, F figures.
"""

from collections.abc import Mapping, Sequence
from math import comb

import torch
from torch import Tensor

from minigrpo.common.device import generator

RESAMPLES, LEVEL = 2000, 0.95
AT_ONCE = 2**22                                             # draws held at a time: 32 MB

Pairs = Sequence[tuple[float, float]]                       # (value, weight) of each question
Figures = Mapping[str, Pairs]


def intervals(figures: Figures) -> dict[str, tuple[float, float]]:
    """{figure: (low, high)}. All figures have the same questions in the same order, at least one."""
    return _middle(figures, _resampled(figures))


def difference_intervals(a: Figures, b: Figures) -> dict[str, tuple[float, float]]:
    """Of each figure of ``b`` minus that of ``a``, paired: both have the same figures and questions, and each resample draws
    the same questions for both, so that the difficulty of a question cancels."""
    return _middle(a, _resampled(b) - _resampled(a))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value (McNemar, 1947): the probability of a difference this large if a fair coin decided, for each
    question that only one of the two got right, which one that was.

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    count = only_a + only_b
    tail = sum(comb(count, few) for few in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**count)


def _resampled(figures: Figures) -> Tensor:
    """Each figure on each resample, [E, F]; NaN if no weight was drawn. The draws depend on the number of questions alone."""
    value_QF, weight_QF = torch.tensor(list(figures.values()), dtype=torch.float64).permute(2, 1, 0)
    questions, draws, ratios = len(value_QF), generator(0, 0, "bootstrap"), []
    size = max(1, AT_ONCE // questions)
    for start in range(0, RESAMPLES, size):
        drawn_EQ = torch.randint(questions, (min(size, RESAMPLES - start), questions), generator=draws)
        times_EQ = torch.zeros(drawn_EQ.shape, dtype=torch.float64)
        times_EQ.scatter_add_(1, drawn_EQ, torch.ones(1, 1, dtype=torch.float64).expand_as(drawn_EQ))
        ratios.append((times_EQ @ value_QF) / (times_EQ @ weight_QF))
    return torch.cat(ratios)


def _middle(names: Figures, ratio_EF: Tensor) -> dict[str, tuple[float, float]]:
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low_F, high_F = torch.nanquantile(ratio_EF, ends, dim=0).tolist()
    return {name: (low, high) for name, low, high in zip(names, low_F, high_F)}
