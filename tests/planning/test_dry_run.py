"""train.py --dry-run: what it shows is what training finds, it writes nothing, and it refuses what training would."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from minigrpo.config import load_config
from minigrpo.planning.dry_run import GB, show_memory
from minigrpo.planning.memory import Phase, Plan
from minigrpo.policy.files.weights import load_tensors
from minigrpo.policy.tokenizer import load_tokenizer
from minigrpo.task.kinds import load_data, make_task
from minigrpo.training.folder import checkpoints
from tests.quick import rest_slow


@pytest.fixture(scope="module")
def plain() -> list:
    """What --dry-run of the small config itself left, once it has been asked."""
    return []


@pytest.fixture
def dry(cli, train_recipe, tmp_path, plain):
    """``dry("grpo.questions=1")``: what --dry-run of the small config left; nothing of a run may be there afterwards."""
    def call(*overrides: str):
        if plain and not overrides:
            return plain[0]
        out = tmp_path / "run"
        ended = cli(train_recipe, "--dry-run", "--set", f"run.out={out}", *(word for pair in overrides
                                                                           for word in ("--set", pair)))
        assert not out.exists()
        if not overrides:
            plain.append(ended)
        return ended
    return call


def said(text: str) -> str:
    """Without the line breaks of a narrow console."""
    return " ".join(text.split())


def refusal(ended) -> str:
    assert ended.status == 1
    assert ended.err.startswith("train.py: ") and ended.err.count("\n") == 1
    return ended.err


# ------------------------------------------------------------------------------------------------------- what is shown
@pytest.mark.slow
def test_counts_and_the_longest_prompt_are_what_training_finds(dry, small_toml, sql_model):
    ended = dry()
    assert ended.status == 0, ended.err
    cfg = load_config(small_toml)
    tokenizer = load_tokenizer(sql_model)
    with make_task(cfg) as task:
        data = load_data(cfg, task)
        longest = max(len(tokenizer.encode(task.prompt(question))) for question in data.all)
    assert f"train {len(data.train)} · dev {len(data.dev)}" in said(ended.out)
    assert f"prompts of at most {longest} tokens and 8 new ones, of 1024" in said(ended.out)


def test_the_first_prompt_is_shown_to_the_letter(dry, small_toml):
    cfg = load_config(small_toml)
    with make_task(cfg) as task:
        first = load_data(cfg, task).train[0]
        prompt = task.prompt(first)
    ended = dry()
    assert ended.status == 0, ended.err
    _, shown = ended.out.split(f"  the prompt of {first.id}:\n")
    assert shown.split() == prompt.split()                              # all of it, in its order
    lines = shown.split("\n")
    assert all(f"    {line}" in lines for line in prompt.split("\n") if len(line) <= 75)        # as they are; wider ones go on


def test_all_of_it_fits_eighty_columns(dry):
    assert max(map(len, dry().out.splitlines())) <= 80


def test_what_does_not_fit_is_said_within_eighty_columns():
    """999 GB are needed where 100 are."""
    shown = show_memory(Plan(1, 1, {"update": Phase(500 * 10**9, 498 * 10**9, 1)}, 1), 10**9, 100 * 10**9)
    assert "999.00 GB where all are of full length" in shown and "grpo.micro_batch_tokens" in shown and "it fits" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_what_is_needed_and_what_is_there_are_compared_with_the_program_counted():
    """9 GB of model and 1 GB of program fit 10 GB, and not a byte less."""
    plan = Plan(1, 1, {"update": Phase(8 * 10**9, 10**9, 1)}, 1)
    assert "it fits" in show_memory(plan, int(GB), 10 * 10**9)
    assert "it fits" not in show_memory(plan, int(GB), 10 * 10**9 - 1)


def test_adapters_are_as_many_parameters_as_a_run_saves(dry, train_recipe, small_toml, tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "run"
    train_recipe.train(load_config(small_toml, [f"run.out={out}", "run.steps=1", "run.evaluate_every=0"]))
    saved = load_tensors(checkpoints(out)[-1] / "adapter_model.safetensors")
    assert f"adapters {sum(tensor.numel() for tensor in saved.values()):,} parameters" in said(dry().out)


@pytest.mark.slow
def test_an_adapter_given_has_its_own_rank_counted(dry, train_recipe, small_toml, tmp_path_factory):
    """The small config's rank is 4; what was trained at rank 2 has half as many parameters, whatever [lora] says."""
    out = tmp_path_factory.mktemp("real") / "run"
    train_recipe.train(load_config(small_toml, [f"run.out={out}", "run.steps=1", "run.evaluate_every=0", "lora.rank=2"]))
    given = dry(f"model.adapter={checkpoints(out)[-1]}")
    count = {text: int(re.search(r"adapters\s+([\d,]+)", text)[1].replace(",", "")) for text in (given.out, dry().out)}
    assert 2 * count[given.out] == max(count.values())


# --------------------------------------------------------------------------------------------------- kinds and engines
@pytest.mark.parametrize("shop_keys", rest_slow(["sqlite", "mariadb"]), indirect=True)
def test_gold_sql_of_ones_own_questions_is_run_on_either_engine(dry, shop, shop_keys):
    """A split that is evaluated, and reported too, is asked once."""
    ended = dry(*shop_keys, 'evaluation.report=["dev"]')
    lines = [json.loads(line) for split in ("train", "dev") for line in (shop / f"{split}.jsonl").read_text().splitlines()]
    gold = sum("gold_sql" in line for line in lines)
    assert ended.status == 0, ended.err
    assert gold > 0 and f"{gold} known ones run and none failed" in said(ended.out)


@pytest.mark.slow
def test_a_new_model_is_made_aside(dry):
    ended = dry("task.kind=athletes", "task.template=compact", "model.path=new", "generation.max_new_tokens=20")
    assert ended.status == 0, ended.err
    assert "model new (llama, 2 layers of width 96)" in said(ended.out)


@pytest.mark.parametrize("weights", rest_slow([None, b"no weights at all"]), ids=["missing", "garbage"])
def test_no_weights_are_read(dry, sql_model, tmp_path, weights):
    folder = shutil.copytree(sql_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    assert dry(f"model.path={folder}").status == 0


@pytest.mark.slow
def test_a_run_that_is_there_stays_as_it_is(cli, train_recipe, tmp_path):
    kept = tmp_path / "run" / "metrics.jsonl"
    kept.parent.mkdir()
    kept.write_text('{"step": 0}\n')
    assert cli(train_recipe, "--dry-run", "--set", f"run.out={kept.parent}").status == 0
    assert [path.name for path in kept.parent.iterdir()] == ["metrics.jsonl"] and kept.read_text() == '{"step": 0}\n'


# ------------------------------------------------------------------------------------------------------------- refusals
def test_gold_sql_that_names_a_missing_table_is_refused_by_its_question(dry, shop, tmp_path):
    folder = Path(shutil.copytree(shop, tmp_path / "shop"))
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "?", "answer": 1, "database": "shop", "gold_sql": "SELECT 1 FROM nowhere"}) + "\n")
    index = len((folder / "train.jsonl").read_text().splitlines()) - 1
    message = refusal(dry("task.kind=jsonl", f"task.path={folder}"))
    assert f"the known solution of train/{index} fails on the database shop: unknown_table" in message


def test_a_reward_of_ones_own_is_tried_on_gold_sql(dry, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("unready.py").write_text("def reward(question, sql, execution):\n    return float('nan')\n")
    message = refusal(dry("task.kind=jsonl", f"task.path={shop}", "reward.preset=unready.reward"))
    assert "the reward unready.reward of train/" in message and "expected a finite number, got nan" in message


@pytest.mark.parametrize("override, words", [
    ("generation.max_new_tokens=1000", "more than the model's context of 1024"),
    ("task.template=chatml", "needs <|im_start|> to be one token"),
    ("task.split=trian", "unknown split 'trian'"),
    ("warmup.source=athletes", "warmup.source"),
    ("model.path=/nowhere", "there is no folder /nowhere"),
    ('lora.targets=["w_proj"]', "no linear layer named w_proj"),
])
def test_what_training_would_refuse_is_refused_in_one_sentence(dry, override, words):
    assert words in refusal(dry(override))


def test_a_warm_up_without_gold_sql_is_refused(dry, shop, tmp_path):
    folder = Path(shutil.copytree(shop, tmp_path / "shop"))
    for file in folder.glob("*.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        bare = [{key: value for key, value in record.items() if key != "gold_sql"} for record in records]
        file.write_text("".join(json.dumps(record) + "\n" for record in bare))
    ended = dry("task.kind=jsonl", f"task.path={folder}", "warmup.source=jsonl")
    assert "has no known solution for the split train" in refusal(ended)


def test_a_dry_run_of_a_resumed_run_is_no_mode(cli, train_recipe):
    assert cli(train_recipe, "--dry-run", "--resume").status == 2
