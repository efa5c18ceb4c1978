"""The benchmark TEMPTABQA-C: questions from the published TSV files, tables from their infobox texts. Needs no SQL engine.

Source: https://github.com/CoRAL-ASU/TEMPTABQA-C (Kulkarni et al., Findings of ACL 2025). Texts, names and answers stay
as published, including stray spaces and wrong labels: nothing is corrected here.
"""

import csv
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from minigrpo.common.errors import UserError, unknown
from minigrpo.common.strict_json import read_lines
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.dataset import Dataset, check_gold_sql
from minigrpo.task.sql.data.infobox import Infobox, build_tables, parse_context, with_renamed
from minigrpo.task.sql.data.temptabqa_sql import template_sql
from minigrpo.task.sql.engines.database import Table

ADDRESS = "https://github.com/CoRAL-ASU/TEMPTABQA-C"
SPLITS = {
    "train": "Train_set/train_set.tsv",
    "dev": "Dev_set/dev_set.tsv",
    "original": "Test_Dataset_with_Splits/Original.tsv",
    "counterfactual": "Test_Dataset_with_Splits/CounterFactual.tsv",
    "small": "Test_Dataset_with_Splits/Original_Small_Table.tsv",
    "large": "Test_Dataset_with_Splits/Original_Large_Table.tsv",
    "easy": "Test_Dataset_with_Splits/Easy.tsv",
    "medium": "Test_Dataset_with_Splits/Medium.tsv",
    "hard": "Test_Dataset_with_Splits/Hard.tsv",
}
FIELDS = ("Questions", "Answers", "Context", "Types")       # every file has these; some have more, and in another order
MAX_LINE_CHARACTERS = 2**20                                 # eight fields of the length that csv accepts
NO_CONTEXT = "No context available"
BY_TEMPLATE = "templates"


# --------------------------------------------------------------------------------------------------------------- files
def database_of(split: str) -> str:
    """The database that a split's questions ask. An athlete has one infobox in each of the two databases."""
    return "counterfactual" if split == "counterfactual" else "original"


def _split_file(path: Path, split: str) -> Path:
    """The file of ``split`` under the folder ``path``, or an error that says what is missing."""
    if split not in SPLITS:
        raise UserError(f"{unknown('split', split, SPLITS)}: the benchmark has {', '.join(SPLITS)}")
    if not path.is_dir():
        raise FileNotFoundError(f"there is no benchmark folder {path}; fetch it with: "
                                f"git clone {ADDRESS} {shlex.quote(str(path))}")
    file = path / SPLITS[split]
    if not file.is_file():
        there = ", ".join(name for name, place in SPLITS.items() if (path / place).is_file()) or "none"
        raise FileNotFoundError(f"split {split!r} has no file {file}; splits that are there: {there}")
    return file


def _read_records(file: Path) -> list[dict[str, str]]:
    """The records of a published TSV as {column: text}. The list index is the benchmark's zero-based record index."""
    lines: list[list[str]] = []                             # the header, which is record -1 in an error, and the records
    # newline=None: a checkout that turned \n into \r\n, also inside quoted fields, reads the same.
    with open(file, encoding="utf-8", newline=None) as handle:
        try:
            for fields in csv.reader(_bounded(handle), delimiter="\t", strict=True):       # an unterminated quote is an error
                lines.append(fields)
        except csv.Error as error:
            raise UserError(f"{file}, record {len(lines) - 1}: {error} (a quote left open, or a stray one?)") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 at or after record {len(lines) - 1} ({error.reason})") from error
    header = lines[0] if lines else []
    if missing := [name for name in FIELDS if name not in header]:
        raise UserError(f"{file}: no column {', '.join(missing)}; its header has {header!r:.80}")
    for index, fields in enumerate(lines[1:]):
        if len(fields) != len(header):
            raise UserError(f"{file}, record {index}: expected {len(header)} fields, got {len(fields)}")
        if empty := [name for name, text in zip(header, fields) if name in FIELDS[:2] and not text.strip()]:
            raise UserError(f"{file}, record {index}: nothing in the column {', '.join(empty)}")
    return [dict(zip(header, fields)) for fields in lines[1:]]


def _bounded(handle: TextIO) -> Iterator[str]:
    while line := handle.readline(MAX_LINE_CHARACTERS + 1):
        if len(line) > MAX_LINE_CHARACTERS:                 # a limit on memory; csv has one for each field
            raise csv.Error(f"line longer than {MAX_LINE_CHARACTERS:,} characters")
        yield line


# ----------------------------------------------------------------------------------------------------------- questions
def load_questions(path: str | Path, split: str, gold_sql: str | Path | None = None) -> list[Question]:
    """The questions of one split of the benchmark under ``path``, in file order; ``kind`` is the published type.

    ``gold_sql``: a JSONL file of {split, index, sql, answerable}; a query is attached to its question if answerable is true.
    Or "templates": the query of the question's template is, whether it gives the published answer or not.
    ``FileNotFoundError``: no folder, or no file of this split. ``UserError``: an unknown split, or a broken file.
    """
    file = _split_file(Path(path), split)
    records = _read_records(file)
    if gold_sql == BY_TEMPLATE:
        known = {index: template_sql(record["Types"], record["Questions"]) for index, record in enumerate(records)}
    else:
        known = _read_gold_sql(Path(gold_sql), split) if gold_sql is not None else {}
    if not records:
        raise UserError(f"{file} holds no questions")
    return [Question(f"{split}/{index}", split, index, record["Questions"], record["Answers"], database_of(split),
                     record["Types"], known.get(index)) for index, record in enumerate(records)]


def _read_gold_sql(file: Path, split: str) -> dict[int, str | None]:
    """{index: sql} of one split, only for queries that are known to return the gold answer."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of gold SQL {file}")
    keys = {"split": str, "index": int, "sql": str | None, "answerable": bool}
    entries: Iterator[dict[str, Any]] = (entry for _, entry in read_lines(file, keys))        # read_lines checks the types
    return {entry["index"]: entry["sql"] for entry in entries if entry["split"] == split and entry["answerable"]}


# ------------------------------------------------------------------------------------------------------------- tables
def load_databases(path: str | Path) -> dict[str, tuple[Table, ...]]:
    """{"original": tables, "counterfactual": tables}, built from the contexts of all split files that are present.

    Keys count from 1 in the order of ``SPLITS``, then of records, then of the context. So an athlete's ids depend on which
    files are present, but the order within an athlete does not. A database without a file is left out. ``UserError``: a
    context in an unknown form, or an athlete with two different contexts in one database.
    """
    root = Path(path)
    present = [split for split, place in SPLITS.items() if (root / place).is_file()]
    if not present:
        _split_file(root, "train")                          # raises an error that says what is missing
    boxes: dict[str, dict[str, Infobox]] = {}
    for split in present:
        _collect(root / SPLITS[split], boxes.setdefault(database_of(split), {}))
    return {name: build_tables(known.values()) for name, known in boxes.items()}


def _collect(file: Path, known: dict[str, Infobox]) -> None:
    """Add the new contexts of one file to ``known``: {context: infobox}. Each athlete may come once."""
    athletes = {box.athlete for box in known.values()}
    for index, record in enumerate(_read_records(file)):
        context = record["Context"]
        if context in known or context == NO_CONTEXT:
            continue
        try:
            box = parse_context(context)
        except ValueError as error:
            raise UserError(f"{file}, record {index}, {error}") from error
        if box.athlete in athletes:
            raise UserError(f"{file}, record {index}: a second, different context for the athlete {box.athlete!r:.80}")
        athletes.add(box.athlete)
        known[context] = box


# ------------------------------------------------------------------------------------------------------------ the data set
def _load(path: str, split: str, gold_sql: str) -> list[Question]:
    is_file_name = bool(Path(gold_sql).suffix) or Path(gold_sql).is_file()      # other bare words are other data sets' own
    check_gold_sql("temptabqa", gold_sql, is_file_name or gold_sql == BY_TEMPLATE, f'"{BY_TEMPLATE}" or a JSONL file')
    return load_questions(path, split, gold_sql or None)


DATASET = with_renamed(Dataset(
    load=_load, has_split=lambda path, split: split in SPLITS and (Path(path) / SPLITS[split]).is_file(),
    test_splits=lambda *_: [name for name in SPLITS if name not in ("train", "dev")], tables=load_databases), asked="original")
