"""When a completion ends: stop ids and stop strings as one finite automaton over tokens. Depends on bytes and ids only.

A completion ends with the token that is a stop id or completes a stop string. The string may end anywhere within the token and
stretch over any number of tokens. The automaton is that of Aho and Corasick (1975) over the strings' bytes, driven a token at
a time: its state is one integer a sequence and its table is a tensor, so a search can look ahead over the whole vocabulary
without leaving the device.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigrpo.common.errors import UserError


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
