"""Adapters on disk: against peft, what loads, what is refused and in which words."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from minigrpo.policy.architecture import FAMILIES
from minigrpo.policy.files.adapters import adapter_config, base_parameters, load_adapter, save_adapter
from minigrpo.policy.files.tensors import load_tensors
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.lora import (
    TARGETS,
    adapter_parameters,
    add_lora,
    freeze_reference,
    reference,
)
from tests.policy.helpers import ARGUMENTS, difference, load, logits, logits_of, refusal, with_adapter


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
