"""Model folders and adapters in and out, as safetensors: strict about names and shapes. Knows no training.

A folder is Hugging Face's: config.json, model.safetensors or its shards with an index, tokenizer.json. Adapters are in
peft's layout. Nothing is ever unpickled.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigrpo.common.errors import UserError
from minigrpo.common.messages import shown
from minigrpo.common.strict_json import read_object
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.hub import WORDS, find_model, weight_files
from minigrpo.policy.lora import adapter_parameters, adapters, base_parameters
from minigrpo.policy.model import CausalLM, initialise
from minigrpo.policy.stopping import Stopping, compile_stopping
from minigrpo.policy.tokenizer import EOS, Tokenizer, load_tokenizer, train_bpe


@dataclass(frozen=True)
class Policy:
    """The model, its tokenizer, and what ends its completions."""

    model: CausalLM
    tokenizer: Tokenizer
    stopping: Stopping


def load_policy(path: str | Path, *, dtype: torch.dtype, device: torch.device | str,
                stop_strings: tuple[str, ...] = (), stop_ids: tuple[int, ...] = ()) -> Policy:
    """Model and tokenizer of a folder or hub id; completions end at ``stop_ids``, at the model's own (which come behind them)
    and at ``stop_strings``."""
    folder = find_model(path)
    tokenizer = load_tokenizer(folder, stop_ids)
    model = load_model(folder, dtype=dtype, device=device)
    token_bytes = tokenizer.token_bytes + [b""] * (model.architecture.vocabulary - len(tokenizer.token_bytes))
    if len(token_bytes) > model.architecture.vocabulary:
        raise UserError(f"{folder}: tokenizer.json has {len(token_bytes)} ids and the model "
                         f"{model.architecture.vocabulary}; they are not of one checkpoint")
    if beyond := [token for token in tokenizer.stop_ids if token >= model.architecture.vocabulary]:
        raise UserError(f"{folder}: eos_token_id {beyond[0]!r:.40} is beyond the vocabulary of "
                         f"{model.architecture.vocabulary}")
    return Policy(model, tokenizer, compile_stopping(token_bytes, tokenizer.stop_ids, stop_strings))


def load_model(path: str | Path, *, dtype: torch.dtype | None, device: torch.device | str) -> CausalLM:
    """The decoder of a folder or hub id, frozen, in evaluation mode, every tensor cast to ``dtype`` (None: the file's own) on
    ``device``, one at a time. On the CPU what need not be cast stays in the file, mapped: no copy is made of it, until adapted
    layers are laid together for their first pass.

    Raises ``ValueError`` that names what is no model folder, or the missing, extra or misshapen tensors.
    """
    folder = find_model(path)
    architecture = read_architecture(read_object(folder / "config.json", {}), str(folder / "config.json"))
    with torch.device("meta"):
        model = CausalLM(architecture)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # Some tied checkpoints still carry the head, and old ones their rotary frequencies: neither is a parameter here.
    spare = {"lm_head.weight"} if architecture.tied else set()
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder):
        if name in spare or name.endswith("rotary_emb.inv_freq"):
            continue
        if name in state:
            raise UserError(f"{folder}: tensor {shown(name)} is there twice")
        if name in expected and tuple(tensor.shape) != expected[name]:
            raise UserError(f"{folder}: tensor {name} has shape {list(tensor.shape)!r:.80}, config.json says "
                             f"{list(expected[name])}")
        state[name] = tensor.to(device=device, dtype=dtype) if name in expected else tensor
    _same_names(f"{folder}: the safetensors files", expected, state)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of model.safetensors, or of the shards that model.safetensors.index.json names, one at a time."""
    for file in weight_files(folder):
        yield from _read_safetensors(file)


FLOATS, OTHERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "U8", "BOOL")


def _read_safetensors(file: Path, kinds: tuple[str, ...] = FLOATS) -> Iterator[tuple[str, Tensor]]:
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
    """Write one safetensors file. A disk that is full, or the like: ``OSError``.

    ``note``, a key and its value, goes into the header; only one, as the library writes several in an order of chance.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, metadata=dict([note]))
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """All of one safetensors file, integers too, as a state may hold; missing or torn: ``ValueError``."""
    return dict(_read_safetensors(file, FLOATS + OTHERS))


def _same_names(what: str, expected: Mapping[str, object], got: Mapping[str, object]) -> None:
    for problem, odd in (("lack", expected.keys() - got.keys()), ("have no place for", got.keys() - expected.keys())):
        if names := sorted(odd):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{what} {problem} {', '.join(map(shown, names[:3]))}{more}")


# ---------------------------------------------------------------------------------------------------- whole models, out
SHARD = 5 * 10 ** 9         # bytes of weights in one file at most, unless a tensor alone is larger


def save_model(model: CausalLM, folder: Path, *, like: Path, shard: int = SHARD) -> None:
    """Write ``model`` as a folder of its own, adapters merged in; what is no weight is copied from the folder ``like``.

    Layers are merged as they are written, in float32 and rounded once: beside the model itself, memory holds one file's.
    """
    for name in WORDS:
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)
    _write_model(model, folder, read_object(like / "config.json", {}), shard)


def create_model(folder: Path, texts: Iterable[str], *, vocabulary: int, layers: int, width: int, heads: int, mlp_width: int,
                 max_positions: int, generator: torch.Generator) -> None:
    """Write a small Llama with random weights and a BPE trained on ``texts``: a folder like any other.

    Sizes that make no model: ``ValueError``.
    """
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
    _write_model(model, folder, config, SHARD)


def _write_model(model: CausalLM, folder: Path, config: Mapping, shard: int) -> None:
    dtype = str(model.dtype).removeprefix("torch.")
    spelling = {name: dtype for name in ("dtype", "torch_dtype") if name in config} or {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps({**config, **spelling}, indent=2) + "\n", encoding="utf-8")
    parameters, adapted = base_parameters(model), {f"{name}.weight": layer for name, layer in adapters(model).items()}
    shards, room = [], 0
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


# ------------------------------------------------------------------------------------------------------------ adapters
def _peft_parameters(model: CausalLM) -> dict[str, torch.nn.Parameter]:
    """The adapters' parameters by the names that peft gives them."""
    return {f"base_model.model.{name}.weight": parameter for name, parameter in adapter_parameters(model).items()}


SAMPLE = 256                # values of each tensor that stand for all of it


def _base_digest(model: CausalLM) -> str:
    """What tells one base from another: SHA-256 over names, shapes and evenly spaced values of the frozen weights, the values
    rounded to bfloat16, so that a file loaded in float32 or in bfloat16 is one base."""
    parameters = sorted(base_parameters(model).items())
    # An odd stride, as an even one of a power of two would stay in one column of a matrix. One transfer for all.
    sampled = [parameter.detach().flatten()[::parameter.numel() // SAMPLE | 1].bfloat16() for _, parameter in parameters]
    digest = hashlib.sha256(json.dumps([(name, list(parameter.shape)) for name, parameter in parameters]).encode())
    digest.update(bytes(torch.cat(sampled).cpu().view(torch.uint8).tolist()))
    return digest.hexdigest()


def save_adapter(model: CausalLM, folder: Path, *, base: str, rank: int, alpha: float, targets: tuple[str, ...],
                 rank_stabilised: bool) -> None:
    """Write the adapters in peft's layout: adapter_model.safetensors and adapter_config.json, for the named ``base``. A
    digest of the base goes into the file's header, where peft does not look."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "adapter_model.safetensors", _peft_parameters(model), ("base_digest", _base_digest(model)))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
              "lora_alpha": alpha, "lora_dropout": 0.0, "use_rslora": rank_stabilised, "bias": "none",
              "target_modules": list(targets), "fan_in_fan_out": False, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: CausalLM, folder: Path, *, base: str | Path) -> None:
    """Copy an adapter in peft's layout into the model's adapters (see ``adapter_config`` for adding them first); ``base`` is
    what errors call the model.

    Raises ``ValueError`` that names missing, extra or misshapen tensors, or another base than the adapter's. One of peft's
    own does not say which weights it was trained on: there only names and shapes can tell.
    """
    parameters = _peft_parameters(model)
    tensors = dict(_read_safetensors(folder / "adapter_model.safetensors"))
    _same_names(f"{folder}: the adapter's tensors", parameters, tensors)
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise UserError(f"{folder}: tensor {name} has shape {list(tensors[name].shape)!r:.80}, this model's adapter "
                             f"{list(parameter.shape)}: an adapter of another base or rank")
        if not tensors[name].isfinite().all():
            raise UserError(f"{folder}: tensor {name} holds values that are not finite")
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        digest = (file.metadata() or {}).get("base_digest")
    if digest is not None and digest != _base_digest(model):
        named = read_object(folder / "adapter_config.json", {}).get("base_model_name_or_path")
        raise UserError(f"{folder}: the adapter was trained on other weights than those of {base}; by its own word, on those "
                         f"of {shown(str(named))}")
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


HIGHEST = 2**14             # rank of an adapter from a file: room for it is made before its tensors are looked at
# Ways of peft to begin with a B A that is not zero: the adapter belongs to what is left of W without it.
TAKEN_FROM_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def adapter_config(folder: Path) -> dict:
    """The arguments of ``lora.add_lora`` for an adapter folder: rank, alpha, targets, rank_stabilised."""
    file = folder / "adapter_config.json"
    config = read_object(file, dict.fromkeys(("peft_type", "r", "lora_alpha", "target_modules"), object))
    plain = {"peft_type": "LORA", "bias": "none"} | dict.fromkeys(
        ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save",
         "alora_invocation_tokens"))
    for key, value in plain.items():
        if key in config and (config[key] or None) != value:
            raise UserError(f"{file}: only plain LoRA adapters are supported, not {key} = {config[key]!r:.80}")
    if str(config.get("init_lora_weights")).lower().startswith(TAKEN_FROM_THE_BASE):
        raise UserError(f"{file}: only adapters of a base as it is are supported, not init_lora_weights = "
                         f"{config['init_lora_weights']!r:.80}, which begins by changing the base")
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    if type(rank) is not int or not 0 < rank <= HIGHEST or type(alpha) not in (int, float) or not abs(alpha) < 1e30:
        raise UserError(f"{file}: r must be a positive integer up to {HIGHEST} and lora_alpha a number, got {rank!r:.40}, "
                         f"{alpha!r:.40}")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{file}: target_modules must list the layers' names, got {targets!r:.80}")
    return {"rank": rank, "alpha": float(alpha), "targets": tuple(dict.fromkeys(targets)),
            "rank_stabilised": bool(config.get("use_rslora", False))}
