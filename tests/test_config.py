"""config.py: strict in every way a config can be wrong, with one sentence each."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from minigrpo.config import SECTIONS, dump_config, load_config, require

ROOT = Path(__file__).parent.parent
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
    ("", "completions=2", "--set: there is no key completions; the nearest is generation.completions"),
    ("", "generation.completions", "--set generation.completions: expected section.key=value"),
    ("", "generation.completions=two", "--set: generation.completions: expected an integer, got 'two'"),
    ("", "generation.completions=0", "--set: generation.completions: expected an integer ≥ 1, got 0"),
    ("", "generation.completions=true", "--set: generation.completions: expected an integer, got True"),
    ("", "generation.early_stopping=1", "--set: generation.early_stopping: expected true or false, got 1"),
    ("", "grpo.clip_low=1.5", "--set: grpo.clip_low: expected a number ≥ 0 and ≤ 1, got 1.5"),
    ("", "grpo.max_grad_norm=0", "--set: grpo.max_grad_norm: expected a number > 0, got 0.0"),
    ("", "grpo.learning_rate=inf", "--set: grpo.learning_rate: expected a number, got inf"),
    ("", "grpo.learning_rate=nan", "--set: grpo.learning_rate: expected a number, got nan"),
    ("", "generation.method=beams", "--set: generation.method: expected one of beam, sample, got 'beams'"),
    ("", "database.engine=postgres", "--set: database.engine: expected one of mariadb, sqlite, mock, got 'postgres'"),
    ("", "lora.targets=q_proj", "--set: lora.targets: expected a list of strings, got 'q_proj'"),
])
def test_one_sentence_for_what_is_wrong(tmp_path, line, override, sentence):
    file = write(tmp_path, GOOD + line)
    with pytest.raises(ValueError) as caught:
        load_config(file, [override] if override else [])
    assert str(caught.value) == sentence.format(file=file)


def test_what_has_no_default_is_asked_for_by_those_who_need_it(tmp_path):
    config = load_config(write(tmp_path, '[model]\npath = "m"\n'))
    require(config, "model.path")
    with pytest.raises(ValueError, match="^run.out is missing: folder for metrics, samples and checkpoints$"):
        require(config, "model.path", "run.out")


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ValueError, match="nowhere.toml: No such file or directory"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match="c.toml is not valid TOML: "):
        load_config(write(tmp_path, "[model\n"))
    with pytest.raises(ValueError, match="c.toml is not valid TOML: "):
        load_config(write(tmp_path, "[run]\nsteps = 1\nsteps = 2\n"))
    with pytest.raises(ValueError, match="c.toml: steps stands outside any"):
        load_config(write(tmp_path, "steps = 1\n"))


def test_the_resolved_config_reads_back_equal(tmp_path):
    config = load_config(write(tmp_path, GOOD), ['task.path=q"uote \\ é', "grpo.learning_rate=3e-7"])
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_every_key_is_documented_and_its_default_is_in_its_own_range():
    for section, cls in SECTIONS.items():
        for spec in dataclasses.fields(cls):
            assert spec.metadata["doc"], f"{section}.{spec.name}"
            low, above, high, choices = (spec.metadata[name] for name in ("low", "above", "high", "choices"))
            assert above is None or spec.default > above, f"{section}.{spec.name}"
            assert low is None or spec.default >= low, f"{section}.{spec.name}"
            assert high is None or spec.default <= high, f"{section}.{spec.name}"
            assert not choices or spec.default in choices, f"{section}.{spec.name}"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.stem)
def test_the_configs_we_ship_load(file):
    load_config(file)


def test_the_manual_in_the_readme_is_the_code():
    rows = [f"| `{section}.{spec.name}` | `{json.dumps(spec.default)}` | {spec.metadata['doc']} |"
            for section, cls in SECTIONS.items() for spec in dataclasses.fields(cls)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in readme if re.match(r"\| `[a-z]+\.", line)] == rows
