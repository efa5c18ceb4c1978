"""The policy: a model, its tokenizer, and what ends a completion. Begin here; ``load_policy`` opens a model folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from minigrpo.common.errors import UserError
from minigrpo.policy.files.hub import find_model
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tokenizer import Stopping, Tokenizer, compile_stopping, load_tokenizer


@dataclass(frozen=True)
class Policy:
    """The model, its tokenizer, and the automaton that says where its completions end."""

    model: CausalLM
    tokenizer: Tokenizer
    stopping: Stopping


def load_policy(path: str | Path, *, dtype: torch.dtype, device: torch.device | str,
                stop_strings: tuple[str, ...] = (), stop_ids: tuple[int, ...] = ()) -> Policy:
    """Model and tokenizer of a folder or a hub id. Completions end at ``stop_ids``, at the model's own stop ids (which come
    after these in the tokenizer's list), and at ``stop_strings``.

    ``UserError`` for a folder that is no model's, or whose tokenizer and model do not fit."""
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
