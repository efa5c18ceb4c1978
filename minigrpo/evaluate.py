"""How right is a policy, or a file of SQL, on a split? One row a question, and a summary. Knows no training."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Iterable, Iterator, Mapping, Sequence

from minigrpo import config
from minigrpo.metrics import Clock, progress
from minigrpo.policy.weights import Policy
from minigrpo.rollout import Judge, collect
from minigrpo.task.answer import render_answer, score_answer
from minigrpo.task.database import STATUSES, Execution, run_all
from minigrpo.task.questions import Question

Row = dict[str, object]         # split, index, sql, status, answer, ems, rems, strict


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
    return {"split": question.split, "index": question.index, "sql": sql, "status": execution.status, "answer": answer,
            "ems": score.ems, "rems": score.rems, "strict": score.strict}


def summarise(rows: Iterable[Row], sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """By split: ``n`` rows scored ``of`` the split's size; strict, ems, rems, error_rate and each status in percent."""
    by_split: dict[str, list[Row]] = {split: [] for split in sizes}
    for row in rows:
        by_split[str(row["split"])].append(row)
    summary: dict[str, dict] = {}
    for split, members in by_split.items():
        if not members:
            summary[split] = {"n": 0, "of": sizes[split]}
            continue
        statuses = Counter(row["status"] for row in members)
        summary[split] = {
            "n": len(members), "of": sizes[split],
            **{name: round(100 * fmean(row[name] for row in members), 2) for name in ("strict", "ems", "rems")},
            "error_rate": round(100 * (1 - statuses["ok"] / len(members)), 2),
            "status": {status: round(100 * statuses[status] / len(members), 2) for status in STATUSES if statuses[status]},
        }
    return summary
