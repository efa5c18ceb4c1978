"""How right is a policy, or a file of SQL, on a split? One row a question, and a summary. Knows no training."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import progress, say, table
from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import read_lines
from minigrpo.evaluation.intervals import Figures, intervals
from minigrpo.policy.files.weights import Policy
from minigrpo.rollout import Judge, collect
from minigrpo.task.sql.answer import render_answer, score_answer
from minigrpo.task.sql.engines.database import STATUSES, Execution, Remembered, run_all
from minigrpo.task.sql.invented import invented
from minigrpo.task.sql.question import Question

# split, index, kind, question, gold, sql, status, answer, ems, rems, strict, invented; where they are known also blind,
# constant and suite (see ``add_ceilings``)
Row = dict[str, object]
MEANS = ("strict", "ems", "rems", "invented", "suite", "blind", "constant")
# One answer to all questions, which satisfies EMS for most of the benchmark's.
CONSTANT = ", ".join([*map(str, range(41)), "Yes", "No", *map(str, range(1980, 2025))])


def evaluate_policy(questions: Sequence[Question], policy: Policy, judge: Judge, generation: config.Generation,
                    batch: int) -> Iterator[Row]:
    """Greedy decoding, one completion for each different prompt to a database, ``batch`` of them at a time, and each different
    query run once; rows as they come, short prompts first."""
    greedy = dataclasses.replace(generation, method="greedy", completions=1)
    judge = dataclasses.replace(judge, database=Remembered(judge.database))
    alike: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        alike.setdefault((judge.prompt(question), question.database), []).append(question)
    ordered = [alike[asked] for asked in sorted(alike, key=lambda asked: len(asked[0]))]    # alike ones together: less padding
    with progress(len(questions), "evaluate", leave=False) as bar:
        for start in range(0, len(ordered), batch):
            together = ordered[start:start + batch]
            groups = collect([first for first, *_ in together], policy, judge, greedy, clock=Clock())
            for group, same in zip(groups, together):
                rollout = group.rollouts[0]
                yield from (score_row(question, rollout.sql, rollout.execution, judge) for question in same)
            bar.update(sum(map(len, together)))


def evaluate_predictions(questions: Sequence[Question], sqls: Sequence[str | None], judge: Judge) -> list[Row]:
    """Score SQL that anything wrote, one for each question."""
    executions = run_all(judge.database, [(sql, question.database) for question, sql in zip(questions, sqls)],
                         judge.connections)
    return [score_row(*triple, judge) for triple in zip(questions, sqls, executions)]


def report_splits(splits: Mapping[str, Sequence[Question]], train: Sequence[Question], policy: Policy, judge: Judge,
                  generation: config.Generation, batch: int) -> tuple[list[Row], dict[str, dict]]:
    """Whole splits, with what luck could have done beside it: rows, and their summary."""
    questions = [question for members in splits.values() for question in members]
    rows = in_order(evaluate_policy(questions, policy, judge, generation, batch), splits)
    add_ceilings(rows, questions, blind_guesses(train), judge)
    summary = summarise(rows, {split: len(members) for split, members in splits.items()})
    add_intervals(summary, rows)
    return rows, summary


def in_order(rows: Iterable[Row], splits: Iterable[str]) -> list[Row]:
    """Rows as their questions stand: split by split, by index."""
    place = {split: i for i, split in enumerate(splits)}
    return sorted(rows, key=lambda row: (place[row["split"]], row["index"]))


def read_predictions(path: Path) -> dict[tuple[str, int], str | None]:
    """{"split", "index", "sql"} a line → SQL by (split, index); other keys are ignored.

    Raises ``ValueError`` that names the line: not JSON, a key missing or of a wrong type, a question given twice.
    """
    if not path.is_file():
        raise UserError(f"--predictions: there is no file {path}")
    found: dict[tuple[str, int], str | None] = {}
    for number, record in read_lines(path, {"split": str, "index": int, "sql": str | None}):
        place = record["split"], record["index"]
        if place in found:
            raise UserError(f"{path}:{number}: {place[0]:.80}/{place[1]} is given a second time")
        found[place] = record["sql"]
    return found


def score_row(question: Question, sql: str | None, execution: Execution, judge: Judge) -> Row:
    """One question's result; an error has an empty answer and scores nothing. ``invented``: whether the SQL has a value that
    stands neither in the question nor among the schema's names and sample values."""
    answer = render_answer(execution.rows) if execution.ok else ""
    score = score_answer(question.answer, answer)
    return {"split": question.split, "index": question.index, "kind": question.kind, "question": question.text,
            "gold": question.answer, "sql": sql, "status": execution.status, "answer": answer, "ems": score.ems,
            "rems": score.rems, "strict": score.strict,
            "invented": int(bool(invented(sql, question.text, judge.schema(question.database))))}


def blind_guesses(train: Iterable[Question]) -> dict[str, str]:
    """{kind: its most frequent training answer}: what somebody would say who has not read the question."""
    answers: dict[str, Counter] = {}
    for question in train:
        answers.setdefault(question.kind, Counter())[question.answer] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}


def add_ceilings(rows: Sequence[Row], questions: Sequence[Question], guesses: Mapping[str, str] | None, judge: Judge) -> None:
    """Say beside each row what luck could have done, in place.

    ``blind``, unless nobody knows any guess: whether the one for the question's kind is right, strictly. ``constant``: whether
    EMS is satisfied by CONSTANT. ``suite``, where there is gold SQL and a second database: whether the answer is right *and*
    the SQL gives what gold SQL gives there too (test-suite accuracy, arXiv 2010.02840).
    """
    asked = {(question.split, question.index): question for question in questions}
    for row in rows:
        question = asked[row["split"], row["index"]]
        if guesses is not None:
            row["blind"] = score_answer(question.answer, guesses[question.kind]).strict if question.kind in guesses else 0
        row["constant"] = score_answer(question.answer, CONSTANT).ems
    if judge.second:
        with_gold = [(row, gold) for row in rows if (gold := asked[row["split"], row["index"]].gold_sql)]
        pairs = [(sql, judge.second) for row, gold in with_gold for sql in (row["sql"], gold)]
        executions = run_all(judge.database, pairs, judge.connections)
        for (row, _), ours, wanted in zip(with_gold, executions[::2], executions[1::2]):
            row["suite"] = int(bool(row["strict"]) and ours.ok and wanted.ok and _distinct(ours) == _distinct(wanted))


def _distinct(execution: Execution) -> set[str]:
    return {render_answer([row]) for row in execution.rows}


def measures(row: Row) -> dict[str, tuple[float, float]]:
    """What a row adds to each figure, (value, weight): the figure is the one's sum over the other's. ``hack``: EMS is
    satisfied, by more than the answer; ``unguessed``: strict, of the questions whose blind guess is wrong."""
    found = {name: (row[name], 1) for name in MEANS if name in row}
    found |= {"error_rate": (row["status"] != "ok", 1), "hack": (row["ems"] - row["strict"], 1)}
    return found | ({"unguessed": (row["strict"] * (1 - row["blind"]), 1 - row["blind"])} if "blind" in row else {})


def figures(rows: Sequence[Row]) -> Figures:
    """What each row adds, by figure: of those that all rows have, and that have any weight."""
    each = [measures(row) for row in rows]
    shared = [name for name in each[0] if all(name in one for one in each) and any(one[name][1] for one in each)]
    return {name: [one[name] for one in each] for name in shared}


def percents(found: Figures) -> dict[str, float]:
    return {name: round(100 * math.fsum(value for value, _ in pairs) / sum(weight for _, weight in pairs), 2)
            for name, pairs in found.items()}


def group_rows(rows: Iterable[Row], name: str) -> dict[str, list[Row]]:
    """Rows by what they have as ``name``, in the order of its first."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(str(row[name]), []).append(row)
    return grouped


def summarise(rows: Iterable[Row], sizes: Mapping[str, int]) -> dict[str, dict]:
    """By split: ``n`` rows scored ``of`` the split's size, ``absent`` where that is 0; each figure and each status in percent;
    ``kinds``: the same by kind of question."""
    by_split = group_rows(rows, "split")
    summary: dict[str, dict] = {}
    for split, size in sizes.items():
        members = by_split.get(split, [])
        summary[split] = {"n": len(members), "of": size, **({} if size else {"absent": True})}
        if members:
            statuses = Counter(row["status"] for row in members)
            summary[split] |= {
                **percents(figures(members)),
                "status": {status: round(100 * statuses[status] / len(members), 2) for status in STATUSES if statuses[status]},
                "kinds": {kind: {"n": len(some), **percents(figures(some))}
                          for kind, some in group_rows(members, "kind").items()}}
    return summary


def add_intervals(summary: Mapping[str, dict], rows: Iterable[Row]) -> None:
    """Say by split, in place, between which two percents each figure lies with 95 % confidence: ``interval``."""
    for split, members in group_rows(rows, "split").items():
        summary[split]["interval"] = {name: [round(100 * end, 2) for end in ends]
                                      for name, ends in intervals(figures(members)).items()}


def before_after(split: str, before: Mapping, after: Mapping) -> str:
    """Two summaries of a split as a table of at most 80 columns: a kind a line, all together last."""
    columns = {"strict": "strict", "ems": "EMS", "rems": "REMS", "error_rate": "errors", "suite": "suite", "blind": "blind"}
    shown = {name: head for name, head in columns.items() if name in before and name in after}

    def line(label: str, then: Mapping, now: Mapping, digits: int) -> list[str]:
        def figure(value: float) -> str:
            return f"{value:.{digits if value < 100 else 0}f}"

        return [label, *(figure(now[name]) if name == "blind" else f"{figure(then[name])}→{figure(now[name])}"
                         for name in shown)]

    return table([[split, *shown.values()],
                  *(line(kind, before["kinds"][kind], after["kinds"][kind], 0) for kind in sorted(after["kinds"])),
                  line(f"all {after['n']}", before, after, 1)])


def show_report(record: Mapping[str, Mapping]) -> None:
    """A run's summary.json on the console; nothing of a run that was stopped or has nothing to report."""
    for split, after in record.get("after", {}).items():
        say("\n" + before_after(split, record["before"][split], after))
    if record:
        say("\nBefore→after, in percent. suite: right on a second database too.\n"
            "blind: what one constant answer for each kind of question would score.")
