"""What a reward of your own may import. This path stays the same, wherever the parts are written."""

from minigrpo.task.sql.answer import Question, render_answer, score_answer
from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.reward import PRESETS, TERMS, Reward, answer_terms, weigh

__all__ = ["PRESETS", "TERMS", "Execution", "Question", "Reward", "answer_terms", "render_answer", "score_answer", "weigh"]
