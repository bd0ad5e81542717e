"""GR-DPO and GR-IPO under a log-linear policy: against a loop over pairs, a solver, autograd, a convex solve."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from outscore.studies.group_robust.log_linear import (
    PairData,
    Trajectory,
    WeightRule,
    feature_margins,
    margin_losses,
    margin_slopes,
    mirror_descent,
    robust_least_squares,
    weighted_least_squares,
)

DOUBLE = torch.float64
BETAS = {"logistic": 1.0, "squared": 0.1}
KINDS = list(BETAS)


def some_data(num_runs: int = 3, counts: tuple[int, ...] = (5, 9), num_features: int = 4, seed: int = 1) -> PairData:
    generator = torch.Generator().manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shift = index.unsqueeze(-1) * torch.tensor([2.0, -1.0, 0.5, 1.0])[:num_features]
    noise = torch.randn(num_runs, len(index), num_features, generator=generator, dtype=DOUBLE)
    return PairData.of(noise + 0.5 * shift, index)


def start(num_runs: int = 3, num_features: int = 4) -> Tensor:
    return torch.rand(num_runs, num_features, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)


def plain(data: PairData) -> WeightRule:
    return WeightRule.constant(data.shares.expand(len(data.differences), -1))


def loop_losses(differences: list[list[float]], index: list[int], theta: list[float], kind: str, beta: float):
    """Mean loss and its gradient for each population, pair by pair, in plain Python."""
    num_populations = max(index) + 1
    losses, gradients = [0.0] * num_populations, [[0.0] * len(theta) for _ in range(num_populations)]
    for d, g in zip(differences, index, strict=True):
        h = sum(a * b for a, b in zip(d, theta, strict=True))
        if kind == "logistic":
            value, slope = math.log1p(math.exp(-beta * h)), -beta / (1 + math.exp(beta * h))
        else:
            value, slope = (h - 0.5 / beta) ** 2, 2 * (h - 0.5 / beta)
        losses[g] += value / index.count(g)
        gradients[g] = [old + slope * x / index.count(g) for old, x in zip(gradients[g], d, strict=True)]
    return losses, gradients


def test_a_policy_equal_to_its_reference_loses_ln_2_or_a_quarter_of_beta_squared() -> None:
    zero = torch.zeros(3, dtype=DOUBLE)
    assert margin_losses(zero, kind="logistic", beta=0.7).tolist() == pytest.approx([math.log(2)] * 3, abs=1e-15)
    assert margin_losses(zero, kind="squared", beta=0.1).tolist() == pytest.approx([25.0] * 3, abs=1e-12)
    assert margin_losses(zero, kind="squared", beta=0.01).tolist() == pytest.approx([2500.0] * 3, abs=1e-9)


def test_losses_by_hand() -> None:
    margins = torch.tensor([2.0, -1.0], dtype=DOUBLE)
    # -log sigmoid(1) = ln(1 + 1/e), -log sigmoid(-1/2) = ln(1 + e^(1/2)); (2 - 1)^2, (-1 - 1)^2
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.5))]
    assert margin_losses(margins, kind="logistic", beta=0.5).tolist() == pytest.approx(expected, abs=1e-15)
    assert margin_losses(margins, kind="squared", beta=0.5).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_the_derivatives(kind: str) -> None:
    margins = torch.tensor([-40.0, -3.0, 0.0, 0.2, 5.0, 60.0], dtype=DOUBLE, requires_grad=True)
    losses = margin_losses(margins, kind=kind, beta=0.3)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(losses.sum(), margins)
    assert torch.allclose(margin_slopes(margins.detach(), kind=kind, beta=0.3), gradient, rtol=1e-12)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda m: margin_losses(m, kind=kind, beta=0.3), (margins,))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chi", [1.0, 0.4])
def test_steps_are_those_of_a_loop_over_pairs(kind: str, chi: float) -> None:
    """Algorithm 1 on all data, in plain Python: alpha first, then theta with the new alpha."""
    data, beta, eta, eta_weights = some_data(), BETAS[kind], 0.01, 0.05
    rule = WeightRule.robust(3, 2, step_size=eta_weights, tradeoff=chi)
    found = mirror_descent(data, rule, start(), kind=kind, beta=beta, step_size=eta, num_steps=20)  # type: ignore[arg-type]
    for run in range(3):
        theta, alpha = start()[run].tolist(), [0.5, 0.5]
        for _ in range(20):
            losses, gradients = loop_losses(
                data.differences[run].tolist(), data.population_index.tolist(), theta, kind, beta
            )
            raised = [a * math.exp(eta_weights * chi * loss) for a, loss in zip(alpha, losses, strict=True)]
            alpha = [a / sum(raised) for a in raised]
            weights = [(1 - chi) / 2 + chi * a for a in alpha]
            theta = [
                t - eta * sum(w * g[i] for w, g in zip(weights, gradients, strict=True)) for i, t in enumerate(theta)
            ]
        assert found.params[-1, run].tolist() == pytest.approx(theta, abs=1e-11)
        assert found.weights[-1, run].tolist() == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_is_algorithm_1_as_printed(kind: str) -> None:
    """N l / N_g on the population that was drawn, and N alpha_g grad l / N_g on theta."""
    data, beta, eta, eta_weights = some_data(num_runs=1), BETAS[kind], 0.003, 0.002
    draws = torch.tensor([0, 7, 13, 2, 7, 5, 4]).reshape(-1, 1, 1)
    rule = WeightRule.robust(1, 2, step_size=eta_weights)
    found = mirror_descent(
        data,
        rule,
        start(1),
        kind=kind,  # type: ignore[arg-type]
        beta=beta,
        step_size=eta,
        num_steps=len(draws),
        batches=draws,
    )
    theta, alpha, counts = start(1)[0], [0.5, 0.5], [5, 9]
    for pair in draws.flatten().tolist():
        g, d = int(data.population_index[pair]), data.differences[0, pair]
        theta = theta.detach().requires_grad_()
        loss = margin_losses((d * theta).sum(), kind=kind, beta=beta)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, theta)
        alpha[g] *= math.exp(eta_weights * 14 * loss.item() / counts[g])
        alpha = [a / sum(alpha) for a in alpha]
        theta = theta - eta * 14 * alpha[g] * gradient / counts[g]
    assert torch.allclose(found.params[-1, 0], theta.detach(), atol=1e-11, rtol=0)
    assert found.weights[-1, 0].tolist() == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_all_pairs_is_the_whole_data(kind: str) -> None:
    data, rule = some_data(), WeightRule.robust(3, 2, step_size=0.05)
    options = {"kind": kind, "beta": BETAS[kind], "step_size": 0.01, "num_steps": 5}
    every = torch.arange(14).expand(5, 3, 14)
    whole = mirror_descent(data, rule, start(), **options)  # type: ignore[arg-type]
    batched = mirror_descent(data, rule, start(), batches=every, **options)  # type: ignore[arg-type]
    assert torch.allclose(whole.params, batched.params, atol=1e-11, rtol=0)


def test_plain_weights_are_gradient_descent_on_the_mean_loss_by_autograd() -> None:
    data, theta = some_data(), start()
    found = mirror_descent(data, plain(data), theta, kind="logistic", beta=1.0, step_size=0.3, num_steps=10)
    for _ in range(10):
        theta = theta.detach().requires_grad_()
        margin_losses(feature_margins(data.differences, theta), kind="logistic", beta=1.0).mean(-1).sum().backward()
        assert theta.grad is not None
        theta = theta - 0.3 * theta.grad
    assert torch.allclose(found.params[-1], theta.detach(), atol=1e-12, rtol=0)
    assert torch.equal(found.weights[-1].round(decimals=12), data.shares.expand(3, -1).round(decimals=12))


@pytest.mark.parametrize("kind", KINDS)
def test_one_population_is_dpo_or_ipo(kind: str) -> None:
    data, beta = some_data(counts=(14,)), BETAS[kind]
    options = {"kind": kind, "beta": beta, "step_size": 0.02, "num_steps": 30}
    robust = mirror_descent(data, WeightRule.robust(3, 1, step_size=0.5), start(), **options)  # type: ignore[arg-type]
    ordinary = mirror_descent(data, plain(data), start(), **options)  # type: ignore[arg-type]
    assert torch.allclose(robust.params, ordinary.params, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_identical_populations_are_dpo_or_ipo(kind: str) -> None:
    once = some_data(counts=(7,)).differences
    data = PairData.of(once.repeat(1, 2, 1), torch.repeat_interleave(torch.arange(2), 7))
    options = {"kind": kind, "beta": BETAS[kind], "step_size": 0.02, "num_steps": 30}
    robust = mirror_descent(data, WeightRule.robust(3, 2, step_size=0.5), start(), **options)  # type: ignore[arg-type]
    ordinary = mirror_descent(data, plain(data), start(), **options)  # type: ignore[arg-type]
    assert torch.allclose(robust.params, ordinary.params, atol=1e-9, rtol=0)
    assert torch.allclose(robust.weights, torch.full_like(robust.weights, 0.5), atol=1e-12)


def test_runs_do_not_know_of_each_other() -> None:
    data, rule = some_data(), WeightRule.stacked(*(WeightRule.robust(1, 2, step_size=s) for s in (0.0, 0.1, 1.0)))
    together = mirror_descent(data, rule, start(), kind="logistic", beta=1.0, step_size=0.3, num_steps=40)
    for run, step in enumerate((0.0, 0.1, 1.0)):
        one = PairData.of(data.differences[run : run + 1], data.population_index)
        alone = mirror_descent(
            one,
            WeightRule.robust(1, 2, step_size=step),
            start()[run : run + 1],
            kind="logistic",
            beta=1.0,
            step_size=0.3,
            num_steps=40,
        )
        assert torch.allclose(alone.params[:, 0], together.params[:, run], atol=1e-12, rtol=0)


def test_it_is_deterministic_and_changes_nothing_it_is_given() -> None:
    data, initial = some_data(), start()
    kept, rule = data.differences.clone(), WeightRule.robust(3, 2, step_size=0.2)
    first, second = (
        mirror_descent(data, rule, initial, kind="logistic", beta=1.0, step_size=0.3, num_steps=20) for _ in range(2)
    )
    assert torch.equal(first.params, second.params) and torch.equal(first.weights, second.weights)
    assert torch.equal(data.differences, kept) and torch.equal(initial, start())


def test_what_is_recorded() -> None:
    data, seen = some_data(), []
    found = mirror_descent(
        data,
        plain(data),
        start(),
        kind="logistic",
        beta=1.0,
        step_size=0.3,
        num_steps=7,
        record_every=3,
        progress=seen.append,
    )
    every = mirror_descent(data, plain(data), start(), kind="logistic", beta=1.0, step_size=0.3, num_steps=7)
    assert found.steps.tolist() == [0, 3, 6, 7] and seen == [3, 6, 7]
    assert torch.equal(found.params, every.params[found.steps])
    assert torch.allclose(found.mean_params[2], every.params[1:7].mean(0), atol=1e-14)
    assert torch.equal(found.mean_params[0], start())


def test_theta_stays_in_its_ball() -> None:
    data = some_data()
    found = mirror_descent(
        data, plain(data), start(), kind="squared", beta=0.1, step_size=0.01, num_steps=50, radius=0.7
    )
    norms = found.params[1:].norm(dim=-1)
    assert bool((norms <= 0.7 + 1e-12).all()) and norms[-1].tolist() == pytest.approx([0.7] * 3, abs=1e-12)


def test_steps_that_diverge_are_refused() -> None:
    data = some_data()
    with pytest.raises(ValueError, match="need finite losses"):
        mirror_descent(data, plain(data), start(), kind="squared", beta=0.1, step_size=10.0, num_steps=500)


def test_the_closed_form_is_least_squares_on_scaled_rows() -> None:
    """NumPy's solver on sqrt(w_g/N_g) d_i theta = sqrt(w_g/N_g)/(2 beta) is the truth."""
    data, weights = some_data(), torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5]], dtype=DOUBLE)
    found = weighted_least_squares(data, weights, beta=0.1)
    for run in range(3):
        scale = np.sqrt((weights[run] / torch.tensor([5, 9]))[data.population_index].numpy())
        rows, target = data.differences[run].numpy() * scale[:, None], scale / 0.2
        truth, *_ = np.linalg.lstsq(rows, target, rcond=None)
        assert found[run].tolist() == pytest.approx(truth.tolist(), abs=1e-9)


def test_the_closed_form_with_the_shares_is_ipo_to_which_steps_lead() -> None:
    data = some_data()
    steps = mirror_descent(data, plain(data), start(), kind="squared", beta=0.1, step_size=0.15, num_steps=600)
    exact = weighted_least_squares(data, data.shares.expand(3, -1), beta=0.1)
    assert torch.allclose(steps.params[-1], exact, atol=1e-8, rtol=0)


def test_features_that_do_not_determine_theta_give_the_shortest_solution() -> None:
    data = some_data()
    doubled = PairData.of(torch.cat([data.differences, data.differences], dim=-1), data.population_index)
    found = weighted_least_squares(doubled, data.shares.expand(3, -1), beta=0.1)
    single = weighted_least_squares(data, data.shares.expand(3, -1), beta=0.1)
    assert torch.allclose(found, torch.cat([single, single], dim=-1) / 2, atol=1e-8)


@pytest.mark.parametrize("chi", [1.0, 0.4])
def test_algorithm_2_is_that_of_a_loop_over_pairs(chi: float) -> None:
    data, beta, eta = some_data(), 0.1, 0.01
    rule = WeightRule.robust(3, 2, step_size=eta, tradeoff=chi)
    found = robust_least_squares(data, rule, start(), beta=beta, num_steps=15)
    for run in range(3):
        theta, alpha = start()[run].tolist(), [0.5, 0.5]
        index = data.population_index.tolist()
        for _ in range(15):
            losses, _ = loop_losses(data.differences[run].tolist(), index, theta, "squared", beta)
            raised = [a * math.exp(eta * chi * loss) for a, loss in zip(alpha, losses, strict=True)]
            alpha = [a / sum(raised) for a in raised]
            scale = np.sqrt([((1 - chi) / 2 + chi * alpha[g]) / index.count(g) for g in index])
            rows = data.differences[run].numpy() * scale[:, None]
            theta = np.linalg.lstsq(rows, scale / (2 * beta), rcond=None)[0].tolist()
        assert found.params[-1, run].tolist() == pytest.approx(theta, abs=1e-8)
        assert found.weights[-1, run].tolist() == pytest.approx(alpha, abs=1e-10)


# --- the rate: a small problem whose saddle point another solver finds ---

RADIUS, NUM_PAIRS, COUNTS = 3.0, 60, (15, 45)


def conflicting_data(num_runs: int) -> PairData:
    """Two populations that want different things, with noise, so the optimum is inside the ball."""
    rng = np.random.default_rng(5)
    wanted = np.repeat([[1.0, 0.2], [0.1, 1.0]], COUNTS, axis=0)
    differences = rng.uniform(-1, 1, size=(NUM_PAIRS, 2))
    likely = 1 / (1 + np.exp(-3 * (differences * wanted).sum(-1)))
    sign = np.where(rng.uniform(size=NUM_PAIRS) < likely, 1.0, -1.0)
    index = torch.repeat_interleave(torch.arange(2), torch.tensor(COUNTS))
    return PairData.of(torch.from_numpy(differences * sign[:, None]).expand(num_runs, -1, -1), index)


def worst_loss(differences: np.ndarray, theta: np.ndarray) -> float:
    losses = np.logaddexp(0.0, -differences @ theta)
    return float(max(losses[: COUNTS[0]].mean(), losses[COUNTS[0] :].mean()))


def smallest_worst_loss(differences: np.ndarray) -> float:
    """Ternary search in a ternary search: max_g L_g is convex, so its minimum over one axis is convex in the other."""

    def minimum(function, low: float = -RADIUS, high: float = RADIUS) -> float:
        for _ in range(45):
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, b) if function(a) < function(b) else (a, high)
        return float(function((low + high) / 2))

    return minimum(lambda x: minimum(lambda y: worst_loss(differences, np.array([x, y]))))


def test_the_averaged_iterate_of_algorithm_1_closes_in_at_the_published_rate() -> None:
    """Prop. 4.1: the expected gap is O(T^-1/2), and below its explicit bound (eq. 55)."""
    num_runs, horizons = 24, (100, 400, 1600)
    data = conflicting_data(num_runs)
    differences = data.differences[0].numpy()
    optimum = smallest_worst_loss(differences)
    b_phi = float(data.differences.norm(dim=-1).max())
    b_loss = math.log(2) + b_phi * RADIUS
    spread = NUM_PAIRS / min(COUNTS) * (RADIUS**2 * b_phi**2 + 2 * b_loss**2 * math.log(2))
    gaps = []
    for horizon in horizons:
        draws = torch.randint(NUM_PAIRS, (horizon, num_runs, 1), generator=torch.Generator().manual_seed(horizon))
        found: Trajectory = mirror_descent(
            data,
            WeightRule.robust(num_runs, 2, step_size=0.5 / math.sqrt(horizon)),
            torch.zeros(num_runs, 2, dtype=DOUBLE),
            kind="logistic",
            beta=1.0,
            step_size=5.0 / math.sqrt(horizon),
            num_steps=horizon,
            record_every=horizon,
            batches=draws,
            radius=RADIUS,
        )
        gap = np.mean([worst_loss(differences, theta.numpy()) for theta in found.mean_params[-1]]) - optimum
        assert 0 < gap < 2 * math.sqrt(10 * spread / horizon)
        gaps.append(float(gap))
    slope = np.polyfit(np.log(horizons), np.log(gaps), 1)[0]
    assert slope < -0.45, (slope, gaps)
