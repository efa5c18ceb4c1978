"""LoRA adapters in and out, in peft's layout: adapter_model.safetensors and adapter_config.json."""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from minigrpo.common.errors import UserError, shown
from minigrpo.common.strict_json import read_object
from minigrpo.policy.files.tensors import check_names, read_note, read_safetensors, save_tensors
from minigrpo.policy.lora import adapter_parameters
from minigrpo.policy.model import CausalLM

DIGEST_VALUES = 256         # of each tensor, that stand for all of it
MAX_RANK = 2**14            # of an adapter from a file: room for it is made before its tensors are looked at
# peft's ways to begin with a B A that is not zero. Such an adapter belongs to a base from which that B A was subtracted.
CHANGED_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


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
