"""The weights of Hugging Face model folders, in and out: config.json beside model.safetensors or its shards with an index.
Strict about names and shapes."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minigrpo.common.errors import UserError, shown
from minigrpo.common.strict_json import read_object
from minigrpo.policy.architecture import read_architecture
from minigrpo.policy.files.adapters import base_parameters
from minigrpo.policy.files.hub import SIDE_FILES, find_model, weight_files
from minigrpo.policy.files.tensors import check_names, read_safetensors, save_tensors
from minigrpo.policy.lora import adapters
from minigrpo.policy.model import CausalLM

MAX_SHARD_BYTES = 5 * 10 ** 9           # of weights in one file, unless a tensor alone is larger


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
    for name, tensor in read_tensors(folder):
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


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of model.safetensors, or of the shards that model.safetensors.index.json names, one at a time."""
    for file in weight_files(folder):
        yield from read_safetensors(file)


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
