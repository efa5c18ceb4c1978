"""memory.py: what a config will need, against counts made by hand, by transformers, and by a process that really trains."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from minigrpo.config import load_config
from minigrpo.planning.memory import Alive, Load, Phase, Plan, Rates, make_plan, measure_rates, step_seconds
from minigrpo.policy.architecture import read_architecture
from tests.paths import ROOT
from tests.quick import rest_slow

# V = 1000, D = 64, two layers, four query heads and two key/value heads of H = 16, MLP 128; the head is the embedding.
TINY = {"model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
        "tie_word_embeddings": True}
# A layer: q and o 64·64 each, k and v 64·32 each, gate, up and down 64·128 each, two norms of 64.
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
TIED = 1000 * 64 + 2 * LAYER + 64
# Rank 4 beside q (64 → 64) and v (64 → 32) of both layers: A is 4 × 64, B is out × 4.
ADAPTERS = 2 * (4 * 64 + 64 * 4 + 4 * 64 + 32 * 4)
# In the weights' dtype, for decoding: both A below q, k and v (8 rows of 64), both B in one matrix of their 128 outputs × 8.
COPIES = 2 * (8 * 64 + 128 * 8)
BASE = ("generation.max_new_tokens=20", "generation.completions=3", "grpo.questions=8", "evaluation.batch=1")
LORA, FULL = (("warmup.source=athletes", f"warmup.method={method}") for method in ("lora", "full"))


@cache
def plan(*overrides: str, dtype: torch.dtype = torch.float32, load: Load = Load(50, (40, 10)), rank: int = 4,
         targets: tuple[str, ...] = ("q_proj", "v_proj"), **shape: object) -> Plan:
    return make_plan(load_config("/dev/null", [*BASE, *overrides]), read_architecture(TINY | shape), load, rank=rank,
                     targets=targets, dtype=dtype)


@pytest.fixture(scope="module")
def usual() -> Plan:
    return plan()


# ------------------------------------------------------------------------------------------------------ counting bytes
def test_a_tensor_counts_its_bytes_and_a_view_of_it_nothing():
    with Alive() as alive:
        x = torch.zeros(100)                                # 100 float32
        views = [x[10:20], x.view(10, 10), x.view(10, 10).t()]
    assert (alive.now, alive.calls) == (400, 1)
    assert len(views) == 3


def test_the_width_of_a_dtype_counts():
    with Alive() as alive:
        kept = [torch.zeros(100, dtype=dtype) for dtype in (torch.bfloat16, torch.int64, torch.bool)]
    assert alive.now == 200 + 800 + 100
    assert len(kept) == 3


def test_a_storage_is_given_back_with_its_last_view_and_the_peak_remembers_it():
    with Alive() as alive:
        x = torch.zeros(100)
        part = x[:1]
        del x
        assert alive.now == 400                             # one element of it is still in use
        del part
        assert (alive.now, alive.peak) == (0, 400)
        y = torch.zeros(50)
    assert (alive.now, alive.peak) == (200, 400)
    assert y.numel() == 50


def test_what_writes_in_place_is_a_call_that_takes_no_memory():
    with Alive() as alive:
        x = torch.zeros(100)
        x.add_(1.0)
        x[3:5].fill_(2.0)                                   # a view, and a write
    assert (alive.now, alive.calls) == (400, 3)


def test_what_a_backward_pass_keeps_for_itself_counts():
    """x·x keeps x, which is there; exp(x) keeps its own result although nobody else holds it."""
    x = torch.zeros(100, requires_grad=True)
    with Alive() as alive:
        out = x.exp().sum()
    assert alive.now == 400 + 4
    del out
    assert alive.now == 0


# --------------------------------------------------------------------------------------------------------- parameters
def test_parameters_and_adapters_of_a_tied_llama_by_hand(usual):
    assert (usual.parameters, usual.adapters) == (TIED, ADAPTERS)


def test_an_untied_head_is_counted(usual):
    assert plan(tie_word_embeddings=False).parameters == TIED + 1000 * 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["codegemma-7b", "qwen2.5-coder-1.5b", "qwen3-0.6b", "smollm2-135m", "sqlcoder-7b-2"])
def test_parameters_of_published_models_equal_those_of_transformers(name):
    """Biases of Qwen2, head norms of Qwen3, Gemma's wide heads and tied head: whatever a family has."""
    transformers = pytest.importorskip("transformers")
    folder = ROOT / "tests/data/configs" / name
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    cfg = load_config("/dev/null", ["generation.max_new_tokens=2", "grpo.questions=1", "evaluation.batch=1"])
    architecture = read_architecture(json.loads((folder / "config.json").read_text()))
    ours = make_plan(cfg, architecture, Load(3), rank=1, targets=("q_proj",), dtype=torch.bfloat16)
    assert ours.parameters == sum(parameter.numel() for parameter in theirs.parameters())


# ------------------------------------------------------------------------------------------------------------- memory
def test_what_is_kept_are_weights_adapters_and_their_two_moments(usual):
    """float32 throughout; the moments are there from the second step on, while it generates and evaluates too."""
    assert {phase.kept for phase in usual.phases.values()} == {4 * (TIED + COPIES) + 4 * ADAPTERS + 2 * 4 * ADAPTERS}


def test_bfloat16_halves_the_weights_but_not_the_adapters_and_their_moments():
    """Nor anything else of size in the tiny model: there is nothing beside weights and adapters."""
    assert {phase.kept for phase in plan(dtype=torch.bfloat16).phases.values()} == {2 * (TIED + COPIES) + 3 * 4 * ADAPTERS}


@pytest.mark.parametrize("start", [pytest.param(LORA, marks=pytest.mark.slow), ("model.adapter=a",)], ids=["warm-up", "given"])
def test_a_start_adapter_is_kept_beside_the_one_that_moves(start):
    """The reference policy's own copy, float32, without moments."""
    phases = plan(*start).phases
    assert {phases[name].kept for name in ("generate", "evaluate", "update")} == {4 * (TIED + COPIES) + 4 * 4 * ADAPTERS}


@pytest.mark.parametrize("dtype, width", rest_slow([(torch.float32, 4), (torch.bfloat16, 2)]))
def test_a_generation_of_many_short_candidates_is_its_cache(dtype, width):
    """Two more candidates of 400 tokens are 2 · 400 more slots for each of 8 questions: keys and values of 2 layers, 2 heads
    of 16. What else is alive by candidate and slot: a boolean (its copy when beams change parents), a bias of two rows for
    the heads that share keys, the scores of these rows before, in and after their softmax, indices and log-probs of hypotheses
    (12 bytes a token in each of some copies). The embedding of a prompt of one token is nothing beside it."""
    few, many = (plan("generation.max_new_tokens=400", f"generation.completions={K}", "generation.method=sample", dtype=dtype,
                      load=Load(1)).phases["generate"].work for K in (2, 4))
    cache = 8 * 2 * (2 * 400) * 16 * 2 * 2 * width              # Q · M · S · H · (keys, values) · layers · width
    assert cache <= many - few <= 1.7 * cache


@pytest.mark.slow
def test_a_longer_cache_costs_its_bytes():
    """One greedy candidate, 256 questions: 100 more tokens of prompt of which only the cache lives on. The prefill's own
    activations grow as well, so the cache is what must at least be added."""
    short, long = (plan("evaluation.batch=256", load=Load(P)).phases["evaluate"].work for P in (50, 150))
    assert long - short >= 256 * 2 * 100 * 16 * 2 * 2 * 4


@pytest.mark.slow
def test_more_key_value_heads_make_a_larger_cache_only():
    """One key/value head a query head doubles the cache. In prompts of one token nothing else is of that size."""
    few, many = (plan("generation.max_new_tokens=400", "generation.method=sample", load=Load(1),
                      num_key_value_heads=M).phases["generate"].work for M in (2, 4))
    cache = 8 * 2 * (1 + 3 * 400) * 16 * 2 * 2 * 4              # of two heads, at Q = 8 and K = 3
    assert many - few == pytest.approx(cache, rel=0.1)


@pytest.mark.parametrize("key, values", rest_slow([
    ("grpo.questions", (2, 8, 32)), ("generation.completions", (2, 4, 8)), ("generation.max_new_tokens", (10, 20, 80))]))
def test_more_of_anything_never_takes_less(key, values):
    plans = [plan(f"{key}={value}", "grpo.micro_batch_tokens=100000") for value in values]
    for name in ("generate", "update"):
        works = [each.phases[name].work for each in plans]
        assert works == sorted(works) and len(set(works)) == len(works), name


@pytest.mark.slow
def test_a_longer_prompt_takes_more_in_every_phase():
    short, long = plan(load=Load(50)), plan(load=Load(200))
    assert all(short.phases[name].work < long.phases[name].work for name in ("generate", "evaluate", "update"))


@pytest.mark.slow
def test_twice_the_micro_batch_takes_twice_the_memory():
    """Trees have 50 + 3·20 = 110 slots: 1100 hold ten, 2200 twenty. The head's chunk of 512 positions is full in both."""
    small, large = (plan("grpo.questions=60", f"grpo.micro_batch_tokens={slots}") for slots in (1100, 2200))
    assert (small.together, large.together) == (10, 20)
    # The head's own, 512 positions of 1000 logits, some of them at once, is the same in both.
    head = 512 * 1000 * 4
    works = small.phases["update"].work, large.phases["update"].work
    assert 2 * works[0] - 6 * head <= works[1] <= 2 * works[0]


@pytest.mark.slow
def test_what_prompts_share_is_kept_and_computed_once():
    """Trees have 5 slots of their own and 3·20 in branches: of 8 questions 45 + 8 · 65 = 565 instead of 8 · 110 = 880. A root of
    fewer slots than it is worth is none. (The head's chunk of 512 positions is the same in both.)"""
    plain, rooted, tiny = (plan(load=Load(50, root=root)) for root in (0, 45, 4))
    assert rooted.phases["update"].work < 0.8 * plain.phases["update"].work
    assert rooted.phases["generate"].work < plain.phases["generate"].work
    assert tiny.phases["generate"].work == plain.phases["generate"].work
    assert plan("grpo.micro_batch_tokens=305", load=Load(50, root=45)).together == 4        # 45 + 4 · 65


def test_a_micro_batch_smaller_than_a_question_holds_one(usual):
    assert plan("grpo.micro_batch_tokens=1").together == 1
    assert usual.together == 8                              # 8 · 110 slots are fewer than 8192


# ----------------------------------------------------------------------------------------------------------- warm-ups
def test_without_a_warm_up_there_is_no_such_phase(usual):
    assert list(usual.phases) == ["generate", "evaluate", "update"]


@pytest.mark.slow
def test_a_full_warm_up_keeps_two_moments_of_every_weight_in_float32():
    for dtype in (torch.float32, torch.bfloat16):           # whatever the model is kept in afterwards
        assert plan(*FULL, dtype=dtype).phases["warm-up"].kept == 3 * 4 * TIED


def test_a_warm_up_by_lora_keeps_two_moments_of_the_adapters():
    assert plan(*LORA, dtype=torch.bfloat16).phases["warm-up"].kept == 2 * (TIED + COPIES) + 3 * 4 * ADAPTERS


def test_a_full_warm_up_holds_a_gradient_of_every_weight():
    """In passes so small that nothing else counts: one example of four tokens."""
    tiny = ("warmup.batch=1",)
    work = plan(*FULL, *tiny, load=Load(3, (2, 2))).phases["warm-up"].work
    assert 4 * TIED <= work <= 2.2 * 4 * TIED               # the tied weight's two gradients are there before their sum


@pytest.mark.slow
def test_gradients_of_one_micro_batch_lie_beside_the_activations_of_the_next():
    """Examples of 70 tokens, two in a pass, enough for activations to decide: a second pass has the same height, and beside it
    all gradients of the first."""
    alone, again = (plan(*FULL, f"warmup.batch={batch}", "grpo.micro_batch_tokens=200",
                         load=Load(50, (50, 20))).phases["warm-up"].work for batch in (2, 4))
    assert again - alone == pytest.approx(4 * TIED, rel=0.02)


@pytest.mark.slow
def test_looks_at_the_score_count_where_a_warm_up_takes_them():
    """512 questions at once are more than one example: without a look only ``evaluate`` would know."""
    without, looking = (plan(*FULL, "warmup.batch=1", "evaluation.batch=512", f"warmup.stop_at={percent}").phases
                        for percent in (0.0, 35.0))
    assert without["warm-up"].work < looking["warm-up"].work == pytest.approx(without["evaluate"].work, rel=0.01)
    assert looking["warm-up"].kept == 3 * 4 * TIED


def test_the_plans_peak_is_that_of_its_highest_phase():
    phases = {"generate": Phase(100, 20, 1), "evaluate": Phase(100, 50, 1), "update": Phase(120, 10, 1)}
    assert Plan(1, 1, phases, 1).peak == 150


@pytest.mark.slow
def test_calls_of_a_token_grow_with_layers_and_not_with_sizes(usual):
    """Each layer calls the same operators; what all have together comes once. A decoder of 2 and one of 4 and one of 6 layers
    lie on a line."""
    two, four, six = (plan(num_hidden_layers=layers).phases["generate"].calls for layers in (2, 4, 6))
    assert six - four == four - two > 0
    assert plan("grpo.questions=16", "generation.max_new_tokens=50").phases["generate"].calls == two


# ------------------------------------------------------------------------------------------------------------ seconds
ROUND = Plan(1_200_000, 0, {"generate": Phase(0, 4_000_000, 1000), "update": Phase(0, 0, 2000)}, together=5)
WIDE = replace(read_architecture(TINY), vocabulary=2000, width=100)       # a head of 200,000, so a body of 1,000,000
SECONDS = ("grpo.questions=10", "generation.completions=2", "generation.max_new_tokens=50")
FREE = 1e30                                                             # a rate that never decides


def seconds(rates: Rates, *overrides: str) -> dict[str, float]:
    return step_seconds(ROUND, rates, load_config("/dev/null", [*SECONDS, *overrides]), WIDE, Load(100))


def test_seconds_of_arithmetic_by_hand():
    """1 GFLOP/s. Ten prompts of 100 tokens: 1,000 · 2 M operations = 2 s. Each of 50 tokens: 20 candidates · 2 · 1.2 M = 0.048
    s, together 2.4 s. Trees: 10 · (100 + 2·50) = 2,000 slots, of which 1,000 pass the head: forward 2 · (2,000 · 1 M +
    1,000 · 0.2 M) = 4.4 s; with backward twice as much, 8.8 s."""
    assert seconds(Rates(1e9, FREE, 0.0, 0.0)) == pytest.approx({"generate": 4.4, "reference": 4.4, "update": 8.8})


def test_seconds_of_a_root_by_hand():
    """Of each prompt's 100 tokens 80 are shared: 80 + 10 · 20 are read before the first token, 280 · 2 M operations; with the
    tokens 0.56 + 2.4 s. Two passes of five questions share one root: 80 + 10 · (20 + 100) = 1,280 slots, of which 1,000 pass the
    head."""
    found = step_seconds(ROUND, Rates(1e9, FREE, 0.0, 0.0), load_config("/dev/null", list(SECONDS)), WIDE, Load(100, root=80))
    assert found == pytest.approx({"generate": 2.96, "reference": 2.56 + 0.4, "update": 2 * (2.56 + 0.4)})


def test_seconds_of_memory_by_hand():
    """4 MB are read for each of 50 tokens, at 1 MB/s; nothing else waits for memory."""
    assert seconds(Rates(FREE, 1e6, 0.0, 0.0)) == pytest.approx({"generate": 200.0, "reference": 0.0, "update": 0.0}, abs=1e-6)


def test_seconds_of_calls_by_hand():
    """A millisecond a call, a tenth of one replayed: 50 tokens of 1,000; ten questions, five together, are two passes of 2,000
    that are called, and a quarter of that for forward alone."""
    assert seconds(Rates(FREE, FREE, 1e-3, 1e-4)) == pytest.approx({"generate": 5.0, "reference": 1.0, "update": 4.0})


def test_a_last_pass_that_is_not_full_calls_as_much_as_a_full_one():
    assert seconds(Rates(FREE, FREE, 1e-3, 1e-3), "grpo.questions=11")["update"] == pytest.approx(3 * 2000 * 1e-3)


def test_several_updates_on_one_batch_take_their_time_and_the_old_policys_scores():
    once, thrice = (seconds(Rates(1e9, FREE, 0.0, 0.0), f"grpo.updates_per_rollout={times}") for times in (1, 3))
    assert thrice == pytest.approx({"generate": once["generate"], "reference": 2 * once["reference"],
                                    "update": 3 * once["update"]})


def test_an_untied_embedding_is_looked_up_and_not_multiplied():
    """Of 1.2 M parameters the embedding and the head take 0.2 M each: a body of 0.8 M reads 1,000 tokens of prompts in 1.6 s,
    and 20 · 2 · (0.8 + 0.2) M operations at each of 50 tokens take 2 s."""
    rates, cfg = Rates(1e9, FREE, 0.0, 0.0), load_config("/dev/null", list(SECONDS))
    assert step_seconds(ROUND, rates, cfg, replace(WIDE, tied=False), Load(100))["generate"] == pytest.approx(3.6)


@pytest.mark.slow
def test_measured_rates_are_those_of_some_machine():
    """Between a slow board and a fast server: a factor of a thousand too much or too little would be a wrong unit."""
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert 1e9 < rates.flops < 1e14 and 1e8 < rates.bytes < 1e12 and 1e-7 < rates.call < 1e-3 and 1e-7 < rates.replayed < 1e-3


# ----------------------------------------------------------------------------------------- a process that really trains
GROUPED = {"model_type": "llama", "vocab_size": 6000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 9,
           "num_attention_heads": 12, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
           "tie_word_embeddings": False}
WORDY = {"model_type": "llama", "vocab_size": 40000, "hidden_size": 640, "intermediate_size": 1536, "num_hidden_layers": 8,
         "num_attention_heads": 10, "num_key_value_heads": 10, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
         "tie_word_embeddings": True}
SMALL = {"model_type": "llama", "vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
         "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
         "tie_word_embeddings": True}
# Peak resident memory since the process began, and the same before the model was loaded; not getrusage's, which a child has
# from whoever started it.
PROCESS = """
import re, sys
from pathlib import Path
import torch
from minigrpo.common.device import generator, set_up_torch
set_up_torch(1)
from minigrpo.batch import make_batch
from minigrpo.config import load_config
from minigrpo.common.clock import Clock
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.lora import add_lora
from minigrpo.policy.files.weights import initialise
from minigrpo.policy.model import CausalLM
from minigrpo.policy.generation.search import beam_search
from minigrpo.policy.tokenizer import Stopping
from minigrpo.policy.files.weights import load_model
from minigrpo.rollout import Group, Rollout
from minigrpo.task.contract import Verdict
from minigrpo.task.sql.answer import Question
from minigrpo.training.warmup import supervised_update
from minigrpo.update import make_optimizer, update

def highest():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, prompt, *overrides = sys.argv[1:]
cfg = load_config("/dev/null", overrides)
Q, K, C = cfg.grpo.questions, cfg.generation.completions, cfg.generation.max_new_tokens


def two_steps(model, length):
    V, draws = model.architecture.vocabulary, torch.Generator().manual_seed(0)
    prompts = torch.randint(V, (Q, length), generator=draws).tolist()
    if cfg.warmup.source:
        optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters())
        examples = [(ids, torch.randint(V, (C,), generator=draws).tolist()) for ids in prompts]
        for step in range(2):
            supervised_update(model, optimizer, examples, cfg.grpo)
        return
    add_lora(model, rank=cfg.lora.rank, alpha=cfg.lora.alpha, targets=cfg.lora.targets, generator=draws)
    optimizer = make_optimizer(model, cfg.grpo)
    never = Stopping(torch.zeros(2, V, dtype=torch.long), torch.zeros(2, V, dtype=torch.bool))
    for step in range(2):
        found = beam_search(model, prompts, completions=K, max_new_tokens=C, stopping=never)
        assert all(len(completion.ids) == C for group in found for completion in group)
        groups = [Group(Question(f"train/{q}", "train", q, "?", "1", "d", ""), tuple(prompts[q]), tuple(
            Rollout(completion, "", Verdict(float(k), {}, "ok", "", None)) for k, completion in enumerate(found[q])))
            for q in range(Q)]
        batch = make_batch(groups, model, cfg.grpo, temperature=1.0, clock=Clock())
        report = update(model, optimizer, batch, cfg.grpo, length=C, clock=Clock()).metrics
        assert not report["skipped"]


# A rehearsal on next to nothing: the libraries' own code and buffers come into memory with their first use.
tiny = CausalLM(read_architecture({"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}))
initialise(tiny, torch.Generator().manual_seed(0))
two_steps(tiny, 8)
before = highest()
two_steps(load_model(folder, dtype=torch.float32, device="cpu"), int(prompt))
print(before, highest())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("shape, prompt, overrides", [
    (GROUPED, 120, ("generation.completions=3", "grpo.questions=4")),
    (WORDY, 90, ("generation.completions=4", "grpo.questions=4", "grpo.micro_batch_tokens=600")),
    (SMALL, 100, ("generation.completions=1", "grpo.questions=8", "warmup.source=athletes", "warmup.batch=8",
                  "grpo.micro_batch_tokens=300")),
], ids=["grouped heads", "large tied vocabulary in parts", "full warm-up in parts"])
def test_two_steps_of_a_real_process_take_what_the_plan_says(shape, prompt, overrides, tmp_path):
    """Weights, cache, activations, gradients and moments of a model of 30 to 70 million parameters on the CPU, completions at
    full length: within 15 percent of the plan, with what the process held before, where the C library keeps no gaps. Adapted
    layers' weights are copied out of the mapped file, whose pages, which anybody else may have, stay resident while nobody
    wants them: they are counted, but not planned."""
    from minigrpo.policy.files.weights import initialise, save_tensors
    from minigrpo.policy.model import CausalLM
    architecture = read_architecture(shape)
    model = CausalLM(architecture)
    initialise(model, torch.Generator().manual_seed(0))
    (tmp_path / "config.json").write_text(json.dumps(shape))
    save_tensors(tmp_path / "model.safetensors", dict(model.named_parameters()))
    overrides = ("generation.max_new_tokens=40", "evaluation.batch=1", *overrides)
    cfg = load_config("/dev/null", overrides)
    planned = make_plan(cfg, architecture, Load(prompt, (prompt, 40)), rank=cfg.lora.rank, targets=cfg.lora.targets,
                        dtype=torch.float32)
    ended = subprocess.run([sys.executable, "-c", PROCESS, str(tmp_path), str(prompt), *overrides], capture_output=True,
                           text=True, cwd=ROOT, check=False, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"})
    assert ended.returncode == 0, ended.stderr
    before, highest = map(int, ended.stdout.split())
    mapped = 0 if cfg.warmup.source else 4 * sum(parameter.numel() for name, parameter in model.named_parameters()
                                                 if "proj" in name)
    assert highest == pytest.approx(planned.peak + before + mapped, rel=0.15)
