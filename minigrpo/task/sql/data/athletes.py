"""A data set without a download: made-up athletes in TEMPTABQA-C's schema, and questions about them with gold SQL.

Answers are computed from the infobox in Python, never by the gold SQL, so that each can be checked against the other. All
random choices come from one fixed seed: the questions are the same on every machine.

Three databases hold the same athletes: "original"; "counterfactual", with new dates, medals and cities for everyone; and
"reshuffled", in which everyone has another athlete's career. SQL that is right by chance on one is wrong on another.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from minigrpo.common.errors import UserError, unknown
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.dataset import Dataset, check_gold_sql
from minigrpo.task.sql.data.infobox import Infobox, build_tables, with_renamed
from minigrpo.task.sql.engines.database import Table

FIRST = """Ana Boris Carla David Elena Felix Greta Hugo Inês Jonas Karin Luca Marta Nils Olga Pedro Rosa Simon Tara Uwe Vera
Walter Yara Zoë""".split()
LAST = """Almeida Björk Costa Dimitrov Eriksen Fekete Gómez Hansen Ivanova Jovanović Keller Larsen Müller Novak Okafor Petrov
Quintero Rossi Schmidt Tanaka Ueda Varga Wong Yilmaz""".split()
TOURNAMENTS = ("Olympic Games", "World Championships", "European Championships", "Asian Games", "Commonwealth Games",
               "Pan American Games", "World Cup", "Continental Cup")
SPORTS = (("100 m", "200 m", "400 m", "4x100 m relay", "Long jump"), ("Singles", "Doubles", "Mixed doubles", "Women's team"),
          ("50 m freestyle", "100 m backstroke", "200 m butterfly", "Medley relay"), ("Foil", "Épée", "Sabre", "Team sabre"),
          ("Road race", "Time trial", "Sprint", "Keirin"))
CITIES = """Athens Beijing Cairo Doha Essen Florence Geneva Helsinki Istanbul Jakarta Kyiv Lima Madrid Nairobi Oslo Paris Quito
Rome Seoul Tokyo Utrecht Vienna Warsaw Zagreb""".split()
COLOURS = {"gold": "MedalGold", "silver": "MedalSilver", "bronze": "MedalBronze"}
ATHLETES = {"train": 280, "dev": 40, "heldout": 80}                 # athletes whose questions make up a split
QUESTIONS = {"train": 130, "dev": 10, "heldout": 15}                # of each kind
GOLD = {"easy": 130, "medium": 60, "hard": 10}                      # training questions of each kind with gold SQL
SPLITS = {"train": "original", "dev": "original", "heldout": "original", "counterfactual": "counterfactual"}


# ----------------------------------------------------------------------------------------------------------------- careers
@dataclass(frozen=True)
class Medal:
    """A medal with its tournament and format: one row of a join of the tables."""

    tournament: str
    format: str
    type: str
    year: int
    city: str


@dataclass(frozen=True)
class Career:
    born: int
    medals: tuple[Medal, ...]


def career(box: Infobox) -> Career:
    assert box.born, "every made-up athlete has a birth date"
    return Career(box.born[0], tuple(Medal(tournament, name, *medal) for tournament, formats in box.tournaments
                                     for name, medals in formats for medal in medals))


def _draw_box(rng: random.Random, name: str, frame: list[tuple[str, list[str]]]) -> Infobox:
    """Random dates, medals and cities for an athlete who took part in ``frame``: [(tournament, formats)]."""
    start = rng.randint(1988, 2010)
    born = (start - rng.randint(16, 24), rng.randint(1, 12), rng.randint(1, 28))

    def medal() -> tuple[str, int, str]:
        return rng.choice(list(COLOURS.values())), start + rng.randint(0, 12), rng.choice(CITIES)

    return Infobox(name, born, tuple(
        (tournament, tuple((event, tuple(sorted((medal() for _ in range(rng.randint(1, 4))), key=lambda medal: medal[1])))
                           for event in formats)) for tournament, formats in frame))


def _draw_frame(rng: random.Random) -> list[tuple[str, list[str]]]:
    sport = rng.choice(SPORTS)
    return [(tournament, rng.sample(sport, rng.randint(1, 3))) for tournament in rng.sample(TOURNAMENTS, rng.randint(2, 3))]


@cache
def _boxes() -> dict[str, tuple[Infobox, ...]]:
    """{database: the infoboxes of all athletes}, in the same order in each."""
    rng = random.Random("minigrpo athletes")
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    rng.shuffle(names)
    names = names[:sum(ATHLETES.values())]
    frames = [_draw_frame(rng) for _ in names]
    original, counterfactual = ([_draw_box(rng, name, frame) for name, frame in zip(names, frames)] for _ in range(2))
    # Everyone gets the career of the next athlete, and the last that of the first: nobody keeps their own.
    reshuffled = [Infobox(name, other.born, other.tournaments) for name, other in zip(names, original[1:] + original[:1])]
    return {"original": tuple(original), "counterfactual": tuple(counterfactual), "reshuffled": tuple(reshuffled)}


# ------------------------------------------------------------------------------------------------------------------- kinds
Slots = dict[str, str]                  # values for the names in braces in a wording and its SQL
Answer = Callable[[Career, Slots], Sequence[object]]
ENTERED = "FROM Athlete JOIN Tournament USING (athlete_id)"
PLAYED = f"{ENTERED} JOIN Format USING (tournament_id)"
WON = f"{PLAYED} JOIN Medal USING (format_id)"
BORN = "JOIN PersonalInformation USING (athlete_id)"
WHO = "WHERE Athlete.name = '{athlete}'"
COLOUR, EVENT = "AND Medal.type = '{type}'", "AND Tournament.name = '{tournament}'"
YES_NO = "THEN 'Yes' ELSE 'No' END"


@dataclass(frozen=True)
class Kind:
    """A kind of question: ways to ask it, the SQL that answers it, and a function that computes the answer's parts without
    SQL. No parts mean that the question has no single answer for this athlete; then it is not asked."""

    name: str
    wordings: tuple[str, ...]
    sql: str
    answer: Answer


def _won(career: Career, slots: Slots) -> list[Medal]:
    """The medals that match the slots: of a colour, at a tournament, in a city."""
    given = {name: slots[name] for name in ("tournament", "type", "city") if name in slots}
    return [medal for medal in career.medals if all(getattr(medal, name) == value for name, value in given.items())]


def _count(career: Career, slots: Slots) -> list[int]:
    return [len(_won(career, slots))]


def _years(career: Career, slots: Slots) -> list[int]:
    return sorted(medal.year for medal in _won(career, slots))


def _all(field: str) -> Answer:
    """The distinct values of a field of the medals."""
    return lambda career, slots: list(dict.fromkeys(getattr(medal, field) for medal in _won(career, slots)))


def _most(field: str) -> Answer:
    """The most frequent value of a field; no answer in a tie."""
    def answer(career: Career, slots: Slots) -> list[object]:
        ranked = Counter(getattr(medal, field) for medal in _won(career, slots)).most_common(2)
        tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        return [] if tie else [value for value, _ in ranked[:1]]
    return answer


def _at(end: int, field: str) -> Answer:
    """A field of the first (0) or the last (-1) medal; no answer if the medals of that year differ in it."""
    def answer(career: Career, slots: Slots) -> list[object]:
        year = _years(career, slots)[end:][:1]
        values = {getattr(medal, field) for medal in _won(career, slots) if medal.year in year}
        return list(values) if len(values) == 1 else []
    return answer


KINDS = (
    Kind("easy/count", ("How many medals has {athlete} won?", "What is the number of medals of {athlete}?"),
         f"SELECT COUNT(*) {WON} {WHO}", _count),
    Kind("easy/colour", ("How many {colour} medals has {athlete} won?", "What is the number of {colour} medals of {athlete}?"),
         f"SELECT COUNT(*) {WON} {WHO} {COLOUR}", _count),
    Kind("easy/at", ("How many medals has {athlete} won at the {tournament}?",
                     "What is the number of {tournament} medals of {athlete}?"),
         f"SELECT COUNT(*) {WON} {WHO} {EVENT}", _count),
    Kind("easy/born", ("In which year was {athlete} born?", "What is the birth year of {athlete}?"),
         f"SELECT birth_year FROM Athlete {BORN} {WHO}", lambda career, slots: [career.born]),
    Kind("easy/entered", ("Which tournaments has {athlete} entered?", "At which tournaments has {athlete} been?"),
         f"SELECT Tournament.name {ENTERED} {WHO}", _all("tournament")),
    Kind("easy/played", ("Which formats does {athlete} play?", "In which formats has {athlete} been?"),
         f"SELECT DISTINCT Format.name {PLAYED} {WHO}", _all("format")),
    Kind("easy/cities", ("In which cities has {athlete} won medals?", "Where has {athlete} won medals?"),
         f"SELECT DISTINCT Medal.location {WON} {WHO}", _all("city")),
    Kind("easy/years", ("In which years has {athlete} won medals?", "When has {athlete} won medals?"),
         f"SELECT DISTINCT Medal.year {WON} {WHO}", _all("year")),

    Kind("medium/both", ("How many {colour} medals has {athlete} won at the {tournament}?",
                         "What is the number of {tournament} {colour} medals of {athlete}?"),
         f"SELECT COUNT(*) {WON} {WHO} {COLOUR} {EVENT}", _count),
    Kind("medium/ever", ("Has {athlete} ever won a {colour} medal at the {tournament}?",
                         "Did {athlete} win any {colour} medals at the {tournament}?"),
         f"SELECT CASE WHEN COUNT(*) > 0 {YES_NO} {WON} {WHO} {COLOUR} {EVENT}",
         lambda career, slots: ["Yes" if _won(career, slots) else "No"]),
    Kind("medium/city", ("How many medals has {athlete} won in {city}?",
                         "What is the number of medals of {athlete} in {city}?"),
         f"SELECT COUNT(*) {WON} {WHO} AND Medal.location = '{{city}}'", _count),
    Kind("medium/first", ("In which year did {athlete} win the first medal?", "When was the first medal of {athlete}?"),
         f"SELECT MIN(Medal.year) {WON} {WHO}", lambda career, slots: _years(career, slots)[:1]),
    Kind("medium/latest", ("In which year did {athlete} win the most recent {colour} medal?",
                           "When was the most recent {colour} medal of {athlete}?"),
         f"SELECT MAX(Medal.year) {WON} {WHO} {COLOUR}", lambda career, slots: _years(career, slots)[-1:]),
    Kind("medium/where", ("In which cities has {athlete} won {colour} medals?", "Where has {athlete} won {colour} medals?"),
         f"SELECT DISTINCT Medal.location {WON} {WHO} {COLOUR}", _all("city")),
    Kind("medium/which", ("In which formats has {athlete} won medals at the {tournament}?",
                          "Which formats brought {athlete} medals at the {tournament}?"),
         f"SELECT DISTINCT Format.name {WON} {WHO} {EVENT}", _all("format")),
    Kind("medium/when", ("In which years has {athlete} won {colour} medals at the {tournament}?",
                         "When has {athlete} won {tournament} {colour} medals?"),
         f"SELECT DISTINCT Medal.year {WON} {WHO} {COLOUR} {EVENT}", _all("year")),
    Kind("medium/span", ("How many years lie between the first and the most recent medal of {athlete}?",
                         "For how many years has {athlete} been winning medals?"),
         f"SELECT MAX(Medal.year) - MIN(Medal.year) {WON} {WHO}",
         lambda career, slots: [_years(career, slots)[-1] - _years(career, slots)[0]]),

    Kind("hard/young", ("How old was {athlete} at the first medal?", "At what age did {athlete} win the first medal?"),
         f"SELECT MIN(Medal.year - birth_year) {WON} {BORN} {WHO}",
         lambda career, slots: [_years(career, slots)[0] - career.born]),
    Kind("hard/old", ("How old was {athlete} at the most recent {colour} medal?",
                      "At what age did {athlete} win the most recent {colour} medal?"),
         f"SELECT MAX(Medal.year - birth_year) {WON} {BORN} {WHO} {COLOUR}",
         lambda career, slots: [year - career.born for year in _years(career, slots)[-1:]]),
    Kind("hard/average", ("How old was {athlete} on average when winning {colour} medals?",
                          "At what average age did {athlete} win {colour} medals?"),
         f"SELECT FLOOR(AVG(Medal.year - birth_year)) {WON} {BORN} {WHO} {COLOUR}",
         lambda career, slots: [sum(years) // len(years) - career.born] if (years := _years(career, slots)) else []),
    Kind("hard/before", ("How many medals did {athlete} win before turning {age}?",
                         "What is the number of medals that {athlete} won before the age of {age}?"),
         f"SELECT COUNT(*) {WON} {BORN} {WHO} AND Medal.year - birth_year < {{age}}",
         lambda career, slots: [sum(year - career.born < int(slots["age"]) for year in _years(career, slots))]),
    Kind("hard/more", ("Has {athlete} won more {colour} than {other} medals?",
                       "Are there more {colour} than {other} medals of {athlete}?"),
         f"SELECT CASE WHEN SUM(Medal.type = '{{type}}') > SUM(Medal.type = '{{other_type}}') {YES_NO} {WON} {WHO}",
         lambda career, slots: ["Yes" if _count(career, slots) > _count(career, slots | {"type": slots["other_type"]})
                                else "No"]),
    Kind("hard/start", ("In which city did {athlete} win the first medal?", "Where did {athlete} win the first medal?"),
         f"SELECT Medal.location {WON} {WHO} ORDER BY Medal.year, Medal.medal_id LIMIT 1", _at(0, "city")),
    Kind("hard/last", ("At which tournament did {athlete} win the most recent medal?",
                       "Which tournament brought {athlete} the most recent medal?"),
         f"SELECT Tournament.name {WON} {WHO} ORDER BY Medal.year DESC, Medal.medal_id LIMIT 1", _at(-1, "tournament")),
    Kind("hard/best", ("In which format has {athlete} won the most medals?",
                       "Which format brought {athlete} the most medals?"),
         f"SELECT Format.name {WON} {WHO} GROUP BY Format.name ORDER BY COUNT(*) DESC, Format.name LIMIT 1", _most("format")),
    Kind("hard/again", ("In how many cities has {athlete} won more than one medal?",
                        "What is the number of cities where {athlete} won medals more than once?"),
         f"SELECT COUNT(*) FROM (SELECT Medal.location {WON} {WHO} GROUP BY Medal.location HAVING COUNT(*) > 1) AS cities",
         lambda career, slots: [sum(count > 1 for count in Counter(medal.city for medal in career.medals).values())]),
)


# --------------------------------------------------------------------------------------------------------------- questions
def load_databases() -> dict[str, tuple[Table, ...]]:
    """The tables of "original", "counterfactual" and "reshuffled"."""
    return {name: build_tables(boxes) for name, boxes in _boxes().items()}


def load_questions(split: str) -> list[Question]:
    """The questions of one split. "counterfactual" has those of "heldout", asked of the other database. All questions have
    gold SQL, except some medium and most hard ones of train, since people write few long queries. No athlete has questions in
    two of train, dev and heldout. ``UserError``: an unknown split."""
    if split not in SPLITS:
        raise UserError(f"{unknown('split', split, SPLITS)}: the made-up athletes have {', '.join(SPLITS)}")
    database, asked = SPLITS[split], list[Question]()
    written: Counter[str] = Counter()
    for kind, slots, number, text in _asked("heldout" if split == "counterfactual" else split):
        answer = ", ".join(map(str, kind.answer(career(_boxes()[database][number]), slots)))
        written[kind.name] += 1
        has_gold = split != "train" or written[kind.name] <= GOLD[kind.name.partition("/")[0]]
        asked.append(Question(f"{split}/{len(asked)}", split, len(asked), text, answer, database,
                              kind.name, kind.sql.format(**slots) if has_gold else None))
    return asked


@cache
def _asked(split: str) -> tuple[tuple[Kind, Slots, int, str], ...]:
    """(kind, slots, number of the athlete, text) of each question: no text twice, and each has an answer in every database."""
    rng, boxes = random.Random(f"minigrpo athletes {split}"), _boxes()
    before = sum(list(ATHLETES.values())[:list(ATHLETES).index(split)])
    members, chosen = range(before, before + ATHLETES[split]), list[tuple[Kind, Slots, int, str]]()
    for kind in KINDS:
        asked: dict[str, tuple[Kind, Slots, int, str]] = {}
        while len(asked) < QUESTIONS[split]:
            number = rng.choice(members)
            drawn = _draw_slots(rng, boxes["original"][number])
            slots = {name: value for name, value in drawn.items() if f"{{{name}}}" in kind.sql + kind.wordings[0]}
            text = rng.choice(kind.wordings).format(**slots)
            if all(kind.answer(career(boxes[database][number]), slots) for database in boxes):
                asked[text] = kind, slots, number, text
        chosen += asked.values()
    rng.shuffle(chosen)                                     # so that the first n questions have all kinds
    return tuple(chosen)


def _draw_slots(rng: random.Random, box: Infobox) -> Slots:
    (colour, kind), (other, other_type) = rng.sample(list(COLOURS.items()), 2)
    return {"athlete": box.athlete, "colour": colour, "type": kind, "other": other, "other_type": other_type,
            "tournament": rng.choice(box.tournaments)[0], "city": rng.choice(career(box).medals).city,
            "age": str(rng.randint(20, 30))}


def _load(_: str, split: str, gold_sql: str) -> list[Question]:
    check_gold_sql("athletes", gold_sql, gold_sql == "athletes", '"athletes"')
    return load_questions(split)


DATASET = with_renamed(Dataset(
    load=_load, has_split=lambda _, split: split in SPLITS, test_splits=lambda *_: ("heldout", "counterfactual"),
    tables=lambda _: load_databases(), second="reshuffled"), asked="heldout")
