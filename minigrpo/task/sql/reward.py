"""An execution → a reward: unweighted terms, and presets that weigh them. Does not depend on any engine or model.

Presets are rows of one table. "paper" is the published reward (arXiv 2506.06093): −100 for any error, else
1 + 100·REMS + 1000·EMS; it never subtracts for extra rows, so a dump of everything earns it. "strict" has the
same scale, with terms that count what is too much as well as what is missing: two-sided.

A reward of one's own is a dotted name, ``module.function``: (question, sql, execution) → a number or a ``Reward``.
"""

import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

from minigrpo.common.errors import UserError, unknown
from minigrpo.task.sql import structure
from minigrpo.task.sql.answer import Question, Score, answer_excess, render_answer, score_answer
from minigrpo.task.sql.engines.database import Execution, Tables

# Every term is 0 … 1 and is logged under every preset. An error, or an empty result, scores 0 on the answer's terms.
TERMS = {
    "error": "1 if the SQL failed, in whatever way",
    "runs": "1 if it did not",
    "rems": "the benchmark's REMS: share of the gold answer's parts found in the output",
    "ems": "the benchmark's EMS: 1 if all are found",
    "f1": "harmonic mean of precision and recall of the output's parts",
    "strict": "1 if the output's parts are the gold answer's, no more and no less",
    "excess": "share of the output's words that are beyond the gold answer's number of them",
    **structure.TERMS,
}

# Weights of terms; "a * b" is the product of two. The reason for each preset is in README.md beside this file.
PRESETS: dict[str, dict[str, float]] = {
    "paper":            {"error": -100.0, "runs": 1.0, "rems": 100.0, "ems": 1000.0},
    "strict":           {"error": -100.0, "runs": 1.0, "f1": 100.0, "strict": 1000.0},
    "binary":           {"strict": 1.0},
    "no_partial":       {"error": -100.0, "runs": 1.0, "ems": 1000.0},
    "no_error_penalty": {"runs": 1.0, "rems": 100.0, "ems": 1000.0},
    "execution_only":   {"error": -100.0, "runs": 1.0},
    # An output of twice the gold answer's size loses all partial credit; no size makes a query that runs worse than an error.
    "concise":          {"error": -100.0, "runs": 1.0, "rems": 50.0, "strict": 1000.0, "excess": -100.0},
    "grounded":         {"error": -100.0, "runs": 1.0, "f1 * reads": 100.0, "strict * reads": 1000.0},
    # A failing query names tables and columns too, so one error may be better than another, but below every query that runs.
    "structural":       {"error": -100.0, "runs": 1.0, "f1": 100.0, "strict": 1000.0,
                         "tables": 10.0, "columns": 10.0, "joins": 10.0, "literals": 10.0},
}
MAX_REWARD = 1e100              # of a reward of one's own: its square must be finite, or a group has no σ


@dataclass(frozen=True)
class Reward:
    """``total``: the number that trains; ``terms``: every term by name, unweighted, also those of weight 0."""

    total: float
    terms: Mapping[str, float]


RewardFunction = Callable[[Question, str | None, Execution], Reward]


def answer_terms(question: Question, execution: Execution) -> dict[str, float]:
    """The terms of an execution's rows. Either ``error`` or ``runs`` is 1; an error scores 0 on all others."""
    score, excess = Score(ems=0, rems=0.0, strict=0, f1=0.0), 0.0       # an error has no answer
    if execution.ok:
        answer = render_answer(execution.rows)
        score, excess = score_answer(question.answer, answer), answer_excess(question.answer, answer)
    return {"error": float(not execution.ok), "runs": float(execution.ok), "rems": score.rems, "ems": float(score.ems),
            "f1": score.f1, "strict": float(score.strict), "excess": excess}


def make_reward(preset: str, tables: Mapping[str, Tables] | None = None) -> RewardFunction:
    """The reward function of a preset, or of one's own: ``reward(question, sql, execution)``.

    ``tables``: those of each database by name, for the terms that read SQL; without them these terms are left out.
    ``UserError``: there is no such preset, module or function, or the preset weighs terms that are left out; and, when it is
    called, if a reward of one's own raises or returns no finite number.
    """
    own = load_own(preset) if "." in preset else None
    if own is None and preset not in PRESETS:
        raise UserError(f"{unknown('reward', preset, PRESETS)}: the presets are {', '.join(PRESETS)}; one of your own is "
                         "module.function")
    schemas = {name: structure.read_schema(members) for name, members in (tables or {}).items()}
    if tables is None and not own and not structure.TERMS.keys().isdisjoint(" * ".join(PRESETS[preset]).split(" * ")):
        raise UserError(f"the reward {preset!r} reads SQL and has to know the databases' tables")

    def reward(question: Question, sql: str | None, execution: Execution) -> Reward:
        terms = answer_terms(question, execution)
        if tables is not None:
            sent = None if execution.status == "refused" else sql       # a refused query may be any text, with comments
            terms |= structure.structure_terms(question, sent, schemas[question.database])
        if own:
            given = call_own(preset, own, question, sql, execution)
            return Reward(given.total, {**given.terms, **terms})        # a built-in term keeps its meaning
        return Reward(weigh(PRESETS[preset], terms), terms)

    return reward


def weigh(weights: Mapping[str, float], terms: Mapping[str, float]) -> float:
    """A row of ``PRESETS`` on the terms of one execution.

    >>> weigh({"runs": 1.0, "strict * reads": 1000.0}, {"runs": 1.0, "strict": 1.0, "reads": 0.0})
    1.0
    """
    return sum(weight * math.prod(terms[name] for name in product.split(" * ")) for product, weight in weights.items())


# ------------------------------------------------------------------------------------------------------------- one's own
OwnReward = Callable[[Question, str | None, Execution], "Reward | float"]


def load_own(dotted: str) -> OwnReward:
    """The function of a dotted name, from an installed module or a file in the current folder."""
    module, _, name = dotted.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())            # last, so that a file there hides no installed module
    try:
        found = importlib.import_module(module)
    except Exception as error:                  # a user's code may raise anything, and import a module that is missing
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"the reward {dotted}: there is no module {error.name}, installed or in {os.getcwd()}") from None
        raise _failed(f"the reward {dotted}: importing {module} fails", error) from error
    if not hasattr(found, name):
        raise UserError(f"the reward {dotted}: {unknown('name', name, vars(found))} in the module {module}")
    function = getattr(found, name)
    if not callable(function):
        raise UserError(f"the reward {dotted}: expected a function of (question, sql, execution), got {function!r:.80}")
    try:
        inspect.signature(function).bind(None, None, None)
    except (TypeError, ValueError) as error:
        raise UserError(f"the reward {dotted}: expected a function of (question, sql, execution), but {error}") from error
    return function


def call_own(dotted: str, function: OwnReward, question: Question, sql: str | None, execution: Execution) -> Reward:
    """The reward of a user's function. Its exception becomes the cause of ours."""
    where = f"the reward {dotted} of {question.id}, SQL {shorten(sql)!r}"
    try:
        given = function(question, sql, execution)
    except Exception as error:                  # a user's code may raise anything
        raise _failed(where, error) from error
    reward = given if isinstance(given, Reward) else Reward(given, {})
    for what, number in {"total": reward.total, **reward.terms}.items():
        if not isinstance(number, Real) or not abs(number) <= MAX_REWARD:
            raise UserError(f"{where}: expected a finite number{'' if what == 'total' else f' for the term {what!r}'}, "
                             f"got {number!r:.80}")
    return Reward(float(reward.total), {name: float(value) for name, value in reward.terms.items()})


def _failed(where: str, error: Exception) -> ValueError:
    """One sentence, with the line of the user's code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(f"{where}: {type(error).__name__}: {shorten(str(error))} ({frame.filename}, line {frame.lineno})")


def shorten(text: str | None) -> str | None:
    """One line of at most 100 characters."""
    line = " ".join(text.split()) if text is not None else None
    return line if line is None or len(line) <= 100 else f"{line[:99]}…"
