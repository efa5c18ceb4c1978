"""JSON and JSON Lines: those of untrusted files, read strictly, so that anything unexpected is one sentence; and our records.

A form says what is expected of a value: a type or a union of types, ``[kind]`` for a list of any length,
``{key: kind}`` for an object that has these keys, and maybe others, ``{...: kind}`` for one of any keys, ``(kind, kind)`` for
either, ``object`` for anything.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, get_args

from minigrpo.common.errors import UserError
from minigrpo.common.files import flush, named, write_whole

Json = dict[str, Any]
Form = Mapping[Any, object]          # key, or ``...`` for any → what is expected of its value
MAX_BYTES, MAX_VALUES = 2**26, 2**22    # of a line or a file; a value (or a comma in a text) takes 100 bytes of memory
MAX_NUMBER = 1e100                      # nothing that is counted or measured comes near, and squares stay finite
NUMBER = int | float
Number = Callable[[str], object]        # how a fraction, NaN or ±Infinity is read: ``measured``, ``exact``, or ``float`` (any)
_NAMES = {str: "text", int: "integer", float: "fraction", bool: "true or false", type(None): "null"}


def measured(text: str) -> float:
    if not abs(value := float(text)) <= MAX_NUMBER:            # NaN is refused too
        raise ValueError(f"{text[:20]} is no number that is counted or measured")
    return value


def exact(text: str) -> Decimal:
    if not text[-1].isdigit() or len(text.lower().partition("e")[2]) > 4:       # NaN; more digits than can be written out
        raise ValueError(f"{text[:20]} is no number that can be written out")
    return Decimal(text)


def read_lines(file: Path, keys: Form, *, number: Number = measured,
               torn: bool = False) -> Iterator[tuple[int, Json]]:
    """(line number from 1, object) of each line of a JSONL file that is not blank. A line ends at a line feed only, since
    texts may hold U+2028. ``torn``: text after the last line feed is still being written, and is left out.

    Anything else than objects with these ``keys`` is a ``UserError`` "FILE:LINE: expected ..., got ...".
    """
    with file.open("rb") as handle:
        for count, line in enumerate(iter(lambda: handle.readline(MAX_BYTES + 1), b""), start=1):
            if line.strip() and (line.endswith(b"\n") or not torn):
                _check_size(line, place := f"{file}:{count}")
                yield count, parse_object(line, keys, place, number=number)


def read_object(file: Path, keys: Form) -> Json:
    """The object in a JSON file. No file, or anything else than an object with these ``keys``: ``UserError``, as above."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    with file.open("rb") as handle:
        text = handle.read(MAX_BYTES + 1)
    _check_size(text, str(file))
    return parse_object(text, keys, str(file))


def _check_size(text: bytes, place: str) -> None:
    if len(text) > MAX_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise UserError(f"{place}: expected at most {MAX_BYTES:,} bytes and {MAX_VALUES:,} values, got more")


def parse_object(line: bytes, keys: Form, place: str, *, number: Number = measured) -> Json:
    """The object in a text that is in memory already, of any length; errors as above."""
    odd, got = keys, ""
    try:
        record = _loads(line.rstrip(b"\r\n").decode(), number)
        if rb"\u" in line:                                  # JSON can spell half of a surrogate pair, which is not text
            json.dumps(record, ensure_ascii=False, default=str).encode()
        if isinstance(record, dict):
            odd = {key: kind for key, kind in keys.items() if not fits(record, {key: kind})}
            if not odd:
                return record
            record = {key: record[key] for key in odd if key in record} or record
        got = json.dumps(record, ensure_ascii=False, default=str)[:80]
    except (ValueError, RecursionError) as error:           # UnicodeError is a ValueError
        got = f"something else ({str(error)[:120]})"
    raise UserError(f"{place}: expected a JSON object{' with ' if odd else ''}{spell(odd)}, got {got}")


def _loads(text: str, number: Number, headroom: int = 50) -> object:
    """Parse ``headroom`` frames deeper in the stack, so that whatever is accepted can also be shown and written again."""
    if headroom:
        return _loads(text, number, headroom - 1)
    return json.loads(text, parse_float=number, parse_int=_integer, parse_constant=number)


def fits(value: object, kind: object) -> bool:
    """Whether ``value`` fits the form ``kind``. A boolean is not an integer.

    >>> fits({"n": 3, "odd": []}, {"n": int}), fits({"n": True}, {"n": int}), fits([1, None], [int | None])
    (True, False, True)
    >>> [fits(value, ({"n": int}, type(None))) for value in (None, {"n": 1}, {})]
    [True, True, False]
    """
    if isinstance(kind, Mapping):
        if not isinstance(value, dict):
            return False
        return all(all(fits(part, of) for part in value.values()) if key is ... else key in value and fits(value[key], of)
                   for key, of in kind.items())
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(part, kind[0]) for part in value)
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    return kind is object or type(value) in (get_args(kind) or (kind,))


def spell(keys: Form) -> str:
    """
    >>> spell({"split": str, "sql": str | None, "terms": {}, "rows": [int], "answer": object})
    'split (text), sql (text or null), terms (object), rows (list) and answer'
    >>> spell({"best": ({"step": int}, type(None))})
    'best (object or null)'
    """
    parts = [("all else" if key is ... else key) + _kind(kind) for key, kind in keys.items()]
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _kind(kind: object) -> str:
    if isinstance(kind, (Mapping, list)):
        return " (object)" if isinstance(kind, Mapping) else " (list)"
    if isinstance(kind, tuple):
        return f" ({' or '.join(_kind(one)[2:-1] for one in kind)})"
    return "" if kind is object else f" ({' or '.join(_NAMES[one] for one in get_args(kind) or (kind,))})"


def _integer(text: str) -> int:
    measured(text)
    return int(text)


# ------------------------------------------------------------------------------------------------------------ our records
def kind_of(record: Mapping[str, Any]) -> str:
    """Which kind of record of a run's metrics.jsonl this is: "step" or "evaluation". Runs that were made before records said
    so are told by what only a step has."""
    return record.get("kind") or ("step" if "reward" in record else "evaluation")


class JsonLines:
    """An append-only JSONL file, one record a line, on disk as soon as written."""

    def __init__(self, path: Path, *, keep: Callable[[Mapping[str, Any]], bool] | None = None) -> None:
        """``keep``: first cut an existing file back to the records for which it is true; a torn last line goes too."""
        self.path = path
        if path.exists() and keep is not None:
            *whole, _ = path.read_bytes().split(b"\n")          # bytes: a torn line may end within a character
            write_whole(path, b"".join(line + b"\n" for i, line in enumerate(whole, start=1)
                                       if keep(parse_object(line, {"step": int}, f"{path}:{i}", number=float))))
        self.file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, object]) -> None:
        """NaN and ±inf become null; a value of a database for which JSON has no type becomes text."""
        finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in record.items()}
        with named(self.path):
            self.file.write(json.dumps(finite, ensure_ascii=False, default=str) + "\n")
            self.file.flush()

    def flush(self) -> None:
        """Flush to disk, so that what was written survives a power cut."""
        flush(self.path)

    def close(self) -> None:
        with named(self.path):
            self.file.close()
