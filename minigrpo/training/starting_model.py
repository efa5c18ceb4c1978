"""What GRPO starts from: a given model, a new one, or either after a warm-up. Made once and kept in the run's folder.

    out/new        a small model with random weights          model.path = "new"
    out/base       the model after a full warm-up             warmup.method = "full"
    out/warmup     the adapter after a LoRA warm-up           warmup.method = "lora"

Each is an ordinary model or adapter folder, written whole and read back by the loader that reads any other.
"""

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from minigrpo import config
from minigrpo.common.console import say
from minigrpo.common.device import choose_device, choose_dtype, generator
from minigrpo.common.errors import UserError
from minigrpo.common.files import whole_folder
from minigrpo.evaluation.evaluate import evaluate_policy
from minigrpo.evaluation.figures import summarise
from minigrpo.policy.fast.fuse import fuse
from minigrpo.policy.files.hub import find_model
from minigrpo.policy.files.weights import adapter_config, create_model, load_adapter, load_model, save_adapter, save_model
from minigrpo.policy.lora import adapter_parameters, add_lora, freeze_reference
from minigrpo.policy.policy import Policy, load_policy
from minigrpo.policy.tokenizer import Tokenizer, load_tokenizer
from minigrpo.task.contract import Problem, Task
from minigrpo.task.stream import epoch_order
from minigrpo.training.warmup import Example, encode_examples, warm_up


# --------------------------------------------------------------------------------------------------------- where it stands
def base_path(cfg: config.Config) -> str:
    """The folder or hub id of the frozen weights under the adapters."""
    return str(Path(cfg.run.out) / "base") if cfg.warmup.source and cfg.warmup.method == "full" else untaught(cfg)


def untaught(cfg: config.Config) -> str:
    """The same before any warm-up."""
    return str(Path(cfg.run.out) / "new") if cfg.model.path == "new" else cfg.model.path


def start_adapter(cfg: config.Config) -> str:
    """The adapter that is the reference policy, or "" if the base itself is. It is ``model.adapter``, or the one that a
    warm-up by LoRA made."""
    if cfg.warmup.source and cfg.warmup.method == "lora" and not cfg.model.adapter:
        return str(Path(cfg.run.out) / "warmup")
    return cfg.model.adapter


def adapter_facts(cfg: config.Config) -> dict[str, Any]:
    """rank, alpha, targets and rank_stabilised: the config's, or those of the adapter that training starts from."""
    return adapter_config(Path(cfg.model.adapter)) if cfg.model.adapter else vars(cfg.lora)


def load_start(cfg: config.Config, task: Task) -> Policy:
    """The base with adapters on top: fresh ones that change nothing yet, or the start adapter, which is then the reference.

    ``UserError``: a folder that ``make_start`` should have made is not there.
    """
    base, adapter = _made(cfg)
    policy = _load(cfg, task, base)
    if adapter:
        load_adapter(policy.model, Path(adapter), base=base)
        freeze_reference(policy.model)
    return policy


def _made(cfg: config.Config) -> tuple[str, str]:
    base, adapter = base_path(cfg), start_adapter(cfg)
    for made, given in ((base, cfg.model.path), (adapter, cfg.model.adapter)):
        if made != given and not Path(made).is_dir():
            raise UserError(f"{made} is not there yet: train.py makes what this config starts from")
    record = Path(cfg.run.out) / "config.toml"
    if base != untaught(cfg) and record.is_file() and (then := config.load_config(record).model.path) != cfg.model.path:
        raise UserError(f"model.path: {base} was made from {then}, not from {cfg.model.path}; with warmup.source = \"\" that "
                        f"would be taken as it is")
    return base, adapter


def merge_start(cfg: config.Config, out: Path) -> None:
    """Write the base with the start adapter merged in as an ordinary model folder, in the dtype of the base's own file.

    The base stays in its file, mapped, and a layer is merged when it is written. ``UserError``: there is no adapter, or
    ``out`` is not empty.
    """
    base, adapter = _made(cfg)
    if not adapter:
        raise UserError("--merge: there is nothing to merge: name an adapter by --adapter or model.adapter")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--merge: {out} is there already: name a folder that is not there yet, or is empty")
    folder = find_model(base)
    facts = adapter_config(Path(adapter))
    model = load_model(folder, dtype=None, device="cpu")
    add_lora(model, **facts, generator=generator(cfg.run.seed, 0, "adapters"))
    load_adapter(model, Path(adapter), base=base)
    with whole_folder(out) as aside:
        save_model(model, aside, like=folder)


def _load(cfg: config.Config, task: Task, base: str, *, adapters: bool = True, dtype: torch.dtype | None = None) -> Policy:
    device = choose_device(cfg.model.device)
    folder = find_model(base)                               # once: a hub id is looked up over the network
    policy = load_policy(folder, dtype=dtype or choose_dtype(cfg.model.dtype, device), device=device,
                         stop_strings=cfg.generation.stop_strings, stop_ids=prompt_stop_ids(task, folder))
    if adapters:
        add_lora(policy.model, **adapter_facts(cfg), generator=generator(cfg.run.seed, 0, "adapters"))
    policy.model.checkpointing = cfg.model.checkpointing
    if cfg.model.fuse:
        fuse(policy.model)
    return policy


def prompt_stop_ids(task: Task, folder: Path) -> tuple[int, ...]:
    """Ids that end a completion because of the prompts' template, before the model's own: a warm-up ends solutions with the
    first of them if there is no stop string."""
    tokenizer = cache(lambda: load_tokenizer(folder))           # read only if the template has markers
    return task.stop_ids(lambda marker: tokenizer().added_token(marker), str(folder))


# ---------------------------------------------------------------------------------------------------------- how it is made
def check_start(cfg: config.Config, task: Task, train: Sequence[Problem]) -> None:
    """Before anything is loaded, check that a new model can be shown the prompts, and that the warm-up has the solutions it
    needs. Else ``UserError``."""
    if cfg.model.path == "new":
        task.stop_ids(lambda marker: None, "a new model")
    if not cfg.warmup.source:
        return
    known = sum(problem.solution is not None for problem in train)
    if not known:
        raise UserError(f"warmup.source: {cfg.warmup.source} has no known solution for the split {cfg.task.split}")
    if known < cfg.warmup.examples:
        raise UserError(f"warmup.examples: {cfg.warmup.examples} were asked for, {cfg.warmup.source} has known solutions for "
                        f"{known} questions of the split {cfg.task.split}")
    if cfg.model.adapter:
        raise UserError("model.adapter: a warm-up makes its own start; take one of model.adapter and warmup.source")


def check_prompts_fit(tokenizer: Tokenizer, limit: int, task: Task, problems: Sequence[Problem],
                      max_new_tokens: int) -> int:
    """The tokens of the longest prompt. ``UserError``: a prompt does not fit a context of ``limit`` tokens together with its
    completion."""
    longest = 0
    for problem in problems:
        length = len(tokenizer.encode(task.prompt(problem)))
        if length + max_new_tokens > limit:
            raise UserError(f"the prompt of {problem.id} has {length} tokens; with generation.max_new_tokens = "
                             f"{max_new_tokens} that is more than the model's context of {limit}: lower it, "
                             f"task.samples or the number of task.examples")
        longest = max(longest, length)
    return longest


def make_start(cfg: config.Config, task: Task, train: Sequence[Problem], asked: Sequence[Problem]) -> None:
    """Make in the run's folder what is not there yet. ``train``: problems, some with known solutions; ``asked``: those on
    which ``stop_at`` is measured."""
    out = Path(cfg.run.out)
    if cfg.model.path == "new" and not (out / "new").exists():
        with whole_folder(out / "new") as aside:
            make_new(cfg, task, train, aside)
    if not cfg.warmup.source:
        return
    made = out / ("base" if cfg.warmup.method == "full" else "warmup")
    if not made.exists():
        policy = _warm_policy(cfg, task, train, asked)
        with whole_folder(made) as aside:
            if cfg.warmup.method == "full":
                model = policy.model.to(choose_dtype(cfg.model.dtype, policy.model.device))
                save_model(model, aside, like=find_model(untaught(cfg)))
            else:
                save_adapter(policy.model, aside, base=untaught(cfg), **adapter_facts(cfg))
    shutil.rmtree(out / "warmup-state", ignore_errors=True)


def make_new(cfg: config.Config, task: Task, train: Sequence[Problem], folder: Path) -> None:
    """A new model, with a tokenizer trained on the problems' prompts and solutions."""
    texts = [text for problem in train for text in (task.prompt(problem), problem.solution or "")]
    create_model(folder, texts, generator=generator(cfg.run.seed, 0, "weights"), **vars(cfg.model.new))


def _warm_policy(cfg: config.Config, task: Task, train: Sequence[Problem], asked: Sequence[Problem]) -> Policy:
    full = cfg.warmup.method == "full"
    # All weights move in float32 whatever they are kept in: bf16 would swallow the small steps.
    policy = _load(cfg, task, untaught(cfg), adapters=not full, dtype=torch.float32 if full else None)
    parameters = dict(policy.model.named_parameters()) if full else adapter_parameters(policy.model)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    check_prompts_fit(policy.tokenizer, policy.model.architecture.max_positions, task, [*train, *asked],
                      cfg.generation.max_new_tokens)
    examples = warmup_examples(cfg, task, train, policy.tokenizer, policy.model.architecture.max_positions)
    if long := sum(len(completion) > cfg.generation.max_new_tokens for _, completion in examples):
        say(f"warm-up: {long} of {len(examples)} solutions can never be written: they are longer\n"
            f"than generation.max_new_tokens = {cfg.generation.max_new_tokens}")

    def score() -> float:
        rows = evaluate_policy(asked, policy, task, cfg.generation, cfg.evaluation.batch)
        return float(summarise(rows, {cfg.evaluation.split: len(asked)}, task.outcomes)[cfg.evaluation.split]["strict"])

    warm_up(policy.model, parameters, examples, cfg, score)
    return policy


def warmup_examples(cfg: config.Config, task: Task, train: Sequence[Problem], tokenizer: Tokenizer,
                    limit: int) -> list[Example]:
    """What the warm-up is shown; ``limit``: the model's context."""
    drawn = draw_examples(train, cfg.warmup.examples, cfg.run.seed)
    return encode_examples(drawn, task.prompt, tokenizer, limit, cfg.generation.stop_strings)


def draw_examples(train: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """``count`` problems with known solutions, drawn by ``seed``."""
    known = [problem for problem in train if problem.solution is not None]
    return [known[place] for place in epoch_order(len(known), seed, 0)[:count]]
