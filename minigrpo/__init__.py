"""minigrpo: GRPO from scratch in pure PyTorch, teaching a language model SQL by running what it writes.

A group is a tree: a question's prompt is the trunk, its K completions are the branches.

**Axes.** A tensor's name ends in its axes (``logp_BC``); an axis of size one is written 1.

    Q  questions (groups) of a batch        T  tokens of this call
    K  completions of a group               D  width
    B  sequences, Q * K, question-major     N  query heads
    P  prompt slots (the trunk)             M  key/value heads
    C  completion slots (a branch)          H  head size
    S  slots of a tree, P + K * C           V  vocabulary
    U  states of the stopping automaton     R  LoRA rank

**Reading order.** ``grpo`` (the mathematics) · ``train.py``, ``rollout``, ``batch``, ``update`` (the line) · ``policy``:
``tree``, ``linear``, ``lora``, ``model``, ``graph``, ``search``, ``logprobs``, ``stopping``, ``hub``, ``weights`` · ``task``:
``database``, ``answer``, ``reward``, ``structure``, ``prompt``, ``temptabqa``, ``athletes``, ``jsonl``, ``guard``,
``mariadb``, ``mariadb_text``, ``mariadb_setup``, ``mariadbd``, ``grants``, ``sqlite``, ``sqlite_text``, ``literals``,
``introspect``, ``renamed`` · ``config``, ``assemble``, ``start``, ``warmup``, ``run``, ``intervals``, ``evaluate``,
``tables``, ``ask``, ``plan``, ``dry_run``, ``records``, ``pictures``, ``report``, ``comparison``, ``experiments``, ``states``,
``files``, ``lines``.
"""
