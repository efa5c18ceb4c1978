"""The command ``python -m tests.fuzz``: some of its cases, thousands where there is time; and that it would see a fault."""

import json
import os
import pickle
import time

import pytest

from minigrpo.common.errors import UserError
from minigrpo.config import load_config
from tests import fuzz
from tests.quick import rest_slow


@pytest.mark.parametrize("cases", rest_slow([108, 4000]))
def test_files_that_lie_are_read_right_or_refused_by_one_sentence(cases):
    results = fuzz.fuzz(fuzz.names_of(cases, seed=1))
    assert not {name: why for result in results.values() for name, why in result.failures.items()}
    assert results.keys() >= fuzz.KINDS.keys()
    for name in fuzz.KINDS:                             # lies that all were found out, or none, would have tried nothing
        assert 0 < results[name].refused < results[name].cases or cases < 1000, name


@pytest.mark.parametrize("base", fuzz.KINDS)
def test_a_file_that_does_not_lie_is_read(tmp_path, base):
    """Every kind's own files, unbent: else the command would only ever see refusals."""
    fuzz.write_bases(tmp_path)
    kind = fuzz.KINDS[base]
    folder = tmp_path / kind.base
    if kind.base == "tokenizers":
        folder = folder / "unigram"
    assert repr(kind.read(folder)) == repr(kind.read(folder))


def test_an_integer_with_more_digits_than_python_writes_out_is_one_sentence(tmp_path):
    """TOML reads 0xfff...; Python refuses to write such a number in decimal digits."""
    file = tmp_path / "config.toml"
    for value in ("0x" + "f" * 5000, "[0x" + "f" * 5000 + "]"):
        file.write_text(f"[task]\npath = {value}\n")
        with pytest.raises(UserError, match="task.path: expected a string, got an integer of more digits than can be shown$"):
            load_config(file)


class Opens:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_pickled_weights_are_not_opened(tmp_path, monkeypatch):
    """A file that makes a folder when it is unpickled, under every name that weights have: it makes none."""
    monkeypatch.chdir(tmp_path)
    fuzz.write_bases(tmp_path)
    folder = tmp_path / "adapter"
    for name, read in (("adapter/adapter_model.safetensors", fuzz.read_adapter), ("model.safetensors", fuzz.read_policy),
                       ("tokenizer.json", fuzz.read_tokenizer), ("config.json", fuzz.read_policy)):
        (folder / name).write_bytes(pickle.dumps(Opens()))
        with pytest.raises(ValueError):
            read(folder)
    (folder / "config.json").write_bytes((tmp_path / "model" / "config.json").read_bytes())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        fuzz.read_model(folder)
    assert not (tmp_path / "opened").exists()


# ------------------------------------------------------------------------------------------------- what it is to find out
def crash(folder):
    os.abort()


def hang(folder):
    time.sleep(1000)


def gather(folder):
    return [0] * 2**25 and None                         # 256 MB: more than any process has lying about to use again


def ramble(folder):
    raise ValueError("one\ntwo")


def talk(folder):
    raise ValueError("x" * 401)


def escape(folder):
    raise json.JSONDecodeError("a library's own", "", 0)


def forget(folder, found=[]):
    found.append(0)
    return len(found)


@pytest.mark.parametrize("read, why", [
    (crash, "the process died: -6"), pytest.param(hang, "still at it after 2 seconds", marks=pytest.mark.slow), (gather, "MB; "), (ramble, "'one\\ntwo'"),
    (talk, "401 long"), (escape, "JSONDecodeError"), (forget, "read twice, it is not the same"), (dict(a=1).pop, "KeyError")])
def test_a_fault_is_found_and_the_next_case_is_run(monkeypatch, read, why):
    monkeypatch.setattr(fuzz, "HANGS", 2.0)
    monkeypatch.setattr(fuzz, "ROOM", 2**24)
    kinds = {"odd": fuzz.Kind("context", ("context",), fuzz.bent_bytes, read),
             "fine": fuzz.Kind("context", ("context",), fuzz.bent_bytes, lambda folder: None)}
    monkeypatch.setattr(fuzz, "KINDS", kinds)
    results = fuzz.fuzz(["odd/0/0", "fine/0/0"])
    assert why in results["odd"].failures["odd/0/0"] and results["fine"].loaded == 1


def test_a_case_is_the_same_again(tmp_path):
    fuzz.write_bases(tmp_path)
    found = []
    for number in (3, 4, 3):
        fuzz.prepare(f"safetensors/5/{number}", tmp_path, tmp_path / "case")
        found.append((tmp_path / "case" / "model.safetensors").read_bytes())
    assert found[0] == found[2] != found[1]
