"""The folder of a model: one that is given, or one fetched from the Hugging Face hub. Does not read tensors."""

import errno
import os
import re
from pathlib import Path
from typing import cast

from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import read_object

# The files of a model beside config.json and its weights: read here, or copied into models made from it.
SIDE_FILES = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "chat_template.jinja"]
# A repository may hold the weights a second time under other names, which are not fetched.
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]


def find_model(path: str | Path, *, weights: bool = True) -> Path:
    """The folder ``path``, or, where there is none and it has the form ``owner/name``, the folder of a download from the
    Hugging Face hub.

    Only files that are read are downloaded, into the hub's own cache, and without ``weights`` only the small ones. What is in
    the cache is found without a network too. ``UserError`` that says what to do.
    """
    folder = Path(path)
    if not folder.is_dir():
        parts = str(path).split("/")
        if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
            raise UserError(f"model.path: there is no folder {path}")
        folder = _fetch(str(path), ["config.json", *SIDE_FILES, *WEIGHT_FILES * weights])
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} is no model folder: it has no config.json")
    fetched = folder != Path(path)
    if weights and not any((folder / name).is_file() for name in WEIGHT_FILES) and (fetched or any(folder.glob("*.bin"))):
        raise UserError(f"{path} has no model.safetensors nor shards of it, and nothing else is read: pickled weights (.bin) "
                         f"may run code; where you trust them, let transformers load them and save_pretrained")
    return folder


def _fetch(name: str, files: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache, utils
    log_in = "log in by hf auth login, or set HF_TOKEN"
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except utils.HFValidationError:
        raise UserError(f"model.path: there is no folder {name}, nor can the hub have a model of that name") from None
    # Errors of its HTTP library (requests, httpx or httpx2), of an answer that is not the hub's, of its downloader in Rust.
    except (OSError, ValueError, RuntimeError, *utils.HfHubHTTPError.__bases__) as error:   # type: ignore[misc]  # all are errors
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            folder = Path(cached).parent
            weights = weight_files(folder) if WEIGHT_FILES[0] in files else []
            if all(file.is_file() for file in (folder / "config.json", folder / "tokenizer.json", *weights)):
                return folder
        cause = error.__cause__ if isinstance(error, utils.LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, utils.GatedRepoError):
        trouble = f"the hub's model of that name is gated: ask for access at {constants.ENDPOINT}/{name}, then {log_in}"
    elif isinstance(cause, utils.RepositoryNotFoundError):
        trouble = f"the hub has no public model of that name: check it; if it is private, {log_in}"
    elif isinstance(cause, utils.RevisionNotFoundError):
        trouble = "the hub's model of that name has no revision main: fetch the one you want and give its folder"
    elif os.strerror(errno.ENOSPC) in str(cause):
        trouble = f"the disk is too full to fetch it into {constants.HF_HUB_CACHE}: make room, or set HF_HOME to another place"
    else:
        trouble = (f"the hub is out of reach, with {'a part' if isinstance(cached, str) else 'nothing'} of it in the cache "
                   f"{constants.HF_HUB_CACHE}: give a folder, or fetch it where there is a network "
                   f"({(str(cause).strip() or repr(cause)).splitlines()[0]})")
    raise UserError(f"model.path: there is no folder {name}, and {trouble}")


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json names, whether they exist or not. ``UserError`` for
    an index that names files elsewhere."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    shards = cast("dict[str, str]", read_object(index, {"weight_map": {...: str}})["weight_map"])      # which it has checked
    if elsewhere := [name for name in shards.values() if not re.fullmatch(r"[\w-][\w.-]{0,200}", name)]:
        raise UserError(f"{index}: weight_map must name files beside it, got {elsewhere[0]!r:.80}")
    return [folder / name for name in dict.fromkeys(shards.values())]
