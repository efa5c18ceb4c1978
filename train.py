"""Train: python train.py CONFIG [--set section.key=value ...] [--resume | --dry-run | --report]
   Sweep: python train.py CONFIG [--set ...] --experiment NAME [--seeds 0 1 2]"""

import argparse
import os
import signal
import sys
from functools import partial

# Ctrl-C while torch is imported is no error; main() sees to the rest. In a script's background it is ignored, and stays so.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

from minigrpo.batch import make_batch
from minigrpo.common.clock import Clock, average
from minigrpo.common.device import generator, settle, use_threads
from minigrpo.common.process import exit_status
from minigrpo.config import Config, load_config, require
from minigrpo.evaluation.evaluate import evaluate_policy, report_splits, show_report, summarise
from minigrpo.experiments.sweep import run_experiment
from minigrpo.planning.dry_run import dry_run
from minigrpo.policy.lora import reference
from minigrpo.reports.report import report_run
from minigrpo.rollout import collect
from minigrpo.task.stream import QuestionStream, shuffle_answers
from minigrpo.training.assemble import load_data, open_judge
from minigrpo.training.run import Run, check_folder, open_folder
from minigrpo.training.starting_model import adapter_facts, base_path, check_prompts_fit, check_start, load_start, make_start
from minigrpo.update import make_optimizer, update


def train(cfg: Config, *, resume: bool = False) -> int:
    """The recipe. Returns the process's exit status: 0, or 128 + the signal that ended the run early."""
    require(cfg, "model.path", "run.out")
    use_threads(cfg.run.threads)
    check_folder(cfg, resume=resume)
    data = load_data(cfg)
    check_start(cfg, data.known)
    answered = shuffle_answers(data.known, cfg.run.seed) if cfg.task.shuffle_answers else data.known
    questions, split = QuestionStream(answered, cfg.grpo.questions, cfg.run.seed), cfg.evaluation.split

    with open_judge(cfg.task, cfg.database, cfg.reward) as judge, open_folder(cfg, resume=resume):
        make_start(cfg, judge, data.known, data.asked)
        policy = load_start(cfg)
        model, optimizer = policy.model, make_optimizer(policy.model, cfg.grpo)
        temperature = cfg.generation.temperature if cfg.generation.method == "sample" else 1.0
        check_prompts_fit(policy.tokenizer, model.architecture.max_positions, judge, data.all, cfg.generation.max_new_tokens)
        report = partial(report_splits, data.splits, data.known, policy, judge, cfg.generation, cfg.evaluation.batch)

        with Run(cfg.run, policy, optimizer, {"base": base_path(cfg), **adapter_facts(cfg)}) as run:
            def evaluate_if_due() -> None:
                if run.evaluation_due():
                    rows = evaluate_policy(data.asked, policy, judge, cfg.generation, cfg.evaluation.batch)
                    run.record_evaluation(split, summarise(rows, {split: len(data.dev)})[split])

            if data.splits:
                with reference(model):
                    run.report("before", report)
            evaluate_if_due()                           # on resuming: the one that the run was stopped in
            for step in run.steps():
                clock, draws = Clock(partial(settle, model.device)), generator(cfg.run.seed, step, "sample", model.device)
                groups = collect(questions.batch(step), policy, judge, cfg.generation, generator=draws, clock=clock)
                batch = make_batch(groups, model, cfg.grpo, temperature=temperature, clock=clock)
                faults: list[str] = []
                reports = [update(model, optimizer, batch, cfg.grpo, length=cfg.generation.max_new_tokens, clock=clock,
                                  faults=faults) for _ in range(cfg.grpo.updates_per_rollout)]
                run.record(step, groups, average(reports), clock, faults)
                evaluate_if_due()
            record = run.report("after", report) if data.splits and not run.signal else {}
    show_report(record)
    return 128 + run.signal if run.signal else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a policy by GRPO.")
    parser.add_argument("config", help="a TOML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override a key")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from where run.out was left")
    mode.add_argument("--dry-run", action="store_true", help="check everything, show what the run will need, and end")
    mode.add_argument("--experiment", metavar="NAME", help="a sweep of minigrpo/experiments.py: its runs, table and figures")
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
