"""update.py: one step on a real small policy, against what the formulas say must hold."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch

from minigrpo import config
from minigrpo.assemble import start_policy
from minigrpo.batch import make_batch
from minigrpo.config import GRPO
from minigrpo.metrics import Clock
from minigrpo.policy.lora import adapter_parameters, add_lora, freeze_reference
from minigrpo.policy.search import Completion
from minigrpo.policy.weights import load_model
from minigrpo.rollout import Group, Judge, Rollout, collect, group_metrics
from minigrpo.runtime import generator
from minigrpo.task.database import STATUSES, Execution
from minigrpo.task.mariadb import open_private
from minigrpo.task.prompt import render_prompt, schema_text
from minigrpo.task.questions import Question
from minigrpo.task.reward import Reward, make_reward
from minigrpo.task.sqlite import open_sqlite
from minigrpo.task.temptabqa import load_databases, load_questions
from minigrpo.update import make_optimizer, update

GRPO_1 = GRPO(questions=3, learning_rate=1e-2, kl_coef=0.04)
LENGTH = 8
MINI = Path(__file__).parent / "data/temptabqa_mini"


@pytest.fixture
def model(sql_model):
    model = load_model(sql_model, dtype=torch.float32, device="cpu")
    add_lora(model, rank=4, alpha=8.0, generator=generator(0, 0, "adapters"))
    return model


def make_groups(rewards: list[list[float]], seed: int = 0) -> list[Group]:
    """Random prompts and completions of different lengths, with the given rewards."""
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=draw))
        return tuple(torch.randint(1, 200, (length,), generator=draw).tolist())

    groups = []
    for i, totals in enumerate(rewards):
        completions = [ids(1, LENGTH) for _ in totals]
        groups.append(Group(Question(f"t/{i}", "t", i, "", "1", "d", "1"), ids(3, 9), tuple(
            Rollout(Completion(c, (-1.0,) * len(c), True), "", "", Execution("ok"), Reward(total, {}))
            for c, total in zip(completions, totals))))
    return groups


SPREAD = [[-100.0, 1101.0], [1.0, 1.0], [1.0, 51.0]]


def one_step(model, groups, grpo=GRPO_1, optimizer=None):
    optimizer = optimizer or make_optimizer(model, grpo)
    batch = make_batch(groups, model, grpo, temperature=1.0, clock=Clock())
    return batch, update(model, optimizer, batch, grpo, length=LENGTH, clock=Clock())


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tokens", [1, 40, 100_000])
def test_at_the_start_kl_is_exactly_zero_and_the_ratio_exactly_one(model, tokens):
    _, report = one_step(model, make_groups(SPREAD), dataclasses.replace(GRPO_1, micro_batch_tokens=tokens))
    assert report["kl"] == 0.0
    assert report["ratio"] == 1.0
    assert report["clip_ratio"] == 0.0 and report["skipped"] == 0.0
    assert report["grad_norm"] > 0


def test_every_b_moves_no_a_yet_and_no_base_weight_ever(model):
    """∂loss/∂A is a product with B = 0, so the first step moves every B and no A; the second moves A too."""
    before = snapshot(model)
    optimizer = make_optimizer(model, GRPO_1)
    one_step(model, make_groups(SPREAD), optimizer=optimizer)
    middle = snapshot(model)
    one_step(model, make_groups(SPREAD), optimizer=optimizer)
    after = snapshot(model)
    for name in before:
        if name.endswith("lora_B"):
            assert not torch.equal(before[name], middle[name]), name
        elif name.endswith("lora_A"):
            assert torch.equal(before[name], middle[name]) and not torch.equal(middle[name], after[name]), name
        else:
            assert torch.equal(before[name], after[name]), name
    assert sum(name.endswith("lora_B") for name in before) == 2 * 7


def test_equal_rewards_and_no_drift_move_nothing(model):
    """A = 0 and KL = 0 at the start: the gradient is zero, and AdamW without weight decay stands still."""
    before = snapshot(model)
    _, report = one_step(model, make_groups([[-100.0, -100.0], [1.0, 1.0]]))
    assert report["grad_norm"] == report["loss"] == 0.0
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())


def test_a_small_step_favours_what_was_rewarded(model):
    """The direction, from the definition: the gap between the better and the worse completion's mean log-prob grows."""
    groups = make_groups([[-100.0, 1101.0]], seed=1)
    grpo = dataclasses.replace(GRPO_1, kl_coef=0.0, learning_rate=1e-3)
    before, _ = one_step(model, groups, grpo)
    again = make_batch(groups, model, dataclasses.replace(grpo, updates_per_rollout=2), temperature=1.0, clock=Clock())
    moved_BC = again.parts[0].old_logp_BC - before.parts[0].ref_logp_BC
    moved_B = moved_BC.sum(dim=-1) / before.parts[0].mask_BC.sum(dim=-1)
    assert moved_B[1] > moved_B[0]


def gradients(model, grpo, groups):
    optimizer = torch.optim.SGD(adapter_parameters(model).values(), lr=1.0)
    start = snapshot(model)
    batch, report = one_step(model, groups, dataclasses.replace(grpo, max_grad_norm=1e9), optimizer)
    moved = {name: start[name] - now for name, now in snapshot(model).items()}
    model.load_state_dict(start)
    return moved, report


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_micro_batches_add_up_to_the_batch(model, aggregation):
    """One part or one part a question: the same loss and the same gradient, in every aggregation."""
    for parameter in adapter_parameters(model).values():        # away from the start, so that the KL has a gradient
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    groups = make_groups(SPREAD + [[5.0, 7.0]])
    grpo = dataclasses.replace(GRPO_1, aggregation=aggregation)
    whole, report_whole = gradients(model, dataclasses.replace(grpo, micro_batch_tokens=100_000), groups)
    parts, report_parts = gradients(model, dataclasses.replace(grpo, micro_batch_tokens=1), groups)
    assert report_whole["kl"] > 0 and report_whole["loss"] == pytest.approx(report_parts["loss"], rel=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_the_gradient_is_autograds_of_the_formula_written_out(model):
    """At ratio 1 without KL the loss's gradient is −Σ_b A_b · ∇mean_c logp_bc / B: written here with one plain causal
    forward pass for each completion alone, no tree and no padding."""
    groups = make_groups(SPREAD, seed=2)
    moved, _ = gradients(model, dataclasses.replace(GRPO_1, kl_coef=0.0), groups)
    loss = torch.zeros(())
    for group, rewards in zip(groups, SPREAD):
        mean = sum(rewards) / 2
        std = (sum((r - mean) ** 2 for r in rewards) / 2) ** 0.5
        for rollout, reward in zip(group.rollouts, rewards):
            row = torch.tensor([[*group.prompt_ids, *rollout.completion.ids]])
            logp = model.logits(model(row)).log_softmax(dim=-1)[0, len(group.prompt_ids) - 1:-1]
            chosen = logp.gather(1, torch.tensor(rollout.completion.ids)[:, None])
            loss = loss - (reward - mean) / (std + 1e-4) * chosen.mean() / 6
    named = adapter_parameters(model)
    for (name, parameter), gradient in zip(named.items(), torch.autograd.grad(loss, list(named.values()))):
        torch.testing.assert_close(moved[name], gradient, rtol=1e-4, atol=1e-6)


def test_several_updates_move_the_ratio_and_keep_the_old_policy(model):
    """The old log-probs are those of the rollout for every update of the batch; the second ratio is no longer 1."""
    grpo = dataclasses.replace(GRPO_1, updates_per_rollout=2)
    optimizer, groups = make_optimizer(model, grpo), make_groups(SPREAD)
    batch = make_batch(groups, model, grpo, temperature=1.0, clock=Clock())
    first = update(model, optimizer, batch, grpo, length=LENGTH, clock=Clock())
    second = update(model, optimizer, batch, grpo, length=LENGTH, clock=Clock())
    assert first["ratio"] == 1.0 and abs(second["ratio"] - 1) > 1e-4
    assert first["kl"] == 0.0 < second["kl"]


def test_a_start_adapter_is_the_reference(model):
    """With adapters that are not zero, "adapters off" would be another policy; their frozen copy is the same one."""
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    _, against_base = one_step(model, make_groups(SPREAD), dataclasses.replace(GRPO_1, learning_rate=0.0))
    freeze_reference(model)
    _, against_start = one_step(model, make_groups(SPREAD), dataclasses.replace(GRPO_1, learning_rate=0.0))
    assert against_base["kl"] > 1e-4 and against_start["kl"] == 0.0


def test_a_gradient_that_is_not_finite_is_dropped_and_counted(model):
    groups = make_groups([[0.0, float("nan")]])
    before = snapshot(model)
    _, report = one_step(model, groups)
    assert report["skipped"] == 1.0
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())


def test_a_batch_without_a_token_moves_nothing(model):
    """Empty completions, which no search makes but a hand may write: loss 0, gap 0, no gradient, nothing dropped."""
    nothing = Rollout(Completion((), (), True), "", None, Execution("no_sql"), Reward(-100.0, {}))
    group = Group(Question("t/0", "t", 0, "", "1", "d", "1"), (1, 2), (nothing, nothing))
    _, report = one_step(model, [group, group])
    assert (report["loss"], report["logp_gap_max"], report["grad_norm"], report["skipped"]) == (0.0, 0.0, 0.0, 0.0)


def test_one_completion_a_question_teaches_nothing(model):
    """K = 1: the reward is its own mean, A is exactly 0."""
    batch, report = one_step(model, make_groups([[1101.0], [-100.0]]))
    assert batch.parts[0].advantage_QK.tolist() == [[0.0], [0.0]] and report["grad_norm"] == 0.0


# ------------------------------------------------------------------------------------------------------ the whole line
def test_from_answers_alone_it_learns_which_query_is_right(sql_model):
    """The start was taught five statements alike, "SELECT 2;" among them, and the answer to everything is 2: strict begins
    near 1/5 (of 24 draws a step, so give or take 1/5) and must pass 1/2 within 15 steps. The control: rewards that do not
    depend on the draw leave the policy as it is, bit for bit."""
    questions = [Question(f"t/{i}", "t", i, f"What is {i}?", "2", "empty", "1") for i in range(6)]
    generation = config.Generation(method="sample", completions=4, max_new_tokens=8)
    grpo = config.GRPO(questions=6, learning_rate=5e-3)

    def train(reward):
        policy = start_policy(config.Model(path=str(sql_model), device="cpu"), config.LoRA(), generation, seed=0)
        optimizer, strict = make_optimizer(policy.model, grpo), []
        with Judge(lambda question: question.text + "\nSQL query:\n", open_sqlite({"empty": []}), reward, 2) as judge:
            for step in range(15):
                groups = collect(questions, policy, judge, generation, generator=generator(0, step, "sample"), clock=Clock())
                strict.append(group_metrics(groups)["strict"])
                batch = make_batch(groups, policy.model, grpo, temperature=1.0, clock=Clock())
                update(policy.model, optimizer, batch, grpo, length=8, clock=Clock())
        return strict, policy.model

    strict, _ = train(make_reward("paper"))
    assert sum(strict[:3]) / 3 < 0.4 and sum(strict[-3:]) / 3 > 0.5

    paper = make_reward("paper")
    strict, model = train(lambda question, sql, execution: dataclasses.replace(paper(question, sql, execution), total=1.0))
    assert sum(strict) / 15 < 0.4
    assert all(not parameter.any() for name, parameter in adapter_parameters(model).items() if name.endswith("lora_B"))


# ------------------------------------------------------------------------------------------------------ the real model
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mariadbd") is None and "CI" not in os.environ,
                    reason="no mariadbd on the PATH: apt-get install mariadb-server")
def test_two_steps_of_smollm2_on_mariadb(smollm2):
    """The real model, the real server: exact zeros at the start, every B moved by the first step, not a bit of the base.

    Which of its first queries run is luck, so the reward counts tokens here: in each group some are longer.
    """
    databases = load_databases(MINI)
    questions = load_questions(MINI, "train")[:2]
    policy = start_policy(config.Model(path=str(smollm2), device="cpu"), config.LoRA(rank=4), config.Generation(), seed=0)
    base = {name: parameter.clone() for name, parameter in policy.model.named_parameters() if "lora_" not in name}
    generation = config.Generation(method="sample", completions=3, max_new_tokens=24)
    grpo = config.GRPO(questions=2, learning_rate=1e-4)
    optimizer, reports, statuses = make_optimizer(policy.model, grpo), [], set()
    with open_private(databases, connections=2) as database:
        judge = Judge(lambda question: render_prompt("plain", question.text, schema_text(databases["original"], 3)), database,
                      lambda question, sql, execution: Reward(float(len(sql or "")), {}), 2)
        for step in range(2):
            groups = collect(questions, policy, judge, generation, generator=generator(0, step, "sample"), clock=Clock())
            statuses |= {rollout.execution.status for group in groups for rollout in group.rollouts}
            batch = make_batch(groups, policy.model, grpo, temperature=1.0, clock=Clock())
            reports.append(update(policy.model, optimizer, batch, grpo, length=24, clock=Clock()))
            if step == 0:
                moved = [name for name, parameter in adapter_parameters(policy.model).items()
                         if name.endswith("lora_B") and parameter.abs().max() > 0]
    assert len(moved) == 30 * 7                                             # layers × projections, each of them
    assert (reports[0]["kl"], reports[0]["ratio"]) == (0.0, 1.0) and reports[1]["kl"] > 0 and reports[1]["ratio"] == 1.0
    assert max(report["logp_gap_max"] for report in reports) < 1e-3 and statuses <= set(STATUSES)
    assert all(base[name].equal(parameter) for name, parameter in policy.model.named_parameters() if name in base)
