"""Evaluate: python eval.py CONFIG [--split S[,S...]] [--adapter DIR | --predictions FILE.jsonl] [--out DIR]
   or ask:   python eval.py CONFIG --ask "How many ...?" [--database NAME] [--adapter DIR]
   or merge: python eval.py CONFIG [--adapter DIR] --merge DIR

Writes DIR/rows.jsonl, one question a line, and DIR/summary.json; prints the summary as a table. A question that is asked is
answered on the console alone. Merging evaluates nothing and writes model and adapter as one model folder.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Iterable, Iterator

from minigrpo.ask import pose, show_candidates, write_candidates
from minigrpo.assemble import exit_status, load_split, open_judge
from minigrpo.config import Config, load_config, require
from minigrpo.evaluate import Row, evaluate_policy, evaluate_predictions, in_order, read_predictions, summarise
from minigrpo.metrics import say, table
from minigrpo.runtime import generator, use_threads
from minigrpo.start import check_prompts_fit, load_start, merge_start
from minigrpo.task.questions import Question

Splits = dict[str, list[Question]]


def evaluate_model(cfg: Config, splits: Splits) -> Iterator[Row]:
    """Greedy SQL of the config's model (and adapter) for every question of the splits, as it comes."""
    use_threads(cfg.run.threads)
    questions = [question for members in splits.values() for question in members]
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
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


def evaluate_file(cfg: Config, splits: Splits, sqls: dict[tuple[str, int], str | None]) -> list[Row]:
    """Score the predictions that are there; no model is loaded."""
    for split, index in sqls:
        if split in splits and not 0 <= index < len(splits[split]):
            raise ValueError(f"--predictions: there is no question {split}/{index}; {split} has {len(splits[split])}")
    chosen = [question for members in splits.values() for question in members if (question.split, question.index) in sqls]
    if not chosen:
        raise ValueError(f"--predictions: the file has no row of {', '.join(splits)}")
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
        return evaluate_predictions(chosen, [sqls[question.split, question.index] for question in chosen], judge)


def write(out: Path, rows: Iterable[Row], splits: Splits) -> None:
    """Rows go to disk as they come, so that an interruption loses none; at the end they stand in the questions' order."""
    kept = []
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            kept.append(row)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    kept = in_order(kept, splits)
    (out / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    summary = summarise(kept, {name: len(members) for name, members in splits.items()})
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    cells = [["split", "n of N", "strict", "EMS", "REMS", "errors"]]
    for split, line in summary.items():
        figures = (f"{line[name]:.2f}" if line["n"] else "" for name in ("strict", "ems", "rems", "error_rate"))
        cells.append([split, f"{line['n']} of {line['of']}", *figures])
    say(table(cells))
    say(f"written: {out / 'rows.jsonl'}, {out / 'summary.json'}")


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
    default = dict.fromkeys(split for split, _ in sqls) or [cfg.evaluation.split]
    names = args.split.split(",") if args.split else default
    splits = {name: load_split(cfg.task, name) for name in names}
    out = args.out or Path(cfg.run.out) / "eval"
    try:
        out.mkdir(parents=True, exist_ok=True)              # better now than when all is computed
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be written to: {error.strerror}") from None
    rows = evaluate_file(cfg, splits, sqls) if args.predictions else evaluate_model(cfg, splits)
    write(out, rows, splits)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluate a policy, or a file of SQL.")
    parser.add_argument("config", help="a TOML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override a key")
    parser.add_argument("--split", help="comma-separated; default evaluation.split, or every split of the predictions")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--adapter", help="an adapter in peft's layout, such as a run's checkpoint")
    source.add_argument("--predictions", type=Path, help='JSONL of {"split", "index", "sql"}: scored without a model')
    parser.add_argument("--out", type=Path, help="folder for the results; default <run.out>/eval")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--ask", metavar="QUESTION", help="evaluate nothing: answer one question, on the console")
    instead.add_argument("--merge", type=Path, metavar="DIR", help="evaluate nothing: write model and adapter there as one")
    parser.add_argument("--database", metavar="NAME", help="the database it is asked of; default that of evaluation.split")
    args = parser.parse_args()
    for name in ("adapter", "split"):                       # as from a variable of the shell that is not set
        if getattr(args, name) == "":
            parser.error(f"argument --{name}: expected one argument")
    chosen = "--ask" if args.ask is not None else "--merge" if args.merge else None
    excluded = [name for name in ("predictions", "split", "out") if getattr(args, name)]
    if chosen and excluded:
        parser.error(f"argument --{excluded[0]}: not allowed with argument {chosen}")
    if args.ask is None and args.database is not None:
        parser.error("argument --database: not allowed without argument --ask")
    return exit_status("eval.py", lambda: evaluate(args))


if __name__ == "__main__":
    sys.exit(main())
