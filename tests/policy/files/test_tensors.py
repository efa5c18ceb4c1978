"""Safetensors files: what is read, what is refused and in which words."""

import pytest
import torch

from tests.policy.helpers import load, refusal


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(copy_of, keep):
    file = copy_of() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:int(keep * file.stat().st_size)])
    assert f"{file} is not a whole safetensors file" in refusal(load, file.parent)


@pytest.mark.parametrize("dtype, name", [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_weights_that_are_no_plain_floats_are_refused(copy_of, dtype, name):
    """Cast, they would be numbers that nobody trained: an integer's, or those of a scale that stands elsewhere."""
    folder = copy_of(lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)}))
    assert refusal(load, folder) == (f"{folder}/model.safetensors: tensor model.norm.weight is of {name}; only F64, F32, F16, "
                                     "BF16 are read")
