"""GRPO's mathematics and whole training runs against TRL's own trainer, which runs as it is on a tiny model.

What TRL names otherwise: its loss_type "grpo" is our aggregation "sequence"; "bnpo" and "dapo" are "token"; "dr_grpo" is
"constant" of length max_completion_length. Its group σ divides by K − 1: ddof 1. Its KL estimator is k3, as in the paper; by
default it goes on to multiply it by the ratio, whose gradient is another one even where it is 1: switched off here.
"""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from minigrpo.config import GRPO
from minigrpo.grpo import group_advantages, grpo_loss, normaliser
from minigrpo.policy.lora import adapter_parameters, freeze_reference
from minigrpo.rollout import Group
from tests.test_one_step import (
    ALONE,
    LENGTH,
    RATE,
    REWARDS,
    WHOLE,
    by_our_names,
    difference,
    moved,
    our_steps,
    plain_model,
    twins,
    write_llama,
)
from tests.test_update import make_groups

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:You are using 'rollout_func'")]
LOSSES = {"grpo": dict(aggregation="sequence"), "bnpo": dict(aggregation="token"), "dapo": dict(aggregation="token"),
          "dr_grpo": dict(aggregation="constant", length=LENGTH)}
drawn = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Callable[..., GRPOTrainer]:
    """``trainer(model, groups, K=..., **GRPOConfig's own)``: TRL's trainer, given our completions and their rewards in place
    of generation; one group a prompt, which is the group's number."""
    vocabulary = models.WordLevel({str(i): i for i in range(200)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), pad_token="0", eos_token="2")

    def make(model: torch.nn.Module, groups: list[Group], *, K: int, **arguments: object) -> GRPOTrainer:
        def chosen(prompts: list[str]) -> list[tuple[Group, int]]:
            return [(groups[int(prompt)], i % K) for i, prompt in enumerate(prompts)]

        def rollouts(prompts: list[str], _: GRPOTrainer) -> dict[str, list]:
            completions = [group.rollouts[k].completion for group, k in chosen(prompts)]
            return {"prompt_ids": [list(group.prompt_ids) for group, _ in chosen(prompts)],
                    "completion_ids": [list(completion.ids) for completion in completions],
                    "logprobs": [list(completion.logprobs) for completion in completions]}

        def reward(prompts: list[str], **_: object) -> list[float]:
            return [group.rollouts[k].verdict.reward for group, k in chosen(prompts)]

        config = GRPOConfig(output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[],
                            num_generations=K, max_completion_length=LENGTH, steps_per_generation=1,
                            gradient_accumulation_steps=1, gradient_checkpointing=False, lr_scheduler_type="constant",
                            use_bias_correction_kl=False, shuffle_dataset=False, save_strategy="no", logging_strategy="no",
                            disable_tqdm=True, **arguments)
        return GRPOTrainer(model, reward, config, datasets.Dataset.from_dict({"prompt": [str(i) for i in range(len(groups))]}),
                           processing_class=tokenizer, rollout_func=rollouts)

    return make


# ---------------------------------------------------------------------------------------------------------------- the loss
def drawn_batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probs under policy, old policy and reference that differ by up to ±0.6, advantages in (−2, 2), lengths 0 … C with
    at least one live row."""
    draw = torch.Generator().manual_seed(seed)
    B, C = (int(torch.randint(1, limit, (), generator=draw)) for limit in (7, 6))
    logp_BC, old_logp_BC, ref_logp_BC = (0.6 * torch.rand(3, B, C, generator=draw, dtype=torch.float64) - 2).unbind()
    length_B = torch.randint(0, C + 1, (B,), generator=draw)
    length_B[0] = C
    advantage_B = 4 * torch.rand(B, generator=draw, dtype=torch.float64) - 2
    return logp_BC, old_logp_BC, ref_logp_BC, advantage_B, torch.arange(C) < length_B[:, None]


def trl_loss(trainer: GRPOTrainer, logp_BC: Tensor, old_logp_BC: Tensor, ref_logp_BC: Tensor, advantage_B: Tensor,
             mask_BC: Tensor, *, tokens: Tensor) -> Tensor:
    """TRL's loss of given log-probs: its model pass alone is replaced. ``tokens``: of the whole batch."""
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp_BC, torch.zeros_like(logp_BC), None)
    ids_BC = torch.zeros(mask_BC.shape, dtype=torch.long)
    return trainer._compute_loss(trainer.model, {
        "prompt_ids": ids_BC, "prompt_mask": ids_BC, "completion_ids": ids_BC, "completion_mask": mask_BC.long(),
        "advantages": advantage_B, "old_per_token_logps": old_logp_BC, "ref_per_token_logps": ref_logp_BC,
        "num_items_in_batch": tokens})


def value_and_gradient(loss: Callable[[Tensor], Tensor], logp_BC: Tensor) -> tuple[float, Tensor]:
    leaf_BC = logp_BC.clone().requires_grad_()
    value = loss(leaf_BC)
    return value.item(), torch.autograd.grad(value, leaf_BC)[0]


def apart(ours: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> float:
    """Losses are of order one; gradients are measured on the scale of the largest."""
    scale = theirs[1].abs().max().clamp(min=1e-12)
    return max(abs(ours[0] - theirs[0]), float((ours[1] - theirs[1]).abs().max() / scale))


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_and_its_gradient_equal_trls(parity, trainer, folder, loss_type, beta):
    """Clips differ below and above. TRL counts a row without a token among the sequences, we do not: it gets the others."""
    theirs = trainer(plain_model(folder), make_groups(REWARDS[2]), K=2, per_device_train_batch_size=2, loss_type=loss_type,
                     beta=beta, epsilon=0.15, epsilon_high=0.25)
    theirs.model.eval()
    clipped = []

    @drawn
    @given(seeds)
    def compare(seed: int) -> None:
        batch = drawn_batch(seed)
        logp_BC, *rest, mask_BC = batch
        live_B = mask_BC.any(dim=1)
        how = dict(clip_low=0.15, clip_high=0.25, kl_coef=beta, **LOSSES[loss_type])
        ours = value_and_gradient(lambda x: grpo_loss(x, *rest, mask_BC, **how)[0], logp_BC)
        expected = value_and_gradient(
            lambda x: trl_loss(theirs, x[live_B], *(y[live_B] for y in (*rest, mask_BC)), tokens=mask_BC.sum()), logp_BC)
        parity("loss and gradient: GRPO, BNPO, DAPO, Dr. GRPO", "trl", apart(ours, expected), bound=1e-6)
        metrics = grpo_loss(*batch, **how)[1]
        clipped.append(metrics["clip_ratio"].item())
        assert theirs._metrics["eval"]["clip_ratio/region_mean"][-1] == pytest.approx(clipped[-1], abs=1e-6)
        if beta and how["aggregation"] == "token":          # TRL logs the mean over tokens whatever the loss
            assert theirs._metrics["eval"]["kl"][-1] == pytest.approx(metrics["kl"].item(), rel=1e-6)

    compare()
    assert max(clipped) > 0


def test_micro_batches_share_one_normaliser_as_in_trls_dapo(parity, trainer, folder):
    """TRL's other losses average the micro-batches' own means; "dapo" divides each by the whole batch's tokens, as we do in
    every aggregation."""
    theirs = trainer(plain_model(folder), make_groups(REWARDS[2]), K=2, per_device_train_batch_size=2, loss_type="dapo",
                     beta=0.3)
    theirs.model.eval()

    @drawn
    @given(seeds, st.integers(1, 5))
    def compare(seed: int, cut: int) -> None:
        logp_BC, *rest, mask_BC = drawn_batch(seed)
        total = normaliser(mask_BC, mode="token")
        pieces = [piece for piece in (slice(0, cut), slice(cut, None)) if mask_BC[piece].any()]

        def summed(loss: Callable[..., Tensor]) -> tuple[float, Tensor]:
            return value_and_gradient(
                lambda x: sum(loss(*(y[piece] for y in (x, *rest, mask_BC))) for piece in pieces), logp_BC)

        ours = summed(lambda *piece: grpo_loss(*piece, kl_coef=0.3, aggregation="token", total=total)[0])
        expected = summed(lambda *piece: trl_loss(theirs, *piece, tokens=total))
        parity("loss and gradient: GRPO, BNPO, DAPO, Dr. GRPO", "trl", apart(ours, expected), bound=1e-6)

    compare()


# -------------------------------------------------------------------------------------------------------------- advantages
@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("K", [2, 4, 8])
def test_advantages_equal_trls(parity, trainer, folder, K, scale):
    """In float32, TRL's own; rewards are quarters and the paper's, so that their means are exact and roundings few."""
    worth = st.one_of(st.integers(-32, 32).map(lambda n: n / 4), st.sampled_from([-100.0, 1.0, 51.0, 1101.0]))
    groups = make_groups([[0.0] * K])
    theirs = trainer(plain_model(folder), groups, K=K, per_device_train_batch_size=K, scale_rewards=scale)

    @drawn
    @given(st.lists(st.lists(worth, min_size=K, max_size=K), min_size=1, max_size=3))
    def compare(rewards: list[list[float]]) -> None:
        groups[:] = make_groups(rewards)
        prompts = [{"prompt": str(q)} for q in range(len(rewards)) for _ in range(K)]
        expected_QK = theirs._generate_and_score_completions(prompts)["advantages"].view(-1, K)
        got_QK = group_advantages(torch.tensor(rewards), scale=scale, ddof=1)
        largest = float(expected_QK.abs().max()) or 1.0
        parity("advantages, ddof 1", "trl", float((got_QK - expected_QK).abs().max()) / largest, bound=1e-6, unit="of scale")

    compare()


# ---------------------------------------------------------------------------------------------------------- training runs
class Recorder(transformers.TrainerCallback):
    """Keeps the (clipped) gradients of every step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        self.gradients.append(by_our_names({name: parameter.grad.clone() for name, parameter in model.named_parameters()
                                            if parameter.requires_grad}))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type, updates, K, beta, temperature, max_grad_norm", [
    ("grpo", 1, 2, 0.0, 1.0, 0.05), ("grpo", 2, 4, 0.3, 0.7, 1e9), ("dapo", 1, 4, 0.3, 1.0, 1e9),
    ("dapo", 2, 2, 0.0, 1.0, 0.05), ("dr_grpo", 1, 2, 0.3, 0.7, 1e9), ("dr_grpo", 2, 4, 0.0, 1.0, 1e9)])
def test_a_training_run_equals_trls(parity, trainer, folder, loss_type, updates, K, beta, temperature, max_grad_norm):
    """Two rollouts through TRL's whole line and ours: its padding, log-probs, reference adapter, advantages, loss, clipping
    and AdamW. Unscaled advantages of whole rewards are exact in its float32; its log-softmax is float32 whatever the model
    is in, and where advantages of several hundred cancel, a gradient shows fifty such roundings of 6e-8."""
    rollouts = [make_groups(REWARDS[K], seed) for seed in (0, 1)]
    ours, theirs = twins(folder)
    freeze_reference(ours)
    Q, aggregation = len(rollouts[0]), LOSSES[loss_type]["aggregation"]
    run = trainer(theirs, [group for groups in rollouts for group in groups], K=K, loss_type=loss_type, beta=beta,
                  scale_rewards="none", temperature=temperature, num_iterations=updates, max_steps=2 * updates,
                  per_device_train_batch_size=Q * K, learning_rate=RATE, weight_decay=0.0, max_grad_norm=max_grad_norm,
                  epsilon=0.02, epsilon_high=0.05)
    run.add_callback(recorder := Recorder())
    moved(theirs)                               # after the trainer took the adapter as it was for its reference
    run.train()

    grpo = GRPO(learning_rate=RATE, max_grad_norm=max_grad_norm, clip_low=0.02, clip_high=0.05, kl_coef=beta, scale="none",
                aggregation=aggregation, updates_per_rollout=updates, micro_batch_tokens=ALONE if updates == 1 else WHOLE)
    got = our_steps(moved(ours), rollouts, grpo, temperature)
    assert len(got.gradients) == len(recorder.gradients) == 2 * updates
    assert updates == 1 or max(report["clip_ratio"] for report in got.reports) > 0
    for mine, gradients in zip(got.gradients, recorder.gradients):
        parity("training run: gradients", "trl", difference(mine, gradients), bound=1e-5, unit="of scale")
    expected = by_our_names(dict(run.model.named_parameters()))
    changes = [float((parameter - expected[name]).detach().abs().max()) / RATE
               for name, parameter in adapter_parameters(ours).items()]
    parity("training run: parameters at its end", "trl", max(changes), bound=1e-3, unit="learning rates")
