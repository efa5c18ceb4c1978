"""warmup.py: supervised steps on gold SQL. What is learned, how fast, when it ends, that it survives being killed."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from minigrpo.common.device import generator
from minigrpo.config import GRPO, Generation, Run, Warmup, load_config
from minigrpo.policy.files.weights import create_model, load_tensors
from minigrpo.policy.generation.search import Completion
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.policy import Policy, load_policy
from minigrpo.rollout import generate
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data import athletes
from minigrpo.task.sql.prompt import extract_sql
from minigrpo.training.folder import write_state
from minigrpo.training.warmup import encode_examples, warm_up
from tests.quick import rest_slow

QUESTIONS = [question for question in athletes.load_questions("train") if question.gold_sql][::55][:20]
SIZES = dict(vocabulary=400, layers=1, width=32, heads=2, mlp_width=32, max_positions=256)


def prompt(question: Question) -> str:
    return f"{question.text}\nSQL:\n"


def greedy(policy: Policy, questions: list[Question], tokens: int) -> list[list[Completion]]:
    prompts = [policy.tokenizer.encode(prompt(question)) for question in questions]
    return generate(policy, prompts, Generation(max_new_tokens=tokens), None, greedy=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of one layer that knows nothing but how to cut athletes' texts into tokens."""
    folder = tmp_path_factory.mktemp("new")
    texts = [text for question in QUESTIONS for text in (prompt(question), question.gold_sql)]
    create_model(folder, texts, generator=generator(0, 0, "weights"), **SIZES)
    return folder


@pytest.fixture
def policy(folder) -> Policy:
    return load(folder)


def encode(questions, prompt, policy, stop_strings):
    return encode_examples(questions, prompt, policy.tokenizer, policy.model.architecture.max_positions, stop_strings)


def load(folder: Path, stop_strings: tuple[str, ...] = (";",)) -> Policy:
    return load_policy(folder, dtype=torch.float32, device="cpu", stop_strings=stop_strings)


def all_weights(policy: Policy) -> dict[str, torch.nn.Parameter]:
    policy.model.requires_grad_(True)
    return dict(policy.model.named_parameters())


def some_adapters(policy: Policy) -> dict[str, torch.nn.Parameter]:
    add_lora(policy.model, rank=2, alpha=4.0, generator=generator(0, 0, "adapters"))
    return adapter_parameters(policy.model)


class Warmed(NamedTuple):
    """What a warm-up left: the bits of what it moved, its records, and its folder."""

    weights: dict[str, torch.Tensor]
    records: list[dict]
    folder: Path


def records(folder: Path) -> list[dict]:
    """Without seconds, the one thing that differs from one warm-up to the same again; every step has some."""
    lines = [json.loads(line) for line in (folder / "warmup.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("seconds/update") > 0 for line in lines)
    return lines


def unasked() -> float:
    raise AssertionError("nobody asked for a look")


def warm(policy: Policy, folder: Path, *, score: Callable[[], float] = unasked, examples: list | None = None,
         method: Callable[[Policy], dict] = all_weights, seed: int = 0, micro_batch_tokens: int = 8192, save_every: int = 100,
         max_grad_norm: float = 1.0, **options: object) -> Warmed:
    """Twenty examples, four a step; five steps an epoch unless told otherwise."""
    warmup = Warmup(**{"source": "athletes", "batch": 4, "epochs": 1, "learning_rate": 1e-2, **options})
    cfg = replace(load_config("/dev/null"), warmup=warmup, run=Run(out=str(folder), seed=seed, save_every=save_every),
                  grpo=GRPO(micro_batch_tokens=micro_batch_tokens, max_grad_norm=max_grad_norm))
    parameters = method(policy)
    examples = encode(QUESTIONS, prompt, policy, [";"]) if examples is None else examples
    folder.mkdir(exist_ok=True)
    warm_up(policy.model, parameters, examples, cfg, score)
    return Warmed({name: parameter.detach().clone() for name, parameter in parameters.items()}, records(folder), folder)


def same(ours: Warmed, theirs: Warmed) -> bool:
    return ours.records == theirs.records and ours.weights.keys() == theirs.weights.keys() and all(
        torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


# --------------------------------------------------------------------------------------------------------------- examples
def gold(sql: str) -> Question:
    return Question("train/7", "train", 7, "How many?", "1", "original", "easy/count", sql)


@pytest.mark.parametrize("ending", ["", ";", " ;", ";\n", ";;", "; ; \n", "\n", ";\r\n", ";\t"])
def test_an_example_ends_with_the_first_stop_string_exactly_once(policy, ending):
    """However its author ended it; a quoted ";" within it is not its end."""
    for sql in ("SELECT 1", "SELECT ';' FROM Medal WHERE name = 'a;'"):
        (asked, written), = encode([gold(sql + ending)], prompt, policy, [";", "\n\n"])
        assert policy.tokenizer.decode(written) == sql + ";"
        assert policy.tokenizer.decode(asked) == "How many?\nSQL:\n"
        assert not set(policy.tokenizer.stop_ids) & set(asked + written)
    (_, written), = encode([gold("SELECT 1" + ending)], prompt, policy, ["\n\n", ";"])
    assert policy.tokenizer.decode(written) == "SELECT 1\n\n"


def test_without_stop_strings_an_example_ends_with_the_stop_token(policy):
    """<eos> is id 0 of a tokenizer that is made here, and no text has it."""
    (asked, written), = encode([gold("SELECT 1;")], prompt, policy, [])
    assert policy.tokenizer.stop_ids == (0,) and written[-1] == 0 and 0 not in asked + written[:-1]
    assert policy.tokenizer.decode(written) == "SELECT 1"


def test_a_prompt_is_encoded_as_it_will_be_when_it_is_asked(policy):
    """In generation the prompt is encoded alone, and what the policy writes is behind it: so it is here."""
    for question, (asked, written) in zip(QUESTIONS, encode(QUESTIONS, prompt, policy, [";"]), strict=True):
        assert asked == policy.tokenizer.encode(prompt(question))
        assert policy.tokenizer.decode(written) == question.gold_sql + ";"


def test_an_example_may_fill_the_context_to_the_last_token_and_no_more(policy, folder, tmp_path):
    """The longest of all in a model whose context is just as long, and one token shorter."""
    longest = max(QUESTIONS, key=lambda question: sum(map(len, encode([question], prompt, policy, [";"])[0])))
    length = sum(map(len, encode([longest], prompt, policy, [";"])[0]))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for limit in (length, length - 1):
        spec = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": limit}
        (tmp_path / "config.json").write_text(json.dumps(spec))
        if limit == length:
            assert len(encode(QUESTIONS, prompt, load(tmp_path), [";"])) == len(QUESTIONS)
            continue
        with pytest.raises(ValueError) as caught:
            encode(QUESTIONS, prompt, load(tmp_path), [";"])
        assert str(caught.value) == (f"warmup: prompt and solution of {longest.id} have {length} tokens, the model's context "
                                     f"is {length - 1}")


# ----------------------------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize("stop_strings", [(";",), ()])
def test_what_it_was_shown_it_writes_and_it_ends_where_it_should(folder, tmp_path, stop_strings):
    """Four examples, seen 120 times each: greedy decoding gives each gold query back, to the letter, stopped by itself."""
    policy, four = load(folder, stop_strings), QUESTIONS[::5]
    warmed = warm(policy, tmp_path, examples=encode(four, prompt, policy, stop_strings), epochs=120)
    assert warmed.records[0]["loss"] > 100 * warmed.records[-1]["loss"]
    written = [completion for completion, in greedy(policy, four, 120)]
    texts = [policy.tokenizer.decode(completion.ids) for completion in written]
    assert [extract_sql(text) for text in texts] == [question.gold_sql for question in four]
    assert all(completion.stopped for completion in written)


def test_the_loss_begins_near_that_of_guessing_and_falls(policy, tmp_path):
    """Random weights know nothing: about ln V nats a token for a vocabulary of V, and half of it is soon learned."""
    losses = [record["loss"] for record in warm(policy, tmp_path, epochs=12).records]
    assert losses[0] == pytest.approx(math.log(policy.model.architecture.vocabulary), abs=0.7)
    assert losses[-1] < losses[0] / 2 and sum(losses[-5:]) < sum(losses[:5])


def test_all_weights_move_in_a_full_warm_up(policy, tmp_path):
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    after = warm(policy, tmp_path).weights
    assert after.keys() == before.keys() and len(after) == 1 + 9 + 1       # embedding, a layer's 7 + 2 norms, last norm
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_only_adapters_move_in_a_warm_up_by_lora(policy, folder, tmp_path):
    base = dict(load(folder).model.named_parameters())
    warmed = warm(policy, tmp_path, method=some_adapters, epochs=3)
    assert len(warmed.weights) == 2 * 7 and all(tensor.any() for tensor in warmed.weights.values())     # B began at 0
    now = {name.replace(".base.", "."): parameter for name, parameter in policy.model.named_parameters()
           if "lora_" not in name}
    assert now.keys() == base.keys() and all(torch.equal(now[name], base[name]) for name in base)
    assert warmed.records[-1]["loss"] < warmed.records[0]["loss"]


def test_the_same_seed_is_the_same_warm_up_and_another_shows_other_examples_first(folder, tmp_path):
    one, again, other = (warm(load(folder), tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert same(one, again)
    assert one.records[0]["loss"] != other.records[0]["loss"]              # the same weights, another batch


def test_micro_batches_change_nothing_but_rounding(folder, tmp_path):
    whole, parts = (warm(load(folder), tmp_path / str(tokens), micro_batch_tokens=tokens) for tokens in (100_000, 1))
    for name, precision in (("loss", 1e-4), ("grad_norm", 1e-3)):
        assert [record[name] for record in parts.records] == pytest.approx([record[name] for record in whole.records],
                                                                           rel=precision)


@pytest.mark.parametrize("count, epochs, batch, steps", [(20, 1, 4, 5), (20, 3, 4, 15), (20, 1, 3, 7), (7, 2, 4, 4),
                                                         (3, 1, 8, 1)])
def test_so_many_epochs_are_so_many_steps(policy, tmp_path, count, epochs, batch, steps):
    """⌈count · epochs / batch⌉: a last batch that is not full is filled from the next epoch; one may be larger than all."""
    examples = encode(QUESTIONS[:count], prompt, policy, [";"])
    warmed = warm(policy, tmp_path, examples=examples, epochs=epochs, batch=batch)
    assert [record["step"] for record in warmed.records] == list(range(steps))
    assert all(set(record) == {"step", "loss", "grad_norm", "skipped"} and record["skipped"] == 0 for record in warmed.records)


def test_every_epoch_shows_every_example_once_in_an_order_of_its_own(policy, tmp_path):
    """One example a step and a rate at which nothing moves: the losses of an epoch are those of the six examples alone."""
    examples = encode(QUESTIONS[:6], prompt, policy, [";"])
    alone = [warm(policy, tmp_path / str(i), examples=[example], batch=1, learning_rate=1e-12).records[0]["loss"]
             for i, example in enumerate(examples)]
    losses = [record["loss"] for record in warm(policy, tmp_path, examples=examples, batch=1, epochs=2,
                                                learning_rate=1e-12).records]
    assert sorted(losses[:6]) == pytest.approx(sorted(alone)) == sorted(losses[6:])
    assert losses[:6] != pytest.approx(losses[6:])


# ------------------------------------------------------------------------------------------------------------ learning rate
@pytest.fixture
def rates():
    """The learning rate of every step that any optimiser takes meanwhile, and its other settings."""
    seen: list[float] = []

    def look(optimizer: torch.optim.Optimizer, args: tuple, options: dict) -> None:
        group, = optimizer.param_groups
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.98), 0.0)
        seen.append(group["lr"])

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def test_the_rate_rises_over_20_steps_and_falls_evenly(policy, tmp_path, rates):
    """40 steps with a height of 1e-2: step k (from 0) has min(1, (k + 1) / 20) · (1 − k / 40) of it: 1/20 of all of it at
    first, 20/20 · 21/40 in step 19, 1/40 in the last."""
    warm(policy, tmp_path, epochs=8, learning_rate=1e-2)
    assert rates == pytest.approx([1e-2 * min(1.0, (k + 1) / 20) * (1 - k / 40) for k in range(40)])
    assert (rates[0], rates[19], rates[39]) == pytest.approx((5e-4, 1e-2 * 21 / 40, 1e-2 / 40))
    assert rates[:20] == sorted(rates[:20]) and rates[19:] == sorted(rates[19:], reverse=True)


def test_the_rate_is_what_weights_really_move_by(policy, tmp_path):
    """Adam's first step moves a weight by the rate, whatever its gradient (but for ε = 1e-8): 1/20 of 4e-3."""
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    after = warm(policy, tmp_path, examples=encode(QUESTIONS[:1], prompt, policy, [";"]), batch=1, learning_rate=4e-3)
    moved = torch.cat([(after.weights[name] - before[name]).abs().flatten() for name in before])
    assert len(after.records) == 1 and moved.max().item() == pytest.approx(2e-4, rel=1e-3)
    assert (moved > 1.9e-4).float().mean() > 0.9


def scripted(*scores: float) -> Callable[[], float]:
    left = list(scores)
    return lambda: left.pop(0)


def test_nearing_stop_at_it_slows_down_with_what_is_left_of_the_way(policy, tmp_path, rates):
    """stop_at = 50, a look every two steps. Unseen it counts as 0: all of the rate. 10 leaves 4/5 of the way, 30 leaves 2/5,
    49 leaves 1/50, which is less than the slowest, 1/10; 25 after that is half the way again; 50 is there."""
    warmed = warm(policy, tmp_path, epochs=10, stop_at=50.0, look_every=2, score=scripted(10.0, 30.0, 49.0, 25.0, 50.0),
                  learning_rate=1e-2)
    paces = [1, 1, 0.8, 0.8, 0.4, 0.4, 0.1, 0.1, 0.5, 0.5]
    assert rates == pytest.approx([1e-2 * (k + 1) / 20 * pace for k, pace in enumerate(paces)])
    assert [record.get("strict") for record in warmed.records] == [None, 10, None, 30, None, 49, None, 25, None, 50]


def test_with_stop_at_the_number_of_epochs_has_no_say_in_the_rate(folder, tmp_path, rates):
    one = warm(load(folder), tmp_path / "1", epochs=2, stop_at=50.0, look_every=3, score=scripted(20.0, 50.0))
    other = warm(load(folder), tmp_path / "2", epochs=9, stop_at=50.0, look_every=3, score=scripted(20.0, 50.0))
    assert same(one, other) and rates[:6] == rates[6:] and len(rates) == 12


# --------------------------------------------------------------------------------------------------------------- its end
def test_it_ends_with_the_look_that_finds_it_good_enough(policy, tmp_path, capsys):
    """Looks after 3, 6 and 9 of at most 20 steps: 37.9 is not 38, 38 is."""
    warmed = warm(policy, tmp_path, epochs=4, stop_at=38.0, look_every=3, score=scripted(0.0, 37.9, 38.0))
    assert [record["step"] for record in warmed.records] == list(range(9))
    assert {record["step"]: record["strict"] for record in warmed.records if "strict" in record} == {2: 0, 5: 37.9, 8: 38}
    assert capsys.readouterr().out == ""


def test_a_height_that_is_never_reached_is_said(policy, tmp_path, capsys):
    """10 steps, looks after 4, after 8 and after the last: what is said is how good it has become."""
    warmed = warm(policy, tmp_path, epochs=2, stop_at=38.0, look_every=4, score=scripted(30.0, 20.0, 12.34))
    assert len(warmed.records) == 10
    assert capsys.readouterr().out == "warm-up: all 2 epochs are over at 12.3 % strict, below warmup.stop_at = 38\n"


def test_reaching_it_with_the_very_last_step_is_reaching_it(policy, tmp_path, capsys):
    assert len(warm(policy, tmp_path, stop_at=1.0, look_every=5, score=scripted(1.0)).records) == 5
    assert capsys.readouterr().out == ""


def test_without_stop_at_nobody_looks(policy, tmp_path, capsys):
    warm(policy, tmp_path, look_every=1, score=unasked)
    assert capsys.readouterr().out == ""


def test_one_hundred_percent_can_be_asked_for(policy, tmp_path):
    assert len(warm(policy, tmp_path, stop_at=100.0, look_every=1, score=scripted(99.9, 100.0)).records) == 2


def test_a_look_sees_the_weights_as_they_are_and_changes_nothing(folder, tmp_path):
    """One that decodes in between, as starting_model.py's does, leaves the same bits as one that does not."""
    watched, seen = load(folder), []

    def score() -> float:
        seen.append(watched.model.model.embed_tokens.weight.detach().clone())
        greedy(watched, QUESTIONS[:2], 4)
        return 1.0

    ours = warm(watched, tmp_path / "1", stop_at=100.0, look_every=2, score=score)
    theirs = warm(load(folder), tmp_path / "2", stop_at=100.0, look_every=2, score=lambda: 1.0)
    assert same(ours, theirs) and len(seen) == 3 and not torch.equal(*seen[:2])


# --------------------------------------------------------------------------------------------------------- it goes on
STEPS = 10


def goodness(policy: Policy) -> Callable[[], float]:
    """A score that is a pure function of the weights, as the real one is; somewhere between 0 and 100."""
    return lambda: 50 + 49 * math.tanh(100 * policy.model.model.norm.weight.detach().double().sub(1).sum().item())


def run(folder: Path, place: Path, save_every: int, **options: object) -> Warmed:
    policy = load(folder)
    return warm(policy, place, save_every=save_every, epochs=2, stop_at=99.99, look_every=3, score=goodness(policy), **options)


def interrupted(call: Callable[[], object], step: int) -> None:
    """Ctrl-C when the optimiser has just moved in a step (from 0): nothing is recorded of it yet."""
    left = [step]

    def hook(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    handle = register_optimizer_step_post_hook(hook)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory) -> Warmed:
    warmed = run(folder, tmp_path_factory.mktemp("undisturbed"), 100)
    assert len(warmed.records) == STEPS and len({record.get("strict") for record in warmed.records}) == 1 + 4      # 3, 6, 9 and the last
    return warmed


@pytest.mark.parametrize("save_every", rest_slow([3, 1, 2, 5, 6, 7, 100]))
def test_saving_changes_nothing(folder, tmp_path, undisturbed, save_every):
    """Looks are after 3, 6 and 9 steps: saved there, elsewhere, or never."""
    assert same(run(folder, tmp_path, save_every), undisturbed)
    assert (tmp_path / "warmup-state").exists() == (save_every <= STEPS)


@pytest.mark.parametrize("save_every", rest_slow([4, 1, 2, 3, 7]))
def test_killed_in_any_step_it_goes_on_to_the_same_bits(folder, tmp_path, undisturbed, save_every):
    """Where the weights had moved and nothing was recorded: in the first step, behind a look, before one, in the last."""
    for step in (0, 2, 3, 5, 7, 9):
        place = tmp_path / str(step)
        interrupted(lambda: run(folder, place, save_every), step)
        assert len(records(place)) == step
        assert same(run(folder, place, save_every), undisturbed), step


def struck(call: Callable[[], object], step: int, numbers: Sequence[int]) -> int:
    """Signals when the optimiser has just moved in a step (from 0); the status that it ends with."""
    left = [step]

    def hook(*_: object) -> None:
        left[0] -= 1
        if left[0] == -1:
            for number in numbers:
                os.kill(os.getpid(), number)

    handle = register_optimizer_step_post_hook(hook)
    try:
        with pytest.raises(SystemExit) as left_with:
            call()
    finally:
        handle.remove()
    return left_with.value.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", rest_slow([2, 0, 3, 9]))
def test_a_first_signal_lets_the_step_finish_and_that_is_saved(folder, tmp_path, undisturbed, capsys, number, step):
    """Alone, before a look (2), behind one, in the last of ten; nothing else was to be saved. It goes on to the same bits."""
    before = signal.getsignal(number)
    assert struck(lambda: run(folder, tmp_path, 100), step, [number]) == 128 + number
    assert signal.getsignal(number) == before and capsys.readouterr().out.count("stopping after this step") == 1
    assert [state.name for state in (tmp_path / "warmup-state").iterdir()] == [f"step-{step + 1:06d}"]
    assert records(tmp_path) == undisturbed.records[:step + 1]
    assert same(run(folder, tmp_path, 100), undisturbed)


def test_a_second_signal_ends_a_warm_up_at_once(folder, tmp_path, undisturbed):
    """The weights had moved in the fifth step, and nothing of it is recorded or saved; the state of three steps stands."""
    assert struck(lambda: run(folder, tmp_path, 3), 4, [signal.SIGTERM, signal.SIGINT]) == 128 + signal.SIGINT
    assert [state.name for state in (tmp_path / "warmup-state").iterdir()] == ["step-000003"] and len(records(tmp_path)) == 4
    assert same(run(folder, tmp_path, 3), undisturbed)


@pytest.mark.parametrize("save_every", rest_slow([3, 1, 2, 4]))
def test_killed_in_a_look_it_looks_again(folder, tmp_path, undisturbed, save_every):
    """At the second look, after six steps; five are recorded. The look falls on a save (1, 2, 3) or does not (4)."""
    policy, looks = load(folder), []

    def score() -> float:
        looks.append(goodness(policy)())
        if len(looks) == 2:
            raise RuntimeError("the database is gone")
        return looks[-1]

    with pytest.raises(RuntimeError, match="gone"):
        warm(policy, tmp_path, save_every=save_every, epochs=2, stop_at=99.99, look_every=3, score=score)
    assert len(records(tmp_path)) == 5
    assert same(run(folder, tmp_path, save_every), undisturbed)


def test_killed_again_and_again(folder, tmp_path, undisturbed):
    """Every time in the third step after the newest state; each time two steps more are there for good."""
    for done in (0, 2, 4, 6):
        interrupted(lambda: run(folder, tmp_path, 2), 2)
        kept = sorted(state.name for state in (tmp_path / "warmup-state").iterdir())
        assert kept == [f"step-{step:06d}" for step in (done, done + 2) if step]
    assert same(run(folder, tmp_path, 2), undisturbed)


def test_records_beyond_the_state_and_torn_ones_are_cut(folder, tmp_path, undisturbed):
    """As after a power cut: state of 4 steps, seven recorded, the last of them torn within."""
    interrupted(lambda: run(folder, tmp_path, 4), 7)
    text = (tmp_path / "warmup.jsonl").read_text()
    (tmp_path / "warmup.jsonl").write_text(text[:-9])
    assert same(run(folder, tmp_path, 4), undisturbed)


def test_without_a_state_what_was_recorded_goes_too(folder, tmp_path, undisturbed):
    interrupted(lambda: run(folder, tmp_path, 4), 3)
    assert len(records(tmp_path)) == 3 and not (tmp_path / "warmup-state").exists()
    assert same(run(folder, tmp_path, 4), undisturbed)


def test_a_torn_state_is_refused_and_the_one_before_is_used(folder, tmp_path, undisturbed, capsys):
    """States of 2 and 4 steps; the second has lost its end, or, with it, the first too."""
    for place, spoilt in ((tmp_path / "one", ["step-000004"]), (tmp_path / "both", ["step-000002", "step-000004"])):
        interrupted(lambda: run(folder, place, 2), 5)
        for name in spoilt:
            file = place / "warmup-state" / name / "optimizer.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        if len(spoilt) == 1:
            assert same(run(folder, place, 2), undisturbed)
            assert "step-000004 is not used: optimizer.safetensors is not what was written" in capsys.readouterr().err
        else:
            with pytest.raises(ValueError, match="no other in .*warmup-state can be used: to begin again, remove that folder"):
                run(folder, place, 2)


@pytest.mark.parametrize("save_every", rest_slow([2, 5]))
def test_the_sound_state_outlives_a_second_try_at_the_torn_one(folder, tmp_path, undisturbed, monkeypatch, save_every):
    """States of 2 and 4 steps, the second torn; on the way from 2 the disk is full when 4 is written again, or, saved less
    often now, when 5 is: 2 is still there."""
    interrupted(lambda: run(folder, tmp_path, 2), 5)
    (tmp_path / "warmup-state/step-000004/state.json").unlink()

    def full(file: Path, tensors: dict) -> None:
        raise OSError(28, "No space left on device", str(file))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("minigrpo.training.warmup.save_tensors", full)
        run(folder, tmp_path, save_every)
    assert same(run(folder, tmp_path, save_every), undisturbed)


def test_a_state_of_something_else_is_one_sentence(folder, tmp_path):
    """Written as states are, with right checksums: a run's own checkpoint, say, which has no strict."""
    with write_state(tmp_path / "warmup-state", 2, {"dropped": {"count": 0, "first": ""}}):
        pass
    with pytest.raises(ValueError, match="state.json: expected a JSON object with strict .integer or fraction., got"):
        run(folder, tmp_path, 2)


def test_weights_that_are_not_finite_end_it_with_where_it_began(folder, tmp_path):
    """A weight breaks under step 3: five steps move nothing, all else is as it was, and that is saved."""
    policy, calls = load(folder), []

    def poison(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * float("nan") if len(calls) > 3 else output

    policy.model.model.norm.register_forward_hook(poison)
    with pytest.raises(FloatingPointError) as caught:
        warm(policy, tmp_path, epochs=4)
    assert str(caught.value) == ("5 steps in a row moved nothing, since something in them was not finite, first in step 3: the "
                                 "log-probs of example 1 of 4; what was learned until then is saved")
    assert [record["skipped"] for record in records(tmp_path)] == [0.0] * 3 + [1.0] * 5
    interrupted(lambda: warm(load(folder), tmp_path / "three", epochs=4, save_every=3), 3)
    ours, theirs = (load_tensors(place / "parameters.safetensors") | load_tensors(place / "optimizer.safetensors")
                    for place in (tmp_path / "warmup-state/step-000008", tmp_path / "three/warmup-state/step-000003"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adapters_go_on_too(folder, tmp_path):
    whole = run(folder, tmp_path / "whole", 4, method=some_adapters)
    interrupted(lambda: run(folder, tmp_path / "killed", 4, method=some_adapters), 6)
    assert same(run(folder, tmp_path / "killed", 4, method=some_adapters), whole)


def test_the_rate_goes_on_where_it_was(folder, tmp_path, rates):
    """Both with the fall over steps and with what a look had found."""
    for place, options in (("even", {}), ("look", {"stop_at": 50.0, "look_every": 3, "score": lambda: 20.0})):
        rates.clear()
        warm(load(folder), tmp_path / place, epochs=2, **options)
        whole = list(rates)
        interrupted(lambda: warm(load(folder), tmp_path / f"{place}-killed", epochs=2, save_every=5, **options), 7)
        rates.clear()
        warm(load(folder), tmp_path / f"{place}-killed", epochs=2, save_every=5, **options)
        assert rates == whole[5:]


@pytest.mark.parametrize("scores, steps", [((60.0,), 5), ((10.0, 20.0), 10)])
def test_what_is_over_stays_over(folder, tmp_path, rates, scores, steps):
    """Called again when good enough, or when all epochs are through: no step, no look, the same weights."""
    options = dict(epochs=2, stop_at=50.0, look_every=5, save_every=5)
    whole = warm(load(folder), tmp_path, score=scripted(*scores), **options)
    assert len(whole.records) == len(rates) == steps
    rates.clear()
    assert same(warm(load(folder), tmp_path, score=unasked, **options), whole) and rates == []


def test_the_state_is_safetensors_and_json(folder, tmp_path):
    """What makes a step repeatable: the weights, three tensors of Adam's for each, how far and how good it is."""
    warmed = warm(load(folder), tmp_path, save_every=5, stop_at=50.0, look_every=5, score=lambda: 12.5)
    state = tmp_path / "warmup-state/step-000005"
    assert sorted(file.name for file in state.iterdir()) == [
        "SHA256SUMS", "optimizer.safetensors", "parameters.safetensors", "state.json"]
    assert json.loads((state / "state.json").read_text()) == {"format": 2, "step": 5, "strict": 12.5,
                                                              "dropped": {"count": 0, "first": ""}}
    saved = load_tensors(state / "parameters.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in warmed.weights.items())
    moments = load_tensors(state / "optimizer.safetensors")
    assert set(moments) == {f"{name}/{key}" for name in warmed.weights for key in ("step", "exp_avg", "exp_avg_sq")}
    assert {moments[f"{name}/step"].item() for name in warmed.weights} == {5.0}
