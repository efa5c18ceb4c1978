"""Questions → groups: prompt, K completions, their SQL, its rows, their rewards. Knows no tensors and no loss.

Up to here everything is plain Python, so a group can be logged, compared, and written by hand in a test.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from minigrpo import config
from minigrpo.common.clock import Clock, Metrics
from minigrpo.common.device import memory_explained
from minigrpo.policy.files.weights import Policy
from minigrpo.policy.search import Completion, beam_search, sample
from minigrpo.task.sql.engines.database import STATUSES, Database, Execution, run_all
from minigrpo.task.sql.prompt import extract_sql
from minigrpo.task.sql.question import Question
from minigrpo.task.sql.reward import Reward

SCORES = ("strict", "ems", "rems")      # terms of a reward that are logged by their own name


@dataclass(frozen=True)
class Judge:
    """All that turns a question into a prompt and its candidates into rewards: the task's side of a step.

    ``second`` names a database with the same tables and other rows, or is empty: what gives gold SQL's rows there too was
    hardly right by chance. ``databases`` are the names of all there are. ``schema`` is a database's schema with sample values:
    what a query can know beside its question, however much of it the prompt shows. As a context manager a judge closes its
    database.
    """

    prompt: Callable[[Question], str]
    database: Database
    reward: Callable[[Question, str | None, Execution], Reward]
    connections: int
    second: str = ""
    databases: tuple[str, ...] = ()
    schema: Callable[[str], str] = lambda database: ""

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *error: object) -> None:
        self.database.close()


@dataclass(frozen=True)
class Rollout:
    """One candidate: its tokens, their text without special tokens, the SQL in it, what became of that, its reward."""

    completion: Completion
    text: str
    sql: str | None
    execution: Execution
    reward: Reward


@dataclass(frozen=True)
class Group:
    """A question with its K candidates, best beam first."""

    question: Question
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]


def collect(questions: Sequence[Question], policy: Policy, judge: Judge, generation: config.Generation, *,
            generator: torch.Generator | None = None, clock: Clock) -> list[Group]:
    """One group for each question. ``generator`` (on the policy's device) is used by sampling only."""
    with clock("generate"):
        prompts = [tuple(policy.tokenizer.encode(judge.prompt(question))) for question in questions]
        candidates = generate(policy, prompts, generation, generator)
        asked = [(question, completion) for question, group in zip(questions, candidates) for completion in group]
        texts = [policy.tokenizer.decode(completion.ids) for _, completion in asked]
    with clock("execute"):
        sqls = [extract_sql(text) for text in texts]
        executions = run_all(judge.database, [(sql, question.database) for (question, _), sql in zip(asked, sqls)],
                             judge.connections)
    with clock("reward"):
        rollouts = [Rollout(completion, text, sql, execution, judge.reward(question, sql, execution))
                    for (question, completion), text, sql, execution in zip(asked, texts, sqls, executions)]
    K = generation.completions
    return [Group(question, prompt_ids, tuple(rollouts[q * K:(q + 1) * K]))
            for q, (question, prompt_ids) in enumerate(zip(questions, prompts))]


def generate(policy: Policy, prompts: Sequence[Sequence[int]], generation: config.Generation,
             generator: torch.Generator | None) -> list[list[Completion]]:
    """K completions a prompt, by the configured method, or "greedy" (evaluation)."""
    common = dict(completions=generation.completions, max_new_tokens=generation.max_new_tokens, stopping=policy.stopping)
    greedy = generation.method == "greedy"
    size = "evaluation.batch" if greedy else "grpo.questions, generation.completions"
    with memory_explained(policy.model.device, f"generation ({len(prompts)} prompts of up to {max(map(len, prompts))} tokens, "
                          f"{generation.completions} × {generation.max_new_tokens} new ones each)",
                          f"lower {size} or generation.max_new_tokens"):
        if greedy:
            return sample(policy.model, prompts, **common, temperature=0.0)
        if generation.method == "sample":
            return sample(policy.model, prompts, **common, temperature=generation.temperature, generator=generator)
        return beam_search(policy.model, prompts, **common, length_penalty=generation.length_penalty,
                           early_stopping=generation.early_stopping)


def group_metrics(groups: Sequence[Group]) -> Metrics:
    """What to log of a batch of groups; shares are 0 … 1, lengths are in tokens.

    ``reward_std`` is the mean of the groups' own σ; ``frac_reward_zero_std`` the share of groups in which it is 0 and
    nothing can be learned; ``completions/clipped_ratio`` the share cut off by max_new_tokens; ``terms/...`` the mean of a
    reward's other terms, over the rollouts that have it.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    totals = [[rollout.reward.total for rollout in group.rollouts] for group in groups]
    lengths = [len(rollout.completion.ids) for rollout in rollouts]
    terms: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.reward.terms.items():
            terms.setdefault(name if name in SCORES else f"terms/{name}", []).append(value)
    statuses = Counter(rollout.execution.status for rollout in rollouts)
    return {
        "reward": fmean(rollout.reward.total for rollout in rollouts),
        "reward_std": fmean(map(pstdev, totals)),
        "frac_reward_zero_std": fmean(len(set(group)) == 1 for group in totals),
        **{name: fmean(terms.pop(name)) for name in SCORES},
        "error_rate": 1 - statuses["ok"] / len(rollouts),
        **{f"status/{status}": statuses[status] / len(rollouts) for status in STATUSES},
        "completions/mean_length": fmean(lengths), "completions/max_length": max(lengths),
        "completions/clipped_ratio": fmean(not rollout.completion.stopped for rollout in rollouts),
        **{name: fmean(values) for name, values in terms.items()},
    }
