"""rollout.py: what a group holds, and what is logged of groups, on a real engine and a policy that writes SQL."""

import math

import pytest
import torch

from minigrpo.common.clock import Clock
from minigrpo.common.device import generator
from minigrpo.config import Generation
from minigrpo.policy.generation.search import Completion
from minigrpo.policy.policy import load_policy
from minigrpo.rollout import Group, Rollout, collect, group_metrics
from minigrpo.task.contract import Verdict
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.engines.database import MockDatabase
from minigrpo.task.sql.engines.sqlite import open_sqlite
from minigrpo.task.sql.reward import make_reward
from tests.given_task import GivenTask

QUESTIONS = [Question(f"t/{i}", "t", i, f"What is {i}?", str(i), "empty", "1") for i in range(3)]


@pytest.fixture(scope="module")
def policy(sql_model):
    return load_policy(sql_model, dtype=torch.float32, device="cpu", stop_strings=(";",))


@pytest.fixture(scope="module")
def task():
    with GivenTask(lambda question: question.text + "\nSQL query:\n", open_sqlite({"empty": []}), make_reward("paper")) as task:
        yield task


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_groups_belong_together(policy, task, method):
    """Text is the decoded ids, SQL the text without its end, rows those of that SQL, the reward that of those rows."""
    clock = Clock()
    groups = collect(QUESTIONS, policy, task, Generation(method=method, completions=3, max_new_tokens=10),
                     generator=generator(0, 0, "sample"), clock=clock)
    assert [group.problem for group in groups] == QUESTIONS
    assert set(clock.seconds) == {"generate", "execute", "reward"}
    for group in groups:
        assert policy.tokenizer.decode(group.prompt_ids) == group.problem.text + "\nSQL query:\n"
        assert len(group.rollouts) == 3
        for rollout in group.rollouts:
            verdict = rollout.verdict
            assert rollout.text == policy.tokenizer.decode(rollout.completion.ids)
            assert rollout.text.split(";")[0].strip() == (verdict.extracted or "")
            if verdict.extracted and verdict.extracted in {f"SELECT {digit}" for digit in range(10)}:
                # "SELECT d" gives one row with the digit d; it is right if the answer is d.
                digit = int(verdict.extracted[-1])
                assert verdict.details.rows == ((digit,),)
                assert verdict.reward == (1101 if str(digit) == group.problem.answer else 1)
            reward = task.reward(group.problem, verdict.extracted, verdict.details)
            assert (verdict.reward, verdict.terms, verdict.status) == (reward.total, reward.terms, verdict.details.status)
    sqls = {rollout.verdict.extracted for group in groups for rollout in group.rollouts}
    assert len(sqls & {f"SELECT {digit}" for digit in range(4)}) >= 2       # the policy does write SQL, and not one only


def test_the_same_generator_draws_the_same_groups(policy, task):
    def draw(step):
        return [[rollout.verdict.extracted for rollout in group.rollouts] for group in collect(
            QUESTIONS, policy, task, Generation(method="sample", completions=4, max_new_tokens=8),
            generator=generator(0, step, "sample"), clock=Clock())]
    assert draw(0) == draw(0) != draw(1)


def rollout(total: float, status: str, length: int, stopped: bool, strict: float = 0.0) -> Rollout:
    terms = {"error": float(status != "ok"), "runs": float(status == "ok"), "rems": strict, "ems": strict, "strict": strict}
    return Rollout(Completion((1,) * length, (0.0,) * length, stopped), "", Verdict(total, terms, status, "", ""))


SQL = GivenTask(lambda question: question.text, MockDatabase(), make_reward("paper"))


def test_metrics_of_a_batch_by_hand():
    """Two groups of two. Rewards −100, 1101 and 1, 1: mean 1003/4 = 250.75; the groups' σ are (1101 + 100)/2 = 600.5
    and 0, on average 300.25; one group of two has no spread. One of four failed, by the clock; one is strictly right.
    Lengths 1, 2, 3, 6: mean 3, longest 6; one was cut off."""
    first = Group(QUESTIONS[0], (1,), (rollout(-100, "timeout", 1, True), rollout(1101, "ok", 2, True, strict=1.0)))
    second = Group(QUESTIONS[1], (1,), (rollout(1, "ok", 3, True), rollout(1, "ok", 6, False)))
    metrics = group_metrics([first, second], SQL)
    assert metrics["reward"] == 250.75
    assert metrics["reward_std"] == 300.25
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["error_rate"] == metrics["status/timeout"] == 0.25
    assert metrics["status/ok"] == 0.75
    assert metrics["strict"] == metrics["ems"] == metrics["rems"] == 0.25
    assert metrics["completions/mean_length"] == 3 and metrics["completions/max_length"] == 6
    assert metrics["completions/clipped_ratio"] == 0.25
    assert metrics["terms/error"] == 0.25 and metrics["terms/runs"] == 0.75
    assert math.isclose(sum(value for name, value in metrics.items() if name.startswith("status/")), 1.0)


def test_a_term_that_some_rewards_bring_is_averaged_over_those():
    """Two of four have it: 0.5 and 1."""
    rollouts = [rollout(1, "ok", 1, True) for _ in range(4)]
    rollouts[1].verdict.terms["mine"], rollouts[2].verdict.terms["mine"] = 0.5, 1.0
    assert group_metrics([Group(QUESTIONS[0], (1,), tuple(rollouts))], SQL)["terms/mine"] == 0.75


def test_a_group_of_one_and_a_batch_in_which_nothing_runs():
    """K = 1 has no spread; four errors are an error rate of exactly 1."""
    metrics = group_metrics([Group(QUESTIONS[0], (1,), (rollout(-100, "syntax", 1, True),))], SQL)
    assert (metrics["reward_std"], metrics["frac_reward_zero_std"], metrics["error_rate"]) == (0.0, 1.0, 1.0)
