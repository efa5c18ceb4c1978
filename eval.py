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
from collections.abc import Iterable, Iterator
from pathlib import Path

# Ctrl-C while torch is imported is no error; main() sees to the rest. In a script's background it is ignored, and stays so.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

from minigrpo.common.console import say, table
from minigrpo.common.device import generator, use_threads
from minigrpo.common.errors import UserError
from minigrpo.common.files import write_whole
from minigrpo.common.process import exit_status
from minigrpo.config import Config, load_config, require
from minigrpo.evaluation.ask import pose, show_candidates, write_candidates
from minigrpo.evaluation.compare import NOTES, compare, kind_table, markdown, read_rows, show_comparison, split_tables
from minigrpo.evaluation.evaluate import (
    Row,
    add_ceilings,
    add_intervals,
    blind_guesses,
    evaluate_policy,
    evaluate_predictions,
    in_order,
    read_predictions,
    summarise,
)
from minigrpo.rollout import Judge
from minigrpo.task.sql.question import Question
from minigrpo.training.assemble import load_split, load_tests, open_judge, split_is_there
from minigrpo.training.starting_model import check_prompts_fit, load_start, merge_start

Splits = dict[str, list[Question]]


def evaluate_model(cfg: Config, splits: Splits, judge: Judge) -> Iterator[Row]:
    """Greedy SQL of the config's model (and adapter) for every question of the splits, as it comes."""
    use_threads(cfg.run.threads)
    questions = [question for members in splits.values() for question in members]
    policy = load_start(cfg)
    check_prompts_fit(policy.tokenizer, policy.model.architecture.max_positions, judge, questions,
                      cfg.generation.max_new_tokens)
    yield from evaluate_policy(questions, policy, judge, cfg.generation, cfg.evaluation.batch)


def answer(cfg: Config, text: str, database: str | None) -> int:
    """The config's candidates for one question, and what each gives; nothing is written to disk."""
    use_threads(cfg.run.threads)
    if database is None:
        database = load_split(cfg.task, cfg.evaluation.split)[0].database
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
        question = pose(text, database, judge)
        policy = load_start(cfg)
        check_prompts_fit(policy.tokenizer, policy.model.architecture.max_positions, judge, [question],
                          cfg.generation.max_new_tokens)
        draws = generator(cfg.run.seed, 0, "ask", policy.model.device)
        say(show_candidates(write_candidates(question, policy, judge, cfg.generation, draws), cfg.generation))
    return 0


def evaluate_file(splits: Splits, sqls: dict[tuple[str, int], str | None], judge: Judge) -> list[Row]:
    """Score the predictions that are there; no model is loaded."""
    chosen = [question for members in splits.values() for question in members if (question.split, question.index) in sqls]
    return evaluate_predictions(chosen, [sqls[question.split, question.index] for question in chosen], judge)


def check_predictions(splits: Splits, sqls: dict[tuple[str, int], str | None]) -> None:
    for split, index in sqls:
        if split in splits and not 0 <= index < len(splits[split]):
            raise UserError(f"--predictions: there is no question {split}/{index}; {split} has {len(splits[split])}")
    if not any(split in splits for split, _ in sqls):
        raise UserError(f"--predictions: the file has no row of {', '.join(splits)}")


def write(out: Path, rows: Iterable[Row], splits: Splits, guesses: dict[str, str] | None, judge: Judge, by_kind: bool) -> None:
    """Rows go to disk as they come, so that an interruption loses none; at the end they stand in the questions' order, with
    what luck could have done."""
    kept = []
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            kept.append(row)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    kept = in_order(kept, splits)
    add_ceilings(kept, [question for members in splits.values() for question in members], guesses, judge)
    write_whole(out / "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode())
    summary = summarise(kept, {name: len(members) for name, members in splits.items()})
    add_intervals(summary, kept)
    write_whole(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    tables = split_tables(summary) + [kind_table(split, of) for split, of in summary.items() if by_kind and of["n"]]
    (out / "table.md").write_text("\n\n".join([*map(markdown, tables), NOTES]) + "\n", encoding="utf-8")
    say("\n\n".join([*map(table, tables), NOTES]))
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
    sqls = read_predictions(args.predictions) if args.predictions else {}
    names = args.split.split(",") if args.split else list(dict.fromkeys(split for split, _ in sqls))
    tests = {} if names or args.predictions else load_tests(cfg.task)
    splits = tests or {name: load_split(cfg.task, name) for name in names or [cfg.evaluation.split]}
    known = load_split(cfg.task, cfg.task.split) if split_is_there(cfg.task, cfg.task.split) else None
    if args.predictions:
        check_predictions(splits, sqls)
    out = args.out or Path(cfg.run.out) / "eval"
    make_folder(out)
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
        rows = evaluate_file(splits, sqls, judge) if args.predictions else evaluate_model(cfg, splits, judge)
        write(out, rows, splits, None if known is None else blind_guesses(known), judge, args.by_kind)
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
    chosen = "--ask" if args.ask is not None else "--merge" if args.merge else "--compare" if args.compare else None
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
