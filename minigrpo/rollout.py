"""Problems → groups: a prompt, K completions, a verdict on each. Does not depend on any tensor, loss or particular task.

Up to here everything is plain Python, so a group can be logged, compared, and written by hand in a test.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from minigrpo import config
from minigrpo.common.clock import Clock, Metrics
from minigrpo.common.device import memory_explained
from minigrpo.policy.generation.search import Completion, beam_search, sample
from minigrpo.policy.policy import Policy
from minigrpo.policy.roots import KeptRoots
from minigrpo.task.contract import OK, Problem, Task, Verdict


@dataclass(frozen=True)
class Rollout:
    """One candidate: its tokens, their text without special tokens, and what the task makes of it."""

    completion: Completion
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Group:
    """A problem with its K candidates, best beam first."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]


def collect(problems: Sequence[Problem], policy: Policy, task: Task, generation: config.Generation, *, clock: Clock,
            generator: torch.Generator | None = None, rewarded: bool = True) -> list[Group]:
    """One group for each problem. ``generator`` (on the policy's device) is used by sampling only; ``rewarded`` as in
    ``Task.judge``."""
    with clock("generate"):
        prompts = [tuple(policy.tokenizer.encode(task.prompt(problem))) for problem in problems]
        candidates = generate(policy, prompts, generation, generator)
        texts = [policy.tokenizer.decode(completion.ids) for group in candidates for completion in group]
    K = generation.completions
    verdicts = task.judge([(problems[i // K], task.extract(text)) for i, text in enumerate(texts)], clock, rewarded=rewarded)
    return [Group(problem, prompts[q], tuple(Rollout(candidates[q][k], texts[q * K + k], verdicts[q * K + k])
                                             for k in range(K))) for q, problem in enumerate(problems)]


def generate(policy: Policy, prompts: Sequence[Sequence[int]], generation: config.Generation,
             generator: torch.Generator | None, *, greedy: bool = False,
             roots: KeptRoots | None = None) -> list[list[Completion]]:
    """K completions for each prompt by the configured method, or one by greedy decoding. ``roots``: see ``beam_search``."""
    K, new = 1 if greedy else generation.completions, generation.max_new_tokens
    size = "evaluation.batch" if greedy else "grpo.questions, generation.completions"
    longest = max(map(len, prompts))
    work = f"generation ({len(prompts)} prompts of up to {longest} tokens, {K} × {new} new ones each)"
    with memory_explained(policy.model.device, work, f"lower {size} or generation.max_new_tokens"):
        if greedy or generation.method == "sample":
            return sample(policy.model, prompts, completions=K, max_new_tokens=new, stopping=policy.stopping,
                          temperature=0.0 if greedy else generation.temperature, generator=generator, roots=roots)
        return beam_search(policy.model, prompts, completions=K, max_new_tokens=new, stopping=policy.stopping,
                           length_penalty=generation.length_penalty, early_stopping=generation.early_stopping, roots=roots)


def group_metrics(groups: Sequence[Group], task: Task) -> Metrics:
    """What to log of a batch of groups, explained in training/README.md; shares are 0 … 1, lengths are in tokens. A mean of a
    reward's term is over the rollouts that have it."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [[rollout.verdict.reward for rollout in group.rollouts] for group in groups]
    lengths = [len(rollout.completion.ids) for rollout in rollouts]
    terms: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.verdict.terms.items():
            terms.setdefault(name if name in task.scores else f"terms/{name}", []).append(value)
    statuses = Counter(rollout.verdict.status for rollout in rollouts)
    return {
        "reward": fmean(rollout.verdict.reward for rollout in rollouts),
        "reward_std": fmean(map(pstdev, rewards)),
        "frac_reward_zero_std": fmean(len(set(group)) == 1 for group in rewards),
        **{name: fmean(terms.pop(name)) for name in task.scores},
        "error_rate": 1 - statuses[OK] / len(rollouts),
        **{f"status/{status}": statuses[status] / len(rollouts) for status in task.outcomes},
        "completions/mean_length": fmean(lengths), "completions/max_length": max(lengths),
        "completions/clipped_ratio": fmean(not rollout.completion.stopped for rollout in rollouts),
        **{name: fmean(values) for name, values in terms.items()},
    }
