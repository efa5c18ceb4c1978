"""Group Relative Policy Optimisation: tensors in, tensors out. Does not depend on any model, config or task.

The loss of one batch, for sequences b with tokens c (Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4):

    loss = − aggregate( min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) ) + β · aggregate( KL )

with ρ = exp(logp − old_logp) the ratio of the policy to the one that wrote the tokens, and A the reward of a sequence
measured against the other sequences of its group. Each term below is a function that can be tested alone; ``grpo_loss``
puts them together. Log-probs are natural logarithms, float32 or wider; ``mask_BC`` is true where a token counts.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from minigrpo.common.shapes import check, check_boolean

Aggregation = Literal["sequence", "token", "constant"]
Estimator = Literal["k3", "k2", "k1"]
LossEstimator = Literal["k3", "k2"]             # the gradient of k1 is zero on average: it would teach nothing


def group_advantages(reward_QK: Tensor, *, scale: Literal["group", "none"] = "group", ddof: int = 0,
                     eps: float = 1e-4) -> Tensor:
    """A = (r − μ) / (σ + eps) within each group: arXiv 2402.03300 §4.1.2; the σ of ``ddof`` 0 divides by K.

    ``scale="none"`` leaves A = r − μ (Dr. GRPO, arXiv 2503.20783). Equal rewards give exactly 0, even if
    their mean is rounded, and so does a group of one. Returns advantage_QK.

    >>> group_advantages(torch.tensor([[1.0, 1101.0]]), eps=0.0)
    tensor([[-1.,  1.]])
    """
    check(reward_QK=reward_QK)
    K = reward_QK.shape[1]
    if not reward_QK.is_floating_point() or (K > 1 and ddof >= K):
        raise ValueError(f"reward_QK: expected floating-point rewards and K > ddof, got {reward_QK.dtype}, K={K}, ddof={ddof}")
    _one_of("scale", scale, ("group", "none"))
    equal_Q1 = (reward_QK == reward_QK[:, :1]).all(dim=-1, keepdim=True)
    advantage_QK = reward_QK - reward_QK.mean(dim=-1, keepdim=True)
    if scale == "group":
        std_Q1 = (advantage_QK.square().sum(dim=-1, keepdim=True) / max(K - ddof, 1)).sqrt()     # K = 1: 0 / 1
        advantage_QK = advantage_QK / (std_Q1 + eps)
    return torch.where(equal_Q1, torch.zeros_like(advantage_QK), advantage_QK)


def policy_ratio(logp_BC: Tensor, old_logp_BC: Tensor) -> Tensor:
    """ρ = π(token) / π_old(token) = exp(logp − old_logp). Returns ratio_BC."""
    check(logp_BC=logp_BC, old_logp_BC=old_logp_BC)
    return (logp_BC - old_logp_BC).exp()


def clipped_surrogate(ratio_BC: Tensor, advantage_B: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A), to be maximised: PPO, arXiv 1707.06347, eq. 7.

    The minimum takes the clipped branch only where clipping lowers the objective, so a ratio that has moved too far in
    the direction of its advantage gets no gradient. Returns objective_BC.
    """
    check(ratio_BC=ratio_BC, advantage_B=advantage_B)
    advantage_B1 = advantage_B[:, None]
    return torch.minimum(ratio_BC * advantage_B1, ratio_BC.clamp(1 - clip_low, 1 + clip_high) * advantage_B1)


def kl_penalty(logp_BC: Tensor, ref_logp_BC: Tensor, *, estimator: Estimator = "k3") -> Tensor:
    """One-sample estimates of KL(policy ‖ reference), with d = logp − ref (Schulman, "Approximating KL divergence").

    k1: d · k2: d² / 2 · k3: e^(−d) + d − 1. In expectation over the policy's samples k1 and k3 are unbiased as values; as
    losses the gradient of k1 is zero, of k2 that of the reverse KL, of k3 that of the forward KL. Over beams, which are
    not samples, none of them estimates a KL: there it is a measure of distance. Returns kl_BC.
    """
    check(logp_BC=logp_BC, ref_logp_BC=ref_logp_BC)
    _one_of("estimator", estimator, get_args(Estimator))
    d_BC = logp_BC - ref_logp_BC
    if estimator == "k1":
        return d_BC
    if estimator == "k2":
        return d_BC.square() / 2
    return torch.expm1(-d_BC) + d_BC            # expm1 keeps the digits that e^(−d) + d − 1 cancels near d = 0


def normaliser(mask_BC: Tensor, *, mode: Aggregation, length: int | None = None) -> Tensor:
    """What ``aggregate`` divides by: live sequences ("sequence"), live tokens ("token"), live sequences × ``length``
    ("constant"). A sequence is live if anything in it is unmasked. Returns a scalar; of the whole batch, it is the
    ``total`` that makes micro-batches add up to one batch.
    """
    check(mask_BC=mask_BC)
    check_boolean(mask_BC=mask_BC)
    _one_of("mode", mode, get_args(Aggregation))
    if mode == "token":
        return mask_BC.sum()
    live = mask_BC.any(dim=-1).sum()
    if mode == "sequence":
        return live
    if length is None or length < 1:
        raise ValueError(f"mode 'constant' divides by live sequences × length and needs length ≥ 1, got {length}")
    return live * length


def aggregate(term_BC: Tensor, mask_BC: Tensor, *, mode: Aggregation = "sequence", length: int | None = None,
              total: Tensor | float | None = None) -> Tensor:
    """Per-token terms to one scalar, over live sequences only.

    "sequence": mean over sequences of their token means (GRPO, arXiv 2402.03300) · "token": mean over tokens (DAPO,
    arXiv 2503.14476) · "constant": sum over sequences × ``length`` (Dr. GRPO, arXiv 2503.20783). ``total`` replaces the
    divisor of this micro-batch by that of the whole batch (``normaliser``; at least 1). With nothing live the result is 0.
    """
    check(term_BC=term_BC, mask_BC=mask_BC)
    check_boolean(mask_BC=mask_BC)
    _one_of("mode", mode, get_args(Aggregation))
    total = normaliser(mask_BC, mode=mode, length=length) if total is None else torch.as_tensor(total)
    term_BC = torch.where(mask_BC, term_BC, torch.zeros_like(term_BC))
    if mode == "sequence":
        term_BC = term_BC / mask_BC.sum(dim=-1, keepdim=True).clamp(min=1)
    return term_BC.sum() / total.to(term_BC).clamp(min=1)


def grpo_loss(logp_BC: Tensor, old_logp_BC: Tensor, ref_logp_BC: Tensor, advantage_B: Tensor, mask_BC: Tensor, *,
              clip_low: float = 0.2, clip_high: float = 0.2, kl_coef: float = 0.0,
              kl_estimator: LossEstimator = "k3", aggregation: Aggregation = "sequence",
              length: int | None = None, total: Tensor | float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """loss = −objective + kl_coef · KL, and what to log of it.

    Masked places may hold NaN or ±inf: they are replaced before anything is computed and change neither value nor
    gradient. Metrics are detached scalars: ``objective`` and ``kl``, aggregated as the loss is (so they add up over
    micro-batches given ``total``), and two means over this call's tokens: ``ratio_drift``, of ρ − 1, and ``clip_ratio``, the
    share whose clipped branch was taken.
    """
    check(logp_BC=logp_BC, old_logp_BC=old_logp_BC, ref_logp_BC=ref_logp_BC, advantage_B=advantage_B, mask_BC=mask_BC)
    check_boolean(mask_BC=mask_BC)
    _one_of("kl_estimator", kl_estimator, get_args(LossEstimator))
    _one_of("aggregation", aggregation, get_args(Aggregation))
    logp_BC, old_logp_BC, ref_logp_BC = (torch.where(mask_BC, x_BC, torch.zeros_like(x_BC))
                                         for x_BC in (logp_BC, old_logp_BC, ref_logp_BC))

    def averaged(term_BC: Tensor) -> Tensor:
        return aggregate(term_BC, mask_BC, mode=aggregation, length=length, total=total)

    ratio_BC = policy_ratio(logp_BC, old_logp_BC)
    objective_BC = clipped_surrogate(ratio_BC, advantage_B, clip_low=clip_low, clip_high=clip_high)
    objective = averaged(objective_BC)
    kl = averaged(kl_penalty(logp_BC, ref_logp_BC, estimator=kl_estimator))

    clipped_BC = (objective_BC < ratio_BC * advantage_B[:, None]).to(ratio_BC)
    metrics = {"objective": objective, "kl": kl, "ratio_drift": aggregate(ratio_BC - 1, mask_BC, mode="token"),
               "clip_ratio": aggregate(clipped_BC, mask_BC, mode="token")}
    loss = kl_coef * kl - objective if kl_coef else -objective          # KL off is off: 0 · ∞ would be NaN
    return loss, {name: value.detach() for name, value in metrics.items()}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
