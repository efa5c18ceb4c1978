"""minigrpo: GRPO from scratch in pure PyTorch, teaching a language model SQL by running what it writes.

A batch is a tree: what its prompts share is the root, the rest of each is a trunk, its K completions are its branches.

**Axes.** A tensor's name ends in its axes (``logp_BC``); an axis of size one is written 1. Each letter means one thing.

    Q  questions (groups) of a batch        T  tokens of this call
    K  completions of a group               D  width
    B  sequences, Q * K, question-major     N  query heads
    P  prompt slots                         M  key/value heads
    C  completion slots (a branch)          G  query rows that share a key head, (N / M) * T
    S  slots that a call attends over       H  head size
    L  slots of the root                    V  vocabulary
    Y  slots of a trunk, P - L              U  states of the stopping automaton
    R  LoRA rank                            I, J  blocks of a vocabulary, tokens of a block

A and B alone, and ``lora_A`` [R, in] and ``lora_B`` [out, R], are LoRA's two matrices; there A and B name no axes.

In ``evaluation.figures``, E are resamples and F figures. README.md beside this file has the map and the reading order.
"""
