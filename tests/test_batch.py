"""batch.py: groups → tensors, by hand."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.batch import make_batch, pack, share_roots
from minigrpo.common.clock import Clock
from minigrpo.config import GRPO
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.roots import KeptRoots
from minigrpo.policy.tree import common_beginning
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
    prompts = [[q] * size for q, size in enumerate((5, 5, 6, 5))]               # they begin differently: no root
    longest = [40, 2, 2, 2]
    assert pack(prompts, longest, 2, 344) == [(0, [1, 3, 2, 0])]
    assert pack(prompts, longest, 2, 343) == pack(prompts, longest, 2, 30) == [(0, [1, 3, 2]), (0, [0])]
    assert pack(prompts, longest, 2, 29) == [(0, [1, 3]), (0, [2]), (0, [0])]
    assert pack(prompts, longest, 2, 1) == [(0, [1]), (0, [3]), (0, [2]), (0, [0])]     # a group is never divided


def test_a_root_takes_its_slots_once():
    """Four prompts of 50 + 2 tokens, completions of 3, K = 2: 50 + n · (2 + 6) slots together."""
    prompts, longest = [[9] * 50 + [q, q] for q in range(4)], [3] * 4
    assert pack(prompts, longest, 2, 82) == [(50, [0, 1, 2, 3])]
    assert pack(prompts, longest, 2, 81) == pack(prompts, longest, 2, 74) == [(50, [0, 1, 2]), (50, [3])]


def test_questions_of_one_schema_go_together_whatever_their_order():
    """Two schemas of 60 and 40 tokens in turn: apart they save (3 − 1) · 60 and (3 − 1) · 40 tokens, together none."""
    prompts = [schema + [20 + q] for q in range(3) for schema in ([1] * 60, [2] * 40)]
    assert share_roots(prompts) == [[0, 2, 4], [1, 3, 5]]
    assert pack(prompts, [1] * 6, 1, 1000) == [(60, [0, 2, 4]), (40, [1, 3, 5])]


def test_what_shares_little_stays_together():
    """Each two of four prompts share ten tokens: a micro-batch more for ten slots less is a bad bargain."""
    assert share_roots([[q // 2] * 10 + [q] for q in range(4)]) == [[0, 1, 2, 3]]
    assert share_roots([[5] * 300 + [q] for q in range(3)]) == [[0, 1, 2]] and share_roots([[4, 5]]) == [[0]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 2)), min_size=1, max_size=7))
def test_no_other_choice_of_neighbours_saves_more(drawn):
    """Against every way to cut the sorted prompts into runs: a run counts what its root saves less 32, or nothing if it goes to
    the others."""
    prompts = [[7] * 10 * head + [8] * length + [tail] for head, length, tail in drawn]
    found = share_roots(prompts)
    assert sorted(q for members in found for q in members) == list(range(len(prompts)))

    def gain(members):
        return max(0, (len(members) - 1) * common_beginning(members) - 32)

    order, best = sorted(prompts), 0
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        ends = [0, *(i for i, cut in enumerate(cuts, start=1) if cut), len(order)]
        best = max(best, sum(gain(order[start:end]) for start, end in itertools.pairwise(ends)))
    assert sum(gain([prompts[q] for q in members]) for members in found) >= best


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


def test_the_start_policy_reads_its_root_once_a_run_while_the_adapters_move(model, monkeypatch):
    """Its log-probs are those of a batch made with nothing kept, bit for bit, before and after the adapters have moved."""
    groups = [dataclasses.replace(group, prompt_ids=(*range(1, 41), *group.prompt_ids)) for group in make_groups(SPREAD)]
    start_roots, lengths, read = KeptRoots(), [], model.read
    monkeypatch.setattr(model, "read", lambda ids: lengths.append(len(ids)) or read(ids))

    def batch(**kept):
        part, = make_batch(groups, model, GRPO(updates_per_rollout=2), temperature=1.0, clock=Clock(), **kept).parts
        return part

    seen = []
    for _ in range(2):
        for parameter in adapter_parameters(model).values():
            parameter.data += 0.1
        plain, kept = batch(), batch(start_roots=start_roots)
        assert kept.ref_logp_BC.equal(plain.ref_logp_BC) and kept.old_logp_BC.equal(plain.old_logp_BC)
        seen.append(kept)
    assert seen[0].ref_logp_BC.equal(seen[1].ref_logp_BC) and not seen[0].old_logp_BC.equal(seen[1].old_logp_BC)
    assert lengths == [40] * 4 + [40] * 3               # reference and old policy, twice; then the reference's is there


def test_with_checkpointing_the_memory_of_the_last_search_is_freed_first(model, monkeypatch):
    released = []
    monkeypatch.setattr("minigrpo.batch.release", released.append)
    for model.checkpointing in (False, True):
        make_batch(make_groups(SPREAD), model, GRPO(), temperature=1.0, clock=Clock())
    assert released == [model]
