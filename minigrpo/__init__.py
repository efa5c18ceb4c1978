"""minigrpo: GRPO from scratch in pure PyTorch, teaching a language model SQL by running what it writes.

A group is a tree: a question's prompt is the trunk, its K completions are the branches.

**Axes.** A tensor's name ends in its axes (``logp_BC``); an axis of size one is written 1. Each letter means one thing.

    Q  questions (groups) of a batch        T  tokens of this call
    K  completions of a group               D  width
    B  sequences, Q * K, question-major     N  query heads
    P  prompt slots (the trunk)             M  key/value heads
    C  completion slots (a branch)          G  query rows that share a key head, (N / M) * T
    S  slots of a tree, P + K * C           H  head size
    X  the branches' slots, K * C           V  vocabulary
    U  states of the stopping automaton     I, J  blocks of a vocabulary, tokens of a block
    R  LoRA rank

A and B alone, and ``lora_A`` [R, in] and ``lora_B`` [out, R], are LoRA's two matrices; there A and B name no axes.

In ``evaluation.figures``, E are resamples and F figures. README.md beside this file has the map and the reading order.
"""
