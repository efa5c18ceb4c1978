"""Devices, dtypes, and generators that depend on (seed, step, purpose) alone."""


import pytest
import torch

from minigrpo.common.device import choose_device, choose_dtype, generator, memory_explained, peak_memory


def draw(*key):
    return torch.rand(4, generator=generator(*key)).tolist()


def test_the_same_key_draws_the_same_whatever_was_drawn_before():
    first = draw(1, 2, "sampling")
    torch.rand(100)
    draw(9, 9, "other")
    assert draw(1, 2, "sampling") == first


def test_seed_step_and_purpose_each_change_the_draws():
    keys = [(1, 2, "sampling"), (2, 2, "sampling"), (1, 3, "sampling"), (1, 2, "adapters"), (2, 1, "sampling"),
            (12, 0, "sampling"), (1, 20, "sampling"), (-1, 2, "sampling")]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_it_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(1, 2, "sampling")
    assert torch.rand(3).equal(expected)


def test_the_seed_is_the_same_on_every_machine_and_in_every_version():
    """A run resumed later depends on it. The first 8 bytes of SHA-256("minigrpo 1 2 sampling"), little end first,
    halved: printf 'minigrpo 1 2 sampling' | sha256sum."""
    assert generator(1, 2, "sampling").initial_seed() == 6435972886773448401


def test_dtypes():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == torch.float32 and choose_dtype("auto", cuda) == torch.bfloat16
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16 and choose_dtype("float32", cuda) == torch.float32


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device() == choose_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}'"):
        choose_device(name)


def test_peak_memory_counts_bytes_and_never_falls():
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(64 * 2 ** 20, dtype=torch.uint8)             # touched, so resident: 64 MiB
    after = peak_memory(torch.device("cpu"))
    assert 10 * 2 ** 20 < before <= after < 64 * 2 ** 30 and block.all()


# -------------------------------------------------------------------------------------------------------------- signals
# ---------------------------------------------------------------------------------------------- memory that is not there
def test_memory_that_is_not_to_be_had_is_explained_with_its_arithmetic():
    """2^59 float32 are 2^61 bytes: 2,305,843,009.21 GB, which this machine's own allocator refuses."""
    with pytest.raises(MemoryError, match=r"^the update does not fit on cpu: 2305843009\.21 GB more were asked for, \d+\.\d\d of "
                                          r"\d+\.\d\d GB are free \(in pieces of any size\): lower a\.key$") as raised:
        with memory_explained(torch.device("cpu"), "the update", "lower a.key"):
            torch.empty(2**59)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_cudas_own_words_are_read_too():
    """As CUDA's allocator writes them (PyTorch 2.11): 1.50 GiB are 1.61 GB."""
    words = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.06 GiB is free."
    with pytest.raises(MemoryError, match="1.61 GB more were asked for"), memory_explained(torch.device("cpu"), "it", "less"):
        raise torch.OutOfMemoryError(words)


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(torch.device("cpu"), "it", "less"):
        raise RuntimeError("shapes do not match")
