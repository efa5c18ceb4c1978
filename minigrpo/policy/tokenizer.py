"""tokenizer.json → ids and back, and when a completion ends. Padding is never inferred from ids. Does not depend on the model.

A completion ends with the token that is a stop id or completes a stop string. The string may end anywhere within the token and
stretch over any number of tokens. What decides it is the finite automaton of Aho and Corasick (1975) over the strings' bytes,
driven a token at a time: its state is one integer a sequence and its table is a tensor, so a search can look ahead over the
whole vocabulary without leaving the device.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Rust
from torch import Tensor

from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import read_object

EOS = "<eos>"                   # of a tokenizer trained here; its id is 0
MAX_IDS = 2**22                 # of a tokenizer: far beyond any, as lists of that length are made


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer file, and the stop ids: any that were given, and the model's own (``eos_token_id``)."""

    rust: Rust
    stop_ids: tuple[int, ...]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a prompt. With ``special``, BOS and the like are added as the file's own post-processor says."""
        return self.rust.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text without special tokens and without stop ids: in some files the token that ends a turn is an ordinary one."""
        return self.rust.decode([token for token in ids if token not in self.stop_ids], skip_special_tokens=True)

    def added_token(self, text: str) -> int | None:
        """The id of the added token ``text``; None where the tokenizer cuts it up like other text."""
        return next((token for token, added in self.rust.get_added_tokens_decoder().items() if added.content == text), None)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id adds to a text, for the stopping automaton; special tokens add none."""
        spec, vocabulary = json.loads(self.rust.to_str()), self.rust.get_vocab(with_added_tokens=True)
        special = {token["id"] for token in spec["added_tokens"] if token["special"]}
        decoders = spec.get("decoder") or {}
        kinds = {part["type"] for part in decoders.get("decoders", [decoders]) if part}
        piece = _byte_level if "ByteLevel" in kinds else _sentencepiece
        out = [b""] * (max(vocabulary.values()) + 1)            # not its length: some vocabularies have holes
        for text, token in vocabulary.items():
            if token not in special:
                out[token] = piece(text)
        return out


def load_tokenizer(folder: Path, stop_ids: tuple[int, ...] = ()) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder. Stop ids are those given, then those of config.json and
    generation_config.json.

    ``UserError`` that names the file where tokenizer.json is missing or broken.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json")
    try:
        rust = Rust.from_file(str(path))
    except Exception as error:                                  # the Rust library raises nothing more specific
        raise UserError(f"{path} is not a tokenizer file: {str(error)[:120]!r}") from None
    ids = Counter(rust.get_vocab(with_added_tokens=True).values())
    if not ids or max(ids) >= MAX_IDS or max(ids.values()) > 1:
        raise UserError(f"{path}: expected a token or more, each with an id of its own below {MAX_IDS:,}, got "
                         f"{len(ids):,} ids up to {max(ids, default=0):,}")
    rust.no_truncation()                                        # a file may have been saved with either switched on
    rust.no_padding()
    stopping = dict.fromkeys(stop_ids)
    for file in (folder / "config.json", folder / "generation_config.json"):
        named = read_object(file, {}).get("eos_token_id") if file.is_file() else None
        eos: list = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(token) is int and token >= 0 for token in eos):
            raise UserError(f"{file}: eos_token_id must be an id or a list of ids, got {eos!r:.80}")
        stopping |= dict.fromkeys(eos)
    return Tokenizer(rust, tuple(stopping))


def train_bpe(texts: Iterable[str], size: int) -> Rust:
    """A byte-level BPE of at most ``size`` ids from ``texts``. Id 0 is ``<eos>``; every byte has a token.

    A word (letters, digits, underscores) and a run of other signs, each with the space before it, never become one token.
    """
    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\w+| ?[^\s\w]+|\s"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    rust.decoder = decoders.ByteLevel()
    rust.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[EOS], show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return rust


# The printable characters by which byte-level BPE files write the 256 bytes: printable Latin-1 stands for itself, the rest
# for code points from 256 on, in order.
_SIGNS = sorted(pre_tokenizers.ByteLevel.alphabet())
_ALPHABET = dict(zip(_SIGNS, sorted(range(256), key=lambda byte: chr(byte) not in _SIGNS)))


def _byte_level(piece: str) -> bytes:
    if not _ALPHABET.keys() >= set(piece):                      # an added token such as four spaces is written as it is
        return piece.encode()
    return bytes(_ALPHABET[char] for char in piece)


def _sentencepiece(piece: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):               # byte fallback: <0x3B>
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ").encode()


# --------------------------------------------------------------------------------------------- the end of a completion
@dataclass(frozen=True, eq=False)
class Stopping:
    """``next_UV``: the state after a token; state 0 is the start, the last (U − 1) is "ended". ``ends_UV``: the token ends
    it."""

    next_UV: Tensor
    ends_UV: Tensor

    def to(self, device: torch.device) -> "Stopping":
        return Stopping(self.next_UV.to(device), self.ends_UV.to(device))


def compile_stopping(token_bytes: Sequence[bytes], stop_ids: Sequence[int], stop_strings: Sequence[str]) -> Stopping:
    """The automaton of a vocabulary (``token_bytes[id]``: what the token adds to the text; special tokens add nothing).

    >>> vocabulary = [b"<eos>", b"a", b"ab", b"b;"]
    >>> stopping = compile_stopping([b"", *vocabulary[1:]], stop_ids=[0], stop_strings=["aab"])
    >>> state = 0
    >>> for token in (1, 1, 2):                 # "a", "a", "ab": the third token completes "aab"
    ...     ended, state = bool(stopping.ends_UV[state, token]), int(stopping.next_UV[state, token])
    >>> ended, bool(stopping.ends_UV[0, 0]), bool(stopping.ends_UV[0, 2])
    (True, True, False)
    """
    prefixes = sorted({text.encode()[:i] for text in stop_strings for i in range(len(text.encode()))} | {b""}, key=len)
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    needles, ended = tuple(text.encode() for text in stop_strings), len(prefixes)
    if b"" in needles:
        raise UserError("a stop string is empty: every completion would end before it began")

    def after(seen: bytes, added: bytes) -> int:
        """The state when ``added`` follows a text whose longest tail that begins a stop string is ``seen``."""
        text = seen + added
        if any(needle in text for needle in needles):
            return ended
        return next(number[text[start:]] for start in range(len(text) + 1) if text[start:] in number)

    next_UV = torch.zeros(ended + 1, len(token_bytes), dtype=torch.long)
    relevant, beginning = {byte for needle in needles for byte in needle}, defaultdict(list)
    for token, added in enumerate(token_bytes):
        beginning[added[:1]].append(token)
        if not relevant.isdisjoint(added):                      # any other token leaves state 0 as it is
            next_UV[0, token] = after(b"", added)
    for seen, state in list(number.items())[1:]:                # shortest first: the row of its longest tail is done
        tail = next(number[seen[start:]] for start in range(1, len(seen) + 1) if seen[start:] in number)
        next_UV[state] = next_UV[tail]                          # as its tail's, except for tokens that continue it
        for following in {needle[len(seen):][:1] for needle in needles if needle.startswith(seen)} | {b""}:
            for token in beginning[following]:
                next_UV[state, token] = after(seen, token_bytes[token])
    next_UV[:, list(stop_ids)] = ended
    next_UV[ended] = ended
    return Stopping(next_UV, next_UV == ended)
