"""An append-only file of records, one JSON object a line. Does not depend on what any number means."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from minigrpo.common.files import flush, named, write_whole
from minigrpo.common.strict_json import parse_object


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
