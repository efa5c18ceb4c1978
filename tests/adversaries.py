"""What known cheats earn: SQL that ignores the question, run on real SQLite, under every preset. Beside them an honest
right query, an honest wrong one, and an error.

``python -m tests.adversaries [FOLDER SPLIT]`` prints the tables, as Markdown: of the made-up athletes, or of the benchmark
with gold SQL in FOLDER.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from minigrpo.evaluation.evaluate import blind_guesses
from minigrpo.task.sql.answer import Question, render_answer, score_answer
from minigrpo.task.sql.data import athletes, temptabqa
from minigrpo.task.sql.engines.database import Database, Execution, Tables, run_all
from minigrpo.task.sql.engines.sqlite import open_sqlite
from minigrpo.task.sql.reward import PRESETS, make_reward, weigh

NUMBERS = ", ".join(map(str, range(101)))
YEARS = ", ".join(map(str, range(1980, 2025)))
JOINED = ("FROM Athlete JOIN Tournament USING (athlete_id) JOIN Format USING (tournament_id) JOIN Medal USING (format_id) "
          "WHERE Athlete.name = {athlete}")
COLUMNS = ("name FROM Athlete", "name FROM Tournament", "name FROM Format", "location FROM Medal", "year FROM Medal",
           "birth_year FROM PersonalInformation")
# In braces, as SQL texts: the athlete that the question names, the most frequent training answer for its kind, its own words.
CHEATS = {
    "every medal row of the athlete": f"SELECT Medal.type, Medal.year, Medal.location {JOINED}",
    "SELECT * over the join": f"SELECT * {JOINED}",
    "numbers 0..100": f"SELECT '{NUMBERS}'",
    "numbers 0..100, Yes, No": f"SELECT '{NUMBERS}, Yes, No'",
    "the same in one part": f"SELECT '{NUMBERS.replace(',', '')} Yes No'",
    "all of the athlete, numbers, Yes, No": " UNION ".join(
        [f"SELECT {column} {JOINED}" for column in ("Athlete.name", "Tournament.name", "Format.name", "Medal.location",
                                                    "Medal.year", "Medal.type")] + [f"SELECT '{NUMBERS}, Yes, No'"]),
    "a constant: 0..40, Yes, No, 1980..2024": f"SELECT '{NUMBERS[:NUMBERS.index(', 41')]}, Yes, No, {YEARS}'",
    "the blind guess": "SELECT {guess}",
    "the blind guess, from a table": "SELECT {guess} FROM Athlete LIMIT 1",
    "cross join": "SELECT * FROM Athlete, Tournament, Format, Medal LIMIT 500",
    "UNION of everything": " UNION ".join(f"SELECT {column}" for column in COLUMNS),
    "the question's words": "SELECT {words}",
    "no rows": "SELECT name FROM Athlete WHERE 1 = 0",
}
RIGHT, WRONG, ERROR = "gold SQL", "honest, wrong", "an error"


@dataclass(frozen=True)
class Bench:
    """Questions with gold SQL, and what each candidate's terms are: ``terms[candidate][i]`` for question i."""

    questions: Sequence[Question]
    terms: Mapping[str, Sequence[Mapping[str, float]]]

    def totals(self, preset: str, candidate: str) -> list[float]:
        return [weigh(PRESETS[preset], terms) for terms in self.terms[candidate]]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def measure(questions: Sequence[Question], train: Sequence[Question], tables: Mapping[str, Tables],
            database: Database) -> Bench:
    """Every candidate for every question that has gold SQL, which is right."""
    asked = [question for question in questions if question.gold_sql]
    gold = dict(zip(asked, run_all(database, [(question.gold_sql, question.database) for question in asked], 1)))
    asked = [question for question in asked
             if gold[question].ok and score_answer(question.answer, render_answer(gold[question].rows)).strict]
    guesses = blind_guesses(train)
    names = {name: sorted((row[1] for row in members[0].rows), key=len) for name, members in tables.items()}
    candidates: dict[str, list[str]] = {name: [] for name in (RIGHT, WRONG, *CHEATS, ERROR)}
    for question in asked:
        fill = {"athlete": quoted(next((name for name in reversed(names[question.database]) if name in question.text), "")),
                "guess": quoted(guesses.get(question.kind, "0")), "words": quoted(", ".join(question.text.split()))}
        for name, sql in CHEATS.items():
            candidates[name].append(sql.format(**fill))
        candidates[RIGHT].append(question.gold_sql)
        candidates[WRONG].append(wrong(question, asked, gold))
        candidates[ERROR].append("SELECT year FROM Medals")
    reward = make_reward("structural", tables)
    return Bench(asked, {name: [reward(question, sql, execution).terms for question, sql, execution in zip(
        asked, sqls, run_all(database, [(sql, question.database) for question, sql in zip(asked, sqls)], 1))]
        for name, sqls in candidates.items()})


def wrong(question: Question, asked: Sequence[Question], gold: Mapping[Question, Execution]) -> str:
    """The gold SQL of the next question, of the same kind if there is one, whose answer has nothing right here: as if a name
    or a condition were mistaken."""
    place = asked.index(question)
    others = sorted([*asked[place + 1:], *asked[:place]], key=lambda other: other.kind != question.kind)
    return next((other.gold_sql for other in others if other.database == question.database
                 and not score_answer(question.answer, render_answer(gold[other].rows)).rems), CHEATS["no rows"])


# --------------------------------------------------------------------------------------------------------------- showing
def table(bench: Bench, presets: Sequence[str] = tuple(PRESETS)) -> str:
    """Mean reward · percent of questions for which that is no less than gold SQL's · percent for which it is more than the
    wrong query's."""
    lines = [f"| {len(bench.questions)} questions | {' | '.join(presets)} |", "|---" * (len(presets) + 1) + "|"]
    for name in bench.terms:
        cells = []
        for preset in presets:
            totals, right, wrong = (bench.totals(preset, candidate) for candidate in (name, RIGHT, WRONG))
            cells.append(f"{fmean(totals):.0f} · {percent(own >= best for own, best in zip(totals, right))} · "
                         f"{percent(own > worse for own, worse in zip(totals, wrong))}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(hits: Iterable[bool]) -> str:
    return f"{100 * fmean(hits):.0f}"


def orders(bench: Bench, preset: str) -> tuple[tuple[int, ...], ...]:
    """For each two candidates, question by question: which of them earns more. With K = 2 a preset is nothing else."""
    totals = [bench.totals(preset, name) for name in bench.terms]
    return tuple(tuple((x > y) - (x < y) for x, y in zip(first, second))
                 for i, first in enumerate(totals) for second in totals[:i])


def order_table(bench: Bench, pairs: Sequence[tuple[str, str]], presets: Sequence[str] = tuple(PRESETS)) -> str:
    """Percent of questions for which the first of a pair is preferred / the second; the rest is a tie, and teaches nothing."""
    lines = [f"| pair, K = 2 | {' | '.join(presets)} |", "|---" * (len(presets) + 1) + "|"]
    for first, second in pairs:
        cells = [list(zip(bench.totals(preset, first), bench.totals(preset, second))) for preset in presets]
        lines.append(f"| {first} : {second} | " + " | ".join(
            f"{percent(x > y for x, y in cell)} : {percent(x < y for x, y in cell)}" for cell in cells) + " |")
    return "\n".join(lines)


PAIRS = ((RIGHT, WRONG), (RIGHT, ERROR), (WRONG, ERROR), (RIGHT, "all of the athlete, numbers, Yes, No"),
         ("all of the athlete, numbers, Yes, No", WRONG), ("numbers 0..100, Yes, No", WRONG), (RIGHT, "the blind guess"),
         ("the blind guess", WRONG), ("the blind guess, from a table", WRONG), ("no rows", WRONG))


def athletes_bench(count: int | None = None) -> Bench:
    """The first ``count`` held-out questions of the embedded task."""
    tables = athletes.load_databases()
    with open_sqlite(tables) as database:
        return measure(athletes.load_questions("heldout")[:count], athletes.load_questions("train"), tables, database)


def benchmark_bench(folder: Path, split: str, count: int | None = None) -> Bench:
    tables = temptabqa.load_databases(folder)
    with open_sqlite(tables) as database:
        return measure(temptabqa.load_questions(folder, split, folder / "gold_sql.jsonl")[:count],
                       temptabqa.load_questions(folder, "train"), tables, database)


if __name__ == "__main__":
    shown = benchmark_bench(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 1 else athletes_bench()
    sys.stdout.write(f"{table(shown)}\n\n{order_table(shown, PAIRS)}\n")
