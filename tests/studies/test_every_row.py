"""The study of every row: its recipe is a fair one, and its claims are judged by the means."""

from outscore.algorithms.rows import ALGORITHMS
from outscore.config import parse_recipe
from outscore.report import Evaluation
from outscore.stages import PolicySettings, RejectionSettings
from outscore.studies.every_row import GROUP_SIZE, MEASURES, PROMPTS, STEPS, claims, collected, recipe, rows, variants
from outscore.train.setup import check_before_loading


def test_every_row_starts_at_the_same_weights_and_has_as_many_samples() -> None:
    made = parse_recipe(recipe(0))
    check_before_loading(made)
    assert {*rows(), "distillation"} == {name for name, row in ALGORITHMS.items() if row.source == "policy"}
    assert [stage.label for stage in made.stages] == ["sft", "rft", *variants()]
    assert {stage.start for stage in made.stages[1:]} == {"sft"}
    for stage in made.stages[1:]:
        assert isinstance(stage, PolicySettings | RejectionSettings)
        per_step = stage.prompts_per_step if isinstance(stage, PolicySettings) else stage.num_prompts / STEPS
        assert per_step * STEPS * stage.group_size == STEPS * PROMPTS * GROUP_SIZE
        assert isinstance(stage, RejectionSettings) or (stage.steps, stage.refills) == (STEPS, 0)


def evaluations(values: dict[str, float]) -> list[Evaluation]:
    return [
        Evaluation(
            **{"label": f"after {name}", "stage": name, "step": 1, "policy_version": 1, "num_problems": 4},
            **{"samples": 8, "metrics": dict.fromkeys(MEASURES, values.get(name, 0.5))},
        )
        for name in ("sft", "rft", *variants())
    ]


def test_claims_are_judged_by_the_differences_of_each_seed() -> None:
    better = {
        "sft": 0.1,
        "rft": 0.2,
        "online-rft": 0.3,
        "grpo": 0.6,
        "grpo-without-negatives": 0.4,
        "ppo-lambda-1": 0.7,
    }
    found = claims(collected([evaluations(better), evaluations({**better, "online-rft": 0.302})]))
    # All that was said holds but that PPO is about GRPO (10 points off) and that pass@8 does not rise (by 50).
    assert [claim.holds for claim in found] == [True, True, True, True, True, False, False]
    assert found[0].measured == "rft 20.0 %, online-rft 30.1 %: +10.1 ± 1.3"  # 12.706 * 0.2 / 2
    # A rise in one seed of two is told apart from nothing.
    unsure = claims(collected([evaluations(better), evaluations({**better, "online-rft": 0.1})]))
    assert not unsure[0].holds and unsure[0].measured.endswith("not told apart")
    assert [claim.holds for claim in claims(collected([evaluations({})] * 2))] == [False] * 5 + [True, True]
