"""SQL for the questions of TEMPTABQA-C: a query for each of its 47 question templates, filled from the question's own words.

The benchmark publishes answers, but no SQL of a question. It has one query for each template
(Dataset_Creation/Questions_Answers_with_SQL_Logic/SQL_with_Types.tsv), some of which are wrong: they join keys of different
tables, cut ties off, or name a constant where the question names something else. These are our own. They answer a question as
it is worded, with the benchmark's conventions: an age is the year less the year of birth, an average is rounded down, all ties
are listed. A tenth of the published answers are others: configs/README.md says how many.
"""

import re

JOINED = ("FROM Medal m JOIN Format f ON m.format_id = f.format_id JOIN Tournament t ON f.tournament_id = t.tournament_id "
          "JOIN Athlete a ON t.athlete_id = a.athlete_id")
WON = f"{JOINED} WHERE a.name = <player>"
AGED = f"{JOINED} JOIN PersonalInformation pi ON a.athlete_id = pi.athlete_id WHERE a.name = <player>"
AGE = "m.year - pi.birth_year"
IN, COLOUR, EVENT = "t.name = <tournament>", "m.type = <medal>", "CONCAT(TRIM(f.name), ' ', TRIM(t.name)) = <event>"
COMPARED = "SUM(m.type = <medal>) > SUM(m.type = <other>)"
BY_EVENT = "OVER (PARTITION BY t.name, f.name ORDER BY m.year, m.medal_id)"

NAME, MEDAL = r"[^\\]+?", "Gold|Silver|Bronze"       # a backslash in a literal is one character to SQLite and none to MariaDB
SLOTS = {"player": NAME, "tournament": NAME, "format": NAME, "event": NAME, "year": r"\d{4}", "medal": MEDAL, "other": MEDAL}


# ------------------------------------------------------------------------------------------------- forms of several queries
def most(what: str, extreme: str = "MAX", condition: str = "") -> str:
    """Each ``what`` with the most medals, or the fewest."""
    groups = f"{WON}{condition} GROUP BY {what}"
    return f"SELECT {what} {groups} HAVING COUNT(*) = (SELECT {extreme}(n) FROM (SELECT COUNT(*) AS n {groups}) AS c)"


def in_year(what: str, extreme: str, condition: str = "") -> str:
    """Each ``what`` of the first year, or of the last."""
    return f"SELECT DISTINCT {what} {WON}{condition} AND m.year = (SELECT {extreme}(m.year) {WON}{condition})"


def yes_no(condition: str, rows: str) -> str:
    return f"SELECT CASE WHEN {condition} THEN 'Yes' ELSE 'No' END {rows}"


def aged(first: int, last: int) -> str:
    return f"SELECT COUNT(*) {AGED} AND {AGE} BETWEEN {first} AND {last}"


def in_a_row(first: str, second: str, third: str) -> str:
    """How often three medals of an event follow each other so."""
    return (f"SELECT COUNT(*) FROM (SELECT m.type AS type1, LEAD(m.type) {BY_EVENT} AS type2, "
            f"LEAD(m.type, 2) {BY_EVENT} AS type3 {WON}) AS s WHERE type1 {first} AND type2 {second} AND type3 {third}")


def rank(medal: str) -> str:
    return f"INSTR('MedalBronze MedalSilver MedalGold', {medal}.type)"


IMPROVED = (f"SELECT COUNT(*) {JOINED} JOIN Medal later ON later.format_id = f.format_id AND later.year > m.year "
            f"WHERE a.name = <player> AND {rank('later')} > {rank('m')}")
BY_FORMAT = "OVER (PARTITION BY f.format_id ORDER BY m.year, m.medal_id)"
AFTER_GOLD = (f"SELECT COUNT(*) FROM (SELECT f.format_id, m.type, LEAD(m.type) {BY_FORMAT} AS next_type, "
              f"LEAD(m.year) {BY_FORMAT} AS next_year {WON}) AS s "
              "JOIN Medal n ON n.format_id = s.format_id AND n.year = s.next_year "
              "WHERE s.type = 'MedalGold' AND s.next_type IN ('MedalSilver', 'MedalBronze')")
CHANGED = (f"SELECT COUNT(*) FROM (SELECT m.type AS type1, LEAD(m.type) {BY_EVENT} AS type2 {WON}) AS s "
           "WHERE type1 <> type2")
SAME_EVENT = "{0}.tournament = {1}.tournament AND {0}.format = {1}.format AND {0}.year > {1}.year"
SHORTEST = (f"WITH won AS (SELECT t.name AS tournament, f.name AS format, m.year, m.type {WON}) SELECT MIN(g.year - b.year) "
            f"FROM won b JOIN won s ON {SAME_EVENT.format('s', 'b')} JOIN won g ON {SAME_EVENT.format('g', 's')} "
            "WHERE b.type = 'MedalBronze' AND s.type = 'MedalSilver' AND g.type = 'MedalGold'")

# -------------------------------------------------------------------------------------------- published type: wording, query
TEMPLATES = {
    "1": ("How many <tournament> <medal> Medals did <player> win ?", f"SELECT COUNT(*) {WON} AND {IN} AND {COLOUR}"),
    "3": ("List all the formats in which <player> has won medals in ?",        # the benchmark lists those without one, too
          "SELECT DISTINCT f.name FROM Format f JOIN Tournament t ON f.tournament_id = t.tournament_id "
          "JOIN Athlete a ON t.athlete_id = a.athlete_id WHERE a.name = <player>"),
    "5": ("In which format(s) is <player> most succesfull ?", most("f.name")),
    "13": ("How many International <medal> Medals did <player> win throughout his/her career?",
           f"SELECT COUNT(*) {WON} AND {COLOUR}"),
    "14": ("How many times has <player> won medals in <tournament> ?", f"SELECT COUNT(*) {WON} AND {IN}"),
    "19": ("Which city did <player> win his/her first International <medal> Medals ?",
           in_year("m.location", "MIN", f" AND {COLOUR}")),
    "21": ("Which tournament(s) has <player> won the most <medal> Medals in ?",
           most("CONCAT(t.name, ' ', m.year)", condition=f" AND {COLOUR}")),
    "22": ("Which tournament(s) has <player> won the most Medals in ?", most("CONCAT(t.name, ' ', m.year)")),
    "27": ("How many medals did <player> win in the <event> ?", f"SELECT COUNT(*) {WON} AND {EVENT}"),
    "30": ("In which year did <player> win his/her first <medal> Medals in the <event>?",
           f"SELECT MIN(m.year) {WON} AND {EVENT} AND {COLOUR}"),
    "32": ("Has <player> ever won a <medal> Medals in the <tournament>?",
           yes_no("COUNT(*) > 0", f"{WON} AND {IN} AND {COLOUR}")),
    "34": ("Which city did <player> win his/her most recent medal ?", in_year("m.location", "MAX")),
    "35": ("In which city did <player> win his/her first <tournament> <medal> Medals ?",
           in_year("m.location", "MIN", f" AND {IN} AND {COLOUR}")),
    "36": ("At what age did <player> win his/her most recent <tournament> <medal> Medals ?",
           f"SELECT MAX({AGE}) {AGED} AND {IN} AND {COLOUR}"),
    "38": ("In which year(s) did <player> win medals in the <tournament> ?", f"SELECT DISTINCT m.year {WON} AND {IN}"),
    "39": ("Which was the most current medal win for <player> ?",
           in_year("CONCAT(m.year, '  ', m.location, ' ', t.name, ' in ', f.name, ' format')", "MAX")),
    "40": ("How many <tournament> appearances/wins does <player> have ?", f"SELECT COUNT(*) {WON} AND {IN}"),
    "43": ("In Which city has <player> won the most international medals ?", most("m.location")),
    "44": ("Which was the most successful year for <player> in terms of highest <medal> Medal wins?",
           most("m.year", condition=f" AND {COLOUR}")),
    "52": ("How many International medals did <player> win in the <year> ?", f"SELECT COUNT(*) {WON} AND m.year = <year>"),
    "53": ("How many International <medal> Medals did <player> win in the <year> ?",
           f"SELECT COUNT(*) {WON} AND {COLOUR} AND m.year = <year>"),
    "54": ("Did <player> win international medals in the <year> ?", yes_no("COUNT(*) > 0", f"{WON} AND m.year = <year>")),
    "55": ("What is the average number of medals won by <player> in one year ?",
           f"SELECT FLOOR(COUNT(*) / COUNT(DISTINCT m.year)) {WON}"),
    "57": ("How many medals did <player> win in his early twenties ?", aged(20, 23)),
    "58": ("How many medals did <player> win in his mid twenties ?", aged(24, 27)),
    "59": ("How many medals did <player> win in his late twenties ?", aged(28, 29)),
    "60": ("How old was <player> when he/she won their first international medal ?", f"SELECT MIN({AGE}) {AGED}"),
    "64": ("Does <player> have more medals in their twenties as compared to their thirties ?",
           yes_no(f"SUM({AGE} BETWEEN 20 AND 29) > SUM({AGE} BETWEEN 30 AND 39)", AGED)),
    "65": ("In which year(s) did <player> win the highest number of medals during their career ?", most("m.year")),
    "66": ("In which year(s) did <player> win the lowest number of medals during their career ?", most("m.year", "MIN")),
    "68": ("Does <player> have more <medal> Medals than <other> Medals ?", yes_no(COMPARED, WON)),
    "69": ("Does <player> have more <medal> Medals than <other> Medals in <tournament> ?",
           yes_no(COMPARED, f"{WON} AND {IN}")),
    "70": ("Does <player> have more <medal> Medals than <other> Medals in <format> ?",
           yes_no(COMPARED, f"{WON} AND f.name = <format>")),
    "71": ("Which medal type does <player> has won the most medals in ?",
           f"SELECT REPLACE(m.type, 'Medal', '') {WON} GROUP BY m.type ORDER BY COUNT(*) DESC, {rank('m')} DESC LIMIT 1"),
    "73": ("How many years passed between <player>'s first and most recent International medal ?",
           f"SELECT MAX(m.year) - MIN(m.year) {WON}"),
    "74": ("How many times did <player> win an International medal in the <tournament> before <year> ?",
           f"SELECT COUNT(*) {WON} AND {IN} AND m.year < <year>"),
    "75": ("In which format did <player> win his/her first International medal ?", in_year("f.name", "MIN")),
    "77": ("In which city did <player> win his/her first International medal ?", in_year("m.location", "MIN")),
    "78": ("In which year did <player> win his/her first International medal ?", f"SELECT MIN(m.year) {WON}"),
    "95": ("How many medals did <player> win in his/her twenties ?", aged(20, 29)),
    "96": ("How many medals did <player> win in his/her thirties ?", aged(30, 39)),
    "1001": ("Count the different events in which <player> improved his medal color in any later iterations of any "
             "tournament, including non-consecutive cycles", IMPROVED),
    "1002": ("How many times did <player> win a gold medal in an event, followed by any other medal in the same event?",
             AFTER_GOLD),
    "1003": ("Determine the number of instances where <player> won a medal of a different color than the previous iteration "
             "of the same event.", CHANGED),
    "1004": ("Count the events where the <player> won a gold medal in one iteration, win a lower medal in the next iteration, "
             "and then win a gold medal again in the following iteration?",
             in_a_row("= 'MedalGold'", "IN ('MedalSilver', 'MedalBronze')", "= 'MedalGold'")),
    "1006": ("Identify the number of times <player> won medals in three consecutive iterations of an event, with the sequence "
             "being a bronze, followed by silver, and then gold medal.",
             in_a_row("= 'MedalBronze'", "= 'MedalSilver'", "= 'MedalGold'")),
    "1016": ("What is the shortest time span (in years) within which <player> won gold, silver, and bronze medals in the same "
             "format across any tournament?", SHORTEST),
}


# ------------------------------------------------------------------------------------------------------------- the slots
def _pattern(wording: str) -> re.Pattern[str]:
    """What a question of this wording looks like; however many blanks are between its words."""
    words = [re.sub(r"\\?\s+", r"\\s+", re.escape(part)) if i % 2 == 0 else f"(?P<{part}>{SLOTS[part]})"
             for i, part in enumerate(re.split(r"<(\w+)>", wording))]
    return re.compile(rf"\s*{''.join(words)}\s*")


PATTERNS = {kind: _pattern(wording) for kind, (wording, _) in TEMPLATES.items()}


def template_sql(kind: str, question: str) -> str | None:
    """The query for a question of a published type; None if the type is unknown, or the question worded otherwise.

    >>> template_sql("78", "In which year did Dawn O'Neil win his/her first International medal ?").rpartition(" WHERE ")[2]
    "a.name = 'Dawn O''Neil'"
    """
    found = PATTERNS[kind].fullmatch(question) if kind in PATTERNS else None
    return found and re.sub(r"<(\w+)>", lambda slot: _literal(slot[1], found[slot[1]]), TEMPLATES[kind][1])


def _literal(slot: str, words: str) -> str:
    if slot == "year":
        return words
    text = f"Medal{words}" if slot in ("medal", "other") else words
    return "'" + text.replace("'", "''") + "'"
