"""A small policy that really writes SQL, the folder it lives in, and the recipes: what whole-line tests run on."""

import gc
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, pre_tokenizers, trainers

from minigrpo.planning import dry_run
from minigrpo.planning.memory import measure_rates
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.weights import save_tensors
from minigrpo.policy.model import CausalLM
from minigrpo.task.sql.engines.mariadb import open_private
from tests.mariadb_server import skip_without_mariadb
from tests.parity import ROWS, Parity, table
from tests.paths import MINI, ROOT, SHOP

CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
          "tie_word_embeddings": True, "eos_token_id": 0}


# ------------------------------------------------------------------------------------------------------------ parity
def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}
    # A shell's background ignores Ctrl-C, and so would all that we start; the tests speak of a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What has been imported stays until the end: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What tests compute is small: a second thread costs more than it brings, and the test before may have set any number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parity(request) -> Parity:
    return Parity(request.config.stash[ROWS])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[ROWS]:
        terminalreporter.section("parity")
        terminalreporter.write_line(table(config.stash[ROWS]))


def write_folder(folder: Path, *, model: CausalLM, config: dict, tokenizer: Rust) -> Path:
    """An ordinary Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_tensors(folder / "model.safetensors", dict(model.named_parameters()))
    return folder


def byte_level_bpe(texts: list[str], size: int) -> Rust:
    tokenizer = Rust(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer


@pytest.fixture(scope="session")
def sql_model(tmp_path_factory) -> Path:
    """Two layers, taught in seconds to write "SELECT <0..3>;" after any prompt, which digit being a coin toss: groups
    then hold right and wrong answers, and a broken statement now and then."""
    torch.manual_seed(0)
    statements = [f"SELECT {digit};" for digit in range(4)] + ["SELEC 1;"]
    tokenizer = byte_level_bpe([*statements, "Answer with a single SELECT query over these tables. SQL query: CREATE TABLE INT TEXT"], 400)
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    model = CausalLM(read_architecture(config))
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.1)
    prompt = tokenizer.encode("\nSQL query:\n").ids
    rows = [prompt + tokenizer.encode(statement).ids for statement in statements]
    longest = max(map(len, rows))
    ids_QT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        # Whatever went before, the prompt's end decides: random trunks teach that.
        trunk_QT = torch.randint(1, config["vocab_size"], (len(rows), 24))
        logits_QTV = model.logits(model(torch.cat([trunk_QT, ids_QT], dim=1)))[:, 24 + len(prompt) - 1:-1]
        loss = F.cross_entropy(logits_QTV.flatten(0, 1), ids_QT[:, len(prompt):].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return write_folder(tmp_path_factory.mktemp("sql_model"), model=model, config=config, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory) -> Path:
    """A model that knows nothing, whose tokenizer has the markers of all chat templates; by its own word only <eos>, id 0,
    ends a completion."""
    tokenizer = byte_level_bpe(["SELECT name FROM athletes; Question CREATE TABLE INT TEXT"], 300)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"])
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    torch.manual_seed(0)
    model = CausalLM(read_architecture(config))
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.1)
    return write_folder(tmp_path_factory.mktemp("chat_model"), model=model, config=config, tokenizer=tokenizer)


# ------------------------------------------------------------------------------------------------------- the recipes
def load_recipe(name: str) -> ModuleType:
    """train.py or eval.py as a module: they are scripts, no part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_recipe() -> ModuleType:
    return load_recipe("train")


@pytest.fixture(scope="session")
def eval_recipe() -> ModuleType:
    return load_recipe("eval")


@pytest.fixture(scope="session")
def small_toml(sql_model, tmp_path_factory) -> Path:
    """A config of a third of a second a step: two questions, four draws each; every test gives its own run.out."""
    file = tmp_path_factory.mktemp("config") / "small.toml"
    file.write_text(f"""
[task]
path = "{MINI}"
samples = 0
[database]
engine = "sqlite"
[model]
path = "{sql_model}"
[lora]
rank = 4
alpha = 8.0
[generation]
method = "sample"
completions = 4
max_new_tokens = 8
[grpo]
questions = 2
learning_rate = 1e-2
[run]
out = "to be given"
steps = 6
evaluate_every = 3
save_every = 2
sample_every = 3
threads = 1
""", encoding="utf-8")
    return file


# ---------------------------------------------------------------------------------------------------- databases that exist
@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """The worked example with its shop.sqlite built: questions of one's own on a database that exists."""
    folder = shutil.copytree(SHOP, tmp_path_factory.mktemp("data") / "shop")
    (folder / "shop.sqlite").unlink(missing_ok=True)        # whoever tried the example has one
    connection = sqlite3.connect(folder / "shop.sqlite")
    connection.executescript((folder / "shop.sql").read_text(encoding="utf-8"))
    connection.close()
    return folder


@pytest.fixture(scope="session")
def shop_server() -> Iterator[dict[str, str]]:
    """A MariaDB server with the same database, and the login of an account that may read it."""
    skip_without_mariadb()
    with open_private({"other": ()}) as server:
        reader = server._readers["other"]
        with replace(reader, user="root", password="").connect() as connection, connection.cursor() as cursor:
            for statement in ("CREATE DATABASE shop CHARACTER SET utf8mb4", "USE shop",
                              *(SHOP / "shop.sql").read_text(encoding="utf-8").rstrip(";\n").split(";\n"),
                              "CREATE USER shopper@localhost IDENTIFIED BY 'open sesame'",
                              "GRANT SELECT ON shop.* TO shopper@localhost"):
                cursor.execute(statement)
        yield {"socket": reader.socket, "user": "shopper", "password": "open sesame"}


@pytest.fixture(params=["sqlite", "mariadb"])
def shop_keys(request, shop, monkeypatch) -> list[str]:
    """What a config says to ask the shop on either engine; a MariaDB password comes from the environment."""
    keys = ["task.kind=jsonl", f"task.path={shop}"]
    if request.param == "sqlite":
        return keys
    login = request.getfixturevalue("shop_server")
    monkeypatch.setenv("MINIGRPO_DB_PASSWORD", login["password"])
    return [*keys, "database.engine=mariadb", f"database.socket={login['socket']}", f"database.user={login['user']}"]


class Ended(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


measured_once = cache(measure_rates)            # a second each time, and nothing about it is tested through a command


@pytest.fixture
def cli(small_toml, capsys, monkeypatch) -> Callable[..., Ended]:
    """``cli(recipe, "--set", ...)``: a recipe's main() in this process, on the small config unless another is named."""
    def call(recipe: ModuleType, *arguments: object, config: object = small_toml) -> Ended:
        monkeypatch.setattr(dry_run, "measure_rates", measured_once)
        monkeypatch.setattr(sys, "argv", [f"{recipe.__name__}.py", str(config), *map(str, arguments)])
        capsys.readouterr()
        try:
            status = recipe.main()
        except SystemExit as end:
            status = end.code
        return Ended(status, *capsys.readouterr())
    return call


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M: MINIGRPO_SMOLLM2, else models/smollm2 in the repository."""
    folder = Path(os.environ.get("MINIGRPO_SMOLLM2") or ROOT / "models/smollm2")
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"the model SmolLM2-135M is not at {folder}")
    return folder


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Every figure that is saved, as it was at that moment: its axes can be asked what a picture shows."""
    from matplotlib.figure import Figure
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, file: Path) -> None:
        figures.append(figure)
        save(figure, file)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
