"""How right is a policy, or a file of SQL, on a split? One row a question, and a summary. Knows no training."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Iterable, Iterator, Mapping, Sequence

from minigrpo import config
from minigrpo.metrics import Clock, progress, say, table
from minigrpo.policy.weights import Policy
from minigrpo.rollout import Judge, collect
from minigrpo.task.answer import render_answer, score_answer
from minigrpo.task.database import STATUSES, Execution, run_all
from minigrpo.task.questions import Question

# split, index, kind, sql, status, answer, ems, rems, strict; where they are known also blind and suite (see ``add_ceilings``)
Row = dict[str, object]
MEANS = ("strict", "ems", "rems", "suite", "blind")


def evaluate_policy(questions: Sequence[Question], policy: Policy, judge: Judge, generation: config.Generation,
                    batch: int) -> Iterator[Row]:
    """Greedy decoding, one completion a question, ``batch`` questions at a time; rows as they come, short prompts first."""
    greedy = dataclasses.replace(generation, method="greedy", completions=1)
    ordered = sorted(questions, key=lambda question: len(judge.prompt(question)))       # alike ones together: less padding
    with progress(len(questions), "evaluate", leave=False) as bar:
        for start in range(0, len(ordered), batch):
            groups = collect(ordered[start:start + batch], policy, judge, greedy, clock=Clock())
            for group in groups:
                yield score_row(group.question, group.rollouts[0].sql, group.rollouts[0].execution)
            bar.update(len(groups))


def evaluate_predictions(questions: Sequence[Question], sqls: Sequence[str | None], judge: Judge) -> list[Row]:
    """Score SQL that anything wrote, one for each question."""
    executions = run_all(judge.database, [(sql, question.database) for question, sql in zip(questions, sqls)],
                         judge.connections)
    return [score_row(*triple) for triple in zip(questions, sqls, executions)]


def report_splits(splits: Mapping[str, Sequence[Question]], train: Sequence[Question], policy: Policy, judge: Judge,
                  generation: config.Generation, batch: int) -> tuple[list[Row], dict[str, dict]]:
    """Whole splits, with what luck could have done beside it: rows, and their summary."""
    questions = [question for members in splits.values() for question in members]
    rows = in_order(evaluate_policy(questions, policy, judge, generation, batch), splits)
    add_ceilings(rows, questions, blind_guesses(train), judge)
    return rows, summarise(rows, {split: len(members) for split, members in splits.items()})


def in_order(rows: Iterable[Row], splits: Iterable[str]) -> list[Row]:
    """Rows as their questions stand: split by split, by index."""
    place = {split: i for i, split in enumerate(splits)}
    return sorted(rows, key=lambda row: (place[row["split"]], row["index"]))


def read_predictions(path: Path) -> dict[tuple[str, int], str | None]:
    """{"split", "index", "sql"} a line → SQL by (split, index); other keys are ignored.

    Raises ``ValueError`` that names the line: not JSON, a key missing or of a wrong type, a question given twice.
    """
    if not path.is_file():
        raise ValueError(f"--predictions: there is no file {path}")
    found: dict[tuple[str, int], str | None] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):     # not splitlines(): SQL may hold U+2028
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
            place, sql = (record["split"], record["index"]), record["sql"]
            str(sql).encode()                                   # half a surrogate pair is no text
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: expected a JSON object with split, index and sql ({error})") from None
        if not isinstance(place[0], str) or type(place[1]) is not int or not isinstance(sql, str | None):
            raise ValueError(f"{path}:{number}: split and sql must be strings and index an integer, got {str(record)[:100]}")
        if place in found:
            raise ValueError(f"{path}:{number}: {place[0]}/{place[1]} is given a second time")
        found[place] = sql
    return found


def score_row(question: Question, sql: str | None, execution: Execution) -> Row:
    """One question's result; an error has an empty answer and scores nothing."""
    answer = render_answer(execution.rows) if execution.ok else ""
    score = score_answer(question.answer, answer)
    return {"split": question.split, "index": question.index, "kind": question.kind, "sql": sql,
            "status": execution.status, "answer": answer, "ems": score.ems, "rems": score.rems, "strict": score.strict}


def blind_guesses(train: Iterable[Question]) -> dict[str, str]:
    """{kind: its most frequent training answer}: what somebody would say who has not read the question."""
    answers: dict[str, Counter] = {}
    for question in train:
        answers.setdefault(question.kind, Counter())[question.answer] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}


def add_ceilings(rows: Sequence[Row], questions: Sequence[Question], guesses: Mapping[str, str], judge: Judge) -> None:
    """Say beside each row what luck could have done, in place.

    ``blind``: whether the guess for the question's kind is right. ``suite``, where there is gold SQL and a second database:
    whether the answer is right *and* the SQL gives what gold SQL gives there too (test-suite accuracy, arXiv 2010.02840).
    """
    asked = {(question.split, question.index): question for question in questions}
    for row in rows:
        question = asked[row["split"], row["index"]]
        row["blind"] = score_answer(question.answer, guesses[question.kind]).strict if question.kind in guesses else 0
    if judge.second:
        with_gold = [row for row in rows if asked[row["split"], row["index"]].gold_sql]
        ours, gold = (run_all(judge.database, [(sql, judge.second) for sql in sqls], judge.connections) for sqls in
                      ([row["sql"] for row in with_gold], [asked[row["split"], row["index"]].gold_sql for row in with_gold]))
        for row, execution, wanted in zip(with_gold, ours, gold):
            row["suite"] = int(bool(row["strict"]) and execution.ok and wanted.ok
                               and _distinct(execution) == _distinct(wanted))


def _distinct(execution: Execution) -> set[str]:
    return {render_answer([row]) for row in execution.rows}


def summarise(rows: Iterable[Row], sizes: Mapping[str, int]) -> dict[str, dict]:
    """By split: ``n`` rows scored ``of`` the split's size; strict, ems, rems, error_rate and each status in percent (and
    suite and blind, where all rows have them); ``kinds``: the same by kind of question."""
    by_split: dict[str, list[Row]] = {split: [] for split in sizes}
    for row in rows:
        by_split[str(row["split"])].append(row)
    summary: dict[str, dict] = {}
    for split, members in by_split.items():
        by_kind: dict[str, list[Row]] = {}
        for row in members:
            by_kind.setdefault(str(row["kind"]), []).append(row)
        statuses = Counter(row["status"] for row in members)
        summary[split] = {"n": len(members), "of": sizes[split]}
        if members:
            summary[split] |= {
                **_percent(members),
                "status": {status: round(100 * statuses[status] / len(members), 2) for status in STATUSES if statuses[status]},
                "kinds": {kind: {"n": len(some), **_percent(some)} for kind, some in by_kind.items()}}
    return summary


def _percent(rows: Sequence[Row]) -> dict[str, float]:
    means = {name: fmean(row[name] for row in rows) for name in MEANS if all(name in row for row in rows)}
    return {name: round(100 * mean, 2) for name, mean in
            {**means, "error_rate": fmean(row["status"] != "ok" for row in rows)}.items()}


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
