"""Model folders on disk: what loads, what is refused and in which words."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minigrpo.policy.architecture import FAMILIES, read_architecture
from minigrpo.policy.files.adapters import adapter_config
from minigrpo.policy.files.weights import load_model, save_model
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.model import CausalLM
from minigrpo.policy.policy import load_policy
from tests.policy.helpers import (
    ARGUMENTS,
    assert_near,
    contents,
    difference,
    load,
    logits,
    logits_of,
    random_ids,
    refusal,
    with_adapter,
)


# -------------------------------------------------------------------------------------------------------------- layouts
def test_shards_equal_the_single_file(checkpoint, tmp_path):
    folder, theirs = checkpoint("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and not (tmp_path / "model.safetensors").exists()
    single, sharded = dict(load(folder).named_parameters()), dict(load(tmp_path).named_parameters())
    assert single.keys() == sharded.keys() and all(single[name].equal(sharded[name]) for name in single)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float32])
def test_every_tensor_is_cast_to_the_dtype_asked_for(copy_of, stored, asked):
    originals = {}

    def store(tensors):
        for name, tensor in tensors.items():
            originals[name] = tensors[name] = tensor.to(stored)

    model = load(copy_of(store), asked)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == asked and parameter.equal(originals[name].to(asked)), name


@pytest.mark.parity
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family, tied", [("llama", False), ("gemma", True), ("qwen2", True), ("qwen3", False)])
def test_a_file_in_any_dtype_or_several_give_the_logits_of_transformers(checkpoint, parity, tmp_path, family, tied, stored):
    """Written, and read again in float32, by transformers: rounded to what the file holds, and no further."""
    _, theirs = checkpoint(family, tie_word_embeddings=tied)
    for size in ("1GB", "8KB"):
        copy.deepcopy(theirs).to(stored).save_pretrained(tmp_path / size, max_shard_size=size)
        assert (len(list((tmp_path / size).glob("*.safetensors"))) > 1) == (size == "8KB")
        read = type(theirs).from_pretrained(tmp_path / size, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            expected = read(input_ids=random_ids(2, 12)).logits
        parity("logits, bf16, fp16, fp32 files, sharded too", "transformers", bound=2e-5, unit="of scale",
               difference=(logits(load(tmp_path / size)) - expected).abs().max() / expected.abs().max())


def test_the_model_is_frozen_and_in_evaluation_mode(checkpoint):
    model = load(checkpoint("llama")[0])
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_tied_with_and_without_the_head_in_the_file(copy_of, checkpoint):
    folder, theirs = checkpoint("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    without = logits(load(folder))

    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert logits(load(copy_of(add_head, tie_word_embeddings=True))).equal(without)
    torch.testing.assert_close(without, theirs(input_ids=random_ids(2, 12)).logits, rtol=1e-4, atol=1e-4)


def test_old_rotary_frequencies_are_passed_over(copy_of, checkpoint):
    def add_frequencies(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    assert logits(load(copy_of(add_frequencies))).equal(logits(load(checkpoint("llama")[0])))


# --------------------------------------------------------------------------------------------------------------- memory
WATCHED = """
import sys, threading, time
import torch
from minigrpo.policy.files.weights import load_model

def anonymous():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

def watch():
    while not done.wait(0.0005):
        seen.append(anonymous())

torch.set_num_threads(1)
load_model(sys.argv[1], dtype=torch.float32, device="cpu")          # what reading any model takes, counted out
seen, done = [before := anonymous()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(sys.argv[2], dtype=torch.float32, device="cpu")
held = anonymous()
done.set()
watcher.join()
print(max(seen) - before, held - before, sum(parameter.nbytes for parameter in model.parameters()),
      max(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("stored, copies", [(torch.bfloat16, 1), (torch.float32, 0)])
def test_loading_takes_no_more_memory_than_the_model_and_one_tensor(tmp_path, new_model, stored, copies):
    """Memory of the process's own, which pages mapped from a file are not: a cast makes a model of it, and where there is
    nothing to cast it stays in the file. 8 layers of 4 · 768² + 3 · 768 · 2,048 are 57 million parameters: 227 MB."""
    config = {"model_type": "llama", "vocab_size": 512, "hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12,
              "intermediate_size": 2048, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in CausalLM(read_architecture(config)).named_parameters()}
    save_file({name: torch.zeros(shape, dtype=stored) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", WATCHED, new_model, tmp_path], capture_output=True, text=True, check=True)
    peak, held, model, largest = map(int, done.stdout.split())
    slack = 8 * 2 ** 20                                                             # the allocator's, and the watcher's
    assert model > 200e6 and peak <= copies * model + largest + slack
    assert abs(held - copies * model) <= slack                                      # else the watch itself sees nothing


def test_a_missing_tensor_is_named(copy_of):
    folder = copy_of(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert refusal(load, folder) == f"{folder}: the safetensors files lack model.layers.1.mlp.up_proj.weight"


def test_an_untied_model_without_a_head_is_refused(copy_of):
    assert "lack lm_head.weight" in refusal(load, copy_of(lambda tensors: tensors.pop("lm_head.weight")))


def test_an_extra_tensor_is_named(copy_of):
    folder = copy_of(lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}))
    assert "have no place for model.layers.0.self_attn.q_norm.weight" in refusal(load, folder)


def test_biases_that_the_config_does_not_know_are_refused(copy_of, checkpoint):
    """A Llama whose file has attention biases and whose config.json says none: never a silently different model."""
    folder = copy_of(attention_bias=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": False}))
    # 2 layers × (q, k, v, o) = 8 biases: three are named, five counted.
    assert "and 5 more" in refusal(load, folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(copy_of):
    folder = copy_of(lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    message = refusal(load, folder)
    assert all(part in message for part in ["model.norm.weight", "[31]", "[32]"])


def test_a_missing_file_or_shard_is_named(copy_of):
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    assert f"{folder / 'model.safetensors'} is missing" in refusal(load, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "2.safetensors"}}')
    assert f"{folder / '2.safetensors'} is missing" in refusal(load, folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/dev/zero", "a/b.safetensors", "..", "", "a\n", "x" * 300])
def test_a_shard_is_a_file_beside_its_index(copy_of, name):
    folder = copy_of()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    place = folder / "model.safetensors.index.json"
    assert refusal(load, folder).startswith(f"{place}: weight_map must name files beside it, got ")


def test_a_tensor_in_two_shards_is_refused(copy_of):
    folder = copy_of()
    shutil.copyfile(folder / "model.safetensors", folder / "2.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "2.safetensors"}}))
    assert refusal(load, folder) == f"{folder}: tensor lm_head.weight is there twice"


def test_an_index_without_its_map_is_named(copy_of):
    folder = copy_of()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json" in refusal(load, folder)


def test_a_config_that_is_not_json_is_named(copy_of):
    folder = copy_of()
    for content, got in [("{vocab_size: 3", "something else (Expecting property name"), ("", "something else (Expecting value"),
                         ("[]", "[]")]:
        (folder / "config.json").write_text(content)
        assert f"{folder / 'config.json'}: expected a JSON object, got {got}" in refusal(load, folder)


# --------------------------------------------------------------------------------------------------------------- merging
def merged(model, folder, *, like, **options):
    folder.mkdir()
    save_model(model, folder, like=like, **options)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_the_policy_here_and_in_transformers(checkpoint, parity, tmp_path, family, tied):
    base, theirs = checkpoint(family, tie_word_embeddings=tied)
    model = with_adapter(base)
    folder = merged(model, tmp_path / "merged", like=base)
    assert not logits_of(model).allclose(logits_of(load(base)), rtol=0.1)                       # the adapter does something
    assert_near(logits_of(load(folder)), logits_of(model))
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(alone) is type(theirs)
    parity("merged folder: logits", "transformers", difference(logits_of(model), logits_of(alone)), bound=1e-5,
           unit="of scale")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_a_base_in_bfloat16_is_merged_in_float32_and_rounded_once(copy_of, tmp_path_factory, family):
    """Of W + scaling · B A in float32 the nearest bfloat16; what has no adapter, biases too, to the bit. A weight is then off
    by 2^-9 of itself at most, and the logits, over two layers, by no more than a twentieth of the largest."""
    def store(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()

    base = copy_of(store, family)
    model = load_model(base, dtype=None, device="cpu")
    assert model.dtype == torch.bfloat16
    add_lora(model, **ARGUMENTS, generator=torch.Generator())
    wide = with_adapter(base)
    for name, parameter in adapter_parameters(model).items():
        parameter.data = adapter_parameters(wide)[name].data.clone()
    folder = merged(model, tmp_path_factory.mktemp("out") / "merged", like=base)
    config = json.loads((folder / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    moved = {name.replace(".lora_A", ".weight"): parameter for name, parameter in adapter_parameters(wide).items()
             if name.endswith("lora_A")}
    assert after.keys() == before.keys() and len(moved) == 2 * 7
    for name, tensor in before.items():
        if name in moved:
            B = adapter_parameters(wide)[name.replace(".weight", ".lora_B")]
            tensor = (tensor.float() + (B @ moved[name]).detach() * 1.5).bfloat16()                # α / R = 6 / 4
        assert after[name].equal(tensor), name
    assert_near(logits_of(load(folder)), logits_of(wide), tolerance=0.05)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_beyond_the_size_of_a_file_is_written_in_shards_with_an_index(checkpoint, tmp_path, tied):
    base, _ = checkpoint("llama", tie_word_embeddings=tied)
    model = with_adapter(base)
    whole, shards = merged(model, tmp_path / "whole", like=base), merged(model, tmp_path / "shards", like=base, shard=10_000)
    assert not (whole / "model.safetensors.index.json").exists() and not (shards / "model.safetensors").exists()
    files = sorted(shards.glob("*.safetensors"))
    # No file but one of a single tensor is larger, and no two neighbours would have fitted into one.
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
    assert all(size <= 10_000 or len(load_file(file)) == 1 for size, file in zip(sizes, files))
    assert all(first + second > 10_000 for first, second in zip(sizes, sizes[1:]))
    assert [file.name for file in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    expected = dict(load(whole).named_parameters())
    assert all(parameter.equal(expected[name]) for name, parameter in load(shards).named_parameters())
    assert_near(logits_of(transformers.AutoModelForCausalLM.from_pretrained(shards)), logits_of(model))


def test_an_index_that_is_no_table_and_an_adapter_without_a_rank(sql_model, tmp_path):
    folder = shutil.copytree(sql_model, tmp_path / "folder")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ValueError, match=r"index.json: expected a JSON object with weight_map .object., got"):
        load_model(folder, dtype=torch.float32, device="cpu")
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": "x", "lora_alpha": 2, "target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match="json: r must be a positive integer up to 16384 and lora_alpha a number, got 'x', 2"):
        adapter_config(folder)


# ---------------------------------------------------------------------------------------------------- a model that was moved
def moved(folder, dtype=torch.float32):
    """The model of a folder with all its weights changed."""
    model, draw = load(folder, dtype), torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += (0.1 * torch.randn(parameter.shape, generator=draw)).to(dtype)
    return model


def saved(model, folder, *, like):
    folder.mkdir()
    save_model(model, folder, like=like)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_has_its_weights_and_everything_else_of_the_folder_it_is_like(new_model, tmp_path, dtype):
    model = moved(new_model, dtype)
    folder = saved(model, tmp_path / "base", like=new_model)
    before, after = contents(new_model), contents(folder)
    assert before.keys() == after.keys() and before["model.safetensors"] != after["model.safetensors"]
    assert all(before[name] == after[name] for name in ("tokenizer.json", "tokenizer_config.json"))
    name_of_dtype = str(dtype).removeprefix("torch.")
    assert json.loads(after["config.json"]) == json.loads(before["config.json"]) | {"torch_dtype": name_of_dtype}
    # It moved, and what is read back is what was written, to the bit; transformers takes the dtype from config.json.
    policy = load_policy(folder, dtype=dtype, device="cpu")
    assert logits_of(policy.model).equal(logits_of(model)) and not logits_of(model).allclose(logits_of(load(new_model, dtype)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert theirs.dtype == dtype
    assert all(tensor.equal(dict(model.named_parameters())[name]) for name, tensor in theirs.named_parameters())
    if dtype == torch.float32:
        assert_near(logits_of(model), logits_of(theirs))


def test_a_saved_model_keeps_the_files_stop_ids_and_its_spelling_of_the_dtype(checkpoint, tmp_path):
    """transformers writes "dtype" today and wrote "torch_dtype" before: the one that is there is corrected, no second one is
    added. generation_config.json has stop ids, so it belongs to the folder."""
    for family, spelling in [("llama", "dtype"), ("qwen2", "torch_dtype"), ("gemma", "torch_dtype")]:
        like = tmp_path / family
        shutil.copytree(checkpoint(family)[0], like)
        config = json.loads((like / "config.json").read_text())
        config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")} | {spelling: "float32"}
        (like / "config.json").write_text(json.dumps(config))
        (like / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
        model = moved(like, torch.bfloat16)
        folder = saved(model, tmp_path / f"{family} saved", like=like)
        assert json.loads((folder / "config.json").read_text()) == config | {spelling: "bfloat16"}
        assert (folder / "generation_config.json").read_text() == '{"eos_token_id": [2, 7]}'
        assert logits_of(load(folder, torch.bfloat16)).equal(logits_of(model))


def test_a_model_like_a_sharded_one_is_saved_whole(checkpoint, tmp_path):
    """The index of the shards is not copied: it would name files that are not there."""
    _, theirs = checkpoint("llama")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards/model.safetensors.index.json").is_file()
    model = moved(tmp_path / "shards")
    folder = saved(model, tmp_path / "whole", like=tmp_path / "shards")
    assert logits_of(load(folder)).equal(logits_of(model))
