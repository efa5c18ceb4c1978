"""Completions under way, by hand."""

import pytest
import torch

from minigrpo.policy.generation.hypotheses import Completion, Hypotheses


def two(scores):
    """One prompt, two hypotheses of up to three tokens, with these scores."""
    hypotheses = Hypotheses.empty(1, 2, 3, torch.float32, torch.device("cpu"))
    hypotheses.score_QK.copy_(torch.tensor([scores]))
    return hypotheses


def append(hypotheses, depth, ids, logp, ends):
    hypotheses.append(torch.tensor([ids]), torch.tensor([logp]), torch.tensor([ends]), torch.tensor([depth]))


def test_a_hypothesis_that_has_ended_stays_as_it_is():
    grown = two([0.0, 0.0])
    append(grown, 0, [5, 6], [-1.0, -2.0], [False, True])
    append(grown, 1, [7, 8], [-3.0, -4.0], [False, False])
    assert grown.completions() == [[Completion((5, 7), (-1.0, -3.0), False), Completion((6,), (-2.0,), True)]]
    grown.clear()
    assert grown.completions() == [[Completion((), (), False)] * 2] and grown.score_QK.isneginf().all()


def test_the_best_of_both_come_best_first():
    first, second = two([-1.0, -4.0]), two([-3.0, -torch.inf])
    append(first, 0, [1, 2], [-1.0, -1.0], [True, True])
    append(second, 0, [3, 4], [-1.0, -1.0], [True, True])
    best = first.best_with(second)
    assert best.score_QK.tolist() == [[-1.0, -3.0]] and best.ids_QKC[0, :, 0].tolist() == [1, 3]


def test_scores_of_a_bfloat16_model_are_float32():
    assert Hypotheses.empty(1, 1, 1, torch.bfloat16, torch.device("cpu")).score_QK.dtype == torch.float32


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_log_probs_that_are_not_finite_become_nobodys_completion(odd):
    grown = two([0.0, 0.0])
    append(grown, 0, [5, 6], [-1.0, odd], [False, False])
    with pytest.raises(ValueError, match="log-probs are not finite"):
        grown.completions()
