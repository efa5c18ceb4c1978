"""Train: python train.py CONFIG [--set section.key=value ...] [--resume]"""

import argparse
import sys
from functools import partial

from minigrpo.assemble import adapter_facts, check_prompts_fit, exit_status, open_judge, start_policy
from minigrpo.batch import make_batch
from minigrpo.config import Config, load_config, require
from minigrpo.evaluate import evaluate_policy, summarise
from minigrpo.metrics import Clock, average
from minigrpo.rollout import collect
from minigrpo.run import Run, check_folder
from minigrpo.runtime import generator, settle, use_threads
from minigrpo.task.questions import QuestionStream
from minigrpo.task.temptabqa import load_questions
from minigrpo.update import make_optimizer, update


def train(cfg: Config, *, resume: bool = False) -> int:
    """The recipe. Returns the process's exit status: 0, or 128 + the signal that ended the run early."""
    require(cfg, "model.path", "run.out")
    use_threads(cfg.run.threads)
    check_folder(cfg, resume=resume)
    questions = QuestionStream(load_questions(cfg.task.path, cfg.task.split), cfg.grpo.questions, cfg.run.seed)
    split = cfg.evaluation.split
    dev = load_questions(cfg.task.path, split)
    asked = dev[:cfg.evaluation.questions or len(dev)]

    with open_judge(cfg.task, cfg.database, cfg.reward) as judge:
        policy = start_policy(cfg.model, cfg.lora, cfg.generation, cfg.run.seed)
        model, optimizer = policy.model, make_optimizer(policy.model, cfg.grpo)
        temperature = cfg.generation.temperature if cfg.generation.method == "sample" else 1.0
        facts = {"base": cfg.model.path, **adapter_facts(cfg.model, cfg.lora)}
        check_prompts_fit(policy, judge, [*questions.questions, *asked], cfg.generation.max_new_tokens)

        with Run(cfg, policy, optimizer, facts, resume=resume) as run:
            def evaluate_if_due() -> None:
                if run.evaluation_due():
                    rows = evaluate_policy(asked, policy, judge, cfg.generation, cfg.evaluation.batch)
                    run.record_evaluation(split, summarise(rows, {split: len(dev)})[split])

            evaluate_if_due()                           # on resuming: the one that the run was stopped in
            for step in run.steps():
                clock, draws = Clock(partial(settle, model.device)), generator(cfg.run.seed, step, "sample", model.device)
                groups = collect(questions.batch(step), policy, judge, cfg.generation, generator=draws, clock=clock)
                batch = make_batch(groups, model, cfg.grpo, temperature=temperature, clock=clock)
                reports = [update(model, optimizer, batch, cfg.grpo, length=cfg.generation.max_new_tokens, clock=clock)
                           for _ in range(cfg.grpo.updates_per_rollout)]
                run.record(step, groups, average(reports), clock)
                evaluate_if_due()
    return 128 + run.signal if run.signal else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a policy by GRPO.")
    parser.add_argument("config", help="a TOML file, see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override a key")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of run.out")
    args = parser.parse_args()
    return exit_status("train.py", lambda: train(load_config(args.config, args.set), resume=args.resume))


if __name__ == "__main__":
    sys.exit(main())
