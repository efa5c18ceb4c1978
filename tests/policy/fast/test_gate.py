"""The recomputed product: the same gradients, and the memory that it saves."""

import copy

import pytest
import torch

from minigrpo.planning.memory import Alive
from minigrpo.policy.lora import add_lora
from minigrpo.policy.model import MLP
from tests.policy.helpers import gradients, random_ids


def test_the_recomputed_product_changes_no_bit_of_the_gradients(trained, monkeypatch):
    """The product of gate and up projection is not kept for the backward pass; keeping it gives the same gradients."""
    model, work = trained
    made_again = gradients(model, *work)
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, checkpointed: forward(self, x, True))
    kept = gradients(model, *work)
    assert all(kept[name].equal(made_again[name]) for name in kept)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_product_of_gate_and_up_is_kept_by_nobody(pair, checkpointing):
    """An MLP 64 times as wide as the model: what a layer keeps is measured in tensors of that width, [T, inner]. Gate, its
    activation and up are three; all else is small. With checkpointing a layer keeps its input, 1/64 of one."""
    model = copy.deepcopy(pair("gemma", intermediate_size=64 * 32, num_hidden_layers=4)[0])
    add_lora(model, rank=1, alpha=1.0, generator=torch.Generator().manual_seed(0))
    model.checkpointing, ids_QT = checkpointing, random_ids(2, 64)
    unit = 2 * 64 * 64 * 32 * 4
    with Alive() as alive:
        with torch.no_grad():
            model(ids_QT)                               # from now on the weights are known to have been there before
        before = alive.now
        hidden_QTD = model(ids_QT)
        kept = (alive.now - before) / unit
        hidden_QTD.sum().backward()
    if checkpointing:
        assert kept < 0.5
    else:
        assert 4 * 3 <= kept < 4 * 3.6
