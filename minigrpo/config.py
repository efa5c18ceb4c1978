"""Every key of a config, with its default, its range and what it means. ``common.settings`` reads and checks them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minigrpo.common import settings
from minigrpo.common.errors import UserError
from minigrpo.common.settings import key

PASSWORD_VARIABLE = "MINIGRPO_DB_PASSWORD"      # secrets come from the environment, never from a file


@dataclass(frozen=True)
class Task:
    kind: str = key("temptabqa", "temptabqa: the benchmark; athletes: made up on the spot in its schema; jsonl: questions of "
                                 "your own on databases that exist")
    path: str = key("data/TEMPTABQA-C", "folder with the benchmark as published; athletes need none; jsonl: every NAME.jsonl "
                                        "in it is a split, and for SQLite every NAME.sqlite a database")
    split: str = key("train", "split to train on")
    template: Literal["plain", "compact", "sqlcoder", "chatml", "gemma"] = key(
        "plain", "how a question and a schema become a prompt; chatml and gemma are the turns of chat models")
    examples: str = key("", "a JSONL file of {question, sql}, shown in this order in every prompt; empty: none")
    samples: int = key(3, "sample values shown for each column of the schema", low=0)
    hold_out: tuple[str, ...] = key((), "kinds of questions that no training sees, neither the warm-up nor GRPO; they are "
                                        "asked all the same where questions are evaluated")
    shuffle_answers: bool = key(False, "a control: the training answers are dealt out anew among the questions, so that "
                                       "nothing can be learned from them")


@dataclass(frozen=True)
class Database:
    engine: Literal["mariadb", "sqlite", "mock"] = key("mariadb", "where SQL runs; mock: every query succeeds")
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
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "of the base weights; auto: bfloat16 on CUDA, float32 on the CPU")
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
    source: str = key("", "gold SQL that the model is shown before GRPO. For TEMPTABQA-C \"templates\", our SQL for its "
                          "question templates, or a JSONL file of {split, index, sql, answerable}; \"athletes\" or \"jsonl\": "
                          "what questions of that kind bring along; empty: no warm-up")
    method: Literal["full", "lora"] = key(
        "full", "full: all weights move, and the result becomes the base; lora: an adapter, which becomes the reference")
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
    method: Literal["beam", "sample"] = key("beam", "how the K candidates are found")
    completions: int = key(2, "K, candidates a question", low=1)
    max_new_tokens: int = key(384, "tokens a candidate may have, the stop token included", low=1)
    stop_strings: tuple[str, ...] = key((";",), "a candidate ends where one of these is complete, in a quoted text too")
    length_penalty: float = key(1.0, "of beams: they are scored Σ log-prob / length^length_penalty")
    early_stopping: bool = key(False, "of beams: stop as soon as K have finished")
    temperature: float = key(1.0, "of sampling, and of scoring what was sampled; beams ignore it", above=0)

    @property
    def scoring_temperature(self) -> float:
        """The temperature of the distribution that the candidates come from; beams come from the plain one."""
        return self.temperature if self.method == "sample" else 1.0


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
    kl_estimator: Literal["k3", "k2"] = key("k3", "how a token's KL is estimated, see grpo.kl_penalty")
    aggregation: Literal["sequence", "token", "constant"] = key(
        "sequence", "mean over sequences (GRPO), over tokens (DAPO), or a constant (Dr. GRPO)")
    scale: Literal["group", "none"] = key("group", "advantages over the group's σ, or unscaled")
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


KEYS = settings.leaves(Config)                  # "run.seed" → its field


def flatten(config: Config) -> dict[str, Any]:
    """{"section.key": value} of the whole config."""
    return settings.flatten(config, KEYS)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply ``section.key=value`` overrides (values in TOML; a bare word is a string).

    Raises ``UserError`` with one sentence for anything wrong in either.
    """
    return settings.build(Config, settings.read_values(path, overrides, KEYS))


def require(config: Config, *keys: str) -> None:
    """Check keys that a recipe cannot do without and that have no default. An empty one: ``UserError``."""
    for dotted in keys:
        if not flatten(config)[dotted]:
            raise UserError(f"{dotted} is missing: {KEYS[dotted].metadata['doc']}")


def dump_config(config: Config) -> str:
    """The resolved config as TOML that ``load_config`` reads back to an equal one."""
    return settings.dump(flatten(config))
