"""A step that is replayed does what calling it would do."""

import pytest
import torch

from minigrpo.policy.fast.replay import Replay


def test_without_a_device_that_records_a_replay_is_a_call():
    calls = []
    replay = Replay(torch.device("cpu"))
    for shape in (1, 1, 2, 1):
        replay(lambda: calls.append(1), shape)
    assert len(calls) == 4 and not replay.records


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_step_is_called_twice_for_each_shape_and_replayed_from_then_on():
    """x ← 2 x + 1 from 0, seven times over two shapes: 127, whichever of the seven were replayed. Python sees the first call of a
    shape and the recording of its second. Another step of the same shape is another graph: 127 → 126, 125, 124."""
    x, calls = torch.zeros(1, device="cuda"), []

    def step():
        calls.append(1)
        x.mul_(2).add_(1)

    def down():
        x.sub_(1)

    replay = Replay(x.device)
    for shape in (1, 1, 2, 1, 2, 2, 1):
        replay(step, shape)
    assert x.item() == 127 and len(calls) == 4
    for expected in (126, 125, 124):
        replay(down, 1)
        assert x.item() == expected
