"""Weights on disk, in and out. A Hugging Face model folder: config.json beside model.safetensors or its shards with an index.
A LoRA adapter in peft's layout: adapter_model.safetensors and adapter_config.json. Strict about names and shapes. The only
file that uses safetensors; nothing is ever unpickled.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minigrpo.common.errors import UserError, shown
from minigrpo.common.strict_json import read_object
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.hub import SIDE_FILES, find_model, weight_files
from minigrpo.policy.lora import adapter_parameters, adapters
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tokenizer import EOS, train_bpe

MAX_SHARD_BYTES = 5 * 10 ** 9           # of weights in one file, unless a tensor alone is larger
FLOATS, OTHERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "U8", "BOOL")
DIGEST_VALUES = 256         # of each tensor, that stand for all of it
MAX_RANK = 2**14            # of an adapter from a file: room for it is made before its tensors are looked at
# peft's ways to begin with a B A that is not zero. Such an adapter belongs to a base from which that B A was subtracted.
CHANGED_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def load_model(path: str | Path, *, dtype: torch.dtype | None, device: torch.device | str) -> CausalLM:
    """The decoder of a folder or hub id, frozen, in evaluation mode.

    Tensors are cast to ``dtype`` (None: the file's own) on ``device`` one at a time. On the CPU, what need not be cast stays
    in the file, mapped: it is not copied until adapted layers are laid together for their first pass.

    ``UserError`` for what is no model folder, or for missing, extra or misshapen tensors.
    """
    folder = find_model(path)
    architecture = read_architecture(read_object(folder / "config.json", {}), str(folder / "config.json"))
    with torch.device("meta"):
        model = CausalLM(architecture)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # Some tied checkpoints still carry the head, and old ones their rotary frequencies: neither is a parameter here.
    spare = {"lm_head.weight"} if architecture.tied else set()
    state: dict[str, Tensor] = {}
    for name, tensor in chain.from_iterable(map(read_safetensors, weight_files(folder))):
        if name in spare or name.endswith("rotary_emb.inv_freq"):
            continue
        if name in state:
            raise UserError(f"{folder}: tensor {shown(name)} is there twice")
        if name in expected and tuple(tensor.shape) != expected[name]:
            raise UserError(f"{folder}: tensor {name} has shape {list(tensor.shape)!r:.80}, config.json says "
                             f"{list(expected[name])}")
        state[name] = tensor.to(device=device, dtype=dtype) if name in expected else tensor
    check_names(f"{folder}: the safetensors files", expected, state)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def save_model(model: CausalLM, folder: Path, *, like: Path, shard: int = MAX_SHARD_BYTES) -> None:
    """Write ``model`` into ``folder`` with its adapters merged in; everything else is copied from the folder ``like``.

    Layers are merged when they are written, in float32 and rounded once: memory holds the model and the tensors of one file,
    of at most ``shard`` bytes.
    """
    for name in SIDE_FILES:
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)
    write_model(model, folder, read_object(like / "config.json", {}), shard)


def write_model(model: CausalLM, folder: Path, config: Mapping, shard: int = MAX_SHARD_BYTES) -> None:
    """Write config.json, with the model's dtype, and the weights, in shards with an index where one file is not enough."""
    dtype = str(model.dtype).removeprefix("torch.")
    spelling = {name: dtype for name in ("dtype", "torch_dtype") if name in config} or {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps({**config, **spelling}, indent=2) + "\n", encoding="utf-8")
    parameters, adapted = base_parameters(model), {f"{name}.weight": layer for name, layer in adapters(model).items()}
    shards: list[list[str]] = []
    room = 0
    for name, parameter in parameters.items():
        if parameter.nbytes > room or not shards:
            shards, room = [*shards, []], shard
        shards[-1].append(name)
        room -= parameter.nbytes
    names_of = {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}
    if len(shards) == 1:
        names_of = {"model.safetensors": shards[0]}
    for file, names in names_of.items():
        save_tensors(folder / file, {name: adapted[name].merged().weight if name in adapted else parameters[name]
                                     for name in names})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(parameter.nbytes for parameter in parameters.values())},
                 "weight_map": {name: file for file, names in names_of.items() for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- a new model
def create_model(folder: Path, texts: Iterable[str], *, vocabulary: int, layers: int, width: int, heads: int, mlp_width: int,
                 max_positions: int, generator: torch.Generator) -> None:
    """Write a small Llama with random weights and a BPE trained on ``texts``. ``UserError`` for sizes that make no model."""
    if heads < 1 or width % (2 * heads):
        raise UserError(f"model.new: the width {width} is no multiple of twice the {heads} heads: rotary positions turn "
                         f"pairs")
    tokenizer = train_bpe(texts, vocabulary)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "model_max_length": max_positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(),
              "hidden_size": width, "intermediate_size": mlp_width, "num_hidden_layers": layers, "hidden_act": "silu",
              "num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": max_positions, "tie_word_embeddings": True,
              "eos_token_id": tokenizer.token_to_id(EOS)}
    model = CausalLM(read_architecture(config, "model.new"))
    initialise(model, generator)
    write_model(model, folder, config)


def initialise(model: CausalLM, generator: torch.Generator) -> None:
    """Random weights for a model that is trained from nothing: norms are 1, all else is normal with σ = 0.7 / √D, and smaller
    by √(2 · layers), as in GPT-2, where it adds to the residual stream."""
    architecture = model.architecture
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            shrink = math.sqrt(2 * architecture.layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=0.7 / math.sqrt(architecture.width) / shrink, generator=generator)


# ------------------------------------------------------------------------------------------ adapters, in peft's layout
def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the adapters', by the names that they have in a model without adapters."""
    added = adapter_parameters(model)
    return {name.replace(".base.", "."): parameter for name, parameter in model.named_parameters() if name not in added}


def _peft_parameters(model: CausalLM) -> dict[str, nn.Parameter]:
    """The adapters' parameters by the names that peft gives them."""
    return {f"base_model.model.{name}.weight": parameter for name, parameter in adapter_parameters(model).items()}


def _base_digest(model: CausalLM) -> str:
    """A fingerprint of the frozen weights: SHA-256 over names, shapes and evenly spaced values. The values are rounded to
    bfloat16, so that a file has one digest whether it was loaded in float32 or in bfloat16."""
    parameters = sorted(base_parameters(model).items())
    # The stride is odd: an even one could stay in one column of a matrix. One transfer for all.
    stride = {name: parameter.numel() // DIGEST_VALUES | 1 for name, parameter in parameters}
    sampled = [parameter.detach().flatten()[::stride[name]].bfloat16() for name, parameter in parameters]
    digest = hashlib.sha256(json.dumps([(name, list(parameter.shape)) for name, parameter in parameters]).encode())
    digest.update(bytes(torch.cat(sampled).cpu().view(torch.uint8).tolist()))
    return digest.hexdigest()


def save_adapter(model: CausalLM, folder: Path, *, base: str, rank: int, alpha: float, targets: tuple[str, ...],
                 rank_stabilised: bool) -> None:
    """Write the adapters for the named ``base``. A digest of the base goes into the file's header, where peft does not
    look."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "adapter_model.safetensors", _peft_parameters(model), ("base_digest", _base_digest(model)))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
              "lora_alpha": alpha, "lora_dropout": 0.0, "use_rslora": rank_stabilised, "bias": "none",
              "target_modules": list(targets), "fan_in_fan_out": False, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: CausalLM, folder: Path, *, base: str | Path) -> None:
    """Copy an adapter from a folder into the model's adapters, which ``add_lora(model, **adapter_config(folder), ...)`` has
    made. Errors call the model ``base``.

    ``UserError`` for missing, extra or misshapen tensors, and for another base than the one that the adapter was trained on.
    An adapter that peft has written does not say which weights those were: there only names and shapes can tell.
    """
    parameters = _peft_parameters(model)
    tensors = dict(read_safetensors(folder / "adapter_model.safetensors"))
    check_names(f"{folder}: the adapter's tensors", parameters, tensors)
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise UserError(f"{folder}: tensor {name} has shape {list(tensors[name].shape)!r:.80}, this model's adapter "
                             f"{list(parameter.shape)}: an adapter of another base or rank")
        if not tensors[name].isfinite().all():
            raise UserError(f"{folder}: tensor {name} holds values that are not finite")
    digest = read_note(folder / "adapter_model.safetensors", "base_digest")
    if digest is not None and digest != _base_digest(model):
        named = read_object(folder / "adapter_config.json", {}).get("base_model_name_or_path")
        raise UserError(f"{folder}: the adapter was trained on other weights than those of {base}; by its own word, on those "
                         f"of {shown(str(named))}")
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def adapter_config(folder: Path) -> dict:
    """The arguments of ``lora.add_lora`` for an adapter folder: rank, alpha, targets, rank_stabilised. ``UserError`` for
    anything but a plain LoRA adapter."""
    file = folder / "adapter_config.json"
    config = read_object(file, dict.fromkeys(("peft_type", "r", "lora_alpha", "target_modules"), object))
    plain = {"peft_type": "LORA", "bias": "none"} | dict.fromkeys(
        ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save",
         "alora_invocation_tokens"))
    for key, value in plain.items():
        if key in config and (config[key] or None) != value:
            raise UserError(f"{file}: only plain LoRA adapters are supported, not {key} = {config[key]!r:.80}")
    if str(config.get("init_lora_weights")).lower().startswith(CHANGED_BASE):
        raise UserError(f"{file}: only adapters of a base as it is are supported, not init_lora_weights = "
                         f"{config['init_lora_weights']!r:.80}, which begins by changing the base")
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    if (type(rank) is not int or not 0 < rank <= MAX_RANK
            or isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e30):
        raise UserError(f"{file}: r must be a positive integer up to {MAX_RANK} and lora_alpha a number, got {rank!r:.40}, "
                        f"{alpha!r:.40}")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{file}: target_modules must list the layers' names, got {targets!r:.80}")
    return {"rank": rank, "alpha": float(alpha), "targets": tuple(dict.fromkeys(targets)),
            "rank_stabilised": bool(config.get("use_rslora", False))}


# --------------------------------------------------------------------------------------------------- safetensors files
def read_safetensors(file: Path, kinds: tuple[str, ...] = FLOATS) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of one file with its name, one at a time. ``UserError`` that names the file if it is missing or torn, or
    the tensor whose type is not among ``kinds``."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                if (kind := tensors.get_slice(name).get_dtype()) not in kinds:
                    raise UserError(f"{file}: tensor {shown(name)} is of {kind}; only {', '.join(kinds)} are read")
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file: {str(error)[:120]!r}") from None


def save_tensors(file: Path, tensors: Mapping[str, Tensor], note: tuple[str, str] = ("format", "pt")) -> None:
    """Write one safetensors file. ``OSError`` where the disk is full or the like.

    ``note``, a key and its value, goes into the header. There can be only one: the library writes several in a random order.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, metadata=dict([note]))
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """All of one file, integers too, which an optimiser's state may hold. ``UserError`` as above."""
    return dict(read_safetensors(file, FLOATS + OTHERS))


def read_note(file: Path, key: str) -> str | None:
    """What ``save_tensors`` has noted in the header under ``key``."""
    with safe_open(file, framework="pt") as tensors:
        return (tensors.metadata() or {}).get(key)


def check_names(what: str, expected: Mapping[str, object], got: Mapping[str, object]) -> None:
    """``UserError`` that begins with ``what`` and names up to three missing or extra tensors."""
    for problem, odd in (("lack", expected.keys() - got.keys()), ("have no place for", got.keys() - expected.keys())):
        if names := sorted(odd):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{what} {problem} {', '.join(map(shown, names[:3]))}{more}")
