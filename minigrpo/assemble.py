"""Config sections → the parts they describe: questions, database, judge, start policy. The recipes begin and end here."""

import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Callable, Mapping, Sequence

from minigrpo import config
from minigrpo.policy.lora import add_lora, freeze_reference
from minigrpo.policy.weights import Policy, adapter_config, load_adapter, load_policy
from minigrpo.rollout import Judge
from minigrpo.runtime import choose_device, choose_dtype, exit_on_sigterm, generator
from minigrpo.task import mariadb, sqlite, temptabqa
from minigrpo.task.database import Database, DatabaseError, MockDatabase, Tables
from minigrpo.task.prompt import render_prompt, schema_text
from minigrpo.task.questions import Question
from minigrpo.task.reward import make_reward


def open_judge(task: config.Task, database: config.Database, reward: config.Reward) -> Judge:
    """The task's side of a step: prompts, rewards, and a loaded database, open until the judge is left."""
    reward_function = make_reward(reward.preset)
    databases = temptabqa.load_databases(task.path)
    schema = cache(lambda name: schema_text(databases[name], task.samples))

    def prompt(question: Question) -> str:
        return render_prompt(task.template, question.text, schema(question.database))

    return Judge(prompt, open_database(database, databases), reward_function, database.connections)


def open_database(cfg: config.Database, databases: Mapping[str, Tables]) -> Database:
    """The configured engine with ``databases`` loaded. A given server's password comes from the environment."""
    limits = dict(time_limit=cfg.time_limit, max_rows=cfg.max_rows, max_bytes=cfg.max_bytes, connections=cfg.connections)
    if cfg.engine == "mock":
        return MockDatabase()
    if cfg.engine == "sqlite":
        return sqlite.open_sqlite(databases, **limits)
    if not cfg.host and not cfg.socket:
        return mariadb.open_private(databases, **limits)
    password = os.environ.get(config.PASSWORD_VARIABLE, "")
    return mariadb.open_server(databases, host=cfg.host, port=cfg.port, socket=cfg.socket, user=cfg.user,
                               password=password, **limits)


def start_policy(model: config.Model, lora: config.LoRA, generation: config.Generation, seed: int) -> Policy:
    """The base model with adapters on top: fresh ones that change nothing yet, or those of ``model.adapter``, which then
    are also the reference."""
    device = choose_device(model.device)
    policy = load_policy(model.path, dtype=choose_dtype(model.dtype, device), device=device,
                         stop_strings=generation.stop_strings)
    facts = adapter_facts(model, lora)
    add_lora(policy.model, **facts, generator=generator(seed, 0, "adapters"))
    if model.adapter:
        load_adapter(policy.model, Path(model.adapter))
        freeze_reference(policy.model)
    return policy


def adapter_facts(model: config.Model, lora: config.LoRA) -> dict:
    """rank, alpha, targets and rank_stabilised: the config's, or those of the adapter that training starts from."""
    if model.adapter:
        return adapter_config(Path(model.adapter))
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets, "rank_stabilised": lora.rank_stabilised}


def check_prompts_fit(policy: Policy, judge: Judge, questions: Sequence[Question], max_new_tokens: int) -> None:
    """Before anything is computed: every prompt and its completion fit the context. Else ``ValueError``."""
    limit = policy.model.architecture.max_positions
    for question in questions:
        length = len(policy.tokenizer.encode(judge.prompt(question)))
        if length + max_new_tokens > limit:
            raise ValueError(f"the prompt of {question.id} has {length} tokens; with generation.max_new_tokens = "
                             f"{max_new_tokens} that is more than the model's context of {limit}: lower it, or "
                             f"task.samples")


def exit_status(program: str, recipe: Callable[[], int]) -> int:
    """Run a recipe. What is the user's to mend, or the database's, is one sentence on stderr and status 1, not a traceback;
    Ctrl-C is 130 and SIGTERM 143."""
    exit_on_sigterm()
    try:
        return recipe()
    except (ValueError, OSError, DatabaseError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
