"""What evaluations within a stage will measure, and whether a plateau can be found by it: known before any work."""

from collections.abc import Mapping, Sequence

from outscore.config import Recipe
from outscore.inputs import nearest
from outscore.report.evaluation import PART
from outscore.report.populations import SPREAD, WORST
from outscore.stage_rows import stage_algorithm
from outscore.stages import OutcomeRewardModelSettings, PreferenceSettings, RewardModelSettings
from outscore.train.build import comparable
from outscore.train.setup import Workshop

Measured = Mapping[str, frozenset[str] | None]
"""Metric -> the populations that it is found out for; None where they are known only in the run."""


def check_plateaus(recipe: Recipe, workshop: Workshop) -> None:
    """Raises ValueError, naming the stage, where its `plateau` waits for a metric that no evaluation of it has; and
    where `evaluation.patience` counts evaluations that no stage has."""
    stages = range(len(recipe.stages))
    if recipe.evaluation.patience and not any(evaluated_metrics(recipe, index, workshop) for index in stages):
        raise ValueError(
            f"evaluation: patience = {recipe.evaluation.patience} has no effect, because no stage evaluates anything: "
            "there are no held-out examples, or evaluation.problems is 0"
        )
    for index, stage in enumerate(recipe.stages):
        if stage.plateau is None:
            continue
        known = evaluated_metrics(recipe, index, workshop)
        if not known:
            raise ValueError(
                f"stage `{stage.label}`: plateau has no effect, because the stage evaluates nothing: there are no "
                "held-out examples of its kind, or evaluation.problems is 0"
            )
        names = _names(known)
        if stage.plateau.metric not in names and not _may_be(stage.plateau.metric, known):
            raise ValueError(
                f"stage `{stage.label}`: plateau.metric = {stage.plateau.metric!r} is not evaluated"
                f"{nearest(stage.plateau.metric, names)}"
            )


def evaluated_metrics(recipe: Recipe, index: int, workshop: Workshop) -> Measured:
    """What an evaluation within the stage at `index` finds out of held-out examples; but for the accuracy of a
    population all of whose labels are 1/2."""
    stage, own = recipe.stages[index], workshop.materials[index]
    split: Sequence[str]
    whole: Sequence[str]
    if isinstance(stage, RewardModelSettings):
        kinds = ("preference_accuracy", "preference_loss"), ("margin", "calibration_error")
        return _of(kinds, [group.prompt.problem.population for group in comparable(own.eval_rankings)])
    if isinstance(stage, OutcomeRewardModelSettings):
        rated = stage_algorithm(stage).surrogate == "squared_error"
        split = ("label_loss",) if rated else ("label_loss", "label_accuracy")
        whole = ("explained",) if rated else ("calibration_error",)
        if stage.sample is not None:
            return dict.fromkeys((*split, *whole)) if stage.sample.held_out else {}
        return _of((split, whole), [group.prompt.problem.population for group in own.eval_labelled])
    compared = isinstance(stage, PreferenceSettings)
    whole = [f"{PART}{name}" for name in workshop.rewards.names] if len(workshop.rewards.names) > 1 else []
    rankings = comparable(own.eval_rankings if compared else workshop.eval_rankings)
    split = ("likelihood_accuracy", *(("preference_accuracy", "preference_loss") if compared else ()))
    return {
        **_of((("greedy",), whole), [prompt.problem.population for prompt in workshop.eval_prompts]),
        **_of((split, ("margin",) * compared), [group.prompt.problem.population for group in rankings]),
        **_of(((), ("text_logprob",)), [None for _ in workshop.eval_texts]),
    }


def _of(kinds: tuple[Sequence[str], Sequence[str]], populations: Sequence[str | None]) -> Measured:
    """Metrics that are found out by population too, and others, of examples with these populations; none of none."""
    if not populations:
        return {}
    names, none = frozenset(name for name in populations if name is not None), frozenset[str]()
    return {**dict.fromkeys(kinds[0], names if len(names) > 1 else none), **dict.fromkeys(kinds[1], none)}


def _names(known: Measured) -> list[str]:
    """Each metric; and of those that are found out by population the worst, the spread and each."""
    split = {metric: sorted(own) for metric, own in known.items() if own}
    ends = [f"{head}/{metric}" for metric in split for head in (WORST, SPREAD)]
    return [*known, *ends, *(f"{metric}/{name}" for metric, own in split.items() for name in own)]


def _may_be(metric: str, known: Measured) -> bool:
    """Whether it may be that of a population which the stage gets to know only in the run."""
    head, _, rest = metric.partition("/")
    name = rest if head in (WORST, SPREAD) else head
    return name in known and known[name] is None
