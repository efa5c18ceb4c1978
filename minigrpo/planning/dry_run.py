"""What can be checked without weights, config, data, database, model, and what the run will need. Writes nothing."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from minigrpo import config
from minigrpo.common.console import labelled, say, table, verbatim
from minigrpo.common.device import choose_device, choose_dtype, generator, program_memory, total_memory, use_threads
from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import read_object
from minigrpo.planning.memory import Load, Plan, make_plan, measure_rates, step_seconds
from minigrpo.policy.architecture import Architecture, read_architecture
from minigrpo.policy.files.hub import find_model
from minigrpo.policy.files.weights import create_model
from minigrpo.policy.tokenizer import Tokenizer, load_tokenizer
from minigrpo.rollout import Judge
from minigrpo.task.sql.engines.database import run_all
from minigrpo.task.sql.question import Question
from minigrpo.training.assemble import Data, load_data, open_judge
from minigrpo.training.starting_model import (
    adapter_facts,
    check_prompts_fit,
    check_start,
    draw_examples,
    new_texts,
    turn_end,
    untaught,
)
from minigrpo.training.warmup import encode_examples

GB = 1e9


def dry_run(cfg: config.Config) -> int:
    """Check all that ``train`` would, say what was found, and show the plan; 0. What is wrong raises as it does there."""
    config.require(cfg, "model.path")
    use_threads(cfg.run.threads)
    data = load_data(cfg)
    check_start(cfg, data.known)
    device = choose_device(cfg.model.device)
    dtype, facts = choose_dtype(cfg.model.dtype, device), adapter_facts(cfg)
    with open_judge(cfg.task, cfg.database, cfg.reward) as judge, _model_files(cfg, judge, data.known) as folder:
        architecture = read_architecture(read_object(folder / "config.json", {}), str(folder / "config.json"))
        tokenizer = load_tokenizer(folder, turn_end(cfg, folder))
        longest = check_prompts_fit(tokenizer, architecture.max_positions, judge, data.all, cfg.generation.max_new_tokens)
        load = Load(longest, _longest_example(cfg, judge, data.known, tokenizer, architecture.max_positions))
        checked = _check_gold(judge, data.all)
        prompt = judge.prompt(data.known[0])
        databases = ", ".join(judge.databases)
    program = program_memory(device)
    plan = make_plan(cfg, architecture, load, rank=facts["rank"], targets=facts["targets"], dtype=dtype,
                     keeps_search=device.type != "cpu" and not cfg.model.checkpointing)
    splits = {cfg.task.split: data.known, cfg.evaluation.split: data.dev, **data.splits}
    taught = f", {checked:,} gold queries run and none failed" if checked else ""
    kind = f"{architecture.family}, {architecture.layers} layers of width {architecture.width}"
    say("\n".join([
        *labelled("data", " · ".join(f"{name} {len(members):,}" for name, members in splits.items())),
        *labelled("database", f"{cfg.database.engine}: {databases}{taught}"),
        *labelled("model", f"{cfg.model.path} ({kind}): {plan.parameters:,} parameters, {_name(dtype)} on {device}"),
        *labelled("adapters", f"{plan.adapters:,} parameters in float32: rank {facts['rank']} beside "
                              f"{', '.join(facts['targets'])}"),
        *labelled("context", f"prompts of at most {longest} tokens and {cfg.generation.max_new_tokens} new ones, of "
                             f"{architecture.max_positions}"),
        "", show_memory(plan, program, total_memory(device)),
        "", *_show_time(cfg, plan, architecture, data, load, device, dtype),
        "", f"  the prompt of {data.known[0].id}:", *verbatim(prompt)]))
    return 0


@contextmanager
def _model_files(cfg: config.Config, judge: Judge, train: Sequence[Question]) -> Iterator[Path]:
    """The model's folder without its weights; a new model is made aside and thrown away."""
    if cfg.model.path != "new":
        yield find_model(untaught(cfg), weights=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        create_model(Path(folder), new_texts(judge.prompt, train), generator=generator(cfg.run.seed, 0, "weights"),
                     **vars(cfg.model.new))
        yield Path(folder)


def _longest_example(cfg: config.Config, judge: Judge, train: Sequence[Question], tokenizer: Tokenizer,
                     limit: int) -> tuple[int, int]:
    if not cfg.warmup.source:
        return 0, 0
    examples = encode_examples(draw_examples(train, cfg.warmup.examples, cfg.run.seed), judge.prompt, tokenizer, limit,
                               cfg.generation.stop_strings)
    return max(len(prompt) for prompt, _ in examples), max(len(written) for _, written in examples)


def _check_gold(judge: Judge, questions: Sequence[Question]) -> int:
    """Run all gold SQL there is and reward it, since a reward of one's own may raise; how many. One that fails:
    ``ValueError``; a table may be missing, or a right to read it."""
    known = list({question.id: question for question in questions if question.gold_sql is not None}.values())
    executions = run_all(judge.database, [(question.gold_sql, question.database) for question in known], judge.connections)
    for question, execution in zip(known, executions):
        if not execution.ok:
            raise UserError(f"the gold SQL of {question.id} fails on the database {question.database}: {execution.status}: "
                             f"{execution.error}")
        judge.reward(question, question.gold_sql, execution)
    return len(known)


# --------------------------------------------------------------------------------------------------------------- showing
def show_memory(plan: Plan, program: int, total: int) -> str:
    """The plan's phases in GB, at their height; ``program``: bytes in use before a model is loaded."""
    def line(name: str, *sizes: int) -> list[str]:
        return [f"  {name}", *(f"{size / GB:.2f}" for size in sizes)]

    rows = [["  memory in GB", "weights, adapters, state", "caches, activations", "together"],
            *(line(name, phase.kept, phase.work, phase.peak + program) for name, phase in plan.phases.items())]
    most = plan.peak + program
    fits = "it fits" if most <= total else "lower\n  grpo.micro_batch_tokens, grpo.questions or evaluation.batch"
    verdict = f"  {most / GB:.2f} GB where all are of full length, of {total / GB:.0f} that are here: {fits}."
    if program:
        verdict += (f"\n  {program / GB:.2f} GB of them is the program. The C library may hold up to half as much"
                    "\n  again in gaps between tensors; with MALLOC_MMAP_THRESHOLD_=1000000 set"
                    "\n  it does not, but is slower.")
    return f"{table(rows)}\n{verdict}"


def _show_time(cfg: config.Config, plan: Plan, architecture: Architecture, data: Data, load: Load, device: torch.device,
               dtype: torch.dtype) -> list[str]:
    rates = measure_rates(device, dtype)
    seconds = step_seconds(plan, rates, cfg, architecture, load.prompt)
    steps, step = cfg.run.steps, sum(seconds.values())
    passes = steps * cfg.grpo.questions / len(data.known)
    looks = (steps // cfg.run.evaluate_every if cfg.run.evaluate_every else 0) * len(data.asked) + 2 * sum(
        map(len, data.splits.values()))
    looking = math.ceil(looks / cfg.evaluation.batch) * seconds["generate"]
    phases = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items())
    return [*labelled("steps", f"{steps} of {cfg.grpo.questions} questions × {cfg.generation.completions} candidates: "
                               f"{passes:.2g} passes over {cfg.task.split}"),
            *labelled("seconds", f"about {step:.2g} a step ({phases}), if every candidate is {cfg.generation.max_new_tokens} "
                                 f"tokens long; the device does {rates.flops / 1e12:.3g} TFLOP/s, {rates.bytes / 1e9:.0f} "
                                 f"GB/s and a call in {rates.call * 1e6:.2g} µs"),
            *labelled("hours", f"about {(steps * step + looking) / 3600:.2g}, evaluations included"
                               + (", the warm-up not" if cfg.warmup.source else ""))]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
