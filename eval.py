"""Evaluate:   python eval.py CONFIG [--split S[,S...]] [--adapter DIR | --predictions FILE.jsonl] [--by-kind] [--out DIR]
   or compare: python eval.py --compare A B [--split S[,S...]] [--out DIR]
   or ask:     python eval.py CONFIG --ask "How many ...?" [--database NAME] [--adapter DIR]
   or merge:   python eval.py CONFIG [--adapter DIR] --merge DIR

Writes DIR/rows.jsonl, one question a line, DIR/summary.json and DIR/table.md; prints the table. A and B are folders of two
evaluations. A question that is asked is answered on the console alone. Merging evaluates nothing and writes model and adapter
as one model folder.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# While torch is imported, Ctrl-C ends the program without a traceback; main() sees to the rest. Where it is ignored, as in a
# script's background, it stays so.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

from minigrpo.common.console import say, table
from minigrpo.common.device import generator, set_up_torch
from minigrpo.common.errors import UserError
from minigrpo.common.files import write_whole
from minigrpo.common.process import exit_status
from minigrpo.config import Config, load_config, require
from minigrpo.evaluation.compare import compare, read_rows, show_comparison
from minigrpo.evaluation.evaluate import (
    add_ceilings,
    blind_guesses,
    evaluate_policy,
    in_order,
    judge_rows,
    read_predictions,
    show_candidates,
    write_candidates,
)
from minigrpo.evaluation.figures import Row, add_intervals, kind_table, markdown, notes, split_tables, summarise
from minigrpo.policy.policy import Policy
from minigrpo.task.contract import Problem, Task
from minigrpo.task.kinds import make_task
from minigrpo.training.starting_model import check_prompts_fit, load_start, merge_start

Splits = dict[str, Sequence[Problem]]
Programs = dict[tuple[str, int], str | None]            # by split and index


def load_policy_for(cfg: Config, task: Task, problems: Sequence[Problem]) -> Policy:
    """The config's model (and adapter), after a check that the problems' prompts fit its context."""
    set_up_torch(cfg.run.threads)
    policy = load_start(cfg, task)
    check_prompts_fit(policy.tokenizer, policy.model.architecture.max_positions, task, problems, cfg.generation.max_new_tokens)
    return policy


def evaluate_model(cfg: Config, splits: Splits, task: Task) -> Iterator[Row]:
    """Greedy answers of the config's model to every question of the splits, as they come."""
    problems = all_of(splits)
    yield from evaluate_policy(problems, load_policy_for(cfg, task, problems), task, cfg.generation, cfg.evaluation.batch)


def all_of(splits: Splits) -> list[Problem]:
    return [problem for members in splits.values() for problem in members]


def answer(cfg: Config, text: str, place: str | None) -> int:
    """The config's candidates for one question, and what each gives; nothing is written to disk."""
    with make_task(cfg) as task:
        problem = task.pose(text, place, cfg.evaluation.split)
        policy = load_policy_for(cfg, task, [problem])
        draws = generator(cfg.run.seed, 0, "ask", policy.model.device)
        say(show_candidates(write_candidates(problem, policy, task, cfg.generation, draws), task, cfg.generation))
    return 0


def evaluate_file(splits: Splits, programs: Programs, task: Task) -> list[Row]:
    """Score the predictions that are there; no model is loaded."""
    return judge_rows([(problem, programs[problem.split, problem.index]) for problem in all_of(splits)
                       if (problem.split, problem.index) in programs], task)


def check_predictions(splits: Splits, programs: Programs) -> None:
    for split, index in programs:
        if split in splits and not 0 <= index < len(splits[split]):
            raise UserError(f"--predictions: there is no question {split}/{index}; {split} has {len(splits[split])}")
    if not any(split in splits for split, _ in programs):
        raise UserError(f"--predictions: the file has no row of {', '.join(splits)}")


def write(out: Path, rows: Iterable[Row], splits: Splits, guesses: dict[str, str] | None, task: Task, by_kind: bool) -> None:
    """Rows go to disk as they come, so that an interruption loses none; at the end they are in the questions' order, with the
    ceilings of guessing."""
    kept = []
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            kept.append(row)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    kept = in_order(kept, splits)
    add_ceilings(kept, all_of(splits), guesses, task)
    write_whole(out / "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode())
    summary = summarise(kept, {name: len(members) for name, members in splits.items()}, task.outcomes)
    add_intervals(summary, kept)
    write_whole(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    tables = split_tables(summary) + [kind_table(split, of) for split, of in summary.items() if by_kind and of["n"]]
    (out / "table.md").write_text("\n\n".join([*map(markdown, tables), notes(summary)]) + "\n", encoding="utf-8")
    say("\n\n".join([*map(table, tables), notes(summary)]))
    say(f"written: {out / 'rows.jsonl'}, summary.json, table.md")


def compare_two(args: argparse.Namespace) -> int:
    """What two evaluations of the same questions differ in."""
    first, second = args.compare
    splits = args.split.split(",") if args.split else []
    found = compare(read_rows(first, splits), read_rows(second, splits), (first, second))
    say(f"A: {first}\nB: {second}\n\n{show_comparison(found, table)}")
    if args.out:
        text = f"A: {first}\n\nB: {second}\n\n{show_comparison(found, markdown)}\n"
        make_folder(args.out)
        (args.out / "compare.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (args.out / "compare.md").write_text(text, encoding="utf-8")
        say(f"\nwritten: {args.out / 'compare.json'}, compare.md")
    return 0


def load_tests(task: Task) -> Splits:
    """Every split to report. One whose file is absent has no questions; if all are absent, loading the first says so."""
    names = task.test_splits()
    there = [name for name in names if task.has_split(name)] or names[:1]
    return {name: task.load(name) if name in there else [] for name in names}


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)              # better now than when all is computed
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written to: {error.strerror}") from None


def evaluate(args: argparse.Namespace) -> int:
    """What the command line asks for; what is cheap to refuse is looked at before anything large is loaded."""
    adapter = [f"model.adapter={json.dumps(args.adapter, ensure_ascii=False)}"] if args.adapter else []
    cfg = load_config(args.config, args.set + adapter)
    if not args.predictions:
        require(cfg, "model.path")
    if args.ask is not None:
        return answer(cfg, args.ask, args.database)
    if args.merge:
        merge_start(cfg, args.merge)
        say(f"written: {args.merge}")
        return 0
    if not args.out:
        require(cfg, "run.out")
    task = make_task(cfg)
    programs = read_predictions(args.predictions, task.language) if args.predictions else {}
    names = args.split.split(",") if args.split else list(dict.fromkeys(split for split, _ in programs))
    tests = {} if names or args.predictions else load_tests(task)
    splits = tests or {name: task.load(name) for name in names or [cfg.evaluation.split]}
    train = task.load(cfg.task.split) if task.has_split(cfg.task.split) else None
    if args.predictions:
        check_predictions(splits, programs)
    out = args.out or Path(cfg.run.out) / "eval"
    make_folder(out)
    with task:
        rows = evaluate_file(splits, programs, task) if args.predictions else evaluate_model(cfg, splits, task)
        write(out, rows, splits, None if train is None else blind_guesses(train), task, args.by_kind)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluate a policy, or a file of SQL.")
    parser.add_argument("config", nargs="?", help="a TOML file, see configs/; --compare needs none")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override a key")
    parser.add_argument("--split", help="comma-separated; default every test split, or every split of the predictions")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--adapter", help="an adapter in peft's layout, such as a run's checkpoint")
    source.add_argument("--predictions", type=Path, help='JSONL of {"split", "index", "sql"}: scored without a model')
    parser.add_argument("--by-kind", action="store_true", help="a table for each split, too: a kind of question a line")
    parser.add_argument("--out", type=Path, help="folder for the results; default <run.out>/eval, for --compare none")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--ask", metavar="QUESTION", help="evaluate nothing: answer one question, on the console")
    instead.add_argument("--merge", type=Path, metavar="DIR", help="evaluate nothing: write model and adapter there as one")
    instead.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"),
                         help="evaluate nothing: what two evaluations (their folders) of the same questions differ in")
    parser.add_argument("--database", metavar="NAME", help="the database it is asked of; default that of evaluation.split")
    args = parser.parse_args()
    for name in ("adapter", "split"):                       # as from a variable of the shell that is not set
        if getattr(args, name) == "":
            parser.error(f"argument --{name}: expected one argument")
    chosen = "--ask" if args.ask is not None else "--merge" if args.merge else "--compare" if args.compare else ""
    useless = {"--ask": ("predictions", "split", "by_kind", "out"), "--merge": ("predictions", "split", "by_kind", "out"),
               "--compare": ("predictions", "adapter", "by_kind")}
    excluded = [name for name in useless.get(chosen, ()) if getattr(args, name)]
    if excluded:
        parser.error(f"argument --{excluded[0].replace('_', '-')}: not allowed with argument {chosen}")
    if args.config is None and not args.compare:
        parser.error("the following arguments are required: config")
    if args.ask is None and args.database is not None:
        parser.error("argument --database: not allowed without argument --ask")
    return exit_status("eval.py", lambda: compare_two(args) if args.compare else evaluate(args))


if __name__ == "__main__":
    sys.exit(main())
