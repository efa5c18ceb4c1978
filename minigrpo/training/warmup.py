"""Supervised steps on gold SQL, before GRPO: a start that can be climbed from. Knows no reward and no database.

Copying a name from the question into the SQL is learned all of a sudden, so a count of steps says little about how good a
small model has become. ``stop_at`` ends the warm-up by what it can do, and slows it down on the way there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import progress, say
from minigrpo.common.device import settle
from minigrpo.common.errors import UserError
from minigrpo.common.json_lines import JsonLines
from minigrpo.common.process import first_signal
from minigrpo.common.strict_json import NUMBER
from minigrpo.policy.files.weights import load_tensors, save_tensors
from minigrpo.policy.model import CausalLM
from minigrpo.policy.tokenizer import Tokenizer
from minigrpo.task.sql.question import Question
from minigrpo.task.stream import QuestionStream
from minigrpo.training.checkpoints import drop_states, newest_state, write_state
from minigrpo.update import DROPPED, Dropped, load_dropped, load_optimizer, optimizer_tensors, supervised_update

RISE = 20                                       # steps in which the learning rate reaches its height
SLOWEST = 0.1                                   # of the learning rate, near stop_at
STATE = {"strict": NUMBER, "dropped": DROPPED}  # what has to be in a state.json

Example = tuple[list[int], list[int]]           # ids of the prompt, ids of the SQL with what ends it


def encode_examples(questions: Sequence[Question], prompt: Callable[[Question], str], tokenizer: Tokenizer, limit: int,
                    stop_strings: Sequence[str]) -> list[Example]:
    """Gold SQL as the policy would have to write it: ended by the first stop string, or else by its stop token.

    One that does not fit a context of ``limit`` tokens together with its prompt: ``ValueError``.
    """
    end = stop_strings[0] if stop_strings else ""
    token = [] if stop_strings else list(tokenizer.stop_ids[:1])
    if not end and not token:
        raise UserError("warmup: nothing ends a completion: no eos_token_id in the model, no generation.stop_strings")
    examples = []
    for question in questions:
        written = tokenizer.encode(question.gold_sql.rstrip("; \t\r\n") + end, special=False) + token
        examples.append((tokenizer.encode(prompt(question)), written))
        if (length := sum(map(len, examples[-1]))) > limit:
            raise UserError(f"warmup: prompt and gold SQL of {question.id} have {length} tokens, the model's context is "
                             f"{limit}")
    return examples


def warm_up(model: CausalLM, parameters: Mapping[str, nn.Parameter], examples: Sequence[Example], cfg: config.Warmup, *,
            seed: int, micro_batch_tokens: int, max_grad_norm: float, save_every: int, score: Callable[[], float],
            folder: Path) -> None:
    """Move ``parameters`` (all of the model's, or its adapters') until all epochs are over or ``score()`` is ``stop_at``.

    The learning rate rises over 20 steps, then falls: with the part of the way to ``stop_at`` that is left, or, without it,
    evenly over the steps. ``folder`` holds a record of the steps and, meanwhile, the newest states to go on from. Too many
    steps in a row that are not finite end it (``FloatingPointError``), as does the first SIGINT or SIGTERM after the step in
    progress, a look included, which is saved (``SystemExit``); the second, at once.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=cfg.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    stream, total = QuestionStream(examples, cfg.batch, seed), math.ceil(len(examples) * cfg.epochs / cfg.batch)
    saved = folder / "warmup-state"
    done, reached, dropped = _load(saved, optimizer, parameters)
    records = JsonLines(folder / "warmup.jsonl", keep=lambda record: record["step"] < done)

    def save() -> None:
        records.flush()
        _save(saved, done, reached, dropped, optimizer, parameters)

    with progress(total, "warm-up", initial=done) as bar, first_signal() as met:
        while done < total and not met and not (cfg.stop_at and reached >= cfg.stop_at):
            pace = max(SLOWEST, 1 - reached / cfg.stop_at) if cfg.stop_at else 1 - done / total
            for group in optimizer.param_groups:
                group["lr"] = cfg.learning_rate * min(1.0, (done + 1) / RISE) * pace
            clock, faults = Clock(partial(settle, model.device)), []
            with clock("update"):
                report = supervised_update(model, optimizer, stream.batch(done), max_grad_norm=max_grad_norm,
                                           micro_batch_tokens=micro_batch_tokens, faults=faults)
            record = {"step": done, **report, **clock.metrics()}
            dropped.see(done, faults)
            done += 1
            if cfg.stop_at and (done % cfg.look_every == 0 or done == total):
                reached = record["strict"] = score()
            records.write(record)
            bar.set_postfix_str(f"loss {record['loss']:.3f}" + (f" strict {reached:.0f}%" if cfg.stop_at else ""))
            bar.update()
            if done % save_every == 0 or dropped.enough():
                save()
            dropped.check()
    if met and done:
        save()
    records.close()
    if met:
        raise SystemExit(128 + met[0])
    if cfg.stop_at and reached < cfg.stop_at:
        say(f"warm-up: all {cfg.epochs} epochs are over at {reached:.1f} % strict, below warmup.stop_at = {cfg.stop_at:g}")


def _save(folder: Path, done: int, reached: float, dropped: Dropped, optimizer: torch.optim.Optimizer,
          parameters: Mapping[str, nn.Parameter]) -> None:
    drop_states(folder, done - 1, keep=1)                   # before: a state of all weights is large, so never three
    with write_state(folder, done, {"strict": reached, "dropped": vars(dropped)}) as aside:
        save_tensors(aside / "parameters.safetensors", parameters)
        save_tensors(aside / "optimizer.safetensors", optimizer_tensors(optimizer, parameters))


def _load(folder: Path, optimizer: torch.optim.Optimizer,
          parameters: Mapping[str, nn.Parameter]) -> tuple[int, float, Dropped]:
    """Where it goes on: the steps done, how good it was, the newest of them that moved nothing."""
    if (found := newest_state(folder, STATE)) is None:
        return 0, 0.0, Dropped()
    newest, state = found
    for name, tensor in load_tensors(newest / "parameters.safetensors").items():
        parameters[name].data.copy_(tensor)
    load_optimizer(optimizer, parameters, load_tensors(newest / "optimizer.safetensors"))
    drop_states(folder, state["step"], keep=1)              # what is newer is torn, and must not be kept in its place
    return state["step"], state["strict"], load_dropped(state["dropped"])
