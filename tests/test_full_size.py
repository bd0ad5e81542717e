"""The recipe of DeepSeek-R1 at full size has the constants that were published, as they were copied out by hand."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from outscore.config import load_recipe
from outscore.stage_rows import stage_algorithm
from outscore.stages import PolicySettings, RejectionSettings, RewardModelSettings, StageSettings
from outscore.train.setup import check_before_loading

RECIPE = load_recipe(Path(str(files("outscore") / "recipes" / "r1-full.yaml")))
STAGES: dict[str, Any] = {stage.label: stage for stage in RECIPE.stages}

# DeepSeek-R1, arXiv 2501.12948 and Nature 645:633: training settings.
LR, KL, CLIP, G = 3e-6, 0.001, 10.0, 16
OUTPUTS_OF_A_ROLLOUT, MINI_BATCHES, QUESTIONS_OF_AN_UPDATE = 8192, 16, 32
REFRESH_AFTER_UPDATES = 400
UPDATES = {"zero": (8200, 10400), "scenarios": (1700, 400)}
LENGTHS = {"zero": 32768, "zero-long": 65536, "dev2": 32768, "scenarios": 32768, "r1": 32768}
TEMPERATURES = {"zero": 1.0, "zero-long": 1.0, "dev2": 1.0, "scenarios": 0.7, "r1": 0.7}
SAMPLES = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}
REINFORCED = [stage for stage in RECIPE.stages if isinstance(stage, PolicySettings)]


def updates(*names: str) -> int:
    return sum(STAGES[name].steps * STAGES[name].updates_per_step for name in names)


@pytest.mark.parametrize("stage", REINFORCED, ids=lambda stage: stage.label)
def test_reinforcement_has_the_published_rate_clip_group_and_batch(stage: PolicySettings) -> None:
    row = stage_algorithm(stage)
    assert (stage.optimizer.lr, stage.optimizer.schedule, row.kl_coef) == (LR, "constant", KL)
    assert row.clip_high == CLIP and row.ratio_level == "sequence"
    assert stage.prompts_per_step * stage.group_size == OUTPUTS_OF_A_ROLLOUT
    assert stage.prompts_per_step // stage.minibatches == QUESTIONS_OF_AN_UPDATE
    assert (stage.minibatches, stage.epochs, stage.group_size) == (MINI_BATCHES, 1, G)
    assert stage.refresh_reference_every * stage.updates_per_step == REFRESH_AFTER_UPDATES
    assert stage.sampling.max_new_tokens == LENGTHS[stage.label]
    assert stage.sampling.temperature == TEMPERATURES[stage.label]
    assert stage.sampling.max_new_tokens <= stage.token_budget


def test_stages_are_as_long_as_published_to_a_rollout() -> None:
    assert [stage.label for stage in REINFORCED] == list(LENGTHS)
    rollout = MINI_BATCHES
    longer_from, whole = UPDATES["zero"]
    assert abs(updates("zero") - longer_from) < rollout and updates("zero", "zero-long") == whole
    last, preferences = UPDATES["scenarios"]
    assert abs(updates("scenarios", "r1") - last) < rollout and updates("r1") == preferences


def test_fine_tuning_is_two_epochs_at_the_published_rate() -> None:
    for name, examples in (("dev1", STAGES["dev1"].num_prompts), ("dev3", sum(SAMPLES.values()))):
        stage = STAGES[name]
        assert isinstance(stage, RejectionSettings) and stage.start == "base" and stage.batch_size == 64
        assert (stage.optimizer.lr, stage.optimizer.schedule, stage.optimizer.final_fraction) == (5e-6, "cosine", 0.1)
        assert stage.steps == -(-2 * examples // 64)
        assert stage.sampling.max_new_tokens == 32768
    assert sum(SAMPLES.values()) == 804_745 and STAGES["dev3"].demonstrations
    assert STAGES["dev1"].samples_from == "zero-long" and STAGES["dev3"].samples_from == "dev2"


def test_reward_models_are_one_epoch_and_read_what_they_are_for() -> None:
    for name, examples in (("helpful", 66_000), ("safety", 106_000)):
        stage: StageSettings = STAGES[name]
        assert stage.optimizer.lr == 6e-6 and STAGES[name].batch_size == 256
        assert stage.steps in (examples // 256, examples // 256 + 1)
    assert isinstance(STAGES["helpful"], RewardModelSettings)  # pairwise; the other pointwise
    assert STAGES["safety"].algorithm == "outcome-reward-model"
    models = [reward for reward in STAGES["r1"].rewards if "stage" in reward]
    assert [(each["stage"], each.get("part")) for each in models] == [("helpful", "final"), ("safety", None)]
    others = [reward for name in ("zero", "dev2", "scenarios") for reward in STAGES[name].rewards or RECIPE.rewards]
    assert not any("stage" in reward for reward in others)  # no model's reward on reasoning: it would be hacked


def test_accuracy_and_format_have_equal_weight() -> None:
    assert RECIPE.prompt.template == "r1-zero"
    [form] = [reward for reward in RECIPE.rewards if reward["name"] == "format_tags"]
    assert form["reward"] == 1.0 and form["tags"] == ["think", "answer"]
    assert all(reward.get("weight", 1.0) == 1.0 for reward in RECIPE.rewards)


def test_every_stage_s_settings_go_together() -> None:
    check_before_loading(RECIPE)
