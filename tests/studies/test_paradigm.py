"""The study of the unified paradigm: its arms differ in what they are about alone; how its claims are judged."""

from outscore.config import parse_recipe
from outscore.stages import PolicySettings, RejectionSettings
from outscore.studies.over_seeds import within
from outscore.studies.paradigm import ARMS, GROUP_SIZE, MEASURES, NAMES, PROMPTS, STEPS, claims, recipe
from outscore.train.setup import check_before_loading


def test_arms_start_at_the_same_weights_with_as_many_samples_and_steps() -> None:
    made = parse_recipe(recipe(0))
    check_before_loading(made)
    assert tuple(stage.label for stage in made.stages) == NAMES
    arms = made.stages[1:]
    assert {(stage.start, stage.steps, stage.optimizer) for stage in arms} == {("sft", STEPS, arms[0].optimizer)}
    rft, *online = arms
    assert isinstance(rft, RejectionSettings) and rft.num_prompts * rft.group_size == STEPS * PROMPTS * GROUP_SIZE
    for stage in online:
        assert isinstance(stage, PolicySettings)
        assert (stage.prompts_per_step, stage.group_size, stage.refills) == (PROMPTS, GROUP_SIZE, 0)
        assert stage.cells == {**ARMS[stage.label][1], "kl_coef": 0.0}


def table(**values: list[float]) -> dict[str, dict[str, list[float]]]:
    return {name: dict.fromkeys(MEASURES, values.get(name.replace("-", "_"), [0.5, 0.5])) for name in NAMES}


def test_claims_are_judged_by_the_differences_of_each_seed() -> None:
    better = {
        **{"sft": [0.1, 0.1], "rft": [0.2, 0.2], "online_rft": [0.3, 0.302], "grpo": [0.6, 0.6]},
        **{"grpo_without_negatives": [0.4, 0.4], "ppo_lambda_1": [0.61, 0.61]},
    }
    found = claims(table(**better))
    # All that was said holds but that pass@k stays as it was: here it rises by 50 points.
    assert [claim.holds for claim in found] == [True, True, True, True, True, True, False]
    assert found[0].measured == "rft 20.0 %, online-rft 30.1 %: +10.1 ± 1.3"  # 12.706 * 0.2 / 2
    unsure = claims(table(**{**better, "online_rft": [0.3, 0.1]}))
    assert not unsure[0].holds and unsure[0].measured.endswith("not told apart")


def test_two_are_alike_only_where_the_interval_says_so() -> None:
    def said(high: list[float]) -> tuple[bool, str]:
        claim = within("here", "alike", 0.05, "a", [0.5, 0.5], "b", high)
        return claim.holds, claim.measured.rpartition(" ± ")[2]

    assert said([0.51, 0.51]) == (True, "0.0")
    assert said([0.6, 0.6]) == (False, "0.0")
    assert said([0.45, 0.55]) == (False, "63.5, not told")  # the mean is 0, and two seeds say little of it
