"""Weights of populations in a run: which population an example is of, what the weights are, and how they climb.

One mechanism for every stage. An example's share of the loss is multiplied by w_g / s_g (`relative_weights`), so that
the loss of a batch estimates sum_g w_g L_g; and where the weights are robust, they follow the losses by mirror ascent
before each update uses them (arXiv 2405.20304, Algorithms 1 and 3, and its authors' mini-batches). What they climb by
is each population's share of the plain loss of the update's examples, over s_g; for samples of the policy, whose loss
says nothing by its value, minus the mean reward.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outscore.algorithms.rows import algorithm
from outscore.inputs import nearest
from outscore.objectives.populations import (
    ascend_populations,
    checked_weights,
    population_shares,
    relative_weights,
    trade_off,
)
from outscore.objectives.preferences import pair_losses
from outscore.records import Problem
from outscore.stage_parts import PopulationSettings
from outscore.stages import PreferenceSettings, StageSettings
from outscore.train.order import Strata

LEAST = 2
"""Examples that a population must have to be trained on: one says nothing of the others."""

LARGEST_CLIMB = 1.0
"""Step size times loss, above which a notice says that the weights jump."""

Micro = TypeVar("Micro")
Pass = TypeVar("Pass")
Losses = Callable[[Pass], Float[Tensor, "2 completion"]]
"""What a forward pass says of each completion's loss (`example_losses`)."""


def placed(problem: Problem, stage: StageSettings | None) -> Problem:
    """The problem with its population as the stage finds it out; as it is where the stage asks for none.

    Raises:
        ValueError: if there is no such column, or nothing says which population the problem is of.
    """
    if stage is None or stage.populations is None:
        return problem
    try:
        return in_population(problem, stage.populations.column)
    except ValueError as error:
        raise ValueError(f"stage `{stage.label}`: {error}") from None


def in_population(problem: Problem, column: str) -> Problem:
    """The problem with the population that a column names, or where `column` is empty the task; ValueError where they
    name none."""
    if column:
        if column not in problem.columns:
            raise ValueError(
                f"populations.column = {column!r}: problem {problem.id!r} has no such column"
                f"{nearest(column, problem.columns)} (present: {', '.join(map(repr, problem.columns))})"
            )
        value = problem.columns[column]
        problem = replace(problem, population=None if value is None or value == "" else str(value))
    if problem.population is None:
        where = f"column {column!r} is empty" if column else "the task names none"
        raise ValueError(
            f"populations: problem {problem.id!r} has no population ({where}): give task.population or "
            "populations.column, or leave such problems out"
        )
    return problem


def evaluation_column(stages: Sequence[StageSettings], stage: StageSettings | None = None) -> str | None:
    """The column that evaluations on the run's task are split by: that of the stages which weigh populations of it. Of
    a `stage` with a task of its own, its own. None where no such stage has populations.

    Raises:
        ValueError: if two stages name different columns.
    """
    apart = stage is not None and stage.task is not None
    sharing = [stage] if apart else [each for each in stages if each.task is None]
    columns = {each.label: each.populations.column for each in sharing if each and each.populations is not None}
    if len(set(columns.values())) > 1:
        named = ", ".join(f"{label}: {column!r}" for label, column in columns.items())
        raise ValueError(f"populations.column differs between stages ({named}); evaluations are split by one")
    return next(iter(columns.values()), None)


@dataclass(kw_only=True, slots=True)
class PopulationWeights:
    """The weights of a stage's populations: state of the trainer, as its optimizer's moments are."""

    names: tuple[str, ...]
    """The populations, sorted."""
    drawn: Float[Tensor, " population"]
    """s_g: the share of each in the examples that are drawn."""
    fixed: Float[Tensor, " population"]
    """What robust weights begin with and are mixed with, or fixed weights themselves."""
    step_size: float
    """Of the climb; 0 for fixed weights."""
    trade_off: float
    """chi."""
    log_weights: Float[Tensor, " population"]
    """log alpha_g in float64."""
    shrunk: float = 1.0
    """What the step size is multiplied by, after plateaus."""
    report: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metrics of the last update."""

    @property
    def climbs(self) -> bool:
        """Whether the weights move."""
        return self.step_size > 0.0

    @property
    def weights(self) -> Float[Tensor, " population"]:
        """w_g, which add up to 1."""
        return trade_off(self.log_weights.exp(), self.fixed, self.trade_off)

    def index(self, names: Sequence[str | None]) -> Int[Tensor, " example"]:
        """The place of each example's population."""
        places = {name: place for place, name in enumerate(self.names)}
        return torch.tensor([places[str(name)] for name in names])

    def factors(self, index: Int[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        """w_g / s_g of each completion."""
        return relative_weights(self.weights, self.drawn)[index]

    def sums(self, values: Float[Tensor, "2 example"], index: Int[Tensor, " example"]) -> Float[Tensor, "2 population"]:
        """(sum, count) pairs by population, in float64: of examples' losses as `example_losses` gives them, or of
        groups' rewards as `reward_pairs` does. Those of parts of an update, on whatever machine, add up to its own."""
        found = values.detach().cpu().double()
        return found.new_zeros(2, len(self.names)).index_add(1, index, found)

    def take(self, sums: Float[Tensor, "2 population"]) -> None:
        """Hear the losses of all of an update's examples: climb by them, and report them."""
        self._climb(sums[0] / self.drawn)
        self._reported("loss", sums[0].tolist(), sums[1].tolist())

    def take_rewards(self, sums: Float[Tensor, "2 population"], num_groups: int) -> None:
        """Hear the mean rewards of all of an update's groups: climb by minus these. One that could not be scored adds
        nothing, and is among `num_groups`."""
        self._climb(-sums[0] / (self.drawn * num_groups))
        self._reported("reward", sums[0].tolist(), sums[1].tolist())

    def state(self) -> dict[str, Tensor]:
        """The logarithms by name, for a checkpoint."""
        return {name: self.log_weights[place].clone() for place, name in enumerate(self.names)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's; ValueError where its populations are others."""
        if set(state) != set(self.names):
            raise ValueError(
                f"the checkpoint has weights of the populations {', '.join(sorted(state)) or 'none'}, and the data "
                f"have {', '.join(self.names)}: they must be the same to go on"
            )
        self.log_weights = torch.stack([state[name].double() for name in self.names])

    def _climb(self, losses: Tensor) -> None:
        if self.climbs:
            step_size = self.step_size * self.shrunk
            self.log_weights = ascend_populations(
                self.log_weights, losses, step_size=step_size, tradeoff=self.trade_off
            )

    def _reported(self, what: str, sums: Sequence[float], counts: Sequence[float]) -> None:
        weights = zip(self.names, self.weights.tolist(), strict=True)
        found = {f"population_weight/{name}": (weight, 1.0) for name, weight in weights}
        for name, total, count in zip(self.names, sums, counts, strict=True):
            found[f"population_{what}/{name}"] = (total, count)
        self.report = found


def reward_pairs(rewards: Sequence[float | None]) -> Float[Tensor, "2 group"]:
    """[0, i]: the mean reward of group i, 0 where it could not be scored; [1, i]: whether it could."""
    scored = [reward is not None for reward in rewards]
    return torch.tensor([[reward or 0.0 for reward in rewards], scored], dtype=torch.float64)


def stage_weights(stage: StageSettings, names: Sequence[str | None]) -> tuple[PopulationWeights, Strata] | None:
    """The weights that a stage begins with, and which of its examples are of which population; None where the stage
    has no populations. `names` has the population of each training example.

    Raises:
        ValueError: naming the stage, if a population has too few examples, or weights are not for just these.
    """
    settings = stage.populations
    if settings is None:
        return None
    try:
        return _stage_weights(settings, [str(name) for name in names])
    except ValueError as error:
        raise ValueError(f"stage `{stage.label}`: populations: {error}") from None


def _stage_weights(settings: PopulationSettings, names: Sequence[str]) -> tuple[PopulationWeights, Strata]:
    counted = Counter(names)
    few = [f"{name!r} has {count}" for name, count in sorted(counted.items()) if count < LEAST]
    if few:
        raise ValueError(
            f"population {few[0]} training example; each needs at least {LEAST}: leave it out, or give more data"
        )
    known = tuple(sorted(counted))
    shares = population_shares(torch.tensor([counted[name] for name in known]))
    equal = torch.full_like(shares, 1.0 / len(known))
    robust = settings.weights == "robust"
    chosen = settings.initial if settings.weights == "robust" else settings.weights
    words = {"equal": equal, "shares": shares}
    fixed = _by_name(chosen, known) if isinstance(chosen, Mapping) else words[chosen]
    members = {name: [place for place, own in enumerate(names) if own == name] for name in known}
    weights = PopulationWeights(
        names=known,
        drawn=equal if settings.draw == "equal" else shares,
        fixed=fixed,
        step_size=settings.step_size if robust else 0.0,
        trade_off=settings.trade_off,
        log_weights=fixed.log(),
    )
    return weights, Strata(members=tuple(map(tuple, members.values())), equal=settings.draw == "equal")


def _by_name(given: Mapping[str, float], known: Sequence[str]) -> Tensor:
    if wrong := [name for name in given if name not in known]:
        raise ValueError(f"there is a weight for {wrong[0]!r}, which is no population{nearest(wrong[0], known)}")
    if missing := [name for name in known if name not in given]:
        raise ValueError(f"population {missing[0]!r} has no weight; give one for each of {', '.join(known)}")
    return checked_weights(torch.tensor([given[name] for name in known], dtype=torch.float64), known)


def population_notices(
    stage: StageSettings, trained: Sequence[str | None], evaluated: Sequence[str | None]
) -> list[str]:
    """What is odd about the populations of a stage in evaluations: one that no example was trained on has no weight,
    and what few held-out examples say is little. Nothing of a stage that weighs none.

    Raises:
        ValueError: if weights cannot be had of its populations.
    """
    if stage_weights(stage, trained) is None:
        return []
    large = _large_step(stage)
    if not evaluated:
        return large
    counts = Counter(name for name in evaluated if name is not None)
    known = {str(name) for name in trained}
    where = f"stage {stage.label}: population"
    notices = [
        f"{where} {name!r} is only in held-out data: it has no weight there" for name in sorted(set(counts) - known)
    ]
    for name in sorted(known):
        if counts[name] < LEAST:
            few = f"has {counts[name]} held-out example{'' if counts[name] == 1 else 's'}"
            notices.append(f"{where} {name!r} {few}, so evaluations say little of it")
    return notices + large


def populations_in_words(stage: StageSettings, trained: Sequence[str | None]) -> str:
    """How many training examples each population of a stage has, and what it weighs at first.

    Raises:
        ValueError: if weights cannot be had of its populations.
    """
    made = stage_weights(stage, trained)
    if made is None or stage.populations is None:
        return ""
    weights, strata = made
    each = [
        f"{name} {len(own)} ({weight:.0%})"
        for name, own, weight in zip(weights.names, strata.members, weights.weights.tolist(), strict=True)
    ]
    moves = "robust, from these weights" if stage.populations.weights == "robust" else "these weights stay"
    return f"stage {stage.label}: training examples of each (and its weight): {', '.join(each)}; {moves}"


def _large_step(stage: StageSettings) -> list[str]:
    """A notice where a batch of pairs can throw the weights from one population to another: the loss that a stage of
    preferences begins with is known, ln 2 or 1/(4 beta^2)."""
    settings = stage.populations
    if settings is None or settings.weights != "robust" or not isinstance(stage, PreferenceSettings):
        return []
    objective = algorithm(stage.algorithm, **stage.cells).pair_objective
    loss = float(pair_losses(torch.zeros(1), torch.ones(1), objective))
    power = settings.step_size * settings.trade_off * loss
    if power <= LARGEST_CLIMB:
        return []
    return [
        f"stage {stage.label}: populations.step_size = {settings.step_size:g} times the loss that the stage begins "
        f"with ({loss:.4g}) is {power:.3g}: a single batch may multiply a weight by e^{power:.3g}; a step size below "
        f"{LARGEST_CLIMB / loss / settings.trade_off:.2g} moves the weights over many batches"
    ]


def weighed_passes(
    populations: PopulationWeights | None,
    index: Int[Tensor, " completion"] | None,
    micros: Sequence[Micro],
    forward: Callable[[Micro], Pass],
    losses: Losses[Pass] | None,
) -> Iterator[Pass]:
    """`forward` of each micro-batch of an update, the weights having climbed by the losses of all of them before the
    first is handed out.

    With one micro-batch that costs nothing; with several there is a forward pass without gradient before. Where the
    weights do not climb by losses (`losses` is None, or they are fixed) there is none.
    """
    if populations is None or losses is None:
        yield from map(forward, micros)
        return
    assert index is not None
    if populations.climbs and len(micros) > 1:
        with torch.no_grad():
            found = [losses(forward(micro)) for micro in micros]
        populations.take(populations.sums(torch.stack(found).sum(0), index))
        yield from map(forward, micros)
        return
    found = []
    for micro in micros:
        made = forward(micro)
        found.append(losses(made))
        if populations.climbs:
            populations.take(populations.sums(found[0], index))
        yield made
    if found and not populations.climbs:
        populations.take(populations.sums(torch.stack(found).sum(0), index))
