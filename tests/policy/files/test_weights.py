"""Model folders and adapters on disk: what loads, what is refused and in which words; a new model."""

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minigrpo.policy.architecture import FAMILIES, read_architecture
from minigrpo.policy.files.weights import (
    adapter_config,
    base_parameters,
    initialise,
    load_adapter,
    load_model,
    load_tensors,
    save_adapter,
    save_model,
)
from minigrpo.policy.lora import (
    TARGETS,
    adapter_parameters,
    add_lora,
    freeze_reference,
    reference,
)
from minigrpo.policy.model import CausalLM
from minigrpo.policy.policy import load_policy
from tests.policy.helpers import (
    ARGUMENTS,
    TEXTS,
    assert_near,
    contents,
    difference,
    load,
    logits,
    logits_of,
    new_folder,
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


@pytest.mark.slow
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


# ------------------------------------------------------------------------------------------------------- random weights
def fresh(seed=0, **config):
    """A Llama of D = 64 and 3 layers whose weights are drawn."""
    sizes = dict(model_type="llama", vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                 rms_norm_eps=1e-5, num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True)
    model = CausalLM(read_architecture(sizes | config))
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def test_random_weights_spread_as_documented():
    """σ = 0.7 / √64 = 0.0875; o_proj and down_proj, which add to the residual stream, have 1 / √(2 · 3) of that, 0.0357.

    n draws give σ with an error of σ / √(2n), and their mean one of σ / √n. The smallest tensor has n = 64 · 64: 1.1 % and
    1.6 % of σ. Five of either are allowed: less than one chance in a million a tensor, and the seed is fixed.
    """
    for tied in (True, False):
        for name, parameter in fresh(tie_word_embeddings=tied).named_parameters():
            if "norm" in name:
                assert parameter.eq(1).all(), name
                continue
            sigma = 0.7 / 8 / (math.sqrt(6) if name.split(".")[-2] in ("o_proj", "down_proj") else 1)
            n = parameter.numel()
            assert abs(float(parameter.detach().std()) / sigma - 1) < 5 / math.sqrt(2 * n), name
            assert abs(float(parameter.detach().mean())) < 5 * sigma / math.sqrt(n), name


def test_random_weights_are_normal():
    # Of a normal variable 68.3 % lie within one σ, 95.4 % within two, 99.7 % within three; of a uniform one of the same σ
    # 57.7 %, all and all. The embedding has 300 · 64 draws: the errors of these shares are 0.34, 0.15 and 0.04 points.
    drawn = fresh().model.embed_tokens.weight.detach() / 0.0875
    for within, share, error in [(1, 0.6827, 0.0034), (2, 0.9545, 0.0015), (3, 0.9973, 0.0004)]:
        assert abs(float((drawn.abs() < within).float().mean()) - share) < 5 * error


def test_random_weights_are_the_generators_and_no_two_tensors_are_alike():
    one, same, other = (dict(fresh(seed).named_parameters()) for seed in (0, 0, 1))
    for name in one:
        assert one[name].equal(same[name]) and ("norm" in name or not one[name].equal(other[name])), name
    layers = [one[f"model.layers.{i}.mlp.{part}.weight"] for i in range(3) for part in ("gate_proj", "up_proj")]
    assert not any(layers[i].equal(layers[j]) for i in range(6) for j in range(i))


def test_random_weights_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    model = CausalLM(fresh().architecture)
    torch.set_rng_state(before)                                            # torch's own constructors draw from it
    initialise(model, torch.Generator().manual_seed(0))
    assert torch.get_rng_state().equal(before)


def test_what_a_layer_adds_is_smaller_the_more_layers_there_are():
    """√(2 · layers): with twelve instead of three, weights that add to the residual stream are half as large, others the
    same."""
    few, many = ({name: float(parameter.detach().std()) for name, parameter in fresh(num_hidden_layers=n).named_parameters()
                  if "norm" not in name} for n in (3, 12))
    for name, std in few.items():
        expected = 2.0 if name.split(".")[-2] in ("o_proj", "down_proj") else 1.0
        assert abs(std / many[name] / expected - 1) < 0.08, name              # five errors of 1.1 % each, and both have one


def test_a_new_model_is_a_policy_of_the_sizes_asked_for(new_model):
    policy = load_policy(new_model, dtype=torch.float32, device="cpu")
    architecture = policy.model.architecture
    assert (architecture.layers, architecture.width, architecture.heads, architecture.mlp_width) == (2, 16, 4, 24)
    assert architecture.max_positions == 64 and architecture.head_size == 16 // 4
    # The vocabulary is what the tokenizer has, at most the 300 asked for, and it stops at its one stop token, id 0.
    assert architecture.vocabulary == len(policy.tokenizer.token_bytes) == policy.tokenizer.rust.get_vocab_size() <= 300
    assert policy.tokenizer.stop_ids == (0,) and policy.stopping.ends_UV[0].nonzero().flatten().tolist() == [0]
    # Embedding V · D, which is the head too; per layer 4 D², 3 D · 24 and two norms; the last norm.
    parameters = architecture.vocabulary * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == parameters


def test_transformers_reads_a_new_model_and_its_tokenizer_alike(new_model):
    """As anybody would who is given the folder: no class named, no argument."""
    policy = load_policy(new_model, dtype=torch.float32, device="cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(new_model)
    words = transformers.AutoTokenizer.from_pretrained(new_model)
    assert type(theirs) is transformers.LlamaForCausalLM and theirs.dtype == torch.float32
    assert_near(logits_of(policy.model), logits_of(theirs))
    assert (words.eos_token, words.eos_token_id, words.model_max_length) == ("<eos>", 0, 64)
    assert len(words) == len(policy.tokenizer.token_bytes)
    for text in [*TEXTS, "  two  spaces\tnaïve 東京 🏃\n'it''s'", "a<eos>b"]:
        ids = policy.tokenizer.encode(text)
        assert words(text)["input_ids"] == ids
        assert words.decode(ids, skip_special_tokens=True) == policy.tokenizer.decode(ids)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_other_weights(tmp_path, new_model):
    again, other = (contents(new_folder(tmp_path / name, seed)) for name, seed in (("again", 0), ("other", 1)))
    assert again == contents(new_model)
    assert [name for name in again if again[name] != other[name]] == ["model.safetensors"]


@pytest.mark.parametrize("changed, sentence", [
    # Of width 18, four heads would use 16; of width 12, each would have 3; of 16, each of 32 would have half a number.
    ({"width": 18}, "the width 18 is no multiple of twice the 4 heads: rotary positions turn pairs"),
    ({"width": 12}, "the width 12 is no multiple of twice the 4 heads: rotary positions turn pairs"),
    ({"heads": 32}, "the width 16 is no multiple of twice the 32 heads: rotary positions turn pairs"),
    ({"heads": 0}, "the width 16 is no multiple of twice the 0 heads: rotary positions turn pairs"),
    ({"layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
    ({"mlp_width": 0}, "intermediate_size must be a positive integer, got 0"),
])
def test_sizes_that_make_no_model_are_one_sentence(tmp_path, changed, sentence):
    assert refusal(new_folder, tmp_path / "new", **changed) == f"model.new: {sentence}"


# --------------------------------------------------------------------------------------------------- safetensors files
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(copy_of, keep):
    file = copy_of() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:int(keep * file.stat().st_size)])
    assert f"{file} is not a whole safetensors file" in refusal(load, file.parent)


@pytest.mark.parametrize("dtype, name", [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_weights_that_are_no_plain_floats_are_refused(copy_of, dtype, name):
    """Cast, they would be numbers that nobody trained: an integer's, or those of a scale that stands elsewhere."""
    folder = copy_of(lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)}))
    assert refusal(load, folder) == (f"{folder}/model.safetensors: tensor model.norm.weight is of {name}; only F64, F32, F16, "
                                     "BF16 are read")


# ------------------------------------------------------------------------------------------------------------ merging
def test_base_parameters_are_the_frozen_ones_by_the_names_they_had(checkpoint):
    model = load_model(checkpoint("qwen2")[0], dtype=torch.float32, device="cpu")       # whose q, k and v have biases
    before = dict(model.named_parameters())
    add_lora(model, rank=2, alpha=2.0, generator=torch.Generator())
    assert base_parameters(model).keys() == before.keys()
    assert all(parameter is before[name] for name, parameter in base_parameters(model).items())


def test_an_adapter_of_integers_is_refused_and_a_state_of_them_read(checkpoint, tmp_path):
    model = load(checkpoint("llama")[0])
    add_lora(model, rank=2, alpha=4.0, targets=("q_proj",), generator=torch.Generator().manual_seed(0))
    save_file({"count": torch.tensor([3])}, tmp_path / "adapter_model.safetensors")
    assert load_tensors(tmp_path / "adapter_model.safetensors")["count"].tolist() == [3]
    assert "tensor count is of I64; only F64, F32, F16, BF16 are read" in refusal(load_adapter, model, tmp_path, base="x")


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_an_adapter_with_a_value_that_is_not_finite_is_refused(checkpoint, tmp_path, odd):
    model, facts = load(checkpoint("llama")[0]), dict(rank=2, alpha=4.0, targets=("q_proj",), rank_stabilised=False)
    add_lora(model, **facts, generator=torch.Generator().manual_seed(0))
    next(iter(adapter_parameters(model).values())).data[1, 3] = odd
    save_adapter(model, tmp_path, base="x", **facts)
    assert refusal(load_adapter, model, tmp_path, base="x").endswith("q_proj.lora_A.weight holds values that are not finite")


@pytest.mark.parametrize("key, value, got", [
    ("r", 10**9, "r must be a positive integer up to 16384 and lora_alpha a number, got 1000000000, 4.0"),
    ("lora_alpha", 1e40, "r must be a positive integer up to 16384 and lora_alpha a number, got 2, 1e+40"),
    ("target_modules", None, "target_modules must list the layers' names, got None"),
    ("target_modules", [["q_proj"]], "target_modules must list the layers' names, got [['q_proj']]")])
def test_an_adapters_config_is_looked_at_before_room_is_made_for_it(tmp_path, key, value, got):
    (tmp_path / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"]} | {key: value}))
    assert refusal(adapter_config, tmp_path) == f"{tmp_path}/adapter_config.json: {got}"


# ------------------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_comes_back_bit_for_bit(checkpoint, tmp_path):
    base = checkpoint("llama")[0]
    model = with_adapter(base)
    save_adapter(model, tmp_path / "new" / "folder", base=str(base), **ARGUMENTS)
    assert adapter_config(tmp_path / "new" / "folder") == ARGUMENTS
    other = with_adapter(base, seed=1)
    assert not logits(other).allclose(logits(model))
    load_adapter(other, tmp_path / "new" / "folder", base=base)
    assert logits(other).equal(logits(model))
    freeze_reference(other)
    with reference(other):
        assert logits(other).equal(logits(model))


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"rank_stabilised": True}, {"rank": 2, "targets": ("o_proj", "up_proj")}])
def test_peft_loads_ours(checkpoint, parity, tmp_path, family, changes):
    base, theirs = checkpoint(family)
    model = with_adapter(base, **changes)
    arguments = ARGUMENTS | changes
    save_adapter(model, tmp_path, base=str(base), **arguments)
    loaded = peft.PeftModel.from_pretrained(type(theirs).from_pretrained(base), tmp_path).eval()
    parity("adapter written here, read by peft: logits", "peft", difference(logits_of(model), logits_of(loaded)), bound=1e-5,
           unit="of scale")
    assert difference(logits_of(model), logits_of(theirs)) > 0.1                                # the adapter does something
    assert sorted(loaded.state_dict()) == sorted(peft.get_peft_model(type(theirs).from_pretrained(base), peft.LoraConfig(
        r=arguments["rank"], target_modules=list(arguments["targets"]))).state_dict())


def written_by_peft(checkpoint, folder, family="llama", **config):
    """peft's model with a random adapter, which it has saved in ``folder``."""
    base, plain = checkpoint(family)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(type(plain).from_pretrained(base), peft.LoraConfig(
        **({"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]} | config)))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    theirs.save_pretrained(folder)
    return theirs.eval()


@pytest.mark.parity
@pytest.mark.parametrize("config", [
    {}, {"use_rslora": True}, {"target_modules": list(TARGETS)}, {"target_modules": ["self_attn.k_proj", "up_proj"]},
    {"target_modules": "all-linear"}, {"lora_dropout": 0.5}, {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal", "r": 4}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_we_load_pefts(checkpoint, parity, tmp_path, family, config):
    theirs = written_by_peft(checkpoint, tmp_path, family, **config)
    base, _ = checkpoint(family)
    ours, arguments = load(base), adapter_config(tmp_path)
    assert (arguments["rank"], arguments["alpha"]) == (config.get("r", 3), 7.0)
    assert arguments["rank_stabilised"] == config.get("use_rslora", False)
    add_lora(ours, **arguments, generator=torch.Generator())
    load_adapter(ours, tmp_path, base=base)
    parity("adapter written by peft, read here: logits", "peft", difference(logits_of(ours), logits_of(theirs)), bound=1e-5,
           unit="of scale")


@pytest.mark.parametrize("config, name", [
    # These begin with B A ≠ 0 and take it out of the base: with the base as it was the model would be another.
    ({"init_lora_weights": "pissa"}, "init_lora_weights"), ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    ({"init_lora_weights": "OLoRA"}, "init_lora_weights"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),            # acts only behind these tokens
    ({"use_dora": True}, "use_dora"), ({"lora_bias": True}, "lora_bias"), ({"target_modules": ".*q_proj"}, "target_modules"),
    ({"layers_to_transform": [0]}, "lack base_model.model.model.layers.1"),
    ({"trainable_token_indices": [1, 2]}, "have no place for base_model.model.model.embed_tokens"),
    ({"target_parameters": ["mlp.up_proj.weight"]}, "have no place for base_model.model.model.layers.0.mlp.up_proj")], ids=str)
def test_what_peft_writes_beyond_plain_adapters_is_refused(checkpoint, tmp_path, config, name):
    """Real files of peft's own. Each would load as another model than it is: none may, and the reason is named."""
    written_by_peft(checkpoint, tmp_path, **config)
    base, _ = checkpoint("llama")

    def read():
        model = load(base)
        add_lora(model, **adapter_config(tmp_path), generator=torch.Generator())
        load_adapter(model, tmp_path, base=base)

    assert name in refusal(read)


def test_an_adapter_of_another_rank_base_or_set_of_layers_is_refused(checkpoint, tmp_path):
    base = checkpoint("llama")[0]
    save_adapter(with_adapter(base), tmp_path, base=str(base), **ARGUMENTS)
    message = refusal(load_adapter, with_adapter(base, rank=2), tmp_path, base=base)
    assert "another base or rank" in message and "[4, 32]" in message and "[2, 32]" in message
    assert "[4, 32]" in refusal(load_adapter, with_adapter(checkpoint("llama", hidden_size=16)[0]), tmp_path, base=base)
    assert "lack" in refusal(load_adapter, with_adapter(checkpoint("llama", num_hidden_layers=3)[0]), tmp_path, base=base)
    assert "have no place for" in refusal(load_adapter, with_adapter(base, targets=("q_proj",)), tmp_path, base=base)


def test_a_refused_adapter_leaves_the_model_as_it_was(checkpoint, tmp_path):
    """The one misshapen tensor is the last: nothing before it may have been copied."""
    base = checkpoint("llama")[0]
    save_adapter(with_adapter(base), tmp_path, base=str(base), **ARGUMENTS)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    model = with_adapter(base, seed=1)
    last = "base_model.model." + list(adapter_parameters(model))[-1] + ".weight"
    save_file(tensors | {last: torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    before = logits(model)
    assert last in refusal(load_adapter, model, tmp_path, base=base)
    assert logits(model).equal(before)


@pytest.mark.parametrize("change, name", [
    ({"peft_type": "IA3"}, "peft_type"), ({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias"),
    ({"alpha_pattern": {"q_proj": 99}}, "alpha_pattern"), ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"target_modules": "all-linear"}, "target_modules"),
    ({"r": ...}, "with r, got"), ({"target_modules": ...}, "with target_modules, got")])
def test_adapters_of_other_kinds_are_refused(checkpoint, tmp_path, change, name):
    """``...`` takes the key away. alpha_pattern would scale some layers otherwise: loading without it would be
    wrong."""
    base = checkpoint("llama")[0]
    save_adapter(with_adapter(base), tmp_path, base=str(base), **ARGUMENTS)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | change
    (tmp_path / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    assert name in refusal(adapter_config, tmp_path)


# ------------------------------------------------------------------------------------------------ an adapter and its base
def other_base(base, folder, change):
    """A model of the same shapes, some of whose tensors ``change`` moves."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def a_little_of_all(tensors):
    """As training does that lets every weight drift by a hundredth."""
    for name, tensor in tensors.items():
        tensors[name] = tensor * 1.01


def one_of_all(tensors):
    tensors["model.layers.1.self_attn.v_proj.weight"] += 1.0


@pytest.mark.parametrize("change", [a_little_of_all, one_of_all])
def test_an_adapter_of_another_base_is_refused_where_all_shapes_agree(checkpoint, tmp_path, change):
    base = checkpoint("llama")[0]
    save_adapter(with_adapter(base), tmp_path / "adapter", base="some/base", **ARGUMENTS)
    other = other_base(base, tmp_path / "other", change)
    model = with_adapter(other, seed=1)
    before = logits(model)
    assert refusal(load_adapter, model, tmp_path / "adapter", base=other) == (
        f"{tmp_path}/adapter: the adapter was trained on other weights than those of {other}; by its own word, on those of "
        f"some/base")
    assert logits(model).equal(before)


def test_the_dtype_a_base_is_loaded_in_and_its_place_make_no_other_base(checkpoint, tmp_path):
    """The file is float32: loaded as bfloat16 all its values are rounded. Nor has an adapter that has moved a say in it."""
    base = checkpoint("llama")[0]
    elsewhere = shutil.copytree(base, tmp_path / "elsewhere")
    for name, dtype, other in [("a", torch.float32, torch.bfloat16), ("b", torch.bfloat16, torch.float32)]:
        model = load(base, dtype)
        add_lora(model, **ARGUMENTS, generator=torch.Generator().manual_seed(3))
        save_adapter(model, tmp_path / name, base=str(base), **ARGUMENTS)
        there = load(elsewhere, other)
        add_lora(there, **ARGUMENTS, generator=torch.Generator().manual_seed(4))
        load_adapter(there, tmp_path / name, base=elsewhere)
        assert all(p.equal(adapter_parameters(model)[key]) for key, p in adapter_parameters(there).items())


def test_an_adapter_that_does_not_tell_its_base_is_taken_if_it_fits(checkpoint, tmp_path):
    """Of peft's own: its files have no digest."""
    base, theirs = checkpoint("llama")
    wrapped = peft.get_peft_model(type(theirs).from_pretrained(base), peft.LoraConfig(r=4, target_modules=list(TARGETS)))
    wrapped.save_pretrained(tmp_path / "adapter")
    other = other_base(base, tmp_path / "other", a_little_of_all)
    load_adapter(with_adapter(other), tmp_path / "adapter", base=other)


def test_the_same_adapter_is_written_as_the_same_bytes(checkpoint, tmp_path):
    """Eight times: notes in a header would otherwise come in an order of chance."""
    model = with_adapter(checkpoint("llama")[0])
    for i in range(8):
        save_adapter(model, tmp_path / str(i), base="x", **ARGUMENTS)
    assert len({(tmp_path / str(i) / "adapter_model.safetensors").read_bytes() for i in range(8)}) == 1
