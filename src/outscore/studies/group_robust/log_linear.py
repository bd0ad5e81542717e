"""Preferences under a log-linear policy: GR-DPO by steps, GR-IPO in closed form.

The policy is proportional to exp<theta, phi(x, y)>. With a uniform reference the margin of a pair is h = <d, theta>,
where d = phi(x, better) - phi(x, worse) is computed once. Then (Ramesh et al., arXiv 2405.20304, eq. 9 and 12)

    logistic   -log sigmoid(beta h)      DPO      squared   (h - 1/(2 beta))^2      IPO

are convex in theta, and sum_g w_g L_g is linear in w: the min-max has a saddle point (Prop. 3.1). Plain and importance
sampled baselines are the same computation with step size 0 for the weights (`outscore.objectives.populations`).

The axis `run` is for seeds, algorithms and settings side by side; no loop runs over pairs or runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from outscore.objectives.populations import ascend_populations, population_counts, population_shares, trade_off

MarginLoss = Literal["logistic", "squared"]
"""What is made small on each pair; see the equations above."""


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Pairs of several runs that have the same populations.

    >>> PairData.of(torch.ones(20, 300, 4).double(), index).shares.tolist()
    [0.2, 0.8]
    """

    differences: Float[Tensor, "run pair feature"]
    """phi(x, better) - phi(x, worse), float64; in memory the pairs of a feature lie side by side, which products with a
    vector read at four times the speed."""
    population_index: Int[Tensor, " pair"]
    """The population of each pair, in every run."""
    shares: Float[Tensor, " population"]
    """N_g / N."""

    @classmethod
    def of(cls, differences: Float[Tensor, "run pair feature"], population_index: Int[Tensor, " pair"]) -> "PairData":
        """The data with the shares counted; ValueError when a population below the highest index has no pair."""
        names = [str(index) for index in range(int(population_index.max()) + 1)]
        shares = population_shares(population_counts(population_index, names))
        side_by_side = differences.double().mT.contiguous().mT
        return cls(differences=side_by_side, population_index=population_index, shares=shares)

    @property
    def averaging(self) -> Float[Tensor, "pair population"]:
        """1/(s_g N) where the pair is of population g, else 0: losses @ this are the populations' mean losses."""
        members = one_hot(self.population_index, self.shares.numel()).double()
        return members / (self.shares * self.population_index.numel())


@dataclass(frozen=True, kw_only=True)
class WeightRule:
    """How each run weighs its populations. DPO, IPO: `initial` the shares, step 0; importance sampling: 1/K, step 0.

    >>> WeightRule.robust(1, 2, step_size=0.5).initial.tolist()
    [[0.5, 0.5]]
    """

    initial: Float[Tensor, "run population"]
    """alpha at the start."""
    step_size: Float[Tensor, "run 1"]
    """eta of alpha; 0 keeps the weights."""
    tradeoff: Float[Tensor, "run 1"]
    """chi."""
    fixed: Float[Tensor, "run population"]
    """mu: what chi = 0 gives."""

    @classmethod
    def constant(cls, weights: Float[Tensor, "run population"]) -> "WeightRule":
        """These weights for ever."""
        weights = weights.double()
        still = torch.zeros(len(weights), 1, dtype=torch.float64)
        return cls(initial=weights, step_size=still, tradeoff=still + 1.0, fixed=weights)

    @classmethod
    def robust(cls, num_runs: int, num_populations: int, *, step_size: float, tradeoff: float = 1.0) -> "WeightRule":
        """Mirror ascent from equal weights, which are also mu."""
        equal = torch.full((num_runs, num_populations), 1.0 / num_populations, dtype=torch.float64)
        ones = torch.ones(num_runs, 1, dtype=torch.float64)
        return cls(initial=equal, step_size=step_size * ones, tradeoff=tradeoff * ones, fixed=equal)

    @classmethod
    def stacked(cls, *rules: "WeightRule") -> "WeightRule":
        """The runs of several rules, one after the other."""
        return cls(
            initial=torch.cat([rule.initial for rule in rules]),
            step_size=torch.cat([rule.step_size for rule in rules]),
            tradeoff=torch.cat([rule.tradeoff for rule in rules]),
            fixed=torch.cat([rule.fixed for rule in rules]),
        )

    def climbed(self, log_weights: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of alpha after a step, and the weights of the losses that follow from it."""
        log_weights = ascend_populations(log_weights, losses, step_size=self.step_size, tradeoff=self.tradeoff)
        return log_weights, trade_off(log_weights.exp(), self.fixed, self.tradeoff)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Where the runs were at some steps; row 0 is the start."""

    steps: Int[Tensor, " record"]
    """How many steps had been taken."""
    params: Float[Tensor, "record run feature"]
    """theta after them."""
    mean_params: Float[Tensor, "record run feature"]
    """The mean of theta over those steps: what the convergence rate speaks of. At step 0, theta."""
    weights: Float[Tensor, "record run population"]
    """alpha after them (before chi mixes mu in)."""


def feature_margins(
    differences: Float[Tensor, "*run pair feature"], params: Float[Tensor, "*run feature"]
) -> Float[Tensor, "*run pair"]:
    """h = <d, theta> of every pair."""
    return (params.unsqueeze(-2) @ differences.mT).squeeze(-2)


def margin_losses(margins: Float[Tensor, "*pair"], *, kind: MarginLoss, beta: float) -> Float[Tensor, "*pair"]:
    """The loss of each pair. At h = 0 it is ln 2 (logistic) or 1/(4 beta^2) (squared)."""
    if kind == "logistic":
        return softplus(-beta * margins)
    return (margins - 1.0 / (2.0 * beta)).square()


def margin_slopes(margins: Float[Tensor, "*pair"], *, kind: MarginLoss, beta: float) -> Float[Tensor, "*pair"]:
    """The derivative of each pair's loss by its margin."""
    if kind == "logistic":
        return -beta * torch.sigmoid(-beta * margins)
    return 2.0 * (margins - 1.0 / (2.0 * beta))


def mirror_descent(
    data: PairData,
    rule: WeightRule,
    initial: Float[Tensor, "run feature"],
    *,
    kind: MarginLoss,
    beta: float,
    step_size: float,
    num_steps: int,
    record_every: int = 1,
    batches: Int[Tensor, "step run example"] | None = None,
    radius: float | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Trajectory:
    """Algorithm 1: the weights climb by their exponentiated gradient, then theta descends on the losses so weighted.

    Without `batches` every step sees all pairs. With them it sees the pairs `batches[step]`, drawn from the data, and
    losses are estimated by their shares: an N/N_g on each example, as printed in Algorithm 1. `radius` projects theta
    onto a ball after each step. The state is recorded at step 0, every `record_every` steps and at the end; `progress`
    is told the step then.

    Raises ValueError when the losses are no longer finite: the step size is too large.
    """
    runs = torch.arange(len(initial)).unsqueeze(-1)
    averaging = data.averaging
    if batches is not None:
        averaging = averaging * (data.population_index.numel() / batches.shape[-1])
    differences, params = data.differences, initial.double()
    log_weights, total = rule.initial.log(), torch.zeros_like(params)
    recorded = [(0, params, params, rule.initial)]
    for step in range(num_steps):
        members = averaging
        if batches is not None:
            differences, members = data.differences[runs, batches[step]], averaging[batches[step]]
        margins = feature_margins(differences, params)
        losses = (margin_losses(margins, kind=kind, beta=beta).unsqueeze(-2) @ members).squeeze(-2)
        log_weights, weights = rule.climbed(log_weights, losses)
        on_pairs = (members @ weights.unsqueeze(-1)).squeeze(-1)  # w_g / (s_g B)
        slopes = on_pairs * margin_slopes(margins, kind=kind, beta=beta)
        params = params - step_size * (slopes.unsqueeze(-2) @ differences).squeeze(-2)
        if radius is not None:
            params = params * (radius / params.norm(dim=-1, keepdim=True)).clamp(max=1.0)
        total = total + params
        if (step + 1) % record_every == 0 or step + 1 == num_steps:
            recorded.append((step + 1, params, total / (step + 1), log_weights.exp()))
            progress(step + 1)
    return _trajectory(recorded)


def weighted_least_squares(
    data: PairData, weights: Float[Tensor, "run population"], *, beta: float
) -> Float[Tensor, "run feature"]:
    """The theta that minimises sum_g w_g L_g of IPO: (S'WS)^-1 S'W 1 / (2 beta), W = w_g/N_g on the diagonal.

    Algorithm 2's last line. Where the features of the pairs do not determine theta, the shortest solution.
    """
    second, first = _moments(data)
    return _least_squares(second, first, weights, beta)


def robust_least_squares(
    data: PairData,
    rule: WeightRule,
    initial: Float[Tensor, "run feature"],
    *,
    beta: float,
    num_steps: int,
    record_every: int = 1,
) -> Trajectory:
    """Algorithm 2: GR-IPO. The weights climb by the losses of theta, then theta is the exact minimiser for them.

    Only the second moments of the pairs enter, so a step costs the same for any number of pairs.
    """
    second, first = _moments(data)
    params, log_weights, total = initial.double(), rule.initial.log(), torch.zeros_like(initial.double())
    recorded = [(0, params, params, rule.initial)]
    for step in range(num_steps):
        # mean (h - 1/2b)^2 = theta' M theta - theta' m / b + 1/4b^2
        quadratic = torch.einsum("rf,rkfe,re->rk", params, second, params)
        linear = torch.einsum("rf,rkf->rk", params, first)
        losses = quadratic - linear / beta + 1.0 / (4.0 * beta**2)
        log_weights, weights = rule.climbed(log_weights, losses)
        params = _least_squares(second, first, weights, beta)
        total = total + params
        if (step + 1) % record_every == 0 or step + 1 == num_steps:
            recorded.append((step + 1, params, total / (step + 1), log_weights.exp()))
    return _trajectory(recorded)


def _moments(data: PairData) -> tuple[Tensor, Tensor]:
    """The mean of d d' and of d in each population: (run, population, feature, feature), (run, population, feature)."""
    averaging = data.averaging
    second = torch.einsum("rpf,pk,rpe->rkfe", data.differences, averaging, data.differences)
    return second, torch.einsum("rpf,pk->rkf", data.differences, averaging)


def _least_squares(second: Tensor, first: Tensor, weights: Tensor, beta: float) -> Tensor:
    matrix = torch.einsum("rk,rkfe->rfe", weights, second)
    vector = torch.einsum("rk,rkf->rf", weights, first).unsqueeze(-1)
    solution: Tensor = torch.linalg.lstsq(matrix, vector, driver="gelsd").solution
    return solution.squeeze(-1) / (2.0 * beta)


def _trajectory(recorded: list[tuple[int, Tensor, Tensor, Tensor]]) -> Trajectory:
    steps, params, means, weights = zip(*recorded, strict=True)
    return Trajectory(
        steps=torch.tensor(steps),
        params=torch.stack(params),
        mean_params=torch.stack(means),
        weights=torch.stack(weights),
    )
