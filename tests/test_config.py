"""config.py: the keys, their defaults and ranges, and that the manual says the same. How a file is read: test_settings.py."""

import json
import re
from dataclasses import Field
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from minigrpo import grpo
from minigrpo.config import KEYS, NewModel, dump_config, flatten, load_config, require
from tests.paths import ROOT

GOOD = '[model]\npath = "m"\n[run]\nout = "o"\n'


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "c.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_overrides_and_their_order(tmp_path):
    file = write(tmp_path, GOOD + "seed = 3\nsteps = 7\n")
    config = load_config(file, ["run.steps=9", "grpo.learning_rate=1", "task.path=a b", 'generation.stop_strings=["x"]'])
    assert (config.run.seed, config.run.steps) == (3, 9)                # the file, then the command line
    assert config.grpo.learning_rate == 1.0 and type(config.grpo.learning_rate) is float
    assert config.task.path == "a b"                                    # a bare word needs no quotes
    assert config.generation.stop_strings == ("x",)
    assert config.generation.completions == 2                           # the paper's K, from the default


@pytest.mark.parametrize("line, override, sentence", [
    ("[generation]\ncomplections = 2", None, "{file}: there is no key generation.complections; "
                                             "the nearest is generation.completions"),
    ("[gnration]\ncompletions = 2", None, "{file}: there is no key gnration.completions; the nearest is "
                                          "generation.completions"),
    ("", "generation.completions=0", "--set: generation.completions: expected an integer ≥ 1, got 0"),
    ("", "generation.early_stopping=1", "--set: generation.early_stopping: expected true or false, got 1"),
    ("", "grpo.clip_low=1.5", "--set: grpo.clip_low: expected a number ≥ 0 and ≤ 1, got 1.5"),
    ("", "grpo.max_grad_norm=0", "--set: grpo.max_grad_norm: expected a number > 0, got 0.0"),
    ("", "generation.method=beams", "--set: generation.method: expected one of beam, sample, got 'beams'"),
    ("", "database.engine=postgres", "--set: database.engine: expected one of mariadb, sqlite, mock, got 'postgres'"),
    ("", "lora.targets=q_proj", "--set: lora.targets: expected a list of strings, got 'q_proj'"),
    ("[model.new]\nwdth = 8", None, "{file}: there is no key model.new.wdth; the nearest is model.new.width"),
    ("", "model.new.wdth=8", "--set: there is no key model.new.wdth; the nearest is model.new.width"),
    ("[model.new]\nvocabulary = 256", None, "{file}: model.new.vocabulary: expected an integer ≥ 257, got 256"),
])
def test_one_sentence_for_what_is_wrong(tmp_path, line, override, sentence):
    file = write(tmp_path, GOOD + line)
    with pytest.raises(ValueError) as caught:
        load_config(file, [override] if override else [])
    assert str(caught.value) == sentence.format(file=file)


def test_a_section_within_a_section(tmp_path):
    """The rest of [model.new], and of [model], keeps its defaults."""
    config = load_config(write(tmp_path, "[model.new]\nwidth = 8\nheads = 2\n[model]\npath = 'new'\n"))
    assert (config.model.path, config.model.device, config.model.new) == ("new", "auto", NewModel(width=8, heads=2))
    assert load_config(write(tmp_path, GOOD)).model.new == NewModel()
    assert load_config(write(tmp_path, "[model.new]\n")).model.new == NewModel()


def test_a_section_within_a_section_from_the_command_line(tmp_path):
    file = write(tmp_path, GOOD + "[model.new]\nwidth = 16\nheads = 2\n")
    config = load_config(file, ["model.new.width=8", "model.path=new"])
    assert config.model.new == NewModel(width=8, heads=2) and config.model.path == "new"
    assert flatten(config)["model.new.width"] == 8
    require(config, "model.new.width")


def test_what_has_no_default_is_asked_for_by_those_who_need_it(tmp_path):
    config = load_config(write(tmp_path, '[model]\npath = "m"\n'))
    require(config, "model.path")
    with pytest.raises(ValueError, match="^run.out is missing: folder for metrics, samples and checkpoints$"):
        require(config, "model.path", "run.out")


def test_the_resolved_config_reads_back_equal(tmp_path):
    config = load_config(write(tmp_path, GOOD), ['task.path=q"uote \\ é', "grpo.learning_rate=3e-7", "model.new.width=8",
                                                 'evaluation.report=["a", "b\\"c"]', "model.adapter=x"])
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config and dump_config(load_config(tmp_path / "c.toml")) == text
    # A key after [model.new] would be one of model.new's: what [model] has of its own stands before.
    assert text.index("[model]") < text.index("adapter =") < text.index("[model.new]") < text.index("width = 8")


def test_every_key_is_documented_and_its_default_is_in_its_own_range():
    for dotted, spec in KEYS.items():
        assert spec.metadata["doc"], dotted
        low, above, high = (spec.metadata[name] for name in ("low", "above", "high"))
        assert above is None or spec.default > above, dotted
        assert low is None or spec.default >= low, dotted
        assert high is None or spec.default <= high, dotted
        assert get_origin(spec.type) is not Literal or spec.default in get_args(spec.type), dotted


@pytest.mark.parametrize("file", [*sorted((ROOT / "configs").glob("*.toml")), ROOT / "tests/data/shop/shop.toml"],
                         ids=lambda file: file.stem)
def test_the_configs_we_ship_load(file):
    load_config(file)


def test_a_config_offers_the_estimators_and_means_that_the_loss_has():
    """The config does not import the loss, so the names stand in both."""
    assert get_args(KEYS["grpo.kl_estimator"].type) == get_args(grpo.LossEstimator)
    assert get_args(KEYS["grpo.aggregation"].type) == get_args(grpo.Aggregation)


def values(spec: Field) -> str:
    """What a key takes besides its type: one of some words, or a range; empty if anything of the type will do."""
    if get_origin(spec.type) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(spec.type))
    signs = {"low": "≥", "above": ">", "high": "≤"}
    return ", ".join(f"{sign} {spec.metadata[name]}" for name, sign in signs.items() if spec.metadata[name] is not None)


def test_the_config_manual_is_the_code():
    rows = [f"| `{dotted}` | `{json.dumps(spec.default)}` | {values(spec)} | {spec.metadata['doc']} |"
            for dotted, spec in KEYS.items()]
    manual = (ROOT / "configs/README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in manual if re.match(r"\| `[a-z]+\.", line)] == rows, "expected:\n" + "\n".join(rows)
