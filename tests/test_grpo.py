"""GRPO's terms: each against numbers worked out by hand, and against what must not change it.

Hand-made examples use powers of two as probabilities: log-ratios are then multiples of ln 2 and ratios are 1/2, 1, 2.
"""

import inspect
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo import grpo
from minigrpo.grpo import aggregate, clipped_surrogate, group_advantages, grpo_loss, kl_penalty, normaliser, policy_ratio

LN2 = math.log(2)
NAN, INF = math.nan, math.inf
MODES = [dict(mode="sequence"), dict(mode="token"), dict(mode="constant", length=7)]
HOWS = [dict(aggregation="sequence"), dict(aggregation="token"), dict(aggregation="constant", length=7)]
quick = settings(max_examples=50, deadline=None)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, rtol=1e-9, atol=1e-12):
    expected = expected if isinstance(expected, torch.Tensor) else torch.tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def gradient(function, *inputs):
    """The gradients of a scalar function at inputs, zeros where it does not depend on one."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs), inputs, allow_unused=True, materialize_grads=True)


# --- what anyone may rely on: names, order and defaults ------------------------------------------------------------

@pytest.mark.parametrize("name, signature", [
    ("group_advantages", "(reward_QK, *, scale='group', ddof=0, eps=0.0001)"),
    ("policy_ratio", "(logp_BC, old_logp_BC)"),
    ("clipped_surrogate", "(ratio_BC, advantage_B, *, clip_low=0.2, clip_high=0.2)"),
    ("kl_penalty", "(logp_BC, ref_logp_BC, *, estimator='k3')"),
    ("normaliser", "(mask_BC, *, mode, length=None)"),
    ("aggregate", "(term_BC, mask_BC, *, mode='sequence', length=None, total=None)"),
    ("grpo_loss", "(logp_BC, old_logp_BC, ref_logp_BC, advantage_B, mask_BC, *, clip_low=0.2, clip_high=0.2, "
                  "kl_coef=0.0, kl_estimator='k3', aggregation='sequence', length=None, total=None)"),
])
def test_signatures_are_fixed(name, signature):
    bare = inspect.signature(getattr(grpo, name))
    bare = bare.replace(parameters=[p.replace(annotation=inspect.Parameter.empty) for p in bare.parameters.values()],
                        return_annotation=inspect.Signature.empty)
    assert str(bare) == signature


# --- group_advantages ----------------------------------------------------------------------------------------------

# dyadic numbers, so that sums, means and a·r + b are exact and only the arithmetic under test rounds
rewards = st.lists(st.integers(-32, 32).map(lambda n: n / 4), min_size=2, max_size=12)
scales = st.sampled_from(["group", "none"])


def test_advantages_by_hand():
    """Group 0: rewards 0 0 0 4 have mean 1, deviations −1 −1 −1 3, squares summing to 1 + 1 + 1 + 9 = 12.
    ddof 0: σ = √(12/4) = √3. ddof 1: σ = √(12/3) = 2.
    Group 1: rewards 1 1 3 3 have mean 2, deviations −1 −1 1 1, squares summing to 4.
    ddof 0: σ = 1. ddof 1: σ = √(4/3)."""
    reward_QK = f64([[0, 0, 0, 4], [1, 1, 3, 3]])
    deviation_QK = f64([[-1, -1, -1, 3], [-1, -1, 1, 1]])
    close(group_advantages(reward_QK, eps=0), deviation_QK / f64([[3**0.5], [1]]))
    close(group_advantages(reward_QK, eps=0, ddof=1), deviation_QK / f64([[2], [(4 / 3) ** 0.5]]))
    close(group_advantages(f64([[1, 3]]), eps=0, ddof=1), [[-(0.5**0.5), 0.5**0.5]])       # σ = √((1 + 1)/(2 − 1))
    for ddof, eps in itertools.product((0, 1), (0.0, 1e-4, 1.0)):                          # Dr. GRPO divides by nothing
        assert group_advantages(reward_QK, scale="none", ddof=ddof, eps=eps).equal(deviation_QK)


def test_eps_stands_beside_sigma_not_under_the_root():
    """Rewards 1 3: deviations ∓1, σ = 1. With eps = 1, ∓1 / (1 + 1) = ∓1/2; inside the root it would be ∓1/√2.
    The default, 10⁻⁴, halves a spread of its own size: rewards 0 and 2·10⁻⁴ have σ = 10⁻⁴: ∓10⁻⁴ / (2·10⁻⁴) = ∓1/2."""
    close(group_advantages(f64([[1, 3]]), eps=1.0), [[-0.5, 0.5]])
    close(group_advantages(f64([[0, 2e-4]])), [[-0.5, 0.5]])


def test_twelve_rewards_of_a_hundredth():
    """0.01 has no exact binary form and the float32 mean of twelve of them need not be the number itself. A group that
    saw no difference must say so: exactly 0, though σ is a rounding error and eps may be nothing."""
    assert torch.full((12,), 0.01).mean() != torch.tensor(0.01)                          # the trap is there
    dtypes = (torch.float32, torch.float64)
    for dtype, scale, ddof, eps in itertools.product(dtypes, ("group", "none"), (0, 1), (1e-4, 0.0)):
        reward_QK = torch.tensor([[0.01] * 12, [0.01] * 11 + [1.0], [0.7] * 12], dtype=dtype)
        advantage_QK = group_advantages(reward_QK, scale=scale, ddof=ddof, eps=eps)
        assert advantage_QK[0].eq(0).all() and advantage_QK[2].eq(0).all()
        assert advantage_QK[1, 11] > 0.9 and advantage_QK[1, :11].lt(0).all()       # the group that did see one, learns


@quick
@given(value=st.floats(-2.0**100, 2.0**100, width=32), size=st.integers(1, 40), scale=scales, ddof=st.integers(0, 1))
def test_equal_rewards_are_exactly_zero(value, size, scale, ddof):
    for dtype, eps in itertools.product((torch.float32, torch.float64), (0.0, 1e-4)):
        reward_QK = torch.full((2, size), value, dtype=dtype)
        assert group_advantages(reward_QK, scale=scale, ddof=ddof, eps=eps).equal(torch.zeros(2, size, dtype=dtype))


def test_a_sigma_without_degrees_of_freedom_and_rewards_that_are_no_floats_are_refused():
    with pytest.raises(ValueError, match="^reward_QK: expected floating-point rewards and K > ddof, got torch.float32, K=2, ddof=2$"):
        group_advantages(torch.zeros(1, 2), ddof=2)
    with pytest.raises(ValueError, match="got torch.int64, K=2, ddof=0$"):
        group_advantages(torch.tensor([[1, 2]]))


@pytest.mark.parametrize("ddof", [0, 1])
def test_a_group_of_one_has_nothing_to_compare(ddof):
    """ddof 1 would divide 0 by K − 1 = 0."""
    assert group_advantages(torch.tensor([[0.3], [-5.0]]), ddof=ddof, eps=0).equal(torch.zeros(2, 1))


@quick
@given(rewards, st.sampled_from([0.25, 0.5, 1.0, 3.0, 64.0]), st.integers(-5, 5), st.integers(0, 1))
def test_the_unit_and_zero_point_of_reward_do_not_matter(reward_K, a, b, ddof):
    reward_QK = f64([reward_K])
    close(group_advantages(a * reward_QK + b, eps=0, ddof=ddof), group_advantages(reward_QK, eps=0, ddof=ddof))
    close(group_advantages(a * reward_QK + b, scale="none"), a * group_advantages(reward_QK, scale="none"))
    close(group_advantages(-reward_QK, ddof=ddof), -group_advantages(reward_QK, ddof=ddof))


@quick
@given(rewards.flatmap(lambda r: st.tuples(st.just(r), st.permutations(range(len(r))))), scales, st.integers(0, 1))
def test_the_order_of_a_group_does_not_matter(reward_and_order, scale, ddof):
    reward_K, order = reward_and_order
    reward_QK = f64([reward_K])
    close(group_advantages(reward_QK[:, order], scale=scale, ddof=ddof),
          group_advantages(reward_QK, scale=scale, ddof=ddof)[:, order])


@quick
@given(rewards, rewards, scales, st.integers(0, 1))
def test_groups_do_not_see_each_other(one_K, other_K, scale, ddof):
    size = min(len(one_K), len(other_K))
    one_QK, other_QK = f64([one_K[:size]]), f64([other_K[:size]])
    how = dict(scale=scale, ddof=ddof)
    close(group_advantages(torch.cat([one_QK, other_QK]), **how),
          torch.cat([group_advantages(one_QK, **how), group_advantages(other_QK, **how)]))


@quick
@given(rewards.filter(lambda r: len(set(r)) > 1), st.integers(0, 1))
def test_advantages_sum_to_zero_with_unit_variance(reward_K, ddof):
    advantage_QK = group_advantages(f64([reward_K]), eps=0, ddof=ddof)
    close(advantage_QK.sum(), 0.0, atol=1e-9)
    close(advantage_QK.square().sum(), float(len(reward_K) - ddof))


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_tiny_and_huge_rewards(unit):
    """0 0 0 4 as above, −1/√3 and √3, in float32 whose range is 1e±38: the square of a deviation still fits."""
    close(group_advantages(torch.tensor([[0, 0, 0, 4 * unit]]), eps=0), [[-(3**-0.5)] * 3 + [3**0.5]], rtol=1e-6)


# --- policy_ratio --------------------------------------------------------------------------------------------------

def test_ratio_by_hand():
    """New probabilities 1/2 1/2 1/8 against old 1/2 1/4 1/4: ratios 1 2 1/2. dρ/dlogp = ρ and dρ/dold = −ρ."""
    logp_BC, old_logp_BC = f64([[-LN2, -LN2, -3 * LN2]]), f64([[-LN2, -2 * LN2, -2 * LN2]])
    close(policy_ratio(logp_BC, old_logp_BC), [[1.0, 2.0, 0.5]])
    up_BC, down_BC = gradient(lambda new, old: policy_ratio(new, old).sum(), logp_BC, old_logp_BC)
    close(up_BC, [[1.0, 2.0, 0.5]])
    close(down_BC, [[-1.0, -2.0, -0.5]])


@given(st.floats(-2.0**100, 0, width=32))
def test_ratio_of_a_policy_to_itself_is_exactly_one(logp):
    for dtype in (torch.float32, torch.float64):
        logp_BC = torch.tensor([[logp]], dtype=dtype)
        assert policy_ratio(logp_BC, logp_BC.clone()).item() == 1


# --- clipped_surrogate ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ratio, advantage, value, slope", [
    # clip(ρ, 1 − 0.1, 1 + 0.3) keeps ρ within [0.9, 1.3].
    # A > 0 wants ρ to grow. Below the range it may (ρA is the smaller), above it has had enough: 1.3 A, no slope.
    (0.5, +2.0, 0.5 * 2, 2),
    (0.95, +2.0, 0.95 * 2, 2),
    (1.2, +2.0, 1.2 * 2, 2),
    (1.5, +2.0, 1.3 * 2, 0),
    # A < 0 wants ρ to shrink. Below the range it has had enough: 0.9 A, no slope; above it must come back.
    (0.5, -2.0, 0.9 * -2, 0),
    (0.95, -2.0, 0.95 * -2, -2),
    (1.2, -2.0, 1.2 * -2, -2),
    (1.5, -2.0, 1.5 * -2, -2),
    # at ρ = 1 both branches are equal and their halves of the slope add up to the whole
    (1.0, +2.0, 2, 2),
    (1.0, -2.0, -2, -2),
    # no advantage, nothing to gain
    (0.5, 0.0, 0, 0),
    (1.5, 0.0, 0, 0),
])
def test_the_four_quadrants_of_the_clip(ratio, advantage, value, slope):
    def objective(ratio_BC):
        return clipped_surrogate(ratio_BC, f64([advantage]), clip_low=0.1, clip_high=0.3).sum()

    close(objective(f64([[ratio]])), float(value))
    close(gradient(objective, f64([[ratio]]))[0], [[float(slope)]])


def test_both_clips_default_to_a_fifth():
    """A = 1 at ρ = 2 stops at 1.2; A = −1 at ρ = 1/2 stops at −0.8."""
    close(clipped_surrogate(f64([[2], [0.5]]), f64([1, -1])), [[1.2], [-0.8]])


def test_an_advantage_belongs_to_a_sequence():
    """As many sequences as tokens, so that no shape betrays a wrong broadcast: row 0 is ρ, row 1 is −ρ."""
    close(clipped_surrogate(f64([[0.9, 1.1], [1.0, 1.2]]), f64([1, -1])), [[0.9, 1.1], [-1.0, -1.2]])


@quick
@given(st.floats(0, 4), st.floats(-3, 3), st.floats(0, 0.9), st.floats(0, 0.9), st.sampled_from([0.25, 2.0, 8.0]))
def test_the_clip_is_a_pessimist(ratio, advantage, low, high, a):
    """Never above ρA; equal to it within the range; wider clips never lower it; linear in the size of the advantage."""
    def objective(advantage, low, high):
        return clipped_surrogate(f64([[ratio]]), f64([advantage]), clip_low=low, clip_high=high).item()

    assert objective(advantage, low, high) <= ratio * advantage
    if 1 - low <= ratio <= 1 + high:
        assert objective(advantage, low, high) == ratio * advantage
    assert objective(advantage, low, high) <= objective(advantage, low + 0.1, high + 0.1)
    assert objective(a * advantage, low, high) == pytest.approx(a * objective(advantage, low, high), rel=1e-12)


# --- kl_penalty ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("estimator, kl, slope", [
    # d = logp − ref is 0, ln 2, −ln 2; e^(−d) is 1, 1/2, 2
    ("k1", [0, LN2, -LN2], [1, 1, 1]),                                      # d,             slope 1
    ("k2", [0, LN2**2 / 2, LN2**2 / 2], [0, LN2, -LN2]),                    # d²/2,          slope d
    ("k3", [0, LN2 - 1 / 2, 1 - LN2], [0, 1 / 2, -1]),                      # e^(−d) + d − 1, slope 1 − e^(−d)
])
def test_kl_estimators_by_hand(estimator, kl, slope):
    logp_BC, ref_logp_BC = f64([[-LN2, -LN2, -2 * LN2]]), f64([[-LN2, -2 * LN2, -LN2]])
    close(kl_penalty(logp_BC, ref_logp_BC, estimator=estimator), [kl])
    up_BC, down_BC = gradient(lambda x, y: kl_penalty(x, y, estimator=estimator).sum(), logp_BC, ref_logp_BC)
    close(up_BC, [[float(x) for x in slope]])
    close(down_BC, [[-float(x) for x in slope]])


def test_k3_is_the_default():
    """d = ln 2: k3 is 1/2 + ln 2 − 1."""
    close(kl_penalty(f64([[0]]), f64([[-LN2]])), [[LN2 - 0.5]])


@quick
@given(st.floats(-50, 0, width=32), st.floats(-50, 0, width=32))
def test_k3_is_never_negative_and_all_are_zero_at_equality(logp, ref_logp):
    for dtype in (torch.float32, torch.float64):
        logp_BC, ref_logp_BC = torch.tensor([[logp]], dtype=dtype), torch.tensor([[ref_logp]], dtype=dtype)
        assert kl_penalty(logp_BC, ref_logp_BC).item() >= 0
        for estimator in ("k1", "k2", "k3"):
            assert kl_penalty(logp_BC, logp_BC.clone(), estimator=estimator).item() == 0


def test_k3_keeps_its_digits_and_its_sign_near_zero():
    """k3 = d²/2 − d³/6 + …: at d = 10⁻³ that is 4.9983·10⁻⁷. Summed as e^(−d) + d − 1 in float32, whose numbers near 1
    are 1.2·10⁻⁷ apart, it could be a tenth off and, at smaller d, negative."""
    zero_BC = torch.zeros(1, 1)
    close(kl_penalty(torch.full((1, 1), 1e-3), zero_BC), [[4.9983e-7]], rtol=1e-3, atol=0)
    d_BC = torch.logspace(-9, 0, 20_001)[None]
    for sign in (1, -1):
        assert kl_penalty(sign * d_BC, torch.zeros_like(d_BC)).ge(0).all()


@st.composite
def policies(draw):
    """Logits of a policy and probabilities of a reference over two to six tokens, ratios up to e⁶."""
    V = draw(st.integers(2, 6))
    logit_V, ref_V = (f64(draw(st.lists(st.floats(-1.5, 1.5), min_size=V, max_size=V))) for _ in range(2))
    return logit_V, ref_V.softmax(dim=0)


def expectations(estimator, logit_V, q_V):
    """Over all tokens instead of samples: E_p[estimate], and the gradient of Σ p · estimate with p held still, which
    is what the average over samples of p gives."""
    p_V = logit_V.softmax(dim=0)

    def average(logit_V):
        kl_BC = kl_penalty(logit_V.log_softmax(dim=0)[None], q_V.log()[None], estimator=estimator)
        return (p_V * kl_BC[0]).sum()

    return average(logit_V), gradient(average, logit_V)[0]


@pytest.mark.parity
@quick
@given(policies())
def test_k1_and_k3_are_unbiased_estimates_of_the_kl(parity, policy):
    """E_p[d] = Σ p ln(p/q) is the KL; e^(−d) − 1 adds Σ p (q/p) − 1 = 0 to it."""
    logit_V, q_V = policy
    p_V = logit_V.softmax(dim=0)
    exact = torch.nn.functional.kl_div(q_V.log(), p_V, reduction="sum")
    for estimator in ("k1", "k3"):
        value, _ = expectations(estimator, logit_V, q_V)
        parity("means of k1, k3, all tokens enumerated", "(exact KL)", (value - exact).abs(), bound=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_of_samples_come_near_the_kl(parity, estimator):
    """The mean of n draws lies within 5 of its standard errors, σ/√n with the estimate's own σ under p, but for one seed in a
    million. The KL is 0.456; the mean of k2, 0.522, is more than 20 of them away."""
    n, p_V, q_V = 100_000, f64([0.1, 0.2, 0.3, 0.4]), f64([0.4, 0.3, 0.2, 0.1])
    exact = (p_V * (p_V / q_V).log()).sum()

    def estimates(ids_BC):
        return kl_penalty(p_V.log()[ids_BC], q_V.log()[ids_BC], estimator=estimator)

    each_V = estimates(torch.arange(4)[None])[0]
    error = ((p_V * (each_V - exact).square()).sum() / n).sqrt()
    drawn_BC = torch.multinomial(p_V, n, replacement=True, generator=torch.Generator().manual_seed(0))[None]
    parity("means of k1, k3 over 100,000 draws", "(exact KL)", (estimates(drawn_BC).mean() - exact).abs() / error, bound=5.0,
           unit="standard errors")


def test_k2_is_right_to_second_order_only():
    """For q = p (1 + δ) with Σ p δ = 0, both KL(p ‖ q) and E_p[d²/2] are E_p[δ²]/2 and terms in δ³: a spread of 1%
    leaves them about 1% apart."""
    p_V, delta_V = f64([0.5, 0.25, 0.25]), f64([0.01, -0.01, -0.01])
    q_V = p_V * (1 + delta_V)
    value = (p_V * kl_penalty(p_V.log()[None], q_V.log()[None], estimator="k2")[0]).sum()
    exact = (p_V * (p_V / q_V).log()).sum()
    close(value, 0.01**2 / 2, rtol=0.02)
    close(exact, 0.01**2 / 2, rtol=0.02)


@pytest.mark.parity
@pytest.mark.parametrize("estimator, taught", [
    ("k1", lambda logp_V, q_V: 0 * logp_V.sum()),                           # Σ p ∇ln p = ∇ Σ p = 0
    ("k2", lambda logp_V, q_V: (logp_V.exp() * (logp_V - q_V.log())).sum()),        # the reverse KL, Σ p ln(p/q)
    ("k3", lambda logp_V, q_V: (q_V * (q_V.log() - logp_V)).sum()),         # the forward KL, Σ q ln(q/p)
])
def test_what_an_estimator_teaches_as_a_loss(parity, estimator, taught):
    """Its mean gradient over samples is that of another function of the policy, named here."""
    @quick
    @given(policies())
    def compare(policy):
        logit_V, q_V = policy
        _, gradient_V = expectations(estimator, logit_V, q_V)
        expected_V, = gradient(lambda x: taught(x.log_softmax(dim=0), q_V), logit_V)
        parity("mean gradients of k1, k2, k3", "(zero, of reverse KL, of forward KL)", (gradient_V - expected_V).abs().max(),
               bound=1e-9)

    compare()


# --- normaliser and aggregate --------------------------------------------------------------------------------------

# three sequences of two, one and no live tokens; the one token stands second, for a mask need not be a prefix
MASK_BC = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
TERM_BC = [[1.0, 3.0, 99.0], [99.0, 5.0, 99.0], [99.0, 99.0, 99.0]]


@pytest.mark.parametrize("how, divisor", [
    (dict(mode="sequence"), 2), (dict(mode="token"), 3), (dict(mode="constant", length=4), 2 * 4)])
def test_normaliser_by_hand(how, divisor):
    assert normaliser(MASK_BC, **how).item() == divisor


@pytest.mark.parametrize("how, value, weights", [
    # (1 + 3)/2 = 2 and 5/1 = 5; their mean is 7/2. A token weighs 1/(its sequence's length · 2 live sequences).
    (dict(mode="sequence"), 7 / 2, [1 / 4, 1 / 2]),
    # (1 + 3 + 5)/3
    (dict(mode="token"), 9 / 3, [1 / 3, 1 / 3]),
    # (1 + 3 + 5)/(2 live sequences · 4)
    (dict(mode="constant", length=4), 9 / 8, [1 / 8, 1 / 8]),
    # a total of the whole batch instead: twice the divisor of before
    (dict(mode="sequence", total=4), 7 / 4, [1 / 8, 1 / 4]),
    (dict(mode="token", total=6.0), 9 / 6, [1 / 6, 1 / 6]),
    (dict(mode="constant", total=torch.tensor(16)), 9 / 16, [1 / 16, 1 / 16]),
])
@pytest.mark.parametrize("masked", [99.0, NAN, INF, -INF])
def test_aggregate_by_hand(how, value, weights, masked):
    first, second = weights
    term_BC = f64(TERM_BC).where(MASK_BC, f64(masked))
    close(aggregate(term_BC, MASK_BC, **how), value)
    gradient_BC, = gradient(lambda x: aggregate(x, MASK_BC, **how), term_BC)
    close(gradient_BC, [[first, first, 0.0], [0.0, second, 0.0], [0.0, 0.0, 0.0]])


def test_the_mean_over_sequences_is_the_default():
    close(aggregate(f64(TERM_BC), MASK_BC), 7 / 2)


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("total", [None, 0, 5])
def test_nothing_live_is_zero(how, total):
    term_BC, dead_BC = f64([[NAN, 1], [INF, 2]]), torch.zeros(2, 2, dtype=torch.bool)
    assert normaliser(dead_BC, **how).item() == 0
    assert aggregate(term_BC, dead_BC, **how, total=total).item() == 0
    assert gradient(lambda x: aggregate(x, dead_BC, **how, total=total), term_BC)[0].eq(0).all()


@st.composite
def batches(draw):
    """(logp, old, ref, advantage, mask): masks with holes, dead sequences and dead batches among them."""
    B, C = draw(st.integers(1, 5)), draw(st.integers(1, 4))

    def table(element):
        return draw(st.lists(st.lists(element, min_size=C, max_size=C), min_size=B, max_size=B))

    logp = st.floats(-2, 0)
    advantage_B = draw(st.lists(st.floats(-2, 2), min_size=B, max_size=B))
    return f64(table(logp)), f64(table(logp)), f64(table(logp)), f64(advantage_B), torch.tensor(table(st.booleans()))


@quick
@given(batches(), st.sampled_from(MODES), st.data())
def test_what_leaves_an_aggregate_alone(batch, how, data):
    """The order of sequences, the order of tokens, sequences of nothing, and columns of padding."""
    term_BC, _, _, _, mask_BC = batch
    value, (B, C) = aggregate(term_BC, mask_BC, **how), term_BC.shape
    rows, columns = data.draw(st.permutations(range(B))), data.draw(st.permutations(range(C)))
    close(aggregate(term_BC[rows][:, columns], mask_BC[rows][:, columns], **how), value)
    wider = (0, 2, 0, 3)                                              # two columns to the right, three rows below
    pad = torch.nn.functional.pad
    close(aggregate(pad(term_BC, wider, value=NAN), pad(mask_BC, wider, value=False), **how), value)
    close(aggregate(term_BC.repeat(3, 1), mask_BC.repeat(3, 1), **how), value)      # thrice the batch, the same mean


@quick
@given(batches())
def test_a_mean_of_ones_is_one(batch):
    mask_BC = batch[-1]
    one_BC, live = torch.ones(mask_BC.shape, dtype=torch.float64), float(mask_BC.any())
    close(aggregate(one_BC, mask_BC, mode="sequence"), live)
    close(aggregate(one_BC, mask_BC, mode="token"), live)
    slots = mask_BC.any(dim=1).sum().item() * 7                       # "constant" is the filled share of slots
    close(aggregate(one_BC, mask_BC, mode="constant", length=7), mask_BC.sum().item() / max(slots, 1))


# --- grpo_loss -----------------------------------------------------------------------------------------------------

def example():
    """Sequence 0 has two tokens, sequence 1 has one. Probabilities of its tokens under policy, old policy, reference:

        sequence 0, A = +1     token 0: 1/2 1/2 1/2     token 1: 1/4 1/8 1/2
        sequence 1, A = −1     token 0: 1/2 1/4 1/4     token 1: masked
    """
    logp_BC = f64([[1 / 2, 1 / 4], [1 / 2, 1]]).log()
    old_logp_BC = f64([[1 / 2, 1 / 8], [1 / 4, 1]]).log()
    ref_logp_BC = f64([[1 / 2, 1 / 2], [1 / 4, 1]]).log()
    return logp_BC, old_logp_BC, ref_logp_BC, f64([1, -1]), torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize("how, objective, kl, drift, clip_ratio", [
    (dict(aggregation="sequence"), (2.3 / 2 - 2) / 2, LN2 / 4, 2 / 3, 1 / 3),
    (dict(aggregation="token"), 0.3 / 3, (1 / 2) / 3, 2 / 3, 1 / 3),
    (dict(aggregation="constant", length=5), 0.3 / 10, (1 / 2) / 10, 2 / 3, 1 / 3),
    (dict(aggregation="sequence", total=8), (2.3 / 2 - 2) / 8, LN2 / 16, 2 / 3, 1 / 3),
])
@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_loss_line_by_line(how, objective, kl, drift, clip_ratio, kl_coef):
    """Ratios ρ = policy / old:              sequence 0: 1, 2          sequence 1: 2
    clipped to [1 − 0.2, 1 + 0.3]:        1, 1.3                    1.3
    min(ρA, clip(ρ)A):                    1, 1.3                    min(−2, −1.3) = −2
    token 1 of sequence 0 alone takes the clipped branch.
    d = ln(policy / reference):           0, ln 1/2                 ln 2
    k3 = e^(−d) + d − 1:                  0, 2 − ln 2 − 1 = 1 − ln 2         1/2 + ln 2 − 1 = ln 2 − 1/2

    Sums over tokens: objective 2.3 and −2, KL 1 − ln 2 and ln 2 − 1/2, drift ρ − 1: 1 and 1, clipped 1 and 0;
    the last two are means over the 3 tokens whatever the aggregation: 2/3 and 1/3.
    "sequence": divide each by its length, 2 and 1, then by 2 sequences. KL: ((1 − ln 2)/2 + ln 2 − 1/2)/2 = ln 2 / 4.
    "token": all by 3. "constant" of length 5: all by 2 · 5. A given total of 8 takes the place of 2 sequences.
    """
    logp_BC, *rest = example()
    loss, metrics = grpo_loss(logp_BC.requires_grad_(), *rest, clip_high=0.3, kl_coef=kl_coef, **how)
    close(loss, -objective + kl_coef * kl)
    assert metrics.keys() == {"objective", "kl", "ratio_drift", "clip_ratio"}
    for name, expected in dict(objective=objective, kl=kl, ratio_drift=drift, clip_ratio=clip_ratio).items():
        close(metrics[name], expected)
        assert not metrics[name].requires_grad


def test_loss_by_default_clips_at_a_fifth_without_kl():
    """As above with 1.2 for 1.3 on token 1 of sequence 0: ((1 + 1.2)/2 − 2)/2."""
    close(grpo_loss(*example())[0], -(2.2 / 2 - 2) / 2)


def test_loss_with_k2():
    """d²/2 is 0 and ln²2 / 2 in sequence 0, ln²2 / 2 in sequence 1: ((ln²2 / 2)/2 + ln²2 / 2)/2 = 3/8 ln²2."""
    loss, metrics = grpo_loss(*example(), clip_high=0.3, kl_coef=2.0, kl_estimator="k2")
    close(metrics["kl"], 3 / 8 * LN2**2)
    close(loss, (2 - 2.3 / 2) / 2 + 2.0 * 3 / 8 * LN2**2)


def test_clip_low_reaches_the_loss():
    """ρ = 1/4 with A = −1: clipped at 1 − 0.5, the objective is −0.5, not −0.25."""
    one_BC = f64([[1.0]])
    args = (one_BC.log() - 2 * LN2, one_BC.log(), one_BC.log(), f64([-1]), torch.tensor([[True]]))
    close(grpo_loss(*args, clip_low=0.5)[0], 0.5)
    close(grpo_loss(*args)[0], 0.8)


def test_gradient_line_by_line():
    """∂loss/∂logp = w (−∂objective/∂ρ · ρ + β (1 − e^(−d))), the weight w = 1/(length · 2 sequences): 1/4, 1/4 and 1/2.

    sequence 0, token 0: ρ = 1, d = 0:              −1/4
    sequence 0, token 1: clipped, e^(−d) = 2:       β (1 − 2)/4 = −β/4
    sequence 1, token 0: −(−1) · 2, e^(−d) = 1/2:    (2 + β/2)/2 = 1 + β/4
    """
    *logps, advantage_B, mask_BC = example()
    for beta in (0.0, 0.5):
        gradient_BC, *_ = gradient(lambda *x: grpo_loss(*x, advantage_B, mask_BC, kl_coef=beta)[0], *logps)
        close(gradient_BC, [[-1 / 4, -beta / 4], [1 + beta / 4, 0.0]])


def test_at_ratio_one_the_loss_is_zero_and_its_gradient_is_not():
    """The first update on fresh samples. A group's advantages sum to 0, so the loss of equally weighted sequences is 0
    ("why is my loss 0?"); but the gradient of a token is −A/(length · n): n = 3 sequences of 1, 2, 4 tokens,
    rewards 0 0 3, advantages −1 −1 2."""
    logp_BC = f64([[-0.5, -1.0, -0.1, -2.0]] * 3)
    mask_BC = torch.arange(4) < torch.tensor([[1], [2], [4]])
    advantage_B = group_advantages(f64([[0, 0, 3]]), scale="none")[0]
    reference_BC = torch.zeros_like(logp_BC)
    loss, metrics = grpo_loss(logp_BC, logp_BC.clone(), reference_BC, advantage_B, mask_BC)
    assert metrics["ratio_drift"] == 0 and metrics["clip_ratio"] == 0
    close(loss, 0.0)
    gradient_BC, = gradient(lambda x: grpo_loss(x, logp_BC, reference_BC, advantage_B, mask_BC)[0], logp_BC)
    close(gradient_BC, [[1 / 3, 0, 0, 0], [1 / 6, 1 / 6, 0, 0], [-2 / 12] * 4])


@pytest.mark.parity
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kl_estimator", ["k3", "k2"])
def test_gradient_against_finite_differences(parity, how, kl_estimator):
    """Ratios spread over e^±0.6 around a clip of 0.2 and 0.3: every branch is taken somewhere. Central differences of step h
    are off by h² and by a rounding of 1e-16 / h: 1e-10 at h = 1e-5."""
    generator = torch.Generator().manual_seed(0)
    logp_BC, shift_BC, ref_logp_BC = (torch.rand(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mask_BC = torch.rand(6, 5, generator=generator) < 0.7
    advantage_B, old_logp_BC = f64([2, 1, -1, -2, 0, 0.5]), logp_BC + 1.2 * (shift_BC - 0.5)

    def loss(logp_BC):
        return grpo_loss(logp_BC, old_logp_BC, ref_logp_BC, advantage_B, mask_BC, clip_high=0.3, kl_coef=0.3,
                         kl_estimator=kl_estimator, **how)

    assert 0 < loss(logp_BC)[1]["clip_ratio"]
    expected_BC = torch.zeros(6, 5, dtype=torch.float64)
    for place in itertools.product(range(6), range(5)):
        step_BC = torch.zeros(6, 5, dtype=torch.float64)
        step_BC[place] = 1e-5
        expected_BC[place] = (loss(logp_BC + step_BC)[0] - loss(logp_BC - step_BC)[0]) / 2e-5
    gradient_BC, = gradient(lambda x: loss(x)[0], logp_BC)
    parity("gradient of the loss", "(float64 finite differences)",
           float((gradient_BC - expected_BC).abs().max() / expected_BC.abs().max()), bound=1e-6, unit="of scale")


def loss_in_loops(logp_BC, old_logp_BC, ref_logp_BC, advantage_B, mask_BC, *, clip_low, clip_high, kl_coef, aggregation,
                  length=None):
    """The same sum a token at a time, as the papers print it."""
    sums, lengths = [], []
    for b, advantage in enumerate(advantage_B.tolist()):
        live = mask_BC[b].nonzero().flatten().tolist()
        total = 0.0
        for c in live:
            ratio = math.exp(logp_BC[b, c].item() - old_logp_BC[b, c].item())
            clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
            d = logp_BC[b, c].item() - ref_logp_BC[b, c].item()
            total += min(ratio * advantage, clipped * advantage) - kl_coef * (math.exp(-d) + d - 1)
        if live:
            sums.append(total)
            lengths.append(len(live))
    if not sums:
        return 0.0
    if aggregation == "sequence":
        return -sum(s / n for s, n in zip(sums, lengths)) / len(sums)
    return -sum(sums) / (sum(lengths) if aggregation == "token" else len(sums) * length)


clips = st.tuples(st.floats(0, 0.9), st.floats(0, 2), st.floats(0, 2)).map(
    lambda x: dict(clip_low=x[0], clip_high=x[1], kl_coef=x[2]))


@quick
@given(batches(), st.sampled_from(HOWS), clips)
def test_loss_is_what_the_loops_say_and_what_the_metrics_add_up_to(batch, how, clip):
    loss, metrics = grpo_loss(*batch, **clip, **how)
    close(loss, loss_in_loops(*batch, **clip, **how))
    close(loss, -metrics["objective"] + clip["kl_coef"] * metrics["kl"])


@quick
@given(batches(), st.sampled_from(HOWS), clips, st.data())
def test_what_leaves_the_loss_alone(batch, how, clip, data):
    """The order of sequences, the order of tokens, and padding to the right and below, whatever it holds: the same loss and
    metrics; the gradient goes where its token went and is exactly zero on padding."""
    *logps, advantage_B, mask_BC = batch
    B, C = mask_BC.shape
    rows, columns = data.draw(st.permutations(range(B))), data.draw(st.permutations(range(C)))
    junk, pad = data.draw(st.sampled_from([NAN, INF, -INF, 1e9])), torch.nn.functional.pad

    def rearranged(x_BC, filler):
        return pad(x_BC[rows][:, columns], (0, 2, 0, 3), value=filler)

    others = [rearranged(x_BC, junk) for x_BC in logps]
    rest = pad(advantage_B[rows], (0, 3), value=junk), rearranged(mask_BC, False)
    loss, metrics = grpo_loss(*batch, **clip, **how)
    other_loss, other_metrics = grpo_loss(*others, *rest, **clip, **how)
    close(other_loss, loss)
    for name in metrics:
        close(other_metrics[name], metrics[name])
    before_BC, = gradient(lambda x: grpo_loss(x, *logps[1:], advantage_B, mask_BC, **clip, **how)[0], logps[0])
    after_BC, = gradient(lambda x: grpo_loss(x, *others[1:], *rest, **clip, **how)[0], others[0])
    close(after_BC, rearranged(before_BC, 0.0))
    assert after_BC[~rest[1]].eq(0).all()


@quick
@given(batches(), st.sampled_from(HOWS), clips, st.data())
def test_micro_batches_add_up_to_the_batch(batch, how, clip, data):
    """Cut between sequences anywhere, even into pieces without a live token: loss, metrics and gradient add up."""
    *logps, advantage_B, mask_BC = batch
    B = len(advantage_B)
    inner = data.draw(st.sets(st.integers(1, B), max_size=B))
    cuts = sorted({0, B} | inner)
    total = normaliser(mask_BC, mode=how["aggregation"], length=how.get("length"))

    def whole(*logps):
        return grpo_loss(*logps, advantage_B, mask_BC, **clip, **how)

    def pieces(*logps):
        parts = [grpo_loss(*(x[i:j] for x in (*logps, advantage_B, mask_BC)), **clip, **how, total=total)
                 for i, j in itertools.pairwise(cuts)]
        # objective and KL add up like the loss; the means over tokens do when each part has its share of the tokens
        shares = [mask_BC[i:j].sum().double() / mask_BC.sum().clamp(min=1) for i, j in itertools.pairwise(cuts)]
        return sum(loss for loss, _ in parts), {
            k: sum(m[k] * (share if k in ("ratio_drift", "clip_ratio") else 1) for (_, m), share in zip(parts, shares))
            for k in parts[0][1]}

    (loss, metrics), (loss_of_parts, metrics_of_parts) = whole(*logps), pieces(*logps)
    close(loss_of_parts, loss)
    for name in metrics:
        close(metrics_of_parts[name], metrics[name])
    for got, expected in zip(gradient(lambda *x: pieces(*x)[0], *logps), gradient(lambda *x: whole(*x)[0], *logps)):
        close(got, expected)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("kl", [dict(), dict(kl_coef=0.3), dict(kl_coef=0.3, kl_estimator="k2")])
def test_masked_places_may_hold_anything(how, poison, kl):
    """NaN · 0 is NaN, so what is masked must be gone before it is used: in each log-prob alone and in all of them, and
    with an advantage that a sequence without a live token never got."""
    *clean, advantage_B, mask_BC = example()
    clean = [torch.cat([x, x[:1]]) for x in clean]
    advantage_B = torch.cat([advantage_B, f64([0.5])])
    mask_BC = torch.cat([mask_BC, torch.tensor([[False, False]])])

    def everything(logps, advantage_B):
        def run(*logps):
            return grpo_loss(*logps, advantage_B, mask_BC, **kl, **how)

        loss, metrics = run(*logps)
        return loss, *metrics.values(), *gradient(lambda *x: run(*x)[0], *logps)

    expected = everything(clean, advantage_B)
    assert all(x.isfinite().all() for x in expected)
    for poisoned in ([0], [1], [2], [0, 1, 2]):
        logps = [x.masked_fill(~mask_BC, poison) if i in poisoned else x for i, x in enumerate(clean)]
        before = torch.stack(logps)
        for got, want in zip(everything(logps, f64([1, -1, poison])), expected):
            assert got.equal(want)
        torch.testing.assert_close(torch.stack(logps), before, rtol=0, atol=0, equal_nan=True)    # no edit in place
        assert all(grad_BC[~mask_BC].eq(0).all() for grad_BC in everything(logps, advantage_B)[-3:])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("total", [None, 0, 5])
def test_a_batch_without_a_live_token_costs_nothing(how, total):
    nothing_BC, dead_BC = torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool)

    def loss(*logps):
        return grpo_loss(*logps, torch.tensor([1.0, -1.0]), dead_BC, kl_coef=0.1, **how, total=total)

    value, metrics = loss(nothing_BC, nothing_BC, nothing_BC)
    assert value.item() == 0 and all(metric.item() == 0 for metric in metrics.values())
    for grad_BC in gradient(lambda *x: loss(*x)[0], nothing_BC, nothing_BC, nothing_BC):
        assert grad_BC.eq(0).all()


def test_without_kl_the_reference_is_only_a_metric():
    """A policy free to leave its reference will: at logp −100 against −5 the float32 k3 is e⁹⁵ = ∞, and 0 · ∞ is NaN.
    The ratio is 1, so loss −A = −1 and gradient −A/2 for each of two tokens."""
    logp_BC = torch.tensor([[-100.0, -1.0]])

    def loss(x, ref_logp_BC):
        return grpo_loss(x, logp_BC, ref_logp_BC, torch.tensor([1.0]), torch.ones(1, 2, dtype=torch.bool))

    for ref_logp_BC in (torch.tensor([[-5.0, -1.0]]), torch.full((1, 2), NAN), torch.full((1, 2), -INF)):
        value, metrics = loss(logp_BC, ref_logp_BC)
        close(value, -1.0)
        assert not metrics["kl"].isfinite()                                             # nor is the distance hidden
        close(gradient(lambda x: loss(x, ref_logp_BC)[0], logp_BC)[0], [[-0.5, -0.5]])


def test_float32_in_float32_out():
    *logps, advantage_B, mask_BC = (x.float() if x.is_floating_point() else x for x in example())
    loss, metrics = grpo_loss(*logps, advantage_B, mask_BC, kl_coef=0.5)
    assert {x.dtype for x in (loss, *metrics.values())} == {torch.float32}
    assert {x.shape for x in (loss, *metrics.values())} == {()}


# --- errors --------------------------------------------------------------------------------------------------------

X_BC, X_B, ALL_BC = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3, dtype=torch.bool)
GOOD = dict(logp_BC=X_BC, old_logp_BC=X_BC, ref_logp_BC=X_BC, advantage_B=X_B, mask_BC=ALL_BC)
BAD_MODE = "mode: expected one of sequence, token, constant, got 'tokens'"
BAD_LENGTH = "mode 'constant' divides by live sequences × length and needs length ≥ 1, got "


@pytest.mark.parametrize("call, sentence", [
    # wrong shapes, at the door of every function: tensor, expected, got
    (lambda: group_advantages(X_B), "reward_QK: expected [Q, K], got [2]"),
    (lambda: policy_ratio(X_BC, X_BC.T), "old_logp_BC: expected [B, C] with B=2, C=3, got [3, 2]"),
    (lambda: policy_ratio(X_BC, X_BC[:1]), "old_logp_BC: expected [B, C] with B=2, C=3, got [1, 3]"),
    (lambda: clipped_surrogate(X_BC, torch.zeros(3)), "advantage_B: expected [B] with B=2, got [3]"),
    (lambda: clipped_surrogate(X_BC, X_B[:, None]), "advantage_B: expected [B] with B=2, got [2, 1]"),
    (lambda: kl_penalty(X_BC, X_BC[:, :1]), "ref_logp_BC: expected [B, C] with B=2, C=3, got [2, 1]"),
    (lambda: normaliser(ALL_BC[0], mode="token"), "mask_BC: expected [B, C], got [3]"),
    (lambda: aggregate(X_BC, ALL_BC[:1]), "mask_BC: expected [B, C] with B=2, C=3, got [1, 3]"),
    (lambda: aggregate(X_BC[:1], ALL_BC), "mask_BC: expected [B, C] with B=1, C=3, got [2, 3]"),
    (lambda: grpo_loss(**GOOD | dict(logp_BC=X_B)), "logp_BC: expected [B, C], got [2]"),
    (lambda: grpo_loss(**GOOD | dict(old_logp_BC=X_BC[:1])), "old_logp_BC: expected [B, C] with B=2, C=3, got [1, 3]"),
    (lambda: grpo_loss(**GOOD | dict(ref_logp_BC=X_BC.T)), "ref_logp_BC: expected [B, C] with B=2, C=3, got [3, 2]"),
    (lambda: grpo_loss(**GOOD | dict(advantage_B=X_B[:1])), "advantage_B: expected [B] with B=2, got [1]"),
    (lambda: grpo_loss(**GOOD | dict(mask_BC=ALL_BC[:1])), "mask_BC: expected [B, C] with B=2, C=3, got [1, 3]"),
    # a mask of numbers would weigh what it should select
    (lambda: normaliser(X_BC, mode="token"), "mask_BC: expected a boolean tensor, got torch.float32"),
    (lambda: aggregate(X_BC, ALL_BC.long()), "mask_BC: expected a boolean tensor, got torch.int64"),
    (lambda: grpo_loss(**GOOD | dict(mask_BC=X_BC)), "mask_BC: expected a boolean tensor, got torch.float32"),
    # names; a given total is no excuse
    (lambda: group_advantages(X_BC, scale="batch"), "scale: expected one of group, none, got 'batch'"),
    (lambda: kl_penalty(X_BC, X_BC, estimator="k4"), "estimator: expected one of k3, k2, k1, got 'k4'"),
    (lambda: normaliser(ALL_BC, mode="tokens"), BAD_MODE),
    (lambda: aggregate(X_BC, ALL_BC, mode="tokens"), BAD_MODE),
    (lambda: aggregate(X_BC, ALL_BC, mode="tokens", total=5), BAD_MODE),
    (lambda: grpo_loss(**GOOD, aggregation="tokens", total=5), BAD_MODE.replace("mode", "aggregation")),
    (lambda: grpo_loss(**GOOD, kl_estimator="k1"), "kl_estimator: expected one of k3, k2, got 'k1'"),
    # "constant" needs its constant
    (lambda: normaliser(ALL_BC, mode="constant"), BAD_LENGTH + "None"),
    (lambda: aggregate(X_BC, ALL_BC, mode="constant", length=0), BAD_LENGTH + "0"),
    (lambda: grpo_loss(**GOOD, aggregation="constant", length=-7), BAD_LENGTH + "-7"),
])
def test_an_error_says_what_was_expected_and_what_came(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
