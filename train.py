"""Train: python train.py CONFIG [--set section.key=value ...] [--resume | --dry-run | --report]
Sweep: python train.py CONFIG [--set ...] --experiment NAME [--seeds 0 1 2]
"""

import argparse
import os
import signal
import sys
from functools import partial

# While torch is imported, Ctrl-C ends the program without a traceback; main() sees to the rest. Where it is ignored, as in a
# script's background, it stays so.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

from minigrpo.batch import make_batch
from minigrpo.common.clock import Clock
from minigrpo.common.device import generator, set_up_torch, settle
from minigrpo.common.process import exit_status
from minigrpo.config import Config, load_config, require
from minigrpo.evaluation.evaluate import evaluate_policy, report_splits, show_report
from minigrpo.evaluation.figures import summarise
from minigrpo.experiments.sweep import run_experiment
from minigrpo.planning.dry_run import dry_run
from minigrpo.policy.lora import reference
from minigrpo.policy.roots import KeptRoots
from minigrpo.reports.report import report_run
from minigrpo.rollout import collect
from minigrpo.task.kinds import load_data, make_task
from minigrpo.task.stream import ProblemStream, shuffle_answers
from minigrpo.training.folder import check_folder, open_folder
from minigrpo.training.run import Run
from minigrpo.training.starting_model import (
    adapter_facts,
    base_path,
    check_prompts_fit,
    check_start,
    load_start,
    make_start,
)
from minigrpo.update import make_optimizer, update


def train(cfg: Config, *, resume: bool = False) -> int:
    """The recipe. Returns the process's exit status: 0, or 128 + the signal that ended the run early."""
    require(cfg, "model.path", "run.out")
    set_up_torch(cfg.run.threads)
    check_folder(cfg, resume=resume)
    task = make_task(cfg)
    data = load_data(cfg, task)
    check_start(cfg, task, data.train)
    train = shuffle_answers(data.train, cfg.run.seed) if cfg.task.shuffle_answers else data.train
    problems = ProblemStream(train, cfg.grpo.questions, cfg.run.seed)

    with task, open_folder(cfg, resume=resume):
        make_start(cfg, task, data.train, data.asked)
        policy = load_start(cfg, task)
        model, optimizer, start_roots = policy.model, make_optimizer(policy.model, cfg.grpo), KeptRoots()
        check_prompts_fit(policy.tokenizer, model.architecture.max_positions, task, data.all, cfg.generation.max_new_tokens)
        evaluate = partial(report_splits, data.report, data.train, policy, task, cfg.generation, cfg.evaluation.batch)
        with Run(cfg.run, policy, optimizer, task, {"base": base_path(cfg), **adapter_facts(cfg)}) as run:
            def evaluate_if_due() -> None:
                if run.evaluation_due():
                    rows = evaluate_policy(data.asked, policy, task, cfg.generation, cfg.evaluation.batch)
                    split = cfg.evaluation.split
                    run.record_evaluation(split, summarise(rows, {split: len(data.dev)}, task.outcomes)[split])

            if data.report:
                with reference(model):
                    run.report("before", evaluate)
            evaluate_if_due()                           # on resuming: the one during which the run was stopped
            for step in run.steps():
                clock, draws = Clock(partial(settle, model.device)), generator(cfg.run.seed, step, "sample", model.device)
                groups = collect(problems.batch(step), policy, task, cfg.generation, generator=draws, clock=clock)
                batch = make_batch(groups, model, cfg.grpo, temperature=cfg.generation.scoring_temperature, clock=clock,
                                   start_roots=start_roots)
                updates = [update(model, optimizer, batch, cfg.grpo, length=cfg.generation.max_new_tokens, clock=clock)
                           for _ in range(cfg.grpo.updates_per_rollout)]
                run.record(step, groups, batch.advantage_QK.tolist(), updates, clock)
                evaluate_if_due()
            summary = run.report("after", evaluate) if data.report and not run.signal else {}
    show_report(summary)
    return 128 + run.signal if run.signal else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a policy by GRPO.")
    parser.add_argument("config", help="a TOML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override a key")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from where run.out was left")
    mode.add_argument("--dry-run", action="store_true", help="check everything, show what the run will need, and end")
    mode.add_argument("--experiment", metavar="NAME", help="a sweep of minigrpo/experiments: its runs, table and figures")
    mode.add_argument("--report", action="store_true", help="draw and write up what is in run.out, as run.out/report.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="of an experiment; else run.seed")
    args = parser.parse_args()
    if args.experiment:
        return exit_status("train.py", lambda: run_experiment(args.experiment, args.config, args.set, args.seeds, train))
    if args.report:
        return exit_status("train.py", lambda: report_run(load_config(args.config, args.set)))
    if args.dry_run:
        return exit_status("train.py", lambda: dry_run(load_config(args.config, args.set)))
    return exit_status("train.py", lambda: train(load_config(args.config, args.set), resume=args.resume))


if __name__ == "__main__":
    sys.exit(main())
