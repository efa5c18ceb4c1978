"""Supervised fine-tuning on known solutions before GRPO: a start that is right often enough to earn rewards.

Copying a name from the question into the SQL is learned within a few steps, which come early or late depending on the seed. So
``stop_at`` ends the warm-up at a score instead of a count of steps, and the learning rate falls as that score comes near.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigrpo import config
from minigrpo.batch import pack, scoring_explained
from minigrpo.common.clock import Clock
from minigrpo.common.console import progress, say
from minigrpo.common.device import settle
from minigrpo.common.errors import UserError
from minigrpo.common.process import first_signal
from minigrpo.common.strict_json import NUMBER, JsonLines
from minigrpo.policy.files.weights import load_tensors, save_tensors
from minigrpo.policy.logprobs import completion_logprobs
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import with_roots
from minigrpo.policy.tokenizer import Tokenizer
from minigrpo.policy.tree import pad_completions, pad_prompts
from minigrpo.task.contract import Problem
from minigrpo.task.stream import ProblemStream
from minigrpo.training import folder
from minigrpo.update import Update, move

RAMP_STEPS = 20                                 # in which the learning rate rises to its full value
MIN_PACE = 0.1                                  # share of the learning rate that is kept near stop_at
STATE_FORM = {"strict": NUMBER, "dropped": folder.DROPPED_FORM}        # what a state.json must have

Example = tuple[list[int], list[int]]           # ids of the prompt, ids of the solution with what ends it


def encode_examples(problems: Sequence[Problem], prompt: Callable[[Any], str], tokenizer: Tokenizer, limit: int,
                    stop_strings: Sequence[str]) -> list[Example]:
    """Known solutions as the policy would have to write them: ended by the first stop string, or else by its stop token.

    One that does not fit a context of ``limit`` tokens together with its prompt: ``UserError``.
    """
    end = stop_strings[0] if stop_strings else ""
    token = [] if stop_strings else list(tokenizer.stop_ids[:1])
    if not end and not token:
        raise UserError("warmup: nothing ends a completion: no eos_token_id in the model, no generation.stop_strings")
    examples = []
    for problem in problems:
        written = tokenizer.encode(f"{problem.solution}{end}", special=False) + token
        examples.append((tokenizer.encode(prompt(problem)), written))
        if (length := sum(map(len, examples[-1]))) > limit:
            raise UserError(f"warmup: prompt and solution of {problem.id} have {length} tokens, the model's context is "
                            f"{limit}")
    return examples


def supervised_update(model: CausalLM, optimizer: torch.optim.Optimizer, examples: Sequence[Example],
                      grpo: config.GRPO) -> Update:
    """One step of maximum likelihood, by the same pass that scores rollouts: each example is a group with one completion.

    ``loss`` is the mean of −log p over all completion tokens of the examples, whatever the micro-batches. A step that is not
    finite is dropped, as in ``update``.
    """
    tokens, loss, scored = sum(len(completion) for _, completion in examples), 0.0, dict[int, Tensor]()
    asked, written = zip(*examples)
    with scoring_explained(model, grpo.micro_batch_tokens):
        parts = [(pad_prompts([asked[i] for i in chosen], root=root, device=model.device), chosen)
                 for root, chosen in pack(asked, list(map(len, written)), 1, grpo.micro_batch_tokens)]
        for root, (prompts, chosen) in with_roots([(part[0], part) for part in parts], model):
            ids_Q1C, mask_Q1C = pad_completions([[written[i]] for i in chosen], device=model.device)
            logp_BC = completion_logprobs(model, prompts, ids_Q1C, mask_Q1C, root=root)
            part = -logp_BC.sum() / tokens
            part.backward()
            scored |= zip(chosen, logp_BC.detach())
            loss += part.item()

        def example_at_fault() -> str:
            broken = [i for i, logp_C in sorted(scored.items()) if not logp_C.isfinite().all()]
            return f"the log-probs of example {broken[0] + 1} of {len(examples)}" if broken else ""

        moved = move(model, optimizer, grpo.max_grad_norm, loss, example_at_fault)
        return Update({"loss": loss, **moved.metrics}, moved.fault)


class WarmUp:
    """A warm-up under way: what moves, how far it has come, and where that is kept."""

    def __init__(self, model: CausalLM, parameters: Mapping[str, nn.Parameter], cfg: config.Config, total: int) -> None:
        """Continue from the newest state that is there. ``total``: steps in all."""
        self.model, self.parameters, self.cfg, self.total, out = model, parameters, cfg, total, Path(cfg.run.out)
        self.optimizer = torch.optim.AdamW(parameters.values(), cfg.warmup.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.done, self.reached, self.dropped = 0, 0.0, folder.DroppedSteps()
        self.states = out / "warmup-state"
        if found := folder.newest_state(self.states, STATE_FORM):
            self._load(*found)
        self.records = JsonLines(out / "warmup.jsonl", keep=lambda record: record["step"] < self.done)

    @property
    def over(self) -> bool:
        stop_at = self.cfg.warmup.stop_at
        return self.done >= self.total or bool(stop_at) and self.reached >= stop_at

    def learning_rate(self) -> float:
        """It rises over ``RAMP_STEPS``, then falls: with the part of the way to ``stop_at`` that is left, or, without
        ``stop_at``, evenly over the steps."""
        stop_at = self.cfg.warmup.stop_at
        pace = max(MIN_PACE, 1 - self.reached / stop_at) if stop_at else 1 - self.done / self.total
        return self.cfg.warmup.learning_rate * min(1.0, (self.done + 1) / RAMP_STEPS) * pace

    def step(self, examples: Sequence[Example], score: Callable[[], float]) -> dict[str, float]:
        """One update on ``examples`` and, every ``look_every`` steps, a look at the score; the record of both."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        clock = Clock(partial(settle, self.model.device))
        with clock("update"):
            report = supervised_update(self.model, self.optimizer, examples, self.cfg.grpo)
        record = {"step": self.done, **report.metrics, **clock.metrics()}
        self.dropped.see(self.done, report.fault)
        self.done += 1
        if self.cfg.warmup.stop_at and (self.done % self.cfg.warmup.look_every == 0 or self.done == self.total):
            self.reached = record["strict"] = score()
        self.records.write(record)
        return record

    def save(self) -> None:
        self.records.flush()
        folder.drop_states(self.states, self.done - 1, keep=1)     # first: a state of all weights is large: never three
        facts = {"strict": self.reached, "dropped": vars(self.dropped)}
        with folder.write_state(self.states, self.done, facts) as aside:
            save_tensors(aside / "parameters.safetensors", self.parameters)
            save_tensors(aside / "optimizer.safetensors", folder.optimizer_tensors(self.optimizer, self.parameters))

    def _load(self, newest: Path, state: dict[str, Any]) -> None:
        for name, tensor in load_tensors(newest / "parameters.safetensors").items():
            self.parameters[name].data.copy_(tensor)
        folder.load_optimizer(self.optimizer, self.parameters, load_tensors(newest / "optimizer.safetensors"))
        folder.drop_states(self.states, state["step"], keep=1)     # a newer one is torn: it must not be kept in its place
        self.done, self.reached, self.dropped = state["step"], state["strict"], folder.load_dropped(state["dropped"])


def warm_up(model: CausalLM, parameters: Mapping[str, nn.Parameter], examples: Sequence[Example],
            cfg: config.Config, score: Callable[[], float]) -> None:
    """Train ``parameters`` (all of the model's, or its adapters') for all epochs, or until ``score()`` reaches ``stop_at``.

    ``run.out`` holds a record of the steps and, meanwhile, the newest states to resume from. Too many steps in a row that are
    not finite end it (``FloatingPointError``). The first SIGINT or SIGTERM ends it after the step in progress, saved
    (``SystemExit``); the second one at once.
    """
    stream, stop_at = ProblemStream(examples, cfg.warmup.batch, cfg.run.seed), cfg.warmup.stop_at
    run = WarmUp(model, parameters, cfg, math.ceil(len(examples) * cfg.warmup.epochs / cfg.warmup.batch))
    with progress(run.total, "warm-up", initial=run.done) as bar, first_signal() as met:
        while not run.over and not met:
            record = run.step(stream.batch(run.done), score)
            bar.set_postfix_str(f"loss {record['loss']:.3f}" + (f" strict {run.reached:.0f}%" if stop_at else ""))
            bar.update()
            if run.done % cfg.run.save_every == 0 or run.dropped.enough():
                run.save()
            run.dropped.check()
    if met and run.done:
        run.save()
    run.records.close()
    if met:
        raise SystemExit(128 + met[0])
    if stop_at and run.reached < stop_at:
        say(f"warm-up: all {cfg.warmup.epochs} epochs are over at {run.reached:.1f} % strict, "
            f"below warmup.stop_at = {stop_at:g}")
