"""The study of refreshed reward models: its branches differ in what pays them alone."""

from importlib.resources import files
from pathlib import Path

from outscore.config import load_recipe
from outscore.stages import OutcomeRewardModelSettings, PolicySettings
from outscore.studies.refreshed import PAID_BY, POLICIES, branches

MADE = branches(load_recipe(Path(str(files("outscore") / "recipes" / "iterative.yaml"))))
STAGES = {stage.label: stage for stage in MADE.stages}


def test_the_second_iteration_is_run_three_times_from_the_first() -> None:
    assert [*STAGES] == ["sft", "rm-1", "grpo-1", "rm-2", "grpo-2", "grpo-fixed", "rm-more", "grpo-more"]
    assert set(POLICIES) == {name for name, s in STAGES.items() if not isinstance(s, OutcomeRewardModelSettings)}
    again = [STAGES[name] for name in ("grpo-2", "grpo-fixed", "grpo-more")]
    rest = {"name", "rewards"}
    for stage in again:
        assert isinstance(stage, PolicySettings) and stage.start == "grpo-1"
        assert stage.model_dump(exclude=rest) == again[0].model_dump(exclude=rest)


def test_each_is_paid_by_its_own_reward_model_and_by_no_gold_answer() -> None:
    for name, judge in PAID_BY.items():
        first, second = STAGES[name].rewards or ()
        assert first == {"name": "reward_model", "stage": judge, "clip": [-1, 1]}
        assert second == {"name": "tag_answer", "weight": 0}


def test_fresh_labels_and_more_labels_are_as_many_and_differ_in_whose_samples_they_are() -> None:
    fresh, more = STAGES["rm-2"], STAGES["rm-more"]
    assert isinstance(fresh, OutcomeRewardModelSettings) and isinstance(more, OutcomeRewardModelSettings)
    assert (fresh.start, more.start) == ("previous", "sft") and fresh.continues == more.continues == "rm-1"
    rest = {"name", "start"}
    assert fresh.model_dump(exclude=rest) == more.model_dump(exclude=rest) and fresh.replay == 0.1
    # What precedes rm-2 is the policy of the first iteration.
    assert [*STAGES].index("rm-2") == [*STAGES].index("grpo-1") + 1
