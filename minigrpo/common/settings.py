"""TOML → frozen dataclasses, strictly. Does not depend on what the settings mean.

A section of the file is a dataclass, a key one of its fields; the field carries its doc and its range. Anything unknown, of a
wrong type or out of range is one sentence: file, key, what was expected, what was got.
"""

import dataclasses
import difflib
import functools
import json
import math
import operator
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from minigrpo.common.errors import UserError, shown

MAX_FILE_BYTES, MAX_DOTS_A_LINE = 2**20, 100
Keys = Mapping[str, "dataclasses.Field[Any]"]   # "section.key" → the field
Built = TypeVar("Built")


def key(default: Any, doc: str, *, low: float | None = None, above: float | None = None, high: float | None = None) -> Any:
    """A documented field. Numbers are ≥ ``low``, > ``above`` and ≤ ``high``."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "above": above, "high": high})


def leaves(section: Any, prefix: str = "") -> dict[str, "dataclasses.Field[Any]"]:
    """{"section.key": field} of every key; those of a section within a section are "section.inner.key"."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for spec in dataclasses.fields(section):
        name = prefix + spec.name
        found |= leaves(spec.type, f"{name}.") if dataclasses.is_dataclass(spec.type) else {name: spec}
    return found


def sections_of(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(dotted.rpartition(".")[0] for dotted in keys))


def flatten(settings: Any, keys: Keys) -> dict[str, Any]:
    return {dotted: functools.reduce(getattr, dotted.split("."), settings) for dotted in keys}


def read_values(path: str | Path, overrides: Sequence[str], keys: Keys) -> dict[str, Any]:
    """The checked values of a file and of ``section.key=value`` overrides, by "section.key"."""
    values: dict[str, Any] = {}
    for name, section in _read_toml(path).items():
        if not isinstance(section, dict):
            raise UserError(f"{path}: {shown(name)} stands outside any [section]")
        for dotted, value in _dotted(name, section, str(path), sections_of(keys)):
            values[dotted] = _checked(dotted, value, str(path), keys)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected section.key=value")
        values[dotted.strip()] = _checked(dotted.strip(), _parse_value(text.strip()), "--set", keys)
    return values


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        # The parser takes the square of the number of dots in a line.
        if len(text) > MAX_FILE_BYTES or max(line.count(b".") for line in text.split(b"\n")) > MAX_DOTS_A_LINE:
            raise ValueError(f"expected at most {MAX_FILE_BYTES:,} bytes, and {MAX_DOTS_A_LINE} dots in a line")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {shown(str(error))}") from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _dotted(name: str, section: Mapping[str, Any], source: str, sections: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """A TOML table as ("section.key", value) pairs; a table is a section only if there is one of that name."""
    if not section and name not in sections:
        raise UserError(f"{source}: there is no section [{shown(name)}]; the sections are {', '.join(sections)}")
    for key_name, value in section.items():
        dotted = f"{name}.{key_name}"
        if dotted in sections and isinstance(value, dict):
            yield from _dotted(dotted, value, source, sections)
        else:
            yield dotted, value


def build(section: type[Built], values: Mapping[str, Any], prefix: str = "") -> Built:
    """The dataclass ``section`` from the values of its keys; a key that is not given has its default."""
    given: dict[str, Any] = {}
    for spec in dataclasses.fields(section):                # type: ignore[arg-type]    # a type variable is no dataclass
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            given[spec.name] = build(spec.type, values, f"{prefix}{spec.name}.")
        elif prefix + spec.name in values:
            given[spec.name] = values[prefix + spec.name]
    return section(**given)


def _checked(dotted: str, value: Any, source: str, keys: Keys) -> Any:
    """``value`` as the key's type, in its range; an integer is a float if a float is expected."""
    if dotted not in keys:
        nearest = difflib.get_close_matches(dotted[:120], keys, n=1, cutoff=0.0)[0]
        raise UserError(f"{source}: there is no key {shown(dotted)}; the nearest is {nearest}")
    spec, where = keys[dotted], f"{source}: {dotted}"
    kind: Any = str if get_origin(spec.type) is Literal else spec.type
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if get_origin(kind) is tuple:                                   # of strings
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{where}: expected a list of strings, got {_spelt(value)}")
        return tuple(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{where}: expected {_TYPE_NAMES[kind]}, got {_spelt(value)}")
    if get_origin(spec.type) is Literal and value not in get_args(spec.type):
        raise UserError(f"{where}: expected one of {', '.join(get_args(spec.type))}, got {_spelt(value)}")
    limits = [(sign, spec.metadata[name], holds) for sign, name, holds in
              (("≥", "low", operator.ge), (">", "above", operator.gt), ("≤", "high", operator.le))
              if spec.metadata[name] is not None]
    if not all(holds(value, bound) for _, bound, holds in limits):
        expected = f"{_TYPE_NAMES[kind]} {' and '.join(f'{sign} {bound}' for sign, bound, _ in limits)}"
        raise UserError(f"{where}: expected {expected}, got {_spelt(value)}")
    if kind is int and value >= 10**100:                            # ``dump`` could not write all that Python can hold
        raise UserError(f"{where}: expected an integer of at most 100 digits, got {_spelt(value)}")
    return value


def _spelt(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:                                              # 0xfff... may be longer than Python writes out
        return "an integer of more digits than can be shown"


_TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def dump(values: Mapping[str, Any]) -> str:
    """Values by "section.key" as TOML that ``read_values`` reads back."""
    lines: list[str] = []
    for section in sections_of(values):
        members = {dotted: value for dotted, value in values.items() if dotted.rpartition(".")[0] == section}
        # JSON's integers, booleans, strings and lists of strings are TOML's too; for fractions Python's text is ("inf").
        lines += [f"[{section}]", *(f"{dotted.rpartition('.')[2]} = "
                                    f"{value if isinstance(value, float) else json.dumps(value, ensure_ascii=False)}"
                                    for dotted, value in members.items()), ""]
    return "\n".join(lines)
