"""update.py: one step on a real small policy, against what the formulas say must hold."""

import dataclasses
from pathlib import Path

import pytest
import torch

from minigrpo import config
from minigrpo.batch import Batch, make_batch
from minigrpo.common.clock import Clock
from minigrpo.common.device import generator
from minigrpo.config import GRPO
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.generation.search import Completion
from minigrpo.policy.lora import adapter_parameters, add_lora, freeze_reference
from minigrpo.policy.model import CausalLM
from minigrpo.policy.policy import Policy, load_policy
from minigrpo.rollout import Group, Rollout, collect, group_metrics
from minigrpo.task.contract import Verdict
from minigrpo.task.sql.answer import Question
from minigrpo.task.sql.data.temptabqa import load_databases, load_questions
from minigrpo.task.sql.engines.database import STATUSES, Limits, MockDatabase
from minigrpo.task.sql.engines.mariadb import open_private
from minigrpo.task.sql.engines.sqlite import open_sqlite
from minigrpo.task.sql.prompt import render_prompt, schema_text
from minigrpo.task.sql.reward import Reward, make_reward
from minigrpo.training.folder import optimizer_tensors
from minigrpo.update import make_optimizer, update
from tests.given_task import GivenTask
from tests.mariadb_server import needs_mariadb
from tests.paths import MINI

GRPO_1 = GRPO(questions=3, learning_rate=1e-2, kl_coef=0.04)
LENGTH = 8


def adapted(folder: Path) -> CausalLM:
    model = load_model(folder, dtype=torch.float32, device="cpu")
    add_lora(model, rank=4, alpha=8.0, generator=generator(0, 0, "adapters"))
    return model


@pytest.fixture
def model(sql_model):
    return adapted(sql_model)


def start(folder: Path, lora: config.LoRA, generation: config.Generation) -> Policy:
    policy = load_policy(folder, dtype=torch.float32, device="cpu", stop_strings=generation.stop_strings)
    add_lora(policy.model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, generator=generator(0, 0, "adapters"))
    return policy


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
            Rollout(Completion(c, (-1.0,) * len(c), True), "", Verdict(total, {}, "ok", "", ""))
            for c, total in zip(completions, totals))))
    return groups


SPREAD = [[-100.0, 1101.0], [1.0, 1.0], [1.0, 51.0]]


def one_step(model, groups, grpo=GRPO_1, optimizer=None):
    optimizer = optimizer or make_optimizer(model, grpo)
    batch = make_batch(groups, model, grpo, temperature=1.0, clock=Clock())
    return batch, update(model, optimizer, batch, grpo, length=LENGTH, clock=Clock()).metrics


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
    for (name, _parameter), gradient in zip(named.items(), torch.autograd.grad(loss, list(named.values()))):
        torch.testing.assert_close(moved[name], gradient, rtol=1e-4, atol=1e-6)


def test_several_updates_move_the_ratio_and_keep_the_old_policy(model):
    """The old log-probs are those of the rollout for every update of the batch; the second ratio is no longer 1."""
    grpo = dataclasses.replace(GRPO_1, updates_per_rollout=2)
    optimizer, groups = make_optimizer(model, grpo), make_groups(SPREAD)
    batch = make_batch(groups, model, grpo, temperature=1.0, clock=Clock())
    first, second = (update(model, optimizer, batch, grpo, length=LENGTH, clock=Clock()).metrics for _ in range(2))
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


def poisoned_reward(model, batch):
    """One of a group's rewards is NaN: so is their mean, and with it the first advantage."""
    part, = batch.parts
    return batch_of(dataclasses.replace(part, advantage_QK=part.advantage_QK.clone().index_fill(
        0, torch.tensor(part.names.index("t/1")), float("nan"))))


def poisoned_activation(model, batch):
    """The last layer gives infinities where it sees the first of the two tokens of a question's second completion. The branches
    are the last slots: counted from the end, this one begins (Q − q − 1) · K + 1 branches before it."""
    part, = batch.parts
    Q, K, C = part.ids_QKC.shape
    place = ((Q - part.names.index("t/1") - 1) * K + 1) * C
    model.model.norm.register_forward_hook(lambda module, inputs, output: output.index_put(
        (torch.tensor(0), torch.tensor(output.shape[1] - place)), torch.tensor(torch.inf)))
    return batch


def far_from_the_old_policy(model, batch):
    """e^1000 is no float32."""
    part, = batch.parts
    return batch_of(dataclasses.replace(part, old_logp_BC=part.ref_logp_BC - 1000))


def far_from_the_reference(model, batch):
    part, = batch.parts
    return batch_of(dataclasses.replace(part, ref_logp_BC=part.ref_logp_BC + 1000))


def poisoned_gradients(model, batch):
    """Two of them, while the loss is as it should be; backwards, the later layer's comes first."""
    named = adapter_parameters(model)
    for name in ("model.layers.0.self_attn.q_proj.lora_A", "model.layers.1.self_attn.k_proj.lora_B"):
        named[name].register_hook(lambda gradient: gradient * float("nan"))
    return batch


def too_large_a_gradient(model, batch):
    """Every value is finite, the root of their squares' sum is not."""
    adapter_parameters(model)["model.layers.1.self_attn.k_proj.lora_B"].register_hook(lambda gradient: gradient + 3e38)
    return batch


def batch_of(part):
    return Batch((part,), 1.0, part.advantage_QK)


@pytest.mark.parametrize("poison, fault", [
    (poisoned_reward, "the advantage of completion 1 of 2 of t/1"),
    (poisoned_activation, "the log-probs of completion 2 of 2 of t/1"),
    (far_from_the_old_policy, "the ratio of completion 1 of 2 of {first}"),
    (far_from_the_reference, "the KL of completion 1 of 2 of {first}"),
    (poisoned_gradients, "the gradient of model.layers.1.self_attn.k_proj.lora_B"),
    (too_large_a_gradient, "the norm of all gradients"),
])
def test_a_step_that_is_not_finite_is_dropped_counted_and_located(model, poison, fault):
    """It comes after one that is finite: neither weights nor the optimiser's state take anything of it, and the next step
    begins without it."""
    groups, optimizer = make_groups(SPREAD), make_optimizer(model, GRPO_1)
    one_step(model, groups, optimizer=optimizer)
    before, moments = snapshot(model), clones(optimizer_tensors(optimizer, adapter_parameters(model)))
    batch = make_batch(groups, model, GRPO_1, temperature=1.0, clock=Clock())
    done = update(model, optimizer, poison(model, batch), GRPO_1, length=LENGTH, clock=Clock())
    assert done.metrics["skipped"] == 1.0 and done.fault == fault.format(first=batch.parts[0].names[0])
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())
    now = optimizer_tensors(optimizer, adapter_parameters(model))
    assert moments.keys() == now.keys() and all(torch.equal(moments[name], now[name]) for name in now)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_is_finite_has_no_fault(model):
    batch = make_batch(make_groups(SPREAD), model, GRPO_1, temperature=1.0, clock=Clock())
    done = update(model, make_optimizer(model, GRPO_1), batch, GRPO_1, length=LENGTH, clock=Clock())
    assert done.metrics["skipped"] == 0.0 and done.fault == ""


def clones(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_an_empty_completion_and_one_of_a_single_token_among_others(model):
    """The empty one is no sequence: of three the loss is the mean of two. Written out for the one of a single token: at the
    start all ratios are 1, so with KL off the loss is minus the mean of the live sequences' advantages."""
    group, = make_groups([[3.0, 0.0, 0.0]])
    long, _, one = group.rollouts
    terms = {"strict": 0.0, "ems": 0.0, "rems": 0.0}
    long, one = (dataclasses.replace(rollout, verdict=dataclasses.replace(rollout.verdict, terms=terms)) for rollout in (long, one))
    empty = Rollout(Completion((), (), True), "", Verdict(0.0, terms, "no_sql", "", None))
    one = dataclasses.replace(one, completion=Completion((7,), (-1.0,), True))
    group = dataclasses.replace(group, rollouts=(long, empty, one))
    # Rewards 3, 0, 0: mean 1, deviations 2, −1, −1, their root mean square √2.
    expected = -(2 - 1) / (2 ** 0.5 + 1e-4) / 2
    batch, report = one_step(model, [group], dataclasses.replace(GRPO_1, kl_coef=0.0))
    assert report["loss"] == pytest.approx(expected, rel=1e-5) and report["skipped"] == 0.0 < report["grad_norm"]
    metrics = group_metrics([group], GivenTask(str, MockDatabase(), make_reward("paper")))
    assert metrics["completions/mean_length"] == pytest.approx((len(long.completion.ids) + 0 + 1) / 3)
    assert metrics["status/no_sql"] == pytest.approx(1 / 3)


def test_a_batch_without_a_token_moves_nothing(model):
    """Empty completions, which no search makes but a hand may write: loss 0, gap 0, no gradient, nothing dropped."""
    nothing = Rollout(Completion((), (), True), "", Verdict(-100.0, {}, "no_sql", "", None))
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
        policy = start(sql_model, config.LoRA(), generation)
        optimizer, strict = make_optimizer(policy.model, grpo), []
        with GivenTask(lambda question: question.text + "\nSQL query:\n", open_sqlite({"empty": []}), reward) as task:
            for step in range(15):
                groups = collect(questions, policy, task, generation, generator=generator(0, step, "sample"), clock=Clock())
                strict.append(group_metrics(groups, task)["strict"])
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
@needs_mariadb
def test_two_steps_of_smollm2_on_mariadb(smollm2):
    """The real model, the real server: exact zeros at the start, every B moved by the first step, not a bit of the base.

    Which of its first queries run is luck, so the reward counts tokens here: in each group some are longer.
    """
    databases = load_databases(MINI)
    questions = load_questions(MINI, "train")[:2]
    policy = start(smollm2, config.LoRA(rank=4), config.Generation())
    base = {name: parameter.clone() for name, parameter in policy.model.named_parameters() if "lora_" not in name}
    generation = config.Generation(method="sample", completions=3, max_new_tokens=24)
    grpo = config.GRPO(questions=2, learning_rate=1e-4)
    optimizer, reports, statuses = make_optimizer(policy.model, grpo), [], set()
    with open_private(databases, Limits(connections=2)) as database:
        task = GivenTask(lambda question: render_prompt("plain", question.text, schema_text("plain", databases["original"], 3)),
                         database, lambda question, sql, execution: Reward(float(len(sql or "")), {}))
        for step in range(2):
            groups = collect(questions, policy, task, generation, generator=generator(0, step, "sample"), clock=Clock())
            statuses |= {rollout.verdict.status for group in groups for rollout in group.rollouts}
            batch = make_batch(groups, policy.model, grpo, temperature=1.0, clock=Clock())
            reports.append(update(policy.model, optimizer, batch, grpo, length=24, clock=Clock()).metrics)
            if step == 0:
                moved = [name for name, parameter in adapter_parameters(policy.model).items()
                         if name.endswith("lora_B") and parameter.abs().max() > 0]
    assert len(moved) == 30 * 7                                             # layers × projections, each of them
    assert (reports[0]["kl"], reports[0]["ratio"]) == (0.0, 1.0) and reports[1]["kl"] > 0 and reports[1]["ratio"] == 1.0
    assert max(report["logp_gap_max"] for report in reports) < 1e-3 and statuses <= set(STATUSES)
    assert all(base[name].equal(parameter) for name, parameter in policy.model.named_parameters() if name in base)
