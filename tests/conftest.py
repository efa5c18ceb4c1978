"""A small policy that really writes SQL, and the folder it lives in: the parts that whole-line tests run on."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, pre_tokenizers, trainers

from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.model import CausalLM
from minigrpo.policy.weights import save_tensors

ROOT = Path(__file__).parent.parent
MINI = ROOT / "tests/data/temptabqa_mini"
CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
          "tie_word_embeddings": True, "eos_token_id": 0}


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
    tokenizer = byte_level_bpe([*statements, "Write one SELECT statement over the tables above. Answer in SQL: CREATE TABLE INT TEXT"], 400)
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    model = CausalLM(read_architecture(config))
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.1)
    prompt = tokenizer.encode("\nAnswer in SQL:\n").ids
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
