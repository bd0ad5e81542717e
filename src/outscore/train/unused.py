"""Settings that a recipe gives and that change nothing, or do a thing twice: a run and `outscore check` say so, and go
on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outscore.config import EvaluationSettings, Recipe, TinySettings
from outscore.stage_parts import OptimizerSettings
from outscore.stage_rows import stage_algorithm
from outscore.stages import PolicySettings, StageSettings


def unused_settings(recipe: Recipe) -> list[str]:
    """A sentence for each setting that is not its default and has no effect beside the others, or a second one."""
    found = [sentence for stage in recipe.stages for sentence in _of_stage(stage)]
    found += [sentence for stage in recipe.stages for sentence in _charged_twice(stage, recipe.rewards)]
    model, evaluation = recipe.model, recipe.evaluation
    if model.source != "tiny" and model.tiny != TinySettings():
        found.append(f"model.tiny has no effect, because model.source = {model.source!r} is loaded, not built")
    default = EvaluationSettings.model_fields["temperature"].default
    if evaluation.samples == 1 and evaluation.temperature != default:
        found.append(
            f"evaluation.temperature = {evaluation.temperature:g} has no effect, because evaluation.samples is 1: "
            "evaluations are greedy only"
        )
    return found


def _of_stage(stage: StageSettings) -> Iterator[str]:
    where, optimizer = f"stage `{stage.label}`:", stage.optimizer
    if optimizer.warmup_steps >= stage.num_updates:
        yield (
            f"{where} optimizer.warmup_steps = {optimizer.warmup_steps} never ends, because the stage has "
            f"{stage.num_updates} updates: the rate rises to the last and does not reach lr = {optimizer.lr:g}"
        )
    default = OptimizerSettings.model_fields["final_fraction"].default
    if optimizer.schedule == "constant" and optimizer.final_fraction != default:
        yield (
            f"{where} optimizer.final_fraction = {optimizer.final_fraction:g} has no effect on schedule: constant; "
            "give linear or cosine"
        )
    if isinstance(stage, PolicySettings):
        yield from _of_lambda(stage)
    refresh = stage.refresh_reference_every if isinstance(stage, PolicySettings) else 0
    if refresh > stage.steps:
        yield (
            f"{where} refresh_reference_every = {refresh} has no effect, because the stage ends at step {stage.steps}"
        )


def _charged_twice(stage: StageSettings, of_recipe: Sequence[str | Mapping[str, Any]]) -> Iterator[str]:
    """DAPO's punishment of length, both as the stage's setting and as a reward that counts."""
    rewards = of_recipe if stage.rewards is None else stage.rewards
    entries = [reward if isinstance(reward, Mapping) else {"name": reward} for reward in rewards]
    counts = any(entry.get("name") == "soft_overlong" and entry.get("weight", 1) != 0 for entry in entries)
    if counts and isinstance(stage, PolicySettings) and stage.overlong_buffer:
        yield (
            f"stage `{stage.label}`: length is charged twice, by overlong_buffer = {stage.overlong_buffer} and by the "
            "reward soft_overlong; leave the reward out, or give overlong_buffer: 0"
        )


def _of_lambda(stage: PolicySettings) -> Iterator[str]:
    """VAPO's lambda, max(0, 1 - 1 / (alpha length)), where no answer may be long enough for it to be above 0."""
    alpha, longest = stage_algorithm(stage).lambda_alpha, stage.sampling.max_new_tokens
    if alpha is not None and alpha * longest <= 1:
        yield (
            f"stage `{stage.label}`: cells.lambda_alpha = {alpha:g} makes lambda 0 for every answer here, because "
            f"sampling.max_new_tokens = {longest} is not above 1 / lambda_alpha = {1 / alpha:g}: a token's advantage "
            "hears of the reward through the critic alone. Give answers that short a larger lambda_alpha, or none: "
            "cells: {lambda_alpha: null}"
        )
