"""A question of the SQL task."""

from dataclasses import FrozenInstanceError

import pytest

from minigrpo.task.sql.question import Question


def test_a_question_cannot_be_changed() -> None:
    question = Question("mini/0", "mini", 0, "How many?", "2", "original", "0")
    with pytest.raises(FrozenInstanceError):
        question.answer = "3"
