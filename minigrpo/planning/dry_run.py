"""Check config, data, task and model without loading weights, and show what the run will need. Writes nothing."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import labelled, say, table, verbatim
from minigrpo.common.device import choose_device, choose_dtype, peak_memory, set_up_torch, total_memory
from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import read_object
from minigrpo.planning.memory import Load, Plan, make_plan, measure_rates, step_seconds
from minigrpo.policy.architecture import Architecture, read_architecture
from minigrpo.policy.files.hub import find_model
from minigrpo.policy.tokenizer import load_tokenizer
from minigrpo.policy.tree import common_beginning
from minigrpo.task.contract import Problem, Task
from minigrpo.task.kinds import Data, load_data, make_task
from minigrpo.training import starting_model

GB = 1e9


def dry_run(cfg: config.Config) -> int:
    """Check all that ``train`` would, say what was found, and show the plan; 0. What is wrong raises as it does there."""
    config.require(cfg, "model.path")
    set_up_torch(cfg.run.threads)
    task = make_task(cfg)
    data = load_data(cfg, task)
    starting_model.check_start(cfg, task, data.train)
    device = choose_device(cfg.model.device)
    dtype, facts = choose_dtype(cfg.model.dtype, device), starting_model.adapter_facts(cfg)
    with task, _model_files(cfg, task, data.train) as folder:
        architecture = read_architecture(read_object(folder / "config.json", {}), str(folder / "config.json"))
        tokenizer, context = load_tokenizer(folder, starting_model.prompt_stop_ids(task, folder)), architecture.max_positions
        longest = starting_model.check_prompts_fit(tokenizer, context, task, data.all, cfg.generation.max_new_tokens)
        examples = starting_model.warmup_examples(cfg, task, data.train, tokenizer, context) if cfg.warmup.source else []
        texts = sorted(map(task.prompt, data.train))            # the first and the last share what all share
        load = Load(longest, (max((len(prompt) for prompt, _ in examples), default=0),
                              max((len(written) for _, written in examples), default=0)),
                    common_beginning([tokenizer.encode(text) for text in (texts[0], texts[-1])]))
        checked = _check_solutions(task, data.all)
        prompt, about = task.prompt(data.train[0]), task.about()
    program = peak_memory(device) if device.type == "cpu" else 0
    plan = make_plan(cfg, architecture, load, rank=facts["rank"], targets=facts["targets"], dtype=dtype,
                     keeps_search=device.type != "cpu" and not cfg.model.checkpointing)
    splits = {cfg.task.split: data.train, cfg.evaluation.split: data.dev, **data.report}
    kept = str(dtype).removeprefix("torch.")
    kind = f"{architecture.family}, {architecture.layers} layers of width {architecture.width}"
    say("\n".join([
        *labelled("data", " · ".join(f"{name} {len(members):,}" for name, members in splits.items())),
        *(line for label, text in about for line in labelled(label, text)),
        *(labelled("solutions", f"{checked:,} known ones run and none failed") if checked else []),
        *labelled("model", f"{cfg.model.path} ({kind}): {plan.parameters:,} parameters, {kept} on {device}"),
        *labelled("adapters", f"{plan.adapters:,} parameters in float32: rank {facts['rank']} beside "
                              f"{', '.join(facts['targets'])}"),
        *labelled("context", f"prompts of at most {longest} tokens and {cfg.generation.max_new_tokens} new ones, of "
                             f"{architecture.max_positions}"),
        "", show_memory(plan, program, total_memory(device)),
        "", *_show_time(cfg, plan, architecture, data, load, device, dtype),
        "", f"  the prompt of {data.train[0].id}:", *verbatim(prompt)]))
    return 0


@contextmanager
def _model_files(cfg: config.Config, task: Task, train: Sequence[Problem]) -> Iterator[Path]:
    """The model's folder without its weights; a new model is made aside and thrown away."""
    if cfg.model.path != "new":
        yield find_model(starting_model.untaught(cfg), weights=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        starting_model.make_new(cfg, task, train, Path(folder))
        yield Path(folder)


def _check_solutions(task: Task, problems: Sequence[Problem]) -> int:
    """Judge every known solution, with its reward, since a reward of one's own may raise; returns how many. ``UserError``: one
    fails; a table may be missing, or a right to read it."""
    known = list({problem.id: problem for problem in problems if problem.solution is not None}.values())
    verdicts = task.judge([(problem, problem.solution) for problem in known], Clock())
    for problem, verdict in zip(known, verdicts):
        if not verdict.ok:
            place = "".join(f" on the {label} {text}" for label, text in task.about(problem))
            raise UserError(f"the known solution of {problem.id} fails{place}: {verdict.status}: {verdict.error}")
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
    seconds = step_seconds(plan, rates, cfg, architecture, load)
    steps, step = cfg.run.steps, sum(seconds.values())
    passes = steps * cfg.grpo.questions / len(data.train)
    looks = (steps // cfg.run.evaluate_every if cfg.run.evaluate_every else 0) * len(data.asked) + 2 * sum(
        map(len, data.report.values()))
    looking = math.ceil(looks / cfg.evaluation.batch) * seconds["generate"]
    phases = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items())
    return [*labelled("steps", f"{steps} of {cfg.grpo.questions} questions × {cfg.generation.completions} candidates: "
                               f"{passes:.2g} passes over {cfg.task.split}"),
            *labelled("seconds", f"about {step:.2g} a step ({phases}), if every candidate is {cfg.generation.max_new_tokens} "
                                 f"tokens long; the device does {rates.flops / 1e12:.3g} TFLOP/s, {rates.bytes / 1e9:.0f} "
                                 f"GB/s and a call in {rates.call * 1e6:.2g} µs"),
            *labelled("hours", f"about {(steps * step + looking) / 3600:.2g}, evaluations included"
                               + (", the warm-up not" if cfg.warmup.source else ""))]
