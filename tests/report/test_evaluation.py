"""Which evaluation is the best."""

import math
from dataclasses import replace

from report.building import evaluation

from outscore.report.evaluation import Evaluation, best, headline


def found(stage: str, step: int, greedy: float) -> Evaluation:
    return evaluation(f"{stage} {step}", stage, step, greedy)


def chosen(*evaluations: Evaluation) -> tuple[str, int] | None:
    ranked = best(evaluations)
    return None if ranked is None else (ranked[1].stage, ranked[1].step)


def test_the_latest_of_equals_in_the_last_stage_is_the_best():
    assert chosen(found("grpo", 10, 0.5), found("grpo", 20, 0.75), found("grpo", 30, 0.75), found("grpo", 40, 0.5)) == (
        "grpo",
        30,
    )


def test_an_earlier_stage_is_no_rival():
    assert chosen(found("sft", 0, 0.0), found("sft", 9, 1.0), found("grpo", 5, 0.5), found("grpo", 9, 0.25)) == (
        "grpo",
        5,
    )


def test_what_is_no_number_is_not_ranked():
    assert chosen() is None
    assert chosen(found("grpo", 1, 0.0), found("grpo", 2, math.nan)) == ("grpo", 1)


def test_right_answers_rank_before_preferences_and_preferences_before_likelihood():
    metrics = {"likelihood_accuracy": 0.9, "preference_accuracy": 0.8, "greedy": 0.1, "margin": 3.0}
    for expected in ("greedy", "preference_accuracy", "likelihood_accuracy", None):
        assert headline(replace(found("dpo", 1, 0.0), metrics=metrics)) == expected
        metrics = {name: value for name, value in metrics.items() if name != expected}
