"""An execution → a reward: unweighted terms, and presets that weigh them. Knows no engine and no model.

Presets are rows of one table. "paper" is the published reward (arXiv 2506.06093): −100 for any error, else
1 + 100·REMS + 1000·EMS; it never subtracts for extra rows, so a dump of everything earns it. "strict" has the
same scale, with terms that a dump does not earn.
"""

from dataclasses import dataclass
from typing import Callable, Mapping

from minigrpo.task.answer import Score, render_answer, score_answer
from minigrpo.task.database import Execution
from minigrpo.task.questions import Question, unknown

PRESETS: dict[str, dict[str, float]] = {
    "paper":  {"error": -100.0, "runs": 1.0, "rems": 100.0, "ems": 1000.0},
    "strict": {"error": -100.0, "runs": 1.0, "f1": 100.0, "strict": 1000.0},
}


@dataclass(frozen=True)
class Reward:
    """``total``: the weighted sum that trains; ``terms``: every term by name, unweighted, also those of weight 0."""

    total: float
    terms: Mapping[str, float]


def reward_terms(question: Question, execution: Execution) -> dict[str, float]:
    """The terms of one execution, each in 0 … 1; ``error`` or ``runs`` is 1, and an error earns nothing else."""
    score = Score(ems=0, rems=0.0, strict=0, f1=0.0)        # an error has no answer
    if execution.ok:
        score = score_answer(question.answer, render_answer(execution.rows))
    return {"error": float(not execution.ok), "runs": float(execution.ok), "rems": score.rems, "ems": float(score.ems),
            "f1": score.f1, "strict": float(score.strict)}


def make_reward(preset: str) -> Callable[[Question, str | None, Execution], Reward]:
    """The reward function of a preset: ``reward(question, sql, execution)``.

    Raises ValueError for an unknown preset. Presets judge by rows alone: ``sql`` is there for rewards that read it.
    """
    if preset not in PRESETS:
        raise ValueError(f"{unknown('reward', preset, PRESETS)}: the presets are {', '.join(PRESETS)}")
    weights = PRESETS[preset]

    def reward(question: Question, sql: str | None, execution: Execution) -> Reward:
        terms = reward_terms(question, execution)
        return Reward(sum(weight * terms[name] for name, weight in weights.items()), terms)

    return reward
