"""The benchmark TEMPTABQA-C: published TSV files become questions, infobox texts become tables. Knows no SQL engine.

Source: https://github.com/CoRAL-ASU/TEMPTABQA-C (Kulkarni et al., Findings of ACL 2025). Texts, names and answers stay
as published, stray spaces and noisy labels included: nothing is corrected here.
"""

import csv
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minigrpo.common.errors import UserError
from minigrpo.common.messages import unknown
from minigrpo.common.strict_json import read_lines
from minigrpo.task.sql.engines.database import Column, Table
from minigrpo.task.sql.question import Question

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
TESTS = tuple(name for name in SPLITS if name not in ("train", "dev"))
FIELDS = ("Questions", "Answers", "Context", "Types")       # every file has these; some have more, and in another order
LONGEST = 2**20                                             # characters of a line: eight fields as long as csv reads them
NO_CONTEXT = "No context available"

_ATHLETE = Column("athlete_id", "INT", ("Athlete", "athlete_id"))
_TOURNAMENT = Column("tournament_id", "INT", ("Tournament", "tournament_id"))
_FORMAT = Column("format_id", "INT", ("Format", "format_id"))
SCHEMA: dict[str, tuple[Column, ...]] = {
    "Athlete": (Column("athlete_id", "INT"), Column("name", "TEXT")),
    "Tournament": (Column("tournament_id", "INT"), _ATHLETE, Column("name", "TEXT")),
    "Format": (Column("format_id", "INT"), _TOURNAMENT, Column("name", "TEXT")),
    "Medal": (Column("medal_id", "INT"), _FORMAT,
              Column("type", "TEXT"), Column("year", "INT"), Column("location", "TEXT")),
    "PersonalInformation": (Column("info_id", "INT"), _ATHLETE,
                            *(Column(f"birth_{part}", "INT") for part in ("year", "month", "day"))),
}


# --------------------------------------------------------------------------------------------------------------- files
def database_of(split: str) -> str:
    """The database that a split's questions are asked of: an athlete has one infobox in each of the two."""
    return "counterfactual" if split == "counterfactual" else "original"


def _split_file(path: Path, split: str) -> Path:
    """The file of ``split`` under the root ``path``, or the one sentence that says what is missing."""
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


def _read_fields(file: Path) -> Iterator[list[str]]:
    """The header (record -1 in an error), then the records of a TSV; one that csv cannot read is a ValueError."""
    count = -1
    # newline=None: a checkout that turned \n into \r\n, inside quoted fields too, reads the same.
    with open(file, encoding="utf-8", newline=None) as handle:
        # strict: an unterminated quote is an error.
        reader = csv.reader(_bounded(iter(lambda: handle.readline(LONGEST + 1), "")), delimiter="\t", strict=True)
        try:
            for fields in reader:
                count += 1                                  # the records so far: what an error below speaks of
                yield fields
        except csv.Error as error:
            raise UserError(f"{file}, record {count}: {error} (a quote left open, or a stray one?)") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 at or after record {count} ({error.reason})") from error


def _bounded(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if len(line) > LONGEST:                             # rather than in memory at any length; csv bounds the fields
            raise csv.Error(f"line longer than {LONGEST:,} characters")
        yield line


def _read_records(file: Path) -> list[dict[str, str]]:
    """The records of a published file as {column: text}; list index = the benchmark's zero-based record index."""
    lines = list(_read_fields(file))
    header = lines[0] if lines else []
    if missing := [name for name in FIELDS if name not in header]:
        raise UserError(f"{file}: no column {', '.join(missing)}; its header has {header!r:.80}")
    for index, fields in enumerate(lines[1:]):
        if len(fields) != len(header):
            raise UserError(f"{file}, record {index}: expected {len(header)} fields, got {len(fields)}")
        if empty := [name for name, text in zip(header, fields) if name in FIELDS[:2] and not text.strip()]:
            raise UserError(f"{file}, record {index}: nothing in the column {', '.join(empty)}")
    return [dict(zip(header, fields)) for fields in lines[1:]]


# ----------------------------------------------------------------------------------------------------------- questions
def load_questions(path: str | Path, split: str, gold_sql: str | Path | None = None) -> list[Question]:
    """The questions of one split of the benchmark under ``path``, in file order; ``kind`` is the published type.

    ``gold_sql``: a JSONL file of {split, index, sql, answerable}, whose query is attached where answerable is true.
    Raises FileNotFoundError (no folder, no file of this split) or ValueError (unknown split, broken file).
    """
    file = _split_file(Path(path), split)
    known = _read_gold_sql(Path(gold_sql), split) if gold_sql is not None else {}
    records = _read_records(file)
    if not records:
        raise UserError(f"{file} holds no questions")
    return [Question(f"{split}/{index}", split, index, record["Questions"], record["Answers"], database_of(split),
                     record["Types"], known.get(index)) for index, record in enumerate(records)]


def _read_gold_sql(file: Path, split: str) -> dict[int, str]:
    """{index: sql} of one split, only where the query is known to reproduce the gold answer."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of gold SQL {file}")
    keys = {"split": str, "index": int, "sql": str | None, "answerable": bool}
    return {entry["index"]: entry["sql"] for _, entry in read_lines(file, keys)
            if entry["split"] == split and entry["answerable"]}


# ----------------------------------------------------------------------------------------------------------- infoboxes
Medal = tuple[str, int, str]                                # type, year, location


@dataclass(frozen=True)
class Infobox:
    """What a context says of one athlete, in its order. ``born`` is (year, month, day) or None.

    ``tournaments`` are (name, formats), formats are (name, medals): all country blocks in one list.
    """

    athlete: str
    born: tuple[int, int, int] | None
    tournaments: tuple[tuple[str, tuple[tuple[str, tuple[Medal, ...]], ...]], ...]


def parse_context(text: str) -> Infobox:
    """Parse an infobox text. Raises ValueError with the number and text of the line that it does not understand.

    >>> parse_context("Ann\\n\\nCountry Representing: FIJ\\nGames\\nTeam \\tMedalGold | 2012 | Suva\\n\\n").tournaments
    (('Games', (('Team ', (('MedalGold', 2012, 'Suva'),)),)),)
    """
    athlete, *lines = text.split("\n")                      # not splitlines(): a name may hold an odd separator
    born, tournaments, section, head = None, [], "", ""
    _expect(athlete.strip() and "\t" not in athlete, 1, athlete, "an athlete's name")
    for number, line in enumerate(lines, start=2):
        if line == "":                                      # ends a block; a line of one tab is an empty value
            head = ""
        elif line == "Personal Information" or line.startswith("Country Representing:"):
            section, head = line.split()[0], ""
        elif not head:                                      # the first line of a block: a label or a tournament
            _expect(section and "\t" not in line, number, line, "a section, a label or a tournament")
            head = line
            if section == "Country":
                tournaments.append((line, []))
        elif section == "Country":
            tournaments[-1][1].append(_parse_format(line, number))
        elif head == "Birth Date" and line != "\t":         # only a tab: not known
            _expect(born is None, number, line, "one birth date")
            born = _parse_date(line, number)
        else:                                               # height, coach, ...: not part of the published schema
            _expect(line.endswith("\t"), number, line, "a value that ends in a tab")
    return Infobox(athlete, born, tuple((name, tuple(formats)) for name, formats in tournaments))


def _expect(understood: object, number: int, line: str, what: str) -> None:
    if not understood:
        raise UserError(f"line {number} of the context: expected {what}, got {line!r:.80}")


def _parse_date(line: str, number: int) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})\t", line, re.ASCII)
    _expect(match, number, line, "a birth date such as '1995-7-5' and a tab")
    return int(match[1]), int(match[2]), int(match[3])


def _parse_format(line: str, number: int) -> tuple[str, tuple[Medal, ...]]:
    """``format<TAB>leaf, leaf``; a format without medals has nothing after the tab."""
    name, tab, text = line.partition("\t")
    _expect(tab and name, number, line, "a format, a tab and medals")
    medals = []
    for leaf in re.split(r", (?=Medal\w* \|)", text) if text else []:
        match = re.fullmatch(r"(Medal(?:Gold|Silver|Bronze)) \| (\d{4}) \| ([^|]+)", leaf, re.ASCII)
        _expect(match, number, leaf, "a medal such as 'MedalGold | 2012 | London'")
        medals.append((match[1], int(match[2]), match[3]))
    return name, tuple(medals)


# ------------------------------------------------------------------------------------------------------------- tables
def load_databases(path: str | Path) -> dict[str, tuple[Table, ...]]:
    """{"original": tables, "counterfactual": tables}, rebuilt from the contexts of all split files that are present.

    Keys count from 1 in the order of ``SPLITS``, then of records, then of the context: an athlete's ids depend on the
    files that are there, the order within an athlete does not. A database without a file is left out. Raises
    ValueError: a context that is not understood, an athlete with two different contexts in one database.
    """
    root = Path(path)
    present = [split for split, place in SPLITS.items() if (root / place).is_file()]
    if not present:
        _split_file(root, "train")                          # raises: says what is missing
    boxes: dict[str, dict[str, Infobox]] = {}
    for split in present:
        _collect(root / SPLITS[split], boxes.setdefault(database_of(split), {}))
    return {name: build_tables(known.values()) for name, known in boxes.items()}


def _collect(file: Path, known: dict[str, Infobox]) -> None:
    """Add what one file has of new contexts to ``known``: {context: infobox}, an athlete once."""
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


def build_tables(boxes: Iterable[Infobox]) -> tuple[Table, ...]:
    """The five tables of the published schema, in the order of ``SCHEMA``; keys count from 1 as ``boxes`` come."""
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in SCHEMA}

    def add(table: str, *values: object) -> int:
        rows[table].append((len(rows[table]) + 1, *values))
        return len(rows[table])

    for box in boxes:
        athlete = add("Athlete", box.athlete)
        if box.born:
            add("PersonalInformation", athlete, *box.born)
        for name, formats in box.tournaments:
            tournament = add("Tournament", athlete, name)
            for format_name, medals in formats:
                format_id = add("Format", tournament, format_name)
                for medal in medals:
                    add("Medal", format_id, *medal)
    return tuple(Table(name, SCHEMA[name], tuple(rows[name])) for name in SCHEMA)
