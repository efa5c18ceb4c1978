"""TOML → frozen dataclasses, strictly. Knows the shape of a config and nothing of what it configures.

A section of the file is a dataclass, a key one of its fields; the field carries its doc and its range. Anything unknown,
of a wrong type or out of range is one sentence: file, key, what was expected, what was got.
"""

import dataclasses
import difflib
import functools
import json
import math
import operator
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from minigrpo.common.errors import UserError
from minigrpo.common.messages import shown

LONGEST, DOTS = 2**20, 100                      # bytes of a file, dots in a line of it
PASSWORD_VARIABLE = "MINIGRPO_DB_PASSWORD"      # secrets come from the environment, never from a file


def key(default: Any, doc: str, *, low: float | None = None, above: float | None = None, high: float | None = None,
        choices: Sequence[str] = ()) -> Any:
    """A documented field. Numbers are ≥ ``low``, > ``above`` and ≤ ``high``; ``choices`` lists what a string may be."""
    return field(default=default, metadata={"doc": doc, "low": low, "above": above, "high": high, "choices": tuple(choices)})


@dataclass(frozen=True)
class Task:
    kind: str = key("temptabqa", "the benchmark; athletes made up on the spot in its schema; or jsonl, questions of your own "
                                 "on databases that exist", choices=("temptabqa", "athletes", "jsonl"))
    path: str = key("data/TEMPTABQA-C", "folder with the benchmark as published; athletes need none; jsonl: every NAME.jsonl "
                                        "in it is a split, and for SQLite every NAME.sqlite a database")
    split: str = key("train", "split to train on")
    template: str = key("plain", "how a question and a schema become a prompt; chatml and gemma are the turns of chat models",
                        choices=("plain", "compact", "sqlcoder", "chatml", "gemma"))
    examples: str = key("", "a JSONL file of {question, sql}, shown in this order in every prompt; empty: none")
    samples: int = key(3, "sample values shown for each column of the schema", low=0)
    hold_out: tuple[str, ...] = key((), "kinds of questions that no training sees, neither the warm-up nor GRPO; they are "
                                        "asked all the same where questions are evaluated")
    shuffle_answers: bool = key(False, "a control: the training answers are dealt out anew among the questions, so that "
                                       "nothing can be learned from them")


@dataclass(frozen=True)
class Database:
    engine: str = key("mariadb", "where SQL runs; mock: every query succeeds", choices=("mariadb", "sqlite", "mock"))
    host: str = key("", "a given MariaDB server's host; with socket also empty a private server is started (for jsonl one has "
                       "to be given)")
    port: int = key(3306, "the given server's port", low=1, high=65535)
    socket: str = key("", "the given server's unix socket")
    user: str = key("", f"account on the given server (for jsonl one that may only read); its password is read from "
                        f"${PASSWORD_VARIABLE}")
    time_limit: float = key(0.25, "seconds a query may take, enforced by the server", above=0)
    max_rows: int = key(1000, "rows a result may have", low=1)
    max_bytes: int = key(1_000_000, "bytes a result may have", low=1)
    connections: int = key(4, "queries at once", low=1, high=1000)


@dataclass(frozen=True)
class NewModel:
    vocabulary: int = key(1000, "ids of its byte-level BPE, trained on the task's questions and gold SQL", low=257)
    layers: int = key(2, "of its decoder, a Llama", low=1)
    width: int = key(96, "D", low=1)
    heads: int = key(4, "N; the head size is D / N", low=1)
    mlp_width: int = key(256, "of the feed-forward layers", low=1)
    max_positions: int = key(512, "its context in tokens", low=1)


@dataclass(frozen=True)
class Model:
    path: str = key("", "a Hugging Face model folder, a hub id, or \"new\": a small model of [model.new] that knows nothing")
    dtype: str = key("auto", "of the base weights; auto: bfloat16 on CUDA, float32 on the CPU",
                     choices=("auto", "float32", "bfloat16"))
    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    fuse: bool = key(False, "torch.compile makes few kernels of all that lies between a layer's matrix products: a sixth to a "
                            "third faster on CUDA, which needs a C compiler for it; some minutes of compiling in the first "
                            "steps")
    checkpointing: bool = key(False, "keep one activation a layer and compute the rest again in the backward pass: less "
                                     "memory, slower; buffers of the generation are freed before the update")
    adapter: str = key("", "an adapter in peft's layout to start from: the reference policy; its own rank, alpha "
                           "and targets are used, not those of [lora]")
    new: NewModel = field(default=NewModel())


@dataclass(frozen=True)
class Warmup:
    source: str = key("", "gold SQL that the model is shown before GRPO: a JSONL file of {split, index, sql, answerable}; "
                          "\"athletes\" or \"jsonl\": what questions of that kind bring along; empty: no warm-up")
    method: str = key("full", "full: all weights move, and the result becomes the base; lora: an adapter, which becomes the "
                              "reference", choices=("full", "lora"))
    examples: int = key(1000, "questions with gold SQL, drawn from task.split", low=1)
    epochs: int = key(3, "passes over them", low=1)
    batch: int = key(16, "examples a step", low=1)
    learning_rate: float = key(5e-5, "of AdamW at its highest; it rises over the first 20 steps", above=0)
    stop_at: float = key(0.0, "percent strict on evaluation.split at which the warm-up is over; nearing it, it slows down; 0: "
                              "it goes through all epochs, slowing down evenly", low=0, high=100)
    look_every: int = key(5, "steps between looks at that score", low=1)


@dataclass(frozen=True)
class LoRA:
    rank: int = key(16, "rank R of the adapters", low=1)
    alpha: float = key(32.0, "adapters are scaled by alpha / rank", above=0)
    rank_stabilised: bool = key(False, "scale by alpha / √rank instead")
    targets: tuple[str, ...] = key(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                                   "names of the linear layers that get one")


@dataclass(frozen=True)
class Generation:
    method: str = key("beam", "how the K candidates are found", choices=("beam", "sample"))
    completions: int = key(2, "K, candidates a question", low=1)
    max_new_tokens: int = key(384, "tokens a candidate may have, the stop token included", low=1)
    stop_strings: tuple[str, ...] = key((";",), "a candidate ends where one of these is complete, in a quoted text too")
    length_penalty: float = key(1.0, "of beams: they are scored Σ log-prob / length^length_penalty")
    early_stopping: bool = key(False, "of beams: stop as soon as K have finished")
    temperature: float = key(1.0, "of sampling, and of scoring what was sampled; beams ignore it", above=0)


@dataclass(frozen=True)
class Reward:
    preset: str = key("paper", "a row of PRESETS in minigrpo/task/sql/reward.py, or module.function of your own")
    gold_sql: str = key("", "for the preset structural, where no warm-up brings gold SQL: what warmup.source would name")


@dataclass(frozen=True)
class GRPO:
    questions: int = key(8, "Q, questions a step", low=1)
    updates_per_rollout: int = key(1, "optimiser steps on each batch; with 1 the ratio is exactly 1 and the clip never acts",
                                   low=1)
    learning_rate: float = key(1e-5, "of AdamW", low=0)
    weight_decay: float = key(0.0, "of AdamW, decoupled", low=0)
    max_grad_norm: float = key(1.0, "the gradient's norm is clipped to this", above=0)
    clip_low: float = key(0.2, "the ratio is clipped below at 1 − clip_low", low=0, high=1)
    clip_high: float = key(0.2, "the ratio is clipped above at 1 + clip_high", low=0)
    kl_coef: float = key(0.04, "weight β of the KL penalty to the start policy", low=0)
    kl_estimator: str = key("k3", "see grpo.kl_penalty", choices=("k3", "k2"))
    aggregation: str = key("sequence", "mean over sequences (GRPO), over tokens (DAPO), or a constant (Dr. GRPO)",
                           choices=("sequence", "token", "constant"))
    scale: str = key("group", "advantages over the group's σ, or unscaled", choices=("group", "none"))
    micro_batch_tokens: int = key(8192, "tree slots in one forward and backward pass; a question is never divided", low=1)


@dataclass(frozen=True)
class Evaluation:
    split: str = key("dev", "split evaluated during training")
    questions: int = key(0, "how many of its questions, from the first; 0: all", low=0)
    batch: int = key(16, "questions decoded at once", low=1)
    report: tuple[str, ...] = key((), "splits evaluated in full before the first step and after the last: summary.json")


@dataclass(frozen=True)
class Run:
    out: str = key("", "folder for metrics, samples and checkpoints")
    seed: int = key(0, "of everything random", low=0)
    steps: int = key(100, "GRPO steps", low=0)
    evaluate_every: int = key(50, "steps between evaluations; 0: never", low=0)
    save_every: int = key(25, "steps between checkpoints", low=1)
    sample_every: int = key(10, "steps between printed samples; 0: never", low=0)
    threads: int = key(0, "CPU threads of PyTorch; 0: its own choice", low=0)


@dataclass(frozen=True)
class Config:
    task: Task
    database: Database
    model: Model
    lora: LoRA
    warmup: Warmup
    generation: Generation
    reward: Reward
    grpo: GRPO
    evaluation: Evaluation
    run: Run


def _leaves(section: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """("section.key", field) for every key, those of a section within a section as "section.inner.key"."""
    for spec in dataclasses.fields(section):
        if dataclasses.is_dataclass(spec.type):
            yield from _leaves(spec.type, f"{prefix}{spec.name}.")
        else:
            yield prefix + spec.name, spec


KEYS = dict(_leaves(Config))                    # "run.seed" → its field
SECTIONS = tuple(dict.fromkeys(dotted.rpartition(".")[0] for dotted in KEYS))


def flatten(config: Config) -> dict[str, Any]:
    """{"section.key": value} of the whole config."""
    return {dotted: functools.reduce(getattr, dotted.split("."), config) for dotted in KEYS}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply ``section.key=value`` overrides (values in TOML; a bare word is a string).

    Raises ``ValueError`` with one sentence for anything wrong in either.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.loads(_moderate(file.read(LONGEST + 1)).decode())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {shown(str(error))}") from None
    values: dict[str, Any] = {}
    for name, section in table.items():
        if not isinstance(section, dict):
            raise UserError(f"{path}: {shown(name)} stands outside any [section]")
        for dotted, value in _dotted(name, section, str(path)):
            values[dotted] = _checked(dotted, value, str(path))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected section.key=value")
        values[dotted.strip()] = _checked(dotted.strip(), _parse_value(text.strip()), "--set")
    return _build(Config, values)


def require(config: Config, *keys: str) -> None:
    """What a recipe cannot do without and has no default: an empty one is a ``ValueError``."""
    for dotted in keys:
        if not flatten(config)[dotted]:
            raise UserError(f"{dotted} is missing: {KEYS[dotted].metadata['doc']}")


def dump_config(config: Config) -> str:
    """The resolved config as TOML that ``load_config`` reads back to an equal one."""
    lines, values = [], flatten(config)
    for section in SECTIONS:
        members = {dotted: value for dotted, value in values.items() if dotted.rpartition(".")[0] == section}
        # JSON's integers, booleans, strings and lists of strings are TOML's too; of numbers, Python's text is ("inf").
        lines += [f"[{section}]", *(f"{dotted.rpartition('.')[2]} = "
                                    f"{value if isinstance(value, float) else json.dumps(value, ensure_ascii=False)}"
                                    for dotted, value in members.items()), ""]
    return "\n".join(lines)


def _moderate(text: bytes) -> bytes:
    """No config is that long, and what has that many dots takes the parser the square of their number."""
    if len(text) > LONGEST or max(line.count(b".") for line in text.split(b"\n")) > DOTS:
        raise UserError(f"expected at most {LONGEST:,} bytes, and {DOTS} dots in a line")
    return text


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _dotted(name: str, section: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """A TOML table as ("section.key", value); a table is a section only where there is one of that name."""
    if not section and name not in SECTIONS:
        raise UserError(f"{source}: there is no section [{shown(name)}]; the sections are {', '.join(SECTIONS)}")
    for key_name, value in section.items():
        dotted = f"{name}.{key_name}"
        if dotted in SECTIONS and isinstance(value, dict):
            yield from _dotted(dotted, value, source)
        else:
            yield dotted, value


def _build(section: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The dataclass ``section`` from the values given for its keys; what is not given has its default."""
    given = {}
    for spec in dataclasses.fields(section):
        if dataclasses.is_dataclass(spec.type):
            given[spec.name] = _build(spec.type, values, f"{prefix}{spec.name}.")
        elif prefix + spec.name in values:
            given[spec.name] = values[prefix + spec.name]
    return section(**given)


def _checked(dotted: str, value: Any, source: str) -> Any:
    """``value`` as the key's type, in its range; an integer is a float where a float is wanted."""
    if dotted not in KEYS:
        nearest = difflib.get_close_matches(dotted[:120], KEYS, n=1, cutoff=0.0)[0]
        raise UserError(f"{source}: there is no key {shown(dotted)}; the nearest is {nearest}")
    spec, where = KEYS[dotted], f"{source}: {dotted}"
    low, above, high, choices = (spec.metadata[name] for name in ("low", "above", "high", "choices"))
    if spec.type is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if get_args(spec.type):                                         # the only generic type here: a tuple of strings
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{where}: expected a list of strings, got {value!r:.80}")
        return tuple(value)
    if type(value) is not spec.type or (spec.type is float and not math.isfinite(value)):
        raise UserError(f"{where}: expected {_TYPE_NAMES[spec.type]}, got {value!r:.80}")
    if choices and value not in choices:
        raise UserError(f"{where}: expected one of {', '.join(choices)}, got {value!r:.80}")
    bounds = [(sign, bound, holds(value, bound)) for sign, bound, holds in
              (("≥", low, operator.ge), (">", above, operator.gt), ("≤", high, operator.le)) if bound is not None]
    if not all(holds for _, _, holds in bounds):
        expected = " and ".join(f"{sign} {bound}" for sign, bound, _ in bounds)
        raise UserError(f"{where}: expected {_TYPE_NAMES[spec.type]} {expected}, got {value!r:.80}")
    return value


_TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
