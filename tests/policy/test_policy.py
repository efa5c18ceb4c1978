"""A policy from a folder: where completions end, and what is refused."""

import json
import shutil

import pytest
import torch

from minigrpo.policy.policy import load_policy
from tests.policy.helpers import refusal


# --------------------------------------------------------------------------------------------------------------- policy
def word_level(folder, words):
    from tokenizers import Tokenizer, models
    vocabulary = {word: i for i, word in enumerate(words)}
    Tokenizer(models.BPE(vocabulary, merges=[])).save(str(folder / "tokenizer.json"))


def test_a_policy_stops_at_ids_and_strings(copy_of):
    folder = copy_of()
    word_level(folder, ["a", "b", "c", ";"])
    policy = load_policy(folder, dtype=torch.float32, device="cpu", stop_strings=(";",))
    # config.json of the tiny models names id 2; ";" is id 3. The model's 61 ids are all in the table, the tokenizer
    # has 4.
    assert policy.stopping.ends_UV[0].nonzero().flatten().tolist() == [2, 3]
    assert policy.stopping.next_UV.shape[1] == 61


def test_a_policy_stops_at_given_ids_too_and_names_them_first(copy_of):
    """config.json names id 2: given 3, then 2 again, the stop ids are 3 and 2, each once."""
    folder = copy_of()
    word_level(folder, ["a", "b", "c", ";"])
    policy = load_policy(folder, dtype=torch.float32, device="cpu", stop_ids=(3, 2))
    assert policy.tokenizer.stop_ids == (3, 2)
    assert policy.stopping.ends_UV[0].nonzero().flatten().tolist() == [2, 3]


def test_a_tokenizer_larger_than_the_model_is_refused(copy_of):
    folder = copy_of()
    word_level(folder, [chr(200 + i) for i in range(62)])
    message = refusal(load_policy, folder, dtype=torch.float32, device="cpu")
    assert "62 ids" in message and "61" in message


def test_a_broken_config_is_named_by_load_policy_too(copy_of):
    folder = copy_of()
    word_level(folder, ["a"])
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json" in refusal(load_policy, folder, dtype=torch.float32, device="cpu")
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(load_policy, folder, dtype=torch.float32, device="cpu")


@pytest.mark.slow
def test_smollm2_is_a_policy(smollm2):
    policy = load_policy(smollm2, dtype=torch.bfloat16, device="cpu", stop_strings=(";",))
    assert policy.tokenizer.stop_ids == (2,)
    # It stops at id 2 and at each token with a semicolon in it, and nowhere else.
    with_semicolon = {i for i, added in enumerate(policy.tokenizer.token_bytes) if b";" in added}
    assert set(policy.stopping.ends_UV[0].nonzero().flatten().tolist()) == with_semicolon | {2}


@pytest.mark.parametrize("key, value, sentence", [
    ("eos_token_id", 60_000, "eos_token_id 60000 is beyond the vocabulary of"),
    ("eos_token_id", "2", "config.json: eos_token_id must be an id or a list of ids, got ['2']"),
    ("eos_token_id", [2, -1], "config.json: eos_token_id must be an id or a list of ids, got [2, -1]"),
    ("hidden_size", "x", "config.json: hidden_size must be a positive integer, got 'x'"),
    ("num_attention_heads", 0, "config.json: num_attention_heads must be a positive integer, got 0"),
    ("num_hidden_layers", -1, "config.json: num_hidden_layers must be a positive integer, got -1"),
    ("intermediate_size", 1.5, "config.json: intermediate_size must be a positive integer, got 1.5"),
])
def test_a_config_whose_values_make_no_model_is_one_sentence(sql_model, tmp_path, key, value, sentence):
    folder = shutil.copytree(sql_model, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError) as caught:
        load_policy(folder, dtype=torch.float32, device="cpu")
    assert sentence in str(caught.value)
