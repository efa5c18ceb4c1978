"""Steps that are replayed do what calling them would do; a search that is kept for the next one: the same results, and never
for what it does not fit."""

import copy
import gc
import weakref

import pytest
import torch

import minigrpo.policy.fast.replay
from minigrpo.policy.fast.replay import Replay, release
from minigrpo.policy.generation.search import beam_search, sample
from minigrpo.policy.lora import adapter_parameters, add_lora, reference
from tests.policy.generation.helpers import random_prompts, stop_at


def test_without_a_device_that_records_a_replay_is_a_call():
    calls = []
    replay = Replay(torch.device("cpu"))
    for shape in (1, 1, 2, 1):
        replay(lambda: calls.append(1), shape)
    assert len(calls) == 4 and not replay.records


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_step_is_called_twice_for_each_shape_and_replayed_from_then_on():
    """x ← 2 x + 1 from 0, seven times over two shapes: 127, whichever of the seven were replayed. Python sees the first call of a
    shape and the recording of its second. Another step of the same shape is another graph: 127 → 126, 125, 124."""
    x, calls = torch.zeros(1, device="cuda"), []

    def step():
        calls.append(1)
        x.mul_(2).add_(1)

    def down():
        x.sub_(1)

    replay = Replay(x.device)
    for shape in (1, 1, 2, 1, 2, 2, 1):
        replay(step, shape)
    assert x.item() == 127 and len(calls) == 4
    for expected in (126, 125, 124):
        replay(down, 1)
        assert x.item() == expected


# ------------------------------------------------------------------------------------------------------- kept searches
def kept_of(model):
    return minigrpo.policy.fast.replay._KEPT.get(model)


@pytest.fixture
def keeping(monkeypatch):
    """As on CUDA, where a search is kept, and what is replayed reads the tensors of the call that was recorded."""
    class Keeping(minigrpo.policy.fast.replay.Replay):
        def __init__(self, device):
            super().__init__(device)
            self.records = True

        def __call__(self, step, shape, *given):
            search, *rest = given
            step(self.graphs.setdefault((step, shape), search), *rest)

    monkeypatch.setattr(minigrpo.policy.fast.replay, "Replay", Keeping)


@pytest.mark.parametrize("search, settings", [
    (beam_search, dict(length_penalty=0.5)), (beam_search, dict(early_stopping=True)), (sample, dict(temperature=0.0)),
    (sample, dict(temperature=1.3))])
def test_a_kept_search_finds_what_a_new_one_finds(pair, keeping, search, settings):
    """Three rounds of other prompts, shorter ones too, in the same tensors: nothing of a round reaches the next. Prompts that are
    done leave by halves, from 8 on, and each number of rows has its own steps, which a later round replays."""
    ours, _ = pair("llama", max_position_embeddings=256)
    used, fresh = copy.deepcopy(ours), copy.deepcopy(ours)
    stopping, kept = stop_at(*range(2, 61, 10), vocabulary=61), []
    for seed in range(3):
        prompts = [[5] * 20 + [q, *ids] for q, ids in enumerate(random_prompts(8, seed=seed, vocabulary=61))]
        rounds = []
        for model in (used, fresh):
            draws = {"generator": torch.Generator().manual_seed(seed)} if search is sample else {}
            rounds.append(search(model, prompts, completions=3, max_new_tokens=40, stopping=stopping, **settings, **draws))
        assert rounds[0] == rounds[1]
        kept.append(kept_of(used))
        release(fresh)
    assert kept[0] is kept[1] is kept[2] is not None
    assert {8, 4} <= {shape[0] for _, shape in kept[0].replay.graphs if isinstance(shape, tuple)} <= {8, 4, 2}


def test_a_search_is_not_kept_for_what_it_does_not_fit(pair, keeping):
    """Other adapters in use, other settings, more prompts, longer ones, much shorter ones: each begins anew."""
    ours, _ = pair("llama", max_position_embeddings=256)
    model, stopping = copy.deepcopy(ours), stop_at(2, vocabulary=61)
    add_lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))

    def kept(prompts, **settings):
        beam_search(model, prompts, **(dict(completions=2, max_new_tokens=3, stopping=stopping) | settings))
        return kept_of(model)

    usual = [[3] * 70, [4] * 3]
    first = kept(usual)
    assert kept(usual) is first and kept([[7] * 96, [4] * 3]) is first                  # room for 96 = 3 · 32
    for prompts, settings in (([[3] * 97, [4]], {}), ([[3] * 32, [4]], {}), ([[3] * 70], {}), (usual, {"max_new_tokens": 4}),
                              (usual, {"length_penalty": 2.0}), (usual, {"stopping": stop_at(2, vocabulary=61)})):
        first = kept(usual)
        assert kept(prompts, **settings) is not first
    shared = [[8] * 40 + [q] for q in range(2)]                                         # a root of 40
    first = kept(shared)
    assert kept([[9] * 50 + [q] for q in range(2)]) is first                            # its first 40 are the root
    assert kept([[8] * 39 + [q, q] for q in range(2)]) is not first
    first = kept(usual)
    with reference(model):
        assert kept(usual) is not first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_update_did_to_the_adapters_a_kept_search_sees(pair, keeping, dtype):
    """It reads them where they are, or copies in the base's dtype that are brought up to date: the next search of the same shape
    writes by the new ones."""
    ours, _ = pair("llama")
    model, stopping = copy.deepcopy(ours).to(dtype), stop_at(2, vocabulary=61)
    add_lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
    settings = dict(completions=2, max_new_tokens=5, stopping=stopping)
    before = beam_search(model, [[3, 4, 5]], **settings)
    for parameter in adapter_parameters(model).values():
        parameter.data += 0.5
    after = beam_search(model, [[3, 4, 5]], **settings)
    release(model)
    assert after == beam_search(model, [[3, 4, 5]], **settings) and after != before


def test_a_search_is_freed_when_it_is_released_and_with_its_model(pair, keeping):
    """Its tensors are large: nothing but the room of kept searches refers to them, and they refer to no model."""
    model = copy.deepcopy(pair("llama")[0])
    settings = dict(completions=2, max_new_tokens=3, stopping=stop_at(2, vocabulary=61))
    beam_search(model, [[3, 4, 5]], **settings)
    cache = weakref.ref(kept_of(model).search.tree.cache.keys[0])
    release(model)
    release(model)                                      # nothing to free: nothing happens
    assert kept_of(model) is None and cache() is None
    beam_search(model, [[3, 4, 5]], **settings)
    cache, gone = weakref.ref(kept_of(model).search.tree.cache.keys[0]), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and cache() is None


def test_on_the_cpu_nothing_is_kept(pair):
    model = pair("llama")[0]
    beam_search(model, [[3, 4, 5]], completions=2, max_new_tokens=3, stopping=stop_at(2, vocabulary=61))
    assert kept_of(model) is None
