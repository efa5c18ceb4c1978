"""Keys and values that earlier calls have computed. Does not depend on the model."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]              # of one layer, each [Q, M, S, H]


class LayerCache(NamedTuple):
    """One layer's keys and values, [Q, M, S, H], as a call sees them: it writes its T tokens to ``slots_T`` and attends over
    the first ``stop`` slots."""

    keys: Tensor
    values: Tensor
    slots_T: Tensor
    stop: int

    def write(self, key_QMTH: Tensor, value_QMTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values; return those of all slots that it attends over."""
        self.keys.index_copy_(2, self.slots_T, key_QMTH)
        self.values.index_copy_(2, self.slots_T, value_QMTH)
        return self.keys[:, :, :self.stop], self.values[:, :, :self.stop]


@dataclass
class KVCache:
    """Keys and values of all layers. They start at zero: a slot that nobody has written is masked, and so multiplied by zero.

    ``slots_T`` and ``stop`` are set before each call; ``next`` does it for plain causal use. The place that a call writes to
    is a tensor, so that a recorded call can be replayed at another place.
    """

    keys: list[Tensor]
    values: list[Tensor]
    slots_T: Tensor
    stop: int = 0

    @classmethod
    def empty(cls, *, layers: int, groups: int, kv_heads: int, slots: int, head_size: int, dtype: torch.dtype,
              device: torch.device | str) -> "KVCache":
        keys, values = ([torch.zeros(groups, kv_heads, slots, head_size, dtype=dtype, device=device) for _ in range(layers)]
                        for _ in range(2))
        return cls(keys, values, torch.zeros(0, dtype=torch.long, device=device))

    def next(self, tokens: int) -> None:
        """The next call writes the ``tokens`` slots behind those in use."""
        self.slots_T = torch.arange(self.stop, self.stop + tokens, device=self.slots_T.device)
        self.stop += tokens

    def clear(self) -> None:
        self.stop = 0
        for tensor in (*self.keys, *self.values):
            tensor.zero_()

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self.keys[index], self.values[index], self.slots_T, self.stop)
