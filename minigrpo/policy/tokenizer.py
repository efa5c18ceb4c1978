"""tokenizer.json → ids and back, and the stop ids. Padding is never inferred from ids. Does not depend on the model."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Rust

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


def _gpt2_alphabet() -> dict[str, int]:
    """The printable characters by which byte-level BPE files write the 256 bytes: printable Latin-1 stands for itself, the
    rest for code points from 256 on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _gpt2_alphabet()


def _byte_level(piece: str) -> bytes:
    if not _ALPHABET.keys() >= set(piece):                      # an added token such as four spaces is written as it is
        return piece.encode()
    return bytes(_ALPHABET[char] for char in piece)


def _sentencepiece(piece: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):               # byte fallback: <0x3B>
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ").encode()
