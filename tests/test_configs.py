"""configs/: every file runs, at full length of its line and without the hub, on a small model of the family it names.

A family's published config.json is cut down in its sizes only. The small model has been shown two statements, one that runs
and one that does not, so that the two beams of a group differ, and the adapters really move. The quickstart makes its own
model: test_quickstart.py runs it.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from minigrpo.config import load_config
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.weights import initialise, save_tensors
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tokenizer import train_bpe
from minigrpo.policy.tree import common_beginning
from minigrpo.task.kinds import load_data, make_task
from minigrpo.training.folder import checkpoints
from minigrpo.training.starting_model import load_start
from tests.mariadb_server import needs_mariadb
from tests.paths import MINI, ROOT

PUBLISHED = ROOT / "tests/data/configs"
FILES = sorted((ROOT / "configs").glob("*.toml"))
MARKERS = ["<bos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]


class Case(NamedTuple):
    """A config, the model it is run on, and a template in place of its own ("": its own)."""

    name: str
    model: str                      # a folder of tests/data/configs
    family: str
    bos: bool = False               # whether the published tokenizer puts a token in front of every text
    template: str = ""

    def label(self) -> str:
        return "-".join(filter(None, [self.model, self.template]))


CASES = [
    Case("codegemma7b", "codegemma-7b", "gemma", bos=True),
    Case("codegemma7b", "codegemma-7b", "gemma", bos=True, template="gemma"),       # its chat model
    Case("sqlcoder7b", "sqlcoder-7b", "mistral", bos=True),
    Case("sqlcoder7b-2", "sqlcoder-7b-2", "llama", bos=True),
    Case("sqlcoder7b-2", "sqlcoder-70b-alpha", "llama", bos=True),                  # of the same family, ten times larger
    Case("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b", "qwen2"),
    Case("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b", "qwen2"),
    Case("qwen2.5-coder-7b", "qwen2.5-coder-7b-instruct", "qwen2"),
    Case("smollm2", "smollm2-135m", "llama"),
]
# The file that a case runs may be taken out of configs/; one that is put in without a case is found by the first test.
HERE = [case for case in CASES if (ROOT / f"configs/{case.name}.toml") in FILES]
every_case = pytest.mark.parametrize("case", HERE, ids=Case.label)
# What takes seconds a model is quick for the first alone.
with_training = pytest.mark.parametrize("case", [
    pytest.param(case, marks=[pytest.mark.slow] if i else []) for i, case in enumerate(HERE)], ids=Case.label)


# ------------------------------------------------------------------------------------------------------- the files themselves
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_loads_writes_where_its_name_says_and_is_run_by_a_test(file):
    """Two configs with one run.out would be one run."""
    cfg = load_config(file)
    assert cfg.run.out == f"runs/{file.stem}"
    assert file.stem in {case.name for case in CASES} | {"quickstart"}


@every_case
def test_a_config_names_a_model_of_the_family_that_it_is_run_on_here(case):
    """The hub's name of the model is the folder's, but for its owner, for capitals and for the end -Instruct: chat models
    share their base's sizes. SQLCoder-70B stands in for its little sister."""
    named = load_config(ROOT / f"configs/{case.name}.toml").model.path.partition("/")[2].lower()
    if case.model != "sqlcoder-70b-alpha":
        assert named.removesuffix("-instruct") == case.model.removesuffix("-instruct")
    assert published(case.model)["model_type"] == case.family


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_key_of_a_config_is_passed_over(file, tmp_path):
    """Each line with a key, misspelt by one letter, is refused by that name: none stands where nobody reads it."""
    lines, section = file.read_text(encoding="utf-8").split("\n"), ""
    found = 0
    for number, line in enumerate(lines):
        if header := re.match(r"\[(.+)\]", line):
            section = header[1]
        elif key := re.match(r"\w+(?= = )", line):
            misspelt = tmp_path / "misspelt.toml"
            misspelt.write_text("\n".join([*lines[:number], f"x{line}", *lines[number + 1:]]), encoding="utf-8")
            with pytest.raises(ValueError, match=rf"misspelt\.toml: there is no key {section}\.x{key[0]};"):
                load_config(misspelt)
            found += 1
    assert found == sum(" = " in line.partition("#")[0] for line in lines) > 10


# ---------------------------------------------------------------------------------------------------------------- small models
def published(name: str) -> dict:
    return json.loads((PUBLISHED / name / "config.json").read_text(encoding="utf-8"))


def cut_down(config: dict) -> dict:
    """The same family in small: two key/value heads, and the published ratios of query heads to them and of all heads' size to
    the width, which for Gemma is not 1. A window is made shorter than the prompts, so that it acts."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size, few = config.get("head_dim", config["hidden_size"] // heads), 2 * heads // kv_heads
    small = max(8, 64 // few)
    small -= small % 2
    sizes = {"num_hidden_layers": 2, "num_attention_heads": few, "num_key_value_heads": 2, "intermediate_size": 128,
             "hidden_size": few * small * config["hidden_size"] // (heads * size)}
    if "head_dim" in config:
        sizes["head_dim"] = small
    if config["model_type"] == "mistral":
        sizes["sliding_window"] = 64
    return config | sizes


STATEMENTS = ["SELECT 2", "SELEC 1;"]         # one runs, and ends by a token; the other is an error, and ends by a stop string


def prompts(*overrides: str, config: Path | str = "/dev/null") -> list[str]:
    """Of all questions that a run asks, those of training first. No database is needed for them."""
    cfg = load_config(config, [f"task.path={MINI}", *overrides, "database.engine=mock"])
    with make_task(cfg) as task:
        return [task.prompt(question) for question in load_data(cfg, task).all]


@pytest.fixture(scope="session")
def words() -> tokenizers.Tokenizer:
    """A byte-level BPE that knows the words of the prompts and of the two statements, and all markers as single tokens."""
    rust = train_bpe([*prompts(), *STATEMENTS * 50], 600)
    rust.add_special_tokens(MARKERS)
    return rust


class Small(NamedTuple):
    folder: Path
    end: int                        # the token that ends the statement that runs


@pytest.fixture(scope="session")
def small_model(words, tmp_path_factory) -> Callable[[Case], Small]:
    """``small_model(case)``: a folder as the hub has it, its weights in the published precision, made once."""
    made: dict[Case, Small] = {}

    def make(case: Case) -> Small:
        if case not in made:
            made[case] = write_small(case, words, tmp_path_factory.mktemp("small"))
        return made[case]
    return make


def write_words(folder: Path, case: Case, words: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer.from_str(words.to_str())
    if case.bos:
        rust.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", rust.token_to_id("<bos>"))])
    rust.save(str(folder / "tokenizer.json"))
    return rust


def write_small(case: Case, words: tokenizers.Tokenizer, folder: Path) -> Small:
    rust = write_words(folder, case, words)
    file = ROOT / f"configs/{case.name}.toml"
    template = case.template or load_config(file).task.template
    end = rust.token_to_id({"chatml": "<|im_end|>", "gemma": "<end_of_turn>"}.get(template, "<eos>"))
    config = cut_down(published(case.model))
    config |= {key: rust.token_to_id("<bos>") for key in ("bos_token_id", "pad_token_id") if key in config}
    # Ids to spare, as in Qwen's files.
    config |= {"vocab_size": rust.get_vocab_size() + 8, "eos_token_id": rust.token_to_id("<eos>")}
    model = CausalLM(read_architecture(config))
    initialise(model, torch.Generator().manual_seed(0))
    completions = [rust.encode(text, add_special_tokens=False).ids for text in STATEMENTS]
    asked = prompts(f"task.template={template}", *sources(case), config=file)
    teach(model, [rust.encode(prompt).ids for prompt in asked], [completions[0] + [end], completions[1]])
    stored = getattr(torch, config["torch_dtype"])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tensors(folder / "model.safetensors", {name: tensor.to(stored) for name, tensor in model.named_parameters()})
    return Small(folder, end)


def teach(model: CausalLM, asked: list[list[int]], completions: list[list[int]]) -> None:
    """Behind each prompt either completion comes, one as often as the other."""
    optimizer, longest = torch.optim.Adam(model.parameters(), lr=1e-2), max(map(len, completions))
    answers_BC = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in completions])
    for step in range(60):
        trunk = torch.tensor(asked[step % len(asked)])
        ids_BT = torch.cat([trunk.expand(len(completions), -1), answers_BC.clamp(min=0)], dim=1)
        logits_BCV = model.logits(model(ids_BT)[:, len(trunk) - 1:-1])
        loss = F.cross_entropy(logits_BCV.flatten(0, 1), answers_BC.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------------------------------- the runs
class Trained(NamedTuple):
    """A finished run: where it is, what it started from, and the command line that says so."""

    out: Path
    small: Small
    overrides: list[str]

    @property
    def arguments(self) -> list[str]:
        return [word for override in self.overrides for word in ("--set", override)]


def sources(case: Case) -> list[str]:
    """Where a config that warms up has its gold SQL from: the small benchmark's training split has three queries."""
    if not load_config(ROOT / f"configs/{case.name}.toml").warmup.source:
        return []
    return [f"warmup.source={MINI / 'gold_sql.jsonl'}", "warmup.examples=3"]


def places(case: Case, folder: Path, out: Path) -> list[str]:
    """Paths, sizes and steps: all that is not the config's own."""
    keys = [f"model.path={folder}", "model.device=cpu", f"task.path={MINI}", f"run.out={out}", "run.steps=2", "run.threads=1",
            "generation.max_new_tokens=12"]
    if case.template:
        keys.append(f"task.template={case.template}")
    return keys + sources(case)


@pytest.fixture(scope="module")
def finished() -> dict[Case, Trained]:
    return {}


@pytest.fixture
def trained(case, cli, train_recipe, small_model, finished, tmp_path_factory) -> Trained:
    """The case's config, trained for two steps by the command that a person types; once for all tests of it."""
    if case not in finished:
        small, out = small_model(case), tmp_path_factory.mktemp("trained") / "run"
        run = Trained(out, small, places(case, small.folder, out))
        ended = cli(train_recipe, *run.arguments, config=ROOT / f"configs/{case.name}.toml")
        assert ended.status == 0, ended
        finished[case] = run
    return finished[case]


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@needs_mariadb
@with_training
def test_two_steps_are_trained_and_every_number_is_finite(case, trained):
    """One update per rollout: the ratio is 1. The first step's policy is the start policy: its KL is 0. By the reward of the
    paper the statement that runs is worth 1 or more and the other −100, so that some group of each step has something to
    learn from, and the adapters move."""
    steps = [record for record in records(trained.out / "metrics.jsonl") if "reward" in record]
    assert [record["step"] for record in steps] == [0, 1]
    assert all(math.isfinite(value) for record in steps for name, value in record.items() if name != "kind")
    assert [record["ratio"] for record in steps] == [1.0, 1.0]
    assert steps[0]["kl"] == 0.0 and steps[1]["kl"] > 0.0
    assert all(record["reward_std"] > 0 and record["grad_norm"] > 0 and record["skipped"] == 0 for record in steps)


@needs_mariadb
@with_training
def test_the_report_has_the_splits_that_the_config_asks_for(case, trained):
    cfg = load_config(ROOT / f"configs/{case.name}.toml")
    if not cfg.evaluation.report:
        assert not (trained.out / "summary.json").exists()
        return
    summary = json.loads((trained.out / "summary.json").read_text(encoding="utf-8"))
    for moment in ("before", "after"):
        for split in ("original", "counterfactual"):
            assert summary[moment][split]["n"] == summary[moment][split]["of"] > 0
    assert cfg.evaluation.report == ("original", "counterfactual")


@needs_mariadb
@with_training
def test_a_completion_ends_with_the_turns_end_or_with_a_stop_string(case, trained):
    """The statement that runs was taught with the template's turn end, or where there are no turns the model's own, behind it:
    it is the completion's last id, and is no text. The other ends by ";"."""
    rollouts = [rollout for sample in records(trained.out / "samples.jsonl") for rollout in sample["rollouts"]]
    by_sql = {rollout["sql"]: rollout for rollout in rollouts}
    assert {"SELECT 2", "SELEC 1"} <= by_sql.keys()
    assert by_sql["SELECT 2"]["completion"]["ids"][-1] == trained.small.end
    assert by_sql["SELECT 2"]["text"] == "SELECT 2" and by_sql["SELECT 2"]["completion"]["stopped"]
    assert by_sql["SELEC 1"]["text"] == "SELEC 1;" and by_sql["SELEC 1"]["completion"]["stopped"]
    assert by_sql["SELEC 1"]["execution"]["status"] == "refused"


@needs_mariadb
@with_training
def test_the_adapter_in_peft_on_the_same_base_gives_the_same_logits(case, trained):
    """On a real prompt, and as exactly as float32 is, in units of the largest logit. That the adapter does something is seen
    by the same comparison without it."""
    folder = checkpoints(trained.out)[-1]
    file = ROOT / f"configs/{case.name}.toml"
    cfg = load_config(file, [*trained.overrides, f"model.adapter={folder}"])
    policy = load_start(cfg, make_task(cfg))
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    ids_QT = torch.tensor([policy.tokenizer.encode(prompts(*trained.overrides, config=file)[0])])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    adapted = peft.PeftModel.from_pretrained(theirs, folder).eval()
    with torch.no_grad():
        ours, plugged = policy.model.logits(policy.model(ids_QT)), adapted(ids_QT).logits
        with adapted.disable_adapter():
            bare = adapted(ids_QT).logits
    scale = plugged.abs().max()
    assert (ours - plugged).abs().max() < 1e-4 * scale
    assert (ours - bare).abs().max() > 10 * (ours - plugged).abs().max()


@needs_mariadb
@with_training
def test_the_checkpoint_is_evaluated_on_dev(case, cli, eval_recipe, trained, tmp_path):
    file = ROOT / f"configs/{case.name}.toml"
    adapter = ["--adapter", checkpoints(trained.out)[-1]]
    ended = cli(eval_recipe, *trained.arguments, *adapter, "--split", "dev", "--out", tmp_path, config=file)
    assert ended.status == 0, ended
    cfg = load_config(file, trained.overrides)
    questions = load_data(cfg, make_task(cfg)).dev
    assert [row["index"] for row in records(tmp_path / "rows.jsonl")] == [question.index for question in questions]
    assert {row["sql"] for row in records(tmp_path / "rows.jsonl")} <= {"SELECT 2", "SELEC 1"}


def unfolded(text: str) -> str:
    """What was folded to the console's width, as one line."""
    return re.sub(r"\s+", " ", text)


@needs_mariadb
@with_training
def test_a_dry_run_names_family_size_and_longest_prompt(case, cli, train_recipe, small_model, tmp_path):
    """The longest as transformers' tokenizer counts it, a token in front included where the published tokenizer has one."""
    small, out = small_model(case), tmp_path / "run"
    file, keys = ROOT / f"configs/{case.name}.toml", places(case, small.folder, out)
    ended = cli(train_recipe, *(word for key in keys for word in ("--set", key)), "--dry-run", config=file)
    assert ended.status == 0, ended
    said = unfolded(ended.out)
    asked = prompts(*keys, config=file)
    counter = transformers.PreTrainedTokenizerFast(tokenizer_file=str(small.folder / "tokenizer.json"))
    assert (counter(asked[0]).input_ids[0] == counter.convert_tokens_to_ids("<bos>")) == case.bos
    longest = max(len(ids) for ids in counter(asked).input_ids)
    config = json.loads((small.folder / "config.json").read_text())
    assert f"({case.family}, 2 layers of width {config['hidden_size']})" in said
    assert f"prompts of at most {longest} tokens and 12 new ones, of {config['max_position_embeddings']}" in said
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------------------ full size
@needs_mariadb
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in HERE if case.model == "sqlcoder-70b-alpha"], ids=lambda case: case.model)
def test_seventy_billion_parameters_are_counted_without_a_weight(case, cli, train_recipe, words, tmp_path):
    """Embedding and head: 2 · 32,016 · 8,192 = 524,550,144. A layer: queries and outputs 2 · 8,192² = 134,217,728, keys and
    values 2 · 8,192 · 1,024 = 16,777,216 (8 heads of 128), the MLP 3 · 8,192 · 28,672 = 704,643,072, two norms 16,384: in all
    855,654,400, 80 times 68,452,352,000. The last norm 8,192. Together 68,976,910,336.

    Adapters of rank 16 beside a matrix of n × m have 16 · (n + m). A layer: queries and outputs 2 · 16,384, keys and values
    2 · 9,216, the MLP 3 · 36,864: in all 161,792 · 16 = 2,588,672, 80 times 207,093,760. In float32 with two moments they are
    12 bytes each, the base's 2: 140,438,945,792 bytes. For decoding there are copies in bfloat16 of each A, a layer
    16 · (6 · 8,192 + 28,672) = 1,245,184, and of all B of one input as one matrix: 10,240 · 48 beside q, k and v, 57,344 · 32
    beside gate and up, 8,192 · 16 beside either of the others, 2,588,672; 80 layers of both are 613,416,960 bytes. Together
    141,052,362,752 before anything is computed. And the start policy's keys and values of what all prompts begin with, 80 layers
    of 2 · 1,024 numbers in bfloat16: 327,680 bytes a token.
    """
    folder = tmp_path / "sqlcoder-70b-alpha"
    folder.mkdir()
    shutil.copyfile(PUBLISHED / case.model / "config.json", folder / "config.json")
    write_words(folder, case, words)
    keys = [f"model.path={folder}", "model.dtype=bfloat16", "model.device=cpu", f"task.path={MINI}", "run.threads=1"]
    ended = cli(train_recipe, *(word for key in keys for word in ("--set", key)), "--dry-run",
                config=ROOT / f"configs/{case.name}.toml")
    assert ended.status == 0, ended
    said = unfolded(ended.out)
    assert "(llama, 80 layers of width 8192): 68,976,910,336 parameters, bfloat16 on cpu" in said
    assert "adapters 207,093,760 parameters in float32: rank 16" in said
    counter = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    shared = common_beginning(counter(prompts(*keys, config=ROOT / f"configs/{case.name}.toml")).input_ids)
    assert shared >= 32 and f"update {(141_052_362_752 + 327_680 * shared) / 1e9:.2f} " in said
