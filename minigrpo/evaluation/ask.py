"""One question that nobody has answered: the policy's candidates, and what each of them gives."""

import torch

from minigrpo import config
from minigrpo.common.clock import Clock
from minigrpo.common.console import labelled
from minigrpo.common.grouping import group_by
from minigrpo.policy.generation.search import Completion
from minigrpo.policy.policy import Policy
from minigrpo.rollout import Group, collect
from minigrpo.task.contract import Problem, Task


def write_candidates(problem: Problem, policy: Policy, task: Task, generation: config.Generation,
                     generator: torch.Generator) -> Group:
    """The problem's group, as training would see it except for the rewards: without a known answer there are none."""
    group, = collect([problem], policy, task, generation, generator=generator, clock=Clock(), rewarded=False)
    return group


def score(completion: Completion, generation: config.Generation) -> float:
    """How likely the policy finds it: what beams are ranked by, or Σ log-prob of a sample."""
    length = len(completion.ids) ** generation.length_penalty if generation.method == "beam" else 1
    return sum(completion.logprobs) / length


def show_candidates(group: Group, task: Task, generation: config.Generation) -> str:
    """The question and each different candidate with its score, best first, and what it gave, within 80 columns."""
    method = (f"{generation.completions} beams, scored Σ log-prob / length^{generation.length_penalty:g}"
              if generation.method == "beam" else
              f"{generation.completions} samples at temperature {generation.temperature:g}, scored Σ log-prob")
    about = [line for label, text in task.about(group.problem) for line in labelled(label, text)]
    lines = [*labelled("question", group.problem.text), *about, *labelled("method", method)]
    ranked = sorted(group.rollouts, key=lambda rollout: -score(rollout.completion, generation))
    for extracted, (best, *others) in group_by(ranked, lambda rollout: rollout.verdict.extracted).items():
        written = f"{score(best.completion, generation):.3g}" + (f", written {1 + len(others)} times" if others else "")
        cut = "" if best.completion.stopped else f", cut off after {len(best.completion.ids)} tokens"
        lines += ["", *labelled("score", written + cut), *labelled(task.language.upper(), extracted or ""),
                  *task.show(best.verdict)]
    return "\n".join(lines)
