"""starting_model.py: what GRPO starts from, given, made or warmed up. Where it is, that it is what it claims, that it is made
once."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM

from minigrpo.batch import make_batch
from minigrpo.common.clock import Clock
from minigrpo.common.device import generator
from minigrpo.config import Config, load_config
from minigrpo.policy.files.weights import adapter_config, load_model, load_tensors, save_adapter
from minigrpo.policy.lora import adapter_parameters, adapters, reference
from minigrpo.policy.policy import Policy
from minigrpo.rollout import collect
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data import athletes
from minigrpo.training import starting_model
from minigrpo.training.folder import open_folder
from minigrpo.training.starting_model import (
    adapter_facts,
    base_path,
    check_prompts_fit,
    draw_examples,
    make_start,
    merge_start,
    start_adapter,
)
from minigrpo.training.warmup import encode_examples
from minigrpo.update import make_optimizer, update
from tests.paths import MINI
from tests.quick import rest_slow

GOLD = MINI / "gold_sql.jsonl"
WARM = ("warmup.source=athletes", "warmup.examples=8", "warmup.batch=4", "warmup.epochs=3", "warmup.learning_rate=1e-2")
LORA, FULL = (*WARM, "warmup.method=lora"), (*WARM, "warmup.method=full")
KNOWN = make_task(load_config("/dev/null", ["task.kind=athletes"])).load("train")
TRAIN = [question for question in KNOWN if question.gold_sql][::30]


@pytest.fixture
def config(tmp_path) -> Callable[..., Config]:
    """``config("warmup.source=athletes")``: athletes, a new model of one layer, everything in the test's own folder."""
    file = tmp_path / "small.toml"
    file.write_text(f"""
[task]
kind = "athletes"
template = "compact"
samples = 0
[database]
engine = "sqlite"
[model]
path = "new"
device = "cpu"
[model.new]
vocabulary = 400
layers = 1
width = 32
heads = 2
mlp_width = 32
[lora]
rank = 2
alpha = 4.0
[generation]
method = "sample"
completions = 3
max_new_tokens = 6
[run]
out = "{tmp_path}/run"
save_every = 2
""", encoding="utf-8")
    return lambda *overrides: load_config(file, overrides)


@pytest.fixture
def given(small_toml) -> Callable[..., Config]:
    """The same for the small benchmark and a model of two layers that is given."""
    return lambda *overrides: load_config(small_toml, ["run.out=unused", *overrides])


def load_start(cfg: Config) -> Policy:
    return starting_model.load_start(cfg, make_task(cfg))


def check_start(cfg: Config, train: list[Question]) -> None:
    starting_model.check_start(cfg, make_task(cfg), train)


def make(cfg: Config, *, asked: int = 2) -> None:
    Path(cfg.run.out).mkdir(exist_ok=True)                  # open_folder's part
    with make_task(cfg) as task:
        make_start(cfg, task, TRAIN, make_task(cfg).load(cfg.evaluation.split)[:asked])


def made(cfg: Config) -> Policy:
    make(cfg)
    return load_start(cfg)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: when it was last written, and what it holds."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*") if path.is_file()}


def hidden(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(torch.tensor([policy.tokenizer.encode("Question: How many medals?\nSQL:\n")]))


def shake(policy: Policy, seed: int = 1) -> None:
    """Adapters somewhere else."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(policy.model).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- where it stands
@pytest.mark.parametrize("model, overrides, base, adapter", [
    ("m", (), "m", ""),
    ("new", (), "{out}/new", ""),
    ("m", FULL, "{out}/base", ""),
    ("new", FULL, "{out}/base", ""),
    ("m", LORA, "m", "{out}/warmup"),
    ("new", LORA, "{out}/new", "{out}/warmup"),
    ("m", ("model.adapter=a",), "m", "a"),
    ("new", ("model.adapter=a",), "{out}/new", "a"),
    # eval.py --adapter of a checkpoint, which holds the whole adapter, that of the warm-up included
    ("m", (*FULL, "model.adapter=a"), "{out}/base", "a"),
    ("m", (*LORA, "model.adapter=a"), "m", "a"),
    ("new", (*LORA, "model.adapter=a"), "{out}/new", "a"),
    ("m", ("warmup.method=lora",), "m", ""),                # a method alone is no warm-up
])
def test_where_base_and_adapter_are(config, tmp_path, model, overrides, base, adapter):
    cfg = config(f"model.path={model}", *overrides)
    out = f"{tmp_path}/run"
    assert (base_path(cfg), start_adapter(cfg)) == (base.format(out=out), adapter.format(out=out))


@pytest.mark.parametrize("overrides", [(), FULL, LORA])
def test_an_adapters_shape_is_the_configs_unless_one_is_given(config, tmp_path, overrides):
    """A given one of rank 3 on two layers against the config's rank 2 on all seven; α / √R in the one, α / R in the other."""
    given = made(config("lora.rank=3", "lora.alpha=9", 'lora.targets=["q_proj", "up_proj"]', "lora.rank_stabilised=true"))
    facts = {"rank": 3, "alpha": 9.0, "targets": ("q_proj", "up_proj"), "rank_stabilised": True}
    save_adapter(given.model, tmp_path / "given", base="x", **facts)
    cfg = config(*overrides)
    assert adapter_facts(cfg) == {"rank": 2, "alpha": 4.0, "targets": cfg.lora.targets, "rank_stabilised": False}
    assert adapter_facts(config(*overrides, f"model.adapter={tmp_path}/given")) == facts


# --------------------------------------------------------------------------------------------------------------- refusals
def test_what_train_has_not_made_yet_is_said(config, tmp_path):
    """By eval.py on a config that was never trained. The base is named first where both are missing."""
    out = tmp_path / "run"
    for overrides, missing in (((), {"new"}), (FULL, {"base"}), (LORA, {"new", "warmup"})):
        assert refusal(load_start, config(*overrides)) in {
            f"{out / name} is not there yet: train.py makes what this config starts from" for name in missing}
    make(config())
    assert refusal(load_start, config(*LORA)) == f"{out}/warmup is not there yet: train.py makes what this config starts from"
    assert refusal(load_start, config(*FULL)) == f"{out}/base is not there yet: train.py makes what this config starts from"
    load_start(config())


def test_another_model_than_the_one_that_was_warmed_up_is_not_taken_for_it(config, tmp_path):
    """As when a merged model is evaluated with the config of the run that it came from: the run's base would be read."""
    cfg = config(*FULL)
    with open_folder(cfg, resume=False):
        make(cfg)
    load_start(cfg)
    assert refusal(load_start, config(*FULL, "model.path=merged")) == (
        f"model.path: {tmp_path}/run/base was made from new, not from merged; with warmup.source = \"\" that would be taken "
        f"as it is")


def test_an_adapter_is_for_the_base_it_was_trained_on_warmed_up_or_not_wherever_that_is(config, tmp_path):
    """A new model, and the same after a warm-up of all its weights: one architecture, two bases."""
    make(config(*FULL))
    new, base = tmp_path / "run/new", tmp_path / "run/base"
    policy = load_start(config(*FULL))
    save_adapter(policy.model, tmp_path / "given", base=str(base), **adapter_facts(config()))
    given = f"model.adapter={tmp_path}/given"
    load_start(config(*FULL, given))
    base.rename(tmp_path / "moved")
    load_start(config(f"model.path={tmp_path}/moved", given))
    assert refusal(load_start, config(f"model.path={new}", given)) == (
        f"{tmp_path}/given: the adapter was trained on other weights than those of {new}; by its own word, on those of {base}")


def test_a_model_that_is_given_and_not_there_is_not_trains_to_make(config):
    assert refusal(load_start, config("model.path=no/such/model")) == "model.path: there is no folder no/such/model"
    make(config())
    assert refusal(load_start, config("model.adapter=nowhere")) == "nowhere/adapter_config.json is missing"


@pytest.mark.parametrize("template, marker", [("chatml", "<|im_start|>"), ("gemma", "<start_of_turn>")])
def test_a_template_whose_markers_the_tokenizer_does_not_have_is_said_before_anything_is_made(config, tmp_path, sql_model,
                                                                                              template, marker):
    """The sentence names template, marker and model; of a new model it is known before there is one."""
    end = "; templates that need no such token: sqlcoder, plain, compact"
    needs = f"task.template: {template} needs {marker} to be one token of the model's tokenizer, which it is not in "
    assert refusal(check_start, config(f"task.template={template}"), TRAIN) == f"{needs}a new model{end}"
    given = config(f"task.template={template}", f"model.path={sql_model}")
    check_start(given, TRAIN)
    assert refusal(load_start, given) == f"{needs}{sql_model}{end}"
    assert refusal(make, config(f"task.template={template}", f"model.path={sql_model}", *FULL)) == f"{needs}{sql_model}{end}"
    assert names(tmp_path / "run") == []


def test_a_marker_that_is_missing_is_the_one_that_is_named(config, chat_model, tmp_path):
    """A tokenizer that can begin a turn and cannot end it."""
    for file in chat_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["added_tokens"] = [{**token, "content": token["content"].replace("<|im_end|>", "<|end|>")}
                            for token in spec["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    message = refusal(load_start, config("task.template=chatml", f"model.path={tmp_path}"))
    assert "chatml needs <|im_end|> to be one token" in message
    load_start(config("task.template=gemma", f"model.path={tmp_path}"))


@pytest.mark.parametrize("template, marker", [("chatml", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("plain", None)])
def test_the_marker_that_ends_a_turn_is_a_stop_id_besides_the_models_own(config, chat_model, template, marker):
    """The model's own is <eos>, id 0. A template without turns has no other."""
    policy = load_start(config(f"task.template={template}", f"model.path={chat_model}", "generation.stop_strings=[]"))
    ids = [policy.tokenizer.added_token(text) for text in (marker, "<eos>") if text]
    assert list(policy.tokenizer.stop_ids) == ids and ids[-1] == 0
    assert policy.stopping.ends_UV[0].nonzero().flatten().tolist() == sorted(ids)


@pytest.mark.parametrize("template, marker", [("chatml", "<|im_end|>"), ("gemma", "<end_of_turn>")])
def test_a_warm_up_in_turns_ends_gold_sql_where_generation_stops(config, chat_model, template, marker):
    """By the turn's end, which is a stop id, and not by <eos>, which no chat model writes there; or by a stop string."""
    for strings, end in (("[]", marker), ('[";"]', ";")):
        cfg = config(f"task.template={template}", f"model.path={chat_model}", f"generation.stop_strings={strings}")
        policy = load_start(cfg)
        with make_task(cfg) as task:
            for _, written in encode_examples(TRAIN[:5], task.prompt, policy.tokenizer, 1024, cfg.generation.stop_strings):
                state = 0
                for i, token in enumerate(written):
                    assert bool(policy.stopping.ends_UV[state, token]) == (i == len(written) - 1)
                    state = int(policy.stopping.next_UV[state, token])
                assert policy.tokenizer.rust.decode(written, skip_special_tokens=False).endswith(end)


def test_without_gold_sql_there_is_no_warm_up(config):
    """A file that knows other splits, or none at all: large has no line in it. Without a warm-up none is needed."""
    cfg = config("task.kind=temptabqa", f"task.path={MINI}", f"warmup.source={GOLD}", "task.split=large", "warmup.examples=1")
    blind = [Question("large/0", "large", 0, "?", "1", "original", "1")]
    assert refusal(check_start, cfg, blind) == f"warmup.source: {GOLD} has no known solution for the split large"
    check_start(config("warmup.source="), blind)


def test_more_examples_than_there_are_cannot_be_shown(config):
    """The small benchmark's train has three questions, all answerable."""
    def with_examples(count: int) -> Config:
        return config("task.kind=temptabqa", f"task.path={MINI}", f"warmup.source={GOLD}", f"warmup.examples={count}")

    train = make_task(with_examples(3)).load("train", str(GOLD))
    check_start(with_examples(3), train)
    assert refusal(check_start, with_examples(4), train) == (
        f"warmup.examples: 4 were asked for, {GOLD} has known solutions for 3 questions of the split train")
    # Each kind of the athletes' training questions has as many gold queries as its level is given: of easy ones all.
    every = sum(athletes.GOLD[kind.name.partition("/")[0]] for kind in athletes.KINDS)
    check_start(config("warmup.source=athletes", f"warmup.examples={every}"), KNOWN)
    assert refusal(check_start, config("warmup.source=athletes", f"warmup.examples={every + 1}"), KNOWN) == (
        f"warmup.examples: {every + 1} were asked for, athletes has known solutions for {every} questions of the split train")


@pytest.mark.parametrize("method", [LORA, FULL])
def test_a_start_is_given_or_made_not_both(config, method):
    assert refusal(check_start, config(*method, "model.adapter=a"), TRAIN) == (
        "model.adapter: a warm-up makes its own start; take one of model.adapter and warmup.source")
    check_start(config(*method), TRAIN)
    check_start(config("model.adapter=a"), TRAIN)


def test_a_prompt_too_long_to_be_shown_is_said_and_leaves_nothing_half_made(config, tmp_path):
    message = refusal(make, config(*FULL, "model.new.max_positions=40"))
    assert message.startswith("the prompt of train/0 has ") and "more than the model's context of 40" in message
    assert names(tmp_path / "run") == ["new"]


# --------------------------------------------------------------------------------------------------------------- examples
def test_examples_are_so_many_questions_with_gold_sql_drawn_by_the_seed():
    questions = [Question(f"t/{i}", "t", i, "?", "1", "d", "1", f"SELECT {i}" if i % 3 else None) for i in range(30)]
    known = [question for question in questions if question.gold_sql]
    drawn = draw_examples(questions, 12, 0)
    assert len(drawn) == len(set(drawn)) == 12 and set(drawn) <= set(known)
    assert drawn == draw_examples(questions, 12, 0) == draw_examples(questions, 20, 0)[:12]     # more are those and others
    assert drawn != draw_examples(questions, 12, 1) and drawn != known[:12]
    assert set(draw_examples(questions, len(known), 7)) == set(known)
    assert draw_examples(known, 12, 0) == drawn             # questions without gold SQL have no say


# --------------------------------------------------------------------------------------------------------------- adapters
def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone(given):
    one, same, other = (load_start(given(f"run.seed={seed}")) for seed in (0, 0, 1))
    with reference(one.model):
        base = hidden(one)
    assert torch.equal(hidden(one), base) and torch.equal(hidden(other), base)
    first, second, third = (adapter_parameters(policy.model) for policy in (one, same, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first if name.endswith("lora_A"))


def test_the_configs_adapters(given):
    """alpha / rank = 6/3; alpha / √rank = 6/2 with rank 4."""
    policy = load_start(given("lora.rank=3", "lora.alpha=6", 'lora.targets=["q_proj", "up_proj"]'))
    layers = adapters(policy.model)
    assert sorted(layers) == [f"model.layers.{i}.{name}" for i in range(2) for name in ("mlp.up_proj", "self_attn.q_proj")]
    assert {(layer.scaling, len(layer.lora_A)) for layer in layers.values()} == {(2.0, 3)}
    stabilised = load_start(given("lora.rank=4", "lora.alpha=6", "lora.rank_stabilised=true"))
    assert {layer.scaling for layer in adapters(stabilised.model).values()} == {3.0}


def test_an_adapter_to_start_from_brings_its_own_shape_and_is_the_reference(given, tmp_path):
    cfg = given()
    policy = load_start(cfg)
    for parameter in adapter_parameters(policy.model).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    save_adapter(policy.model, tmp_path, base="x", **adapter_facts(cfg))
    other = given("lora.rank=7", "lora.alpha=1", 'lora.targets=["q_proj"]', f"model.adapter={tmp_path}")
    assert adapter_facts(other) == {
        "rank": 4, "alpha": 8.0, "targets": cfg.lora.targets, "rank_stabilised": False}
    again = load_start(other)
    assert torch.equal(hidden(again), hidden(policy))
    with reference(again.model):                            # the start policy, not the base alone
        assert torch.equal(hidden(again), hidden(policy))
    with reference(policy.model):
        assert not torch.equal(hidden(policy), hidden(again))


def test_precision(given):
    policy = load_start(given("model.dtype=bfloat16"))
    dtypes = {name.rsplit(".", 1)[-1]: parameter.dtype for name, parameter in policy.model.named_parameters()}
    assert dtypes["lora_A"] == dtypes["lora_B"] == torch.float32 and dtypes["weight"] == torch.bfloat16
    assert load_start(given()).model.dtype == torch.float32         # "auto" on the CPU


def test_an_adapter_that_is_no_plain_lora(given, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True}))
    with pytest.raises(ValueError, match="only plain LoRA adapters are supported, not use_dora = True"):
        load_start(given(f"model.adapter={tmp_path}"))


# --------------------------------------------------------------------------------------------------------------- prompts
def test_a_prompt_and_its_completion_may_fill_the_context_to_the_last_slot(given):
    cfg = given()
    policy, questions = load_start(cfg), make_task(cfg).load("train")
    with make_task(cfg) as task:
        longest = max(len(policy.tokenizer.encode(task.prompt(question))) for question in questions)
        check_prompts_fit(policy.tokenizer, 1024, task, questions, 1024 - longest)
        with pytest.raises(ValueError, match=f"has {longest} tokens; with generation.max_new_tokens = {1025 - longest} that "
                                             "is more than the model's context of 1024"):
            check_prompts_fit(policy.tokenizer, 1024, task, questions, 1025 - longest)
        check_prompts_fit(policy.tokenizer, 1024, task, [replace(questions[0], text="short")], 8)


# ----------------------------------------------------------------------------------------------------------------- a model
def test_nothing_is_made_where_everything_is_given(config, sql_model, tmp_path):
    cfg = config(f"model.path={sql_model}")
    before = files(sql_model)
    policy = made(cfg)
    assert names(tmp_path / "run") == [] and files(sql_model) == before
    base = load_model(sql_model, dtype=torch.float32, device="cpu")
    assert torch.equal(policy.model.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_a_new_model_has_the_configs_sizes_and_knows_the_tasks_words(config, tmp_path):
    """400 ids for the texts of some fifty questions: gold SQL to the letter, in fewer tokens than half its letters."""
    policy = made(config("model.new.mlp_width=24"))
    spec = json.loads((tmp_path / "run/new/config.json").read_text())
    assert [spec[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
                                  "max_position_embeddings")] == [32, 1, 2, 24, 400, 512]
    for question in TRAIN[::7]:
        ids = policy.tokenizer.encode(question.gold_sql)
        assert policy.tokenizer.decode(ids) == question.gold_sql and len(ids) < len(question.gold_sql) / 2
    assert names(tmp_path / "run") == ["new"]


def test_a_new_model_depends_on_the_seed_alone(config, tmp_path):
    for name, seed in (("1", 0), ("2", 0), ("3", 1)):
        make(config(f"run.out={tmp_path}/{name}", f"run.seed={seed}"))
    one, again, other = (load_tensors(tmp_path / name / "new/model.safetensors") for name in "123")
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "norm" not in name)


@pytest.mark.parametrize("width, heads", [
    (32, 64),                   # heads of size 0
    (33, 2),                    # 33 / 2 is no size: transformers would refuse the folder
    (6, 2),                     # heads of size 3: rotary positions turn pairs
    (4, 4),                     # heads of size 1
])
def test_sizes_that_make_no_model_are_one_sentence_and_leave_none(config, tmp_path, width, heads):
    """The head size D / N must be a whole even number."""
    message = refusal(make, config(f"model.new.width={width}", f"model.new.heads={heads}"))
    assert "model.new" in message and not (tmp_path / "run/new").exists()


def test_a_model_of_the_smallest_sizes_is_one(config):
    """One head of size 2, one token for each byte and one for the end."""
    policy = made(config("model.new.width=2", "model.new.heads=1", "model.new.mlp_width=1", "model.new.vocabulary=257"))
    assert hidden(policy).shape[-1] == 2 and policy.model.architecture.vocabulary == 257


# ------------------------------------------------------------------------------------------------------------- made once
@pytest.mark.parametrize("overrides", [(), FULL, LORA])
def test_what_is_there_is_not_touched(config, tmp_path, overrides):
    """Made a second time, not a file is written."""
    make(config(*overrides))
    before = files(tmp_path / "run")
    make(config(*overrides))
    assert files(tmp_path / "run") == before and before


@pytest.mark.slow
def test_what_another_config_left_before_its_first_step_is_made_anew(config, tmp_path):
    """Nothing was computed, so it may be started again without --resume, with another seed, or other sizes; config.toml then
    says so, and the model must be what it says."""
    for overrides in ((), ("run.seed=1",), ("run.seed=1", "model.new.mlp_width=24")):
        cfg = config(*overrides)
        with open_folder(cfg, resume=False):
            make(cfg)
        make(config(*overrides, f"run.out={tmp_path}/fresh{len(overrides)}"))
        ours, theirs = ({name: data for name, (_, data) in files(folder / "new").items()}
                        for folder in (tmp_path / "run", tmp_path / f"fresh{len(overrides)}"))
        assert ours == theirs, overrides


def test_a_new_base_is_made_of_the_new_model_and_that_stays_as_it_is(config, tmp_path):
    make(config())
    new = files(tmp_path / "run/new")
    make(config(*FULL))
    assert files(tmp_path / "run/new") == new
    assert names(tmp_path / "run") == ["base", "new", "warmup.jsonl"]
    before, after = (load_tensors(tmp_path / "run" / name / "model.safetensors") for name in ("new", "base"))
    assert before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("overrides, name", rest_slow([(FULL, "base"), (LORA, "warmup")]))
def test_interrupted_it_is_not_there_and_then_the_same_as_if_it_had_not_been(config, tmp_path, overrides, name):
    """Ctrl-C in the fourth of six steps, saved every two."""
    make(config(*overrides, f"run.out={tmp_path}/whole"))
    steps = []

    def hook(*_: object) -> None:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    handle = register_optimizer_step_post_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        make(config(*overrides))
    assert names(tmp_path / "run") == ["new", "warmup-state", "warmup.jsonl"]
    make(config(*overrides))
    handle.remove()
    assert len(steps) == 4 + 4                              # the third and fourth were taken again
    whole, again = ({file: data for file, (_, data) in files(tmp_path / out).items()} for out in ("whole", "run"))
    assert whole.keys() == again.keys()
    # One names the base, the other has seconds.
    assert {file for file in whole if whole[file] != again[file]} <= {f"{name}/adapter_config.json", "warmup.jsonl"}
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "run")
    assert names(tmp_path / "run") == sorted([name, "new", "warmup.jsonl"])


def steps_of(run: Path) -> list[dict]:
    """The warm-up's records without their seconds."""
    return [{name: value for name, value in json.loads(line).items() if not name.startswith("seconds/")}
            for line in (run / "warmup.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_record_of_a_warm_up_is_as_long_as_it_was(config, tmp_path):
    """8 examples, 3 times, 4 a step: 6 steps."""
    make(config(*FULL))
    lines = [json.loads(line) for line in (tmp_path / "run/warmup.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6)) and lines[-1]["loss"] < lines[0]["loss"]


# --------------------------------------------------------------------------------------------------------- a full warm-up
@pytest.mark.parametrize("given", rest_slow([True, False]))
def test_after_a_full_warm_up_the_base_is_a_folder_like_any_other(config, sql_model, tmp_path, given):
    """transformers reads it, and sees the same logits; the given model stays as it was."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    cfg = config(*FULL, *([f"model.path={sql_model}"] if given else []))
    source = files(sql_model)
    policy = made(cfg)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run/base", dtype=torch.float32)
    ids = policy.tokenizer.encode(TRAIN[0].text + TRAIN[0].gold_sql)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(policy.model.logits(policy.model(torch.tensor([ids]))), expected, rtol=1e-4, atol=1e-4)
    if not given:                                           # the taught model's folder has no tokenizer_config.json
        assert AutoTokenizer.from_pretrained(tmp_path / "run/base")(TRAIN[0].text).input_ids == \
            policy.tokenizer.encode(TRAIN[0].text)
    assert files(sql_model) == source
    assert names(tmp_path / "run") == sorted({"base", "warmup.jsonl"} | ({"new"} if not given else set()))


@pytest.mark.slow
def test_a_base_is_kept_in_the_configs_precision(config, tmp_path):
    """Weights move in float32 and are rounded once: the bfloat16 base is the float32 one, rounded."""
    make(config(*FULL, "model.dtype=bfloat16"))
    make(config(*FULL, f"run.out={tmp_path}/exact"))
    rounded, exact = (load_tensors(tmp_path / out / "base/model.safetensors") for out in ("run", "exact"))
    assert all(torch.equal(rounded[name], exact[name].to(torch.bfloat16)) for name in exact)
    spec = json.loads((tmp_path / "run/base/config.json").read_text())
    assert spec.get("dtype", spec.get("torch_dtype")) == "bfloat16"
    assert load_start(config(*FULL, "model.dtype=bfloat16")).model.dtype == torch.bfloat16


def test_upon_a_full_warm_up_adapters_begin_at_nothing_and_the_base_is_the_reference(config):
    policy = made(config(*FULL))
    assert {len(layer.lora_A) for layer in adapters(policy.model).values()} == {2}
    assert not any(tensor.any() for name, tensor in adapter_parameters(policy.model).items() if name.endswith("lora_B"))
    before = hidden(policy)
    shake(policy)
    with reference(policy.model):
        assert torch.equal(hidden(policy), before)
    assert not torch.equal(hidden(policy), before)


# ------------------------------------------------------------------------------------------------------- a warm-up by LoRA
def test_after_a_warm_up_by_lora_its_adapter_is_a_folder_like_any_other(config, tmp_path):
    """In peft's layout, beside a base of which not a bit has moved; the policy that is read back is the one that was warm."""
    make(config())
    before = files(tmp_path / "run/new")
    policy = made(config(*LORA, "lora.rank_stabilised=true"))
    assert files(tmp_path / "run/new") == before
    assert names(tmp_path / "run") == ["new", "warmup", "warmup.jsonl"]
    assert adapter_config(tmp_path / "run/warmup") == adapter_facts(config("lora.rank_stabilised=true"))
    saved = json.loads((tmp_path / "run/warmup/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == f"{tmp_path}/run/new"
    tensors = load_tensors(tmp_path / "run/warmup/adapter_model.safetensors")
    for name, parameter in adapter_parameters(policy.model).items():
        assert torch.equal(tensors[f"base_model.model.{name}.weight"], parameter) and parameter.any()   # B began at 0


def logits_difference(model, theirs, ids_QT: torch.Tensor) -> float:
    """Of the largest logit."""
    with torch.no_grad():
        ours, expected = model.logits(model(ids_QT)), theirs(ids_QT).logits
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parity
def test_peft_reads_the_warmed_adapter(config, parity, tmp_path):
    policy = made(config(*LORA))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "run/new", dtype=torch.float32),
                                       tmp_path / "run/warmup")
    ids_QT = torch.tensor([policy.tokenizer.encode(TRAIN[0].text)])
    parity("adapter written here, read by peft: logits", "peft", logits_difference(policy.model, theirs, ids_QT), bound=1e-5,
           unit="of scale")


@pytest.mark.parity
def test_an_adapter_of_pefts_that_training_starts_from_is_the_reference(config, parity, tmp_path):
    """Once the policy has moved, the reference still is the model that peft had saved, neither the base nor the policy; and
    what the policy has become is, written to a folder, the same to peft."""
    make(config())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "run/new", dtype=torch.float32)
    torch.manual_seed(0)
    start = get_peft_model(base, LoraConfig(r=3, lora_alpha=7, target_modules=["v_proj", "down_proj"], use_rslora=True,
                                            init_lora_weights=False)).eval()
    start.save_pretrained(tmp_path / "given")
    cfg = config(f"model.path={tmp_path}/run/new", f"model.adapter={tmp_path}/given")
    policy = load_start(cfg)
    ids_QT = torch.tensor([policy.tokenizer.encode(TRAIN[0].text)])
    shake(policy)
    save_adapter(policy.model, tmp_path / "moved", base=base_path(cfg), **adapter_facts(cfg))
    moved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "run/new", dtype=torch.float32),
                                      tmp_path / "moved")
    parity("adapter written here, read by peft: logits", "peft", logits_difference(policy.model, moved, ids_QT), bound=1e-5,
           unit="of scale")
    with reference(policy.model):
        parity("reference policy, from an adapter: logits", "peft", logits_difference(policy.model, start, ids_QT), bound=1e-5,
               unit="of scale")
        assert logits_difference(policy.model, moved, ids_QT) > 0.01
        with start.disable_adapter():
            assert logits_difference(policy.model, start, ids_QT) > 0.01


def test_after_a_warm_up_by_lora_the_reference_is_that_adapter_and_stays_it(config):
    """Not "adapters off": that would be the model that knows nothing. The KL of the start to itself is exactly 0; once the
    adapters have moved it is not, and the reference is what it was, to the bit."""
    cfg = config(*LORA)
    policy, untaught = made(cfg), load_start(config())
    start = hidden(policy)
    assert not torch.equal(start, hidden(untaught))
    with reference(policy.model):
        assert torch.equal(hidden(policy), start)

    optimizer, kls = make_optimizer(policy.model, cfg.grpo), []
    optimizer.param_groups[0]["lr"] = 1e-2
    with make_task(cfg) as task:
        for step in range(2):
            groups = collect(TRAIN[:3], policy, task, cfg.generation, generator=generator(0, step, "sample"), clock=Clock())
            batch = make_batch(groups, policy.model, cfg.grpo, temperature=1.0, clock=Clock())
            if step == 0:                                   # whatever these draws earned: something to climb to
                for part in batch.parts:
                    part.advantage_QK.copy_(torch.tensor([1.0, 0.0, -1.0]).expand_as(part.advantage_QK))
            kls.append(update(policy.model, optimizer, batch, cfg.grpo, length=6, clock=Clock()).metrics["kl"])
    assert kls[0] == 0.0 < kls[1]
    assert not torch.equal(hidden(policy), start)
    with reference(policy.model):
        assert torch.equal(hidden(policy), start)


@pytest.mark.slow
def test_a_checkpoint_of_a_warmed_run_is_evaluated_on_the_base_it_was_trained_on(config, tmp_path):
    """``model.adapter`` beside a warm-up, as eval.py --adapter has it: the whole policy is that adapter on that base."""
    for overrides in (FULL, LORA):
        out = f"run.out={tmp_path}/{overrides[-1]}"
        policy = made(config(*overrides, out))
        shake(policy)
        save_adapter(policy.model, tmp_path / "checkpoint", base=base_path(config(*overrides, out)), **adapter_facts(config()))
        again = load_start(config(*overrides, out, f"model.adapter={tmp_path}/checkpoint"))
        assert torch.equal(hidden(again), hidden(policy))


# ------------------------------------------------------------------------------------------------------------ what it shows
@pytest.mark.parametrize("overrides", [FULL, LORA])
def test_it_is_shown_the_drawn_questions_as_training_asks_them(config, tmp_path, overrides):
    """The first step's loss, recomputed: the mean of −log p over the tokens of gold SQL and its end, of the model that knows
    nothing, in one plain pass for each of the eight examples; all eight make one step here, so their order has no say."""
    cfg = config(*overrides, "warmup.batch=8", "warmup.epochs=1")
    make(cfg)
    record, = map(json.loads, (tmp_path / "run/warmup.jsonl").read_text().splitlines())
    policy = load_start(config())
    with make_task(cfg) as task:
        examples = encode_examples(draw_examples(TRAIN, 8, cfg.run.seed), task.prompt, policy.tokenizer, 1024,
                                   cfg.generation.stop_strings)
    total = 0.0
    for prompt, written in examples:
        with torch.no_grad():
            logits = policy.model.logits(policy.model(torch.tensor([prompt + written])))[0, len(prompt) - 1:-1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(written), reduction="sum").item()
    assert record["loss"] == pytest.approx(total / sum(len(written) for _, written in examples), rel=1e-5)


def test_stop_at_is_measured_on_what_is_asked(config, tmp_path):
    """A score in percent of the questions given: of 3 that nobody can answer yet, 0. It looks after two steps and after
    four; the policy is asked as in any evaluation, so that nothing else about the warm-up changes but its pace."""
    cfg = config(*FULL, "warmup.stop_at=50", "warmup.look_every=2")
    make(cfg, asked=3)
    lines = [json.loads(line) for line in (tmp_path / "run/warmup.jsonl").read_text().splitlines()]
    assert {line["step"]: line["strict"] for line in lines if "strict" in line} == {1: 0.0, 3: 0.0, 5: 0.0}
    assert len(lines) == 6 and all(math.isfinite(line["loss"]) for line in lines)


def test_gold_sql_from_a_file_warms_up_a_given_model(config, sql_model, tmp_path):
    """The benchmark's own layout: three questions of train and their gold SQL; warmed enough, the model writes one of them."""
    cfg = config("task.kind=temptabqa", f"task.path={MINI}", f"warmup.source={GOLD}", f"model.path={sql_model}",
                 "warmup.examples=3", "warmup.batch=3", "warmup.epochs=4", "warmup.learning_rate=1e-3")
    train = make_task(cfg).load("train", cfg.warmup.source)
    check_start(cfg, train)
    (tmp_path / "run").mkdir()
    with make_task(cfg) as task:
        make_start(cfg, task, train, [])
    lines = [json.loads(line) for line in (tmp_path / "run/warmup.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and lines[-1]["loss"] < lines[0]["loss"]
    load_start(cfg)


# --------------------------------------------------------------------------------------------------------------- merging
def logits_of(model) -> torch.Tensor:
    return model.logits(model(torch.arange(20)[None]))


@pytest.mark.parity
@pytest.mark.parametrize("overrides", [pytest.param(FULL, marks=pytest.mark.slow), LORA])
def test_base_and_start_adapter_are_merged_into_an_ordinary_folder(config, parity, tmp_path, overrides):
    """The adapter is the warm-up's, or one that is given, which counts before it and need not have the config's rank."""
    cfg = config(*overrides)
    make(cfg)
    if overrides == FULL:
        facts = {"rank": 3, "alpha": 9.0, "targets": ("q_proj", "up_proj"), "rank_stabilised": True}
        given = made(config(*FULL, "lora.rank=3", "lora.alpha=9", 'lora.targets=["q_proj", "up_proj"]',
                            "lora.rank_stabilised=true"))
        for parameter in adapter_parameters(given.model).values():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        save_adapter(given.model, tmp_path / "given", base="x", **facts)
        cfg = config(*FULL, f"model.adapter={tmp_path}/given")
    (tmp_path / "out").mkdir()                              # empty, it may be there
    merge_start(cfg, tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    policy, alone = load_start(cfg).model, made(config(f"model.path={tmp_path}/out")).model
    torch.testing.assert_close(logits_of(alone), logits_of(policy), rtol=1e-5, atol=1e-5)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    parity("merged folder: logits", "transformers", logits_difference(policy, theirs, torch.arange(20)[None]), bound=1e-5,
           unit="of scale")
    assert not logits_of(alone).allclose(logits_of(load_model(base_path(cfg), dtype=torch.float32, device="cpu")))


@pytest.mark.slow
def test_a_base_in_bfloat16_stays_so_whatever_dtype_it_is_loaded_in(config, tmp_path):
    make(config(*LORA, "warmup.method=full", "model.dtype=bfloat16"))
    cfg = config(f"model.path={tmp_path}/run/base", f"model.adapter={tmp_path}/given", "model.dtype=float32")
    given = made(config(f"model.path={tmp_path}/run/base"))
    save_adapter(given.model, tmp_path / "given", base="x", **adapter_facts(config()))
    merge_start(cfg, tmp_path / "out")
    # Nothing of the adapter has moved, so that W + 0 is W.
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "run/base/model.safetensors").read_bytes()
    assert load_tensors(tmp_path / "out/model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_merging_without_an_adapter_or_into_a_place_that_is_taken_is_refused_and_changes_nothing(config, tmp_path):
    make(config(*LORA))
    out = tmp_path / "out"
    nothing = "--merge: there is nothing to merge: name an adapter by --adapter or model.adapter"
    assert refusal(merge_start, config(), out) == nothing
    out.write_text("a file")
    taken = f"--merge: {out} is there already: name a folder that is not there yet, or is empty"
    assert refusal(merge_start, config(*LORA), out) == taken and out.read_text() == "a file"
    out.unlink()
    out.mkdir()
    (out / "notes").write_text("kept")
    assert refusal(merge_start, config(*LORA), out) == taken and names(out) == ["notes"]
    assert names(tmp_path) == ["out", "run", "small.toml"]
