"""settings.py: TOML and overrides become dataclasses, or one sentence says what is wrong. On sections of the test's own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from minigrpo.common.errors import UserError
from minigrpo.common.settings import build, dump, flatten, key, leaves, read_values, sections_of
from minigrpo.config import dump_config, load_config


@dataclass(frozen=True)
class Filling:
    fruit: str = key("apple", "which")
    pieces: int = key(8, "how many", low=2)


@dataclass(frozen=True)
class Cake:
    filling: Filling
    name: str = key("", "on top")
    sugar: float = key(0.5, "share", low=0, high=1)
    candles: int = key(3, "lit", low=1)
    guests: tuple[str, ...] = key((), "by name")


@dataclass(frozen=True)
class Oven:
    heat: float = key(180.0, "in °C", above=0)
    fan: bool = key(False, "on or off")
    rack: Literal["top", "middle"] = key("middle", "where it stands")


@dataclass(frozen=True)
class Kitchen:
    cake: Cake
    oven: Oven


KEYS = leaves(Kitchen)
CAKE = '[cake]\nname = "Ada"\n'
TOO_MUCH = "expected at most 1,048,576 bytes, and 100 dots in a line"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "c.toml"
    file.write_text(text, encoding="utf-8")
    return file


def read(file: Path, overrides: tuple[str, ...] = ()) -> Kitchen:
    return build(Kitchen, read_values(file, overrides, KEYS))


def refusal(file: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        read(file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_and_sections_are_those_of_the_dataclasses_in_order():
    """A section within a section stands where its field is."""
    assert list(KEYS) == ["cake.filling.fruit", "cake.filling.pieces", "cake.name", "cake.sugar", "cake.candles",
                          "cake.guests", "oven.heat", "oven.fan", "oven.rack"]
    assert sections_of(KEYS) == ("cake.filling", "cake", "oven")
    assert KEYS["oven.heat"].metadata == {"doc": "in °C", "low": None, "above": 0, "high": None}


def test_the_file_goes_over_the_defaults_and_the_command_line_over_the_file(tmp_path):
    file = write(tmp_path, CAKE + "sugar = 0.25\ncandles = 7\n")
    cake = read(file, ("cake.candles=9", " cake.guests = ['Bo', 'Cy'] ")).cake
    assert cake == Cake(Filling("apple", 8), "Ada", 0.25, 9, ("Bo", "Cy"))
    assert read(write(tmp_path, "")) == Kitchen(Cake(Filling()), Oven())


def test_a_bare_word_needs_no_quotes_and_an_integer_is_a_float_where_one_is_expected(tmp_path):
    kitchen = read(write(tmp_path, "[oven]\nheat = 200\n"), ("cake.name=two words", "cake.sugar=1", "oven.fan=true"))
    assert kitchen.cake.name == "two words" and kitchen.oven.fan is True
    assert (kitchen.oven.heat, kitchen.cake.sugar) == (200.0, 1.0)
    assert type(kitchen.oven.heat) is type(kitchen.cake.sugar) is float
    # In quotes it stays a text, whatever it looks like; a text may have the sign that divides key and value.
    assert [read(write(tmp_path, ""), (f"cake.name={text}",)).cake.name for text in ('"3"', "a=b")] == ["3", "a=b"]


@pytest.mark.parametrize("text, sentence", [
    ("[cake]\ncandels = 2", "there is no key cake.candels; the nearest is cake.candles"),
    ("[ckae]\ncandles = 2", "there is no key ckae.candles; the nearest is cake.candles"),
    ("[cake.filling]\nfriut = 'x'", "there is no key cake.filling.friut; the nearest is cake.filling.fruit"),
    ("[cake.filling]\npieces = 1", "cake.filling.pieces: expected an integer ≥ 2, got 1"),
    ("[cake.filling.cream]\nfat = 8", "there is no key cake.filling.cream; the nearest is cake.filling.fruit"),
    ("[oven.filling]\nfruit = 'x'", "there is no key oven.filling; the nearest is oven.fan"),
    ("[cake.candles]\nfruit = 'x'", "cake.candles: expected an integer, got {'fruit': 'x'}"),
    ("[filling]\nfruit = 'x'", "there is no key filling.fruit; the nearest is cake.filling.fruit"),
    ('[cake]\n"sugar\\n" = 1', "there is no key cake.sugar\\n; the nearest is cake.sugar"),
    ("[oven]\nheat = 1" + 400 * "0", "oven.heat: expected a number, got 1" + 79 * "0"),
    ("[kitchen]\n", "there is no section [kitchen]; the sections are cake.filling, cake, oven"),
    ("candles = 1\n", "candles stands outside any [section]"),
])
def test_one_sentence_for_what_is_wrong_in_a_file(tmp_path, text, sentence):
    file = write(tmp_path, text)
    assert refusal(file) == f"{file}: {sentence}"


@pytest.mark.parametrize("override, sentence", [
    ("candles=2", ": there is no key candles; the nearest is cake.candles"),
    ("cake.candles", " cake.candles: expected section.key=value"),
    ("cake.candles=two", ": cake.candles: expected an integer, got 'two'"),
    ("cake.candles=0", ": cake.candles: expected an integer ≥ 1, got 0"),
    ("cake.candles=true", ": cake.candles: expected an integer, got True"),
    ("cake.candles=8.0", ": cake.candles: expected an integer, got 8.0"),
    ("cake.name=3", ": cake.name: expected a string, got 3"),
    ("oven.fan=1", ": oven.fan: expected true or false, got 1"),
    ("oven.heat=0", ": oven.heat: expected a number > 0, got 0.0"),
    ("oven.heat=inf", ": oven.heat: expected a number, got inf"),
    ("oven.heat=nan", ": oven.heat: expected a number, got nan"),
    ("cake.sugar=1.5", ": cake.sugar: expected a number ≥ 0 and ≤ 1, got 1.5"),
    ("oven.rack=floor", ": oven.rack: expected one of top, middle, got 'floor'"),
    ("oven.rack=1", ": oven.rack: expected a string, got 1"),
    ("cake.guests=Bo", ": cake.guests: expected a list of strings, got 'Bo'"),
    ("cake.guests=[1]", ": cake.guests: expected a list of strings, got [1]"),
    ("cake.filling.friut=x", ": there is no key cake.filling.friut; the nearest is cake.filling.fruit"),
])
def test_one_sentence_for_what_is_wrong_on_the_command_line(tmp_path, override, sentence):
    assert refusal(write(tmp_path, CAKE), (override,)) == f"--set{sentence}"


def test_an_integer_too_long_for_python_to_write_out_is_refused_too(tmp_path):
    for dotted, kind in (("oven.heat", "a number"), ("cake.name", "a string")):
        assert refusal(write(tmp_path, CAKE), (f"{dotted}=0x{4000 * 'f'}",)) == (
            f"--set: {dotted}: expected {kind}, got an integer of more digits than can be shown")


def test_an_integer_that_could_not_be_written_to_a_config_again_is_refused(tmp_path):
    """``run.seed`` has no upper limit of its own. 100 digits are written and read back; 101 are refused."""
    cfg = load_config(write(tmp_path, ""), [f"run.seed={'9' * 100}"])
    assert load_config(write(tmp_path, dump_config(cfg))) == cfg
    for seed in ("1" + "0" * 100, f"0x{4000 * 'f'}"):
        with pytest.raises(UserError, match="^--set: run.seed: expected an integer of at most 100 digits, got "):
            load_config(write(tmp_path, ""), [f"run.seed={seed}"])


def test_limits_are_in_the_range_and_what_is_above_a_bound_is_not_the_bound(tmp_path):
    for value in ("0", "1", "0.0", "1e0"):
        assert read(write(tmp_path, f"[cake]\nsugar = {value}\n")).cake.sugar == float(value)
    assert read(write(tmp_path, "[oven]\nheat = 1e-300\n")).oven.heat == 1e-300


@pytest.mark.parametrize("text, wrong", [
    ("[cake]\nname = " + 9999 * "[", "maximum recursion depth exceeded"),
    ("[cake]\n" + 101 * "a." + "a = 1", TOO_MUCH), ("#" * (2**20 + 1), TOO_MUCH),
    ("[cake\n", "Expected ']'"), ("[oven]\nheat = 1\nheat = 1\n", "Cannot overwrite a value")],
    ids=["deep", "dots", "long", "open", "twice"])
def test_what_is_no_toml_or_would_take_forever_to_read_is_refused(tmp_path, text, wrong):
    file = write(tmp_path, text)
    assert refusal(file).startswith(f"{file} is not valid TOML: {wrong}") and len(refusal(file)) < len(f"{file}") + 150


def test_a_file_may_be_as_long_as_the_limit(tmp_path):
    assert read(write(tmp_path, "#" * 2**20)) == Kitchen(Cake(Filling()), Oven())
    deep = write(tmp_path, "[cake]\n" + 100 * "a." + "a = 1")
    assert refusal(deep) == f"{deep}: there is no key cake.a; the nearest is cake.name"


def test_files_that_are_not_there_or_no_text(tmp_path):
    assert refusal(tmp_path / "nowhere.toml") == f"{tmp_path}/nowhere.toml: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory"
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    assert refusal(tmp_path / "c.toml").startswith(f"{tmp_path}/c.toml is not valid TOML: ")


@pytest.mark.parametrize("where", ["file", "--set"])
def test_a_value_where_a_section_is_expected_is_one_sentence(tmp_path, where):
    """As [cake] with "filling = 3", or from the command line."""
    file = write(tmp_path, CAKE + ("filling = 3\n" if where == "file" else ""))
    message = refusal(file, ("cake.filling=3",) if where == "--set" else ())
    assert re.fullmatch(f"{file if where == 'file' else '--set'}: .*\\bcake.filling\\b.*", message)
    assert "cake.filling." in message                       # a key that is there


def test_a_section_within_a_section(tmp_path):
    """As [cake.filling], inline, or in dotted keys; the rest of it, and of [cake], keeps its defaults."""
    for text in ("[cake.filling]\npieces = 4\n[cake]\nname = 'Ada'\n",
                 "[cake]\nname = 'Ada'\nfilling = {pieces = 4}\n",
                 "[cake]\nname = 'Ada'\nfilling.pieces = 4\n",
                 "cake.name = 'Ada'\ncake.filling = {pieces = 4}\n"):
        assert read(write(tmp_path, text)).cake == Cake(Filling("apple", 4), "Ada")
    file = write(tmp_path, "[cake.filling]\npieces = 4\n")
    assert read(file, ("cake.filling.pieces=6", "cake.filling.fruit=pear")).cake.filling == Filling("pear", 6)
    assert read(write(tmp_path, "[cake.filling]\n")).cake.filling == Filling()


def test_what_is_dumped_reads_back_equal(tmp_path):
    """Also what has to be escaped, and numbers to the last bit. A key behind [cake.filling] would be one of its own."""
    kitchen = Kitchen(Cake(Filling('q"uote \\ é', 4), "line\nend", 0.1 + 0.2, 1, ("a", 'b"c')), Oven(3e-7, True, "top"))
    text = dump(flatten(kitchen, KEYS))
    assert read(write(tmp_path, text)) == kitchen and dump(flatten(read(tmp_path / "c.toml"), KEYS)) == text
    assert text.index("[cake.filling]") < text.index("pieces =") < text.index("[cake]") < text.index("name =")
