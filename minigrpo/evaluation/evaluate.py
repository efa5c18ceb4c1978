"""How right is a policy, or a file of programs, on a split? One row a question, and a summary; or one question by hand. Does
not depend on training."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import labelled, progress, say, table
from minigrpo.common.errors import UserError
from minigrpo.common.grouping import group_by
from minigrpo.common.strict_json import read_lines
from minigrpo.evaluation.figures import Row, add_intervals, summarise
from minigrpo.policy.generation.search import Completion
from minigrpo.policy.policy import Policy
from minigrpo.policy.roots import KeptRoots
from minigrpo.rollout import Group, collect, generate
from minigrpo.task.contract import Problem, Task


def evaluate_policy(problems: Sequence[Problem], policy: Policy, task: Task, generation: config.Generation,
                    batch: int) -> Iterator[Row]:
    """Decode greedily, one completion for each different prompt, ``batch`` prompts at a time; rows as they come, short prompts
    first, so that little is padded."""
    ordered, roots = sorted(group_by(problems, task.prompt).items(), key=lambda item: len(item[0])), KeptRoots()
    with progress(len(problems), "evaluate", leave=False) as bar, task.evaluating():
        for start in range(0, len(ordered), batch):
            together = ordered[start:start + batch]
            prompts = [policy.tokenizer.encode(prompt) for prompt, _ in together]
            greedy = generate(policy, prompts, generation, None, greedy=True, roots=roots)
            written = [task.extract(policy.tokenizer.decode(completion.ids)) for completion, in greedy]
            tries = [(problem, extracted) for extracted, (_, same) in zip(written, together) for problem in same]
            yield from judge_rows(tries, task)
            bar.update(len(tries))


def judge_rows(tries: Sequence[tuple[Problem, str | None]], task: Task) -> list[Row]:
    """A row for each (problem, program or answer), whoever wrote it."""
    verdicts = task.judge(tries, Clock(), rewarded=False)
    return [{"split": problem.split, "index": problem.index, "kind": problem.kind, "question": problem.text,
             "gold": problem.answer, task.language: verdict.extracted, "status": verdict.status, "answer": verdict.answer,
             **task.figures(problem, verdict)} for (problem, _), verdict in zip(tries, verdicts)]


def report_splits(splits: Mapping[str, Sequence[Problem]], train: Sequence[Problem], policy: Policy, task: Task,
                  generation: config.Generation, batch: int) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Whole splits, with the ceilings of guessing beside them: rows, and their summary."""
    problems = [problem for members in splits.values() for problem in members]
    rows = in_order(evaluate_policy(problems, policy, task, generation, batch), splits)
    add_ceilings(rows, problems, blind_guesses(train), task)
    summary = summarise(rows, {split: len(members) for split, members in splits.items()}, task.outcomes)
    add_intervals(summary, rows)
    return rows, summary


def in_order(rows: Iterable[Row], splits: Iterable[str]) -> list[Row]:
    """Rows in the order of the questions: split by split, by index."""
    place = {split: i for i, split in enumerate(splits)}
    return sorted(rows, key=lambda row: (place[row["split"]], row["index"]))


def read_predictions(path: Path, language: str) -> dict[tuple[str, int], str | None]:
    """{"split", "index", LANGUAGE} a line → programs by (split, index); other keys are ignored.

    Raises ``UserError`` that names the line: not JSON, a key missing or of a wrong type, a question given twice.
    """
    if not path.is_file():
        raise UserError(f"--predictions: there is no file {path}")
    found: dict[tuple[str, int], str | None] = {}
    for number, record in read_lines(path, {"split": str, "index": int, language: str | None}):
        place = record["split"], record["index"]
        if place in found:
            raise UserError(f"{path}:{number}: {place[0]:.80}/{place[1]} is given a second time")
        found[place] = record[language]
    return found


# ------------------------------------------------------------------------------------------------- what guessing would score
def blind_guesses(train: Iterable[Problem]) -> dict[str, str]:
    """{kind: its most frequent training answer}: the guess of somebody who has not read the question."""
    return {kind: Counter(problem.answer for problem in problems).most_common(1)[0][0]
            for kind, problems in group_by(train, attrgetter("kind")).items()}


def add_ceilings(rows: Sequence[Row], problems: Sequence[Problem], guesses: Mapping[str, str] | None, task: Task) -> None:
    """Add to each row, in place, what luck could have done: ``blind``, unless the training split is not there: whether the
    guess for the question's kind is right; and the task's further figures."""
    asked = {(problem.split, problem.index): problem for problem in problems}
    pairs = [(asked[row["split"], row["index"]], row) for row in rows]
    for (problem, row), further in zip(pairs, task.further_figures(pairs)):
        if guesses is not None:
            row["blind"] = int(problem.kind in guesses and task.is_right(problem, guesses[problem.kind]))
        row |= further


# ------------------------------------------------------------------------------------------------------ before and after
def before_after(split: str, before: Mapping, after: Mapping) -> str:
    """Two summaries of a split as a table of at most 80 columns: a kind a line, all together last."""
    columns = {"strict": "strict", "ems": "EMS", "rems": "REMS", "error_rate": "errors", "suite": "suite", "blind": "blind"}
    shown = {name: head for name, head in columns.items() if name in before and name in after}

    def line(label: str, then: Mapping, now: Mapping, digits: int) -> list[str]:
        old, new = ([f"{of[name]:.{digits if of[name] < 100 else 0}f}" for name in shown] for of in (then, now))
        return [label, *(b if name == "blind" else f"{a}→{b}" for name, a, b in zip(shown, old, new))]

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


# -------------------------------------------------------------------------------------- one question that nobody has answered
def write_candidates(problem: Problem, policy: Policy, task: Task, generation: config.Generation,
                     generator: torch.Generator) -> Group:
    """The problem's group, as training would see it except for the rewards: without a known answer there are none."""
    group, = collect([problem], policy, task, generation, generator=generator, clock=Clock(), rewarded=False)
    return group


def score(completion: Completion, generation: config.Generation) -> float:
    """How likely the policy finds it: what beams are ranked by, or Σ log-prob of a sample."""
    length = len(completion.ids) ** generation.length_penalty if generation.method == "beam" else 1
    return sum(completion.logprobs) / length


def show_candidates(group: Group, task: Task, generation: config.Generation) -> str:
    """The question and each different candidate with its score, best first, and what it gave, within 80 columns."""
    method = (f"{generation.completions} beams, scored Σ log-prob / length^{generation.length_penalty:g}"
              if generation.method == "beam" else
              f"{generation.completions} samples at temperature {generation.temperature:g}, scored Σ log-prob")
    about = [line for label, text in task.about(group.problem) for line in labelled(label, text)]
    lines = [*labelled("question", group.problem.text), *about, *labelled("method", method)]
    ranked = sorted(group.rollouts, key=lambda rollout: -score(rollout.completion, generation))
    for extracted, (best, *others) in group_by(ranked, lambda rollout: rollout.verdict.extracted).items():
        written = f"{score(best.completion, generation):.3g}" + (f", written {1 + len(others)} times" if others else "")
        cut = "" if best.completion.stopped else f", cut off after {len(best.completion.ids)} tokens"
        lines += ["", *labelled("score", written + cut), *labelled(task.language.upper(), extracted or ""),
                  *task.show(best.verdict)]
    return "\n".join(lines)
