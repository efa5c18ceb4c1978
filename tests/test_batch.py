"""batch.py: groups → tensors, by hand."""

import dataclasses

import pytest
import torch

from minigrpo.batch import make_batch, pack
from minigrpo.common.clock import Clock
from minigrpo.config import GRPO
from tests.test_update import SPREAD, adapted, make_groups


@pytest.fixture
def model(sql_model):
    return adapted(sql_model)


def test_the_batch_by_hand(model):
    """Rewards (−100, 1101): A = ∓1, but for eps in σ + 1e-4; equal rewards: exactly 0. Masks are the lengths."""
    groups = make_groups(SPREAD)
    batch = make_batch(groups, model, GRPO(), temperature=1.0, clock=Clock())
    part, = batch.parts
    place = [part.prompts.length_Q.tolist().index(len(group.prompt_ids)) for group in groups]     # lengths differ: 8, 5, 4
    assert sorted(place) == [0, 1, 2]
    lengths = [[len(rollout.completion.ids) for rollout in group.rollouts] for group in groups]
    assert part.mask_QKC.sum(dim=-1)[place].tolist() == lengths
    assert part.ids_QKC[place[0], 1, :lengths[0][1]].tolist() == list(groups[0].rollouts[1].completion.ids)
    torch.testing.assert_close(part.advantage_QK[place[0]], torch.tensor([-1.0, 1.0]), atol=1e-5, rtol=0)
    assert part.advantage_QK[place[1]].tolist() == [0.0, 0.0]
    # For the records all of them stand together, in the order of the groups, as exact as they were computed.
    assert batch.advantage_QK.dtype == torch.float64 and batch.advantage_QK.device.type == "cpu"
    assert batch.advantage_QK[0].tolist() == pytest.approx([-600.5 / 600.5001, 600.5 / 600.5001], abs=1e-12)
    assert torch.equal(batch.advantage_QK.float(), part.advantage_QK[place])


def test_a_long_completion_pads_none_of_the_others():
    """Trees of (prompt, longest completion) slots (5, 2), (5, 2), (6, 2) and (5, 40), K = 2: alone 9, 9, 10 and 85; the
    first two together 2 · 9 = 18, the first three 3 · 10 = 30, all four 4 · (6 + 80) = 344."""
    sizes = [(5, 40), (5, 2), (6, 2), (5, 2)]
    assert pack(sizes, 2, 344) == [[1, 3, 2, 0]]
    assert pack(sizes, 2, 343) == pack(sizes, 2, 30) == [[1, 3, 2], [0]]
    assert pack(sizes, 2, 29) == [[1, 3], [2], [0]]
    assert pack(sizes, 2, 1) == [[1], [3], [2], [0]]                # a group is never divided


def test_a_part_is_checked_at_its_door(model):
    part, = make_batch(make_groups(SPREAD), model, GRPO(), temperature=1.0, clock=Clock()).parts
    with pytest.raises(ValueError, match=r"^ref_logp_BC: expected \[B, C\] with B=6, C=\d, got \[5, \d\]$"):
        dataclasses.replace(part, ref_logp_BC=part.ref_logp_BC[:5])
    with pytest.raises(ValueError, match="^old_logp_BC: expected"):
        dataclasses.replace(part, old_logp_BC=part.ref_logp_BC[:5])
    with pytest.raises(ValueError, match="^mask_QKC: expected a boolean tensor, got torch.float32$"):
        dataclasses.replace(part, mask_QKC=part.mask_QKC.float())


def test_old_log_probs_are_kept_only_for_a_second_update(model):
    once, twice = (make_batch(make_groups(SPREAD), model, GRPO(updates_per_rollout=n), temperature=1.0, clock=Clock())
                   for n in (1, 2))
    assert once.parts[0].old_logp_BC is None
    # at the start policy and reference are one, and the passes compute the same shapes: equal bits
    assert twice.parts[0].old_logp_BC.equal(twice.parts[0].ref_logp_BC)


def test_with_checkpointing_the_memory_of_the_last_search_is_freed_first(model, monkeypatch):
    released = []
    monkeypatch.setattr("minigrpo.batch.release", released.append)
    for model.checkpointing in (False, True):
        make_batch(make_groups(SPREAD), model, GRPO(), temperature=1.0, clock=Clock())
    assert released == [model]
