"""The order in which training meets its questions: every question once an epoch, and no state to resume; and a control."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrpo.task.sql.answer import Question
from minigrpo.task.stream import ProblemStream, epoch_order, shuffle_answers, without_kinds


def some(count: int) -> list[Question]:
    return [Question(f"mini/{i}", "mini", i, f"question {i}", str(i), "original", "0") for i in range(count)]


def indices(stream: ProblemStream, step: int) -> list[int]:
    return [question.index for question in stream.batch(step)]


@given(st.integers(0, 200), st.integers(0, 10**6), st.integers(0, 50))
def test_an_epoch_visits_every_question_once(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed, epoch)                      # nothing but its arguments decides


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9                                         # 50! orders: two alike would be no accident


def test_the_order_is_the_same_on_every_machine() -> None:
    # Python promises that seeding with a text and shuffling give the same on every platform and in every process (hash
    # randomisation does not enter). A change of this order would change what a resumed run sees: it must not go unseen.
    assert epoch_order(8, seed=0, epoch=0) == [6, 4, 7, 0, 3, 1, 2, 5]


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 100))
def test_batches_in_a_row_are_the_epochs_in_a_row(count: int, size: int, seed: int) -> None:
    stream = ProblemStream(some(count), size, seed)
    steps = 2 * count // size + 1                                        # at least two epochs
    seen = [index for step in range(steps) for index in indices(stream, step)]
    expected = [index for epoch in range(steps * size // count + 1) for index in epoch_order(count, seed, epoch)]
    assert seen == expected[:len(seen)]


def test_a_batch_crosses_from_one_epoch_into_the_next() -> None:
    # 5 questions, batches of 2: step 2 holds place 4 of epoch 0 and place 0 of epoch 1.
    assert indices(ProblemStream(some(5), 2, seed=7), 2) == [epoch_order(5, 7, 0)[4], epoch_order(5, 7, 1)[0]]


def test_a_batch_larger_than_the_set_repeats_it() -> None:
    # 3 questions, a batch of 7: two whole epochs and one question of the third.
    assert sorted(indices(ProblemStream(some(3), 7, seed=1), 0)[:6]) == [0, 0, 1, 1, 2, 2]


def test_any_step_can_be_asked_first() -> None:
    one, other = (ProblemStream(some(11), 4, seed=3) for _ in range(2))
    forwards = [indices(one, step) for step in range(20)]
    assert [indices(other, step) for step in reversed(range(20))] == forwards[::-1]


def test_no_questions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no questions"):
        ProblemStream([], 2, seed=0)


# -------------------------------------------------------------------------------------------------------------- the control
@given(st.lists(st.sampled_from(["Yes", "No", "1", "2"])), st.integers(0, 10**6))
def test_answers_dealt_out_anew_are_the_same_answers_to_the_same_questions(answers: list[str], seed: int) -> None:
    """But for the answer every question is what it was, gold SQL and id included, and it stays where it was."""
    questions = [replace(question, answer=answer, gold_sql=f"SELECT {question.index}" if question.index % 2 else None)
                 for question, answer in zip(some(len(answers)), answers)]
    shuffled = shuffle_answers(questions, seed)
    assert [replace(question, answer="") for question in shuffled] == [replace(question, answer="") for question in questions]
    assert Counter(question.answer for question in shuffled) == Counter(answers)
    assert [question.answer for question in questions] == answers         # what was given is left alone
    assert shuffled == shuffle_answers(questions, seed)                   # nothing but its arguments decides


def test_answers_move_and_where_to_is_the_seeds() -> None:
    # 50 different answers have 50! orders: two alike, or one that moves nothing, would be no accident. Of 50 answers one
    # stays at its place on average; that six or more do has a chance of less than one in a thousand (1/6! + 1/7! + ... of
    # 1/e each), and the seeds are fixed.
    before = [str(i) for i in range(50)]
    dealt = [[question.answer for question in shuffle_answers(some(50), seed)] for seed in range(5)]
    assert len(set(map(tuple, dealt))) == 5
    for answers in dealt:
        assert sum(one == other for one, other in zip(before, answers)) < 6


def test_answers_are_not_dealt_in_the_order_of_an_epoch() -> None:
    """The same seed orders the epochs: the control is a draw of its own."""
    assert [question.answer for question in shuffle_answers(some(50), 3)] != [str(i) for i in epoch_order(50, 3, 0)]


# ------------------------------------------------------------------------------------------------------------- held out
def of_kinds(*kinds: str) -> list[Question]:
    return [replace(question, kind=kind) for question, kind in zip(some(len(kinds)), kinds)]


def test_a_kind_that_is_held_out_is_gone_and_the_others_stay_in_order() -> None:
    questions = of_kinds("a", "b", "a", "c")
    assert without_kinds(questions, ["b", "c"]) == [questions[0], questions[2]]
    assert without_kinds(questions, []) == questions


@pytest.mark.parametrize("kinds, sentence", [
    (["a", "bb"], "^task.hold_out: unknown kind of question 'bb' .did you mean 'b'..; there are a, b$"),
    (["b", "a"], "^task.hold_out: all 3 questions of the split mini are of the kinds that are held out: nothing is left to train on$")])
def test_a_kind_that_is_none_and_a_hold_out_of_everything_are_one_sentence(kinds, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        without_kinds(of_kinds("a", "b", "a"), kinds)
