"""Bad recipes are refused before any work, naming key, value and the nearest right one."""

import re
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from outscore.algorithms.rows import algorithm
from outscore.config import dump_recipe, load_recipe, parse_recipe
from outscore.stages import PolicySettings, SftSettings, kinds_of_stage

GRPO = {"algorithm": "grpo", "steps": 3}
BASE: dict[str, Any] = {"task": {"kind": "arithmetic"}, "rewards": ["tag_answer"], "stages": [GRPO]}


def refused(**changes: Any) -> str:
    with pytest.raises(ValueError) as caught:
        parse_recipe({**BASE, **changes})
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sed": 3}, ["sed", "3", "did you mean `seed`?"]),
        ({"model": {"lora": {"rnk": 4}}}, ["model.lora.rnk", "`rank`"]),
        ({"stages": [{**GRPO, "group_sise": 8}]}, ["stages.grpo.group_sise", "`group_size`"]),
        ({"stages": [{**GRPO, "optimizer": {"learning_rate": 1}}]}, ["stages.grpo.optimizer.learning_rate", "lr"]),
        ({"stages": [{**GRPO, "group_size": 0}]}, ["stages.grpo.group_size", "0", "greater than or equal to 1"]),
        ({"stages": [{**GRPO, "steps": 0}]}, ["stages.grpo.steps", "0"]),
        ({"stages": [{"algorithm": "sft", "steps": 3, "group_size": 4}]}, ["no effect on supervised fine-tuning"]),
        ({"stages": []}, ["stages", "at least 1"]),
        ({"stages": [GRPO, GRPO]}, ["'grpo' stands twice", "name"]),
        ({"rewards": []}, ["rewards", "at least one"]),
        ({"task": {"num_train": 5}}, ["`kind` is missing"]),
        ({"stages": [{**GRPO, "prompts_per_step": 2, "minibatches": 3}]}, ["minibatches = 3", "prompts_per_step = 2"]),
        (
            {"stages": [{**GRPO, "overlong_buffer": 9, "sampling": {"max_new_tokens": 8}}]},
            ["overlong_buffer = 9", "sampling.max_new_tokens = 8"],
        ),
        ({"seed": "many"}, ["`seed`", "many"]),
        ({"rewards": "last_number"}, ["`rewards` = 'last_number'", "give a list: [last_number]"]),
        ({"stages": GRPO}, ["`stages`", "must be a list"]),
        ({"model": {"lora": {"targets": "q_proj"}}}, ["model.lora.targets", "give a list: [q_proj]"]),
        ({"evaluation": {"patience": 2}}, ["evaluation", "patience = 2", "give `every`"]),
        # Steps 1 and 2 are evaluated before the last: the best so far, and one that may be no better.
        ({"evaluation": {"patience": 2, "every": 1}}, ["patience = 2 has no effect", "2 evaluations before step 3"]),
        ({"evaluation": {"patience": 1, "every": 4}}, ["patience = 1 has no effect", "0 evaluations before step 3"]),
        ({"stages": [{**GRPO, "optimizer": {"betas": [0.9, 1.5]}}]}, ["optimizer.betas.1", "1.5", "less than 1"]),
        ({"stages": [{**GRPO, "optimizer": {"betas": [1, 0.9]}}]}, ["optimizer.betas.0", "less than 1"]),
        ({"stages": [{**GRPO, "optimizer": {"lr": inf}}]}, ["optimizer.lr", "inf", "finite"]),
        ({"stages": [{**GRPO, "optimizer": {"weight_decay": inf}}]}, ["optimizer.weight_decay", "finite"]),
        ({"stages": [{**GRPO, "sampling": {"temperature": inf}}]}, ["sampling.temperature", "finite"]),
        ({"stages": [{**GRPO, "truncated_score": nan}]}, ["truncated_score", "finite"]),
        ({"task": "arithmetic"}, ["`task` = 'arithmetic': must be a mapping, such as {kind: arithmetic}"]),
        ({"stages": ["grpo"]}, ["`stages.0` = 'grpo': must be a mapping, such as {algorithm: grpo, steps: 100}"]),
        ({"model": "my/model"}, ["`model` = 'my/model': must be a mapping, such as {source: my/model}"]),
        ({"checkpoints": 5}, ["`checkpoints` = 5: must be a mapping of keys to values"]),
        # What one number was meant as is not guessed: two betas are needed, and neither a stage nor a task is a number.
        ({"stages": [{**GRPO, "optimizer": {"betas": 0.9}}]}, ["`stages.grpo.optimizer.betas` = 0.9: must be a list:"]),
        ({"stages": 3}, ["`stages` = 3: must be a list: one item after each `-`"]),
        ({"task": 5}, ["`task` = 5: must be a mapping of keys to values"]),
        ({"stages": [{**GRPO, "name": "mine", "stepz": 3}]}, ["unknown key `stages.mine.stepz`", "`steps`"]),
        ({"stages": [{"steps": 3, "stepz": 3}]}, ["`stages.0.stepz`"]),
        ({"name": "../escaped"}, ["`name` = '../escaped'", "letters, digits"]),
        ({"name": "a/b"}, ["`name` = 'a/b'", "letters, digits"]),
        ({"model": {"lora": {}}}, ["model", "lora", "'tiny'", "random"]),
    ],
)
def test_an_impossible_recipe_says_what_is_wrong(changes: dict[str, Any], parts: list[str]) -> None:
    message = refused(**changes)
    assert all(part in message for part in parts), message


def test_patience_may_stop_the_longest_stage_alone() -> None:
    """Which it can from two evaluations on: the best so far, and one that is no better."""
    stages = [{"algorithm": "sft", "steps": 2}, GRPO]
    assert parse_recipe({**BASE, "stages": stages, "evaluation": {"patience": 1, "every": 1}}).evaluation.patience == 1


def test_the_source_decides_which_settings_a_stage_has() -> None:
    recipe = parse_recipe({**BASE, "stages": [{"algorithm": "sft", "steps": 2}, GRPO]})
    assert [type(stage) for stage in recipe.stages] == [SftSettings, PolicySettings]
    assert [stage.label for stage in recipe.stages] == ["sft", "grpo"]


def test_a_dumped_recipe_is_the_recipe() -> None:
    recipe = parse_recipe({**BASE, "model": {"source": "some/model", "lora": {"rank": 4}}})
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("lora", "given", "expected"),
    [
        # SFT: 40 optimizer steps. GRPO: 100 * 2 * 3 = 600.
        (None, {}, [(2e-5, 2), (1e-5, 10)]),
        ({"rank": 4}, {}, [(2e-4, 2), (1e-4, 10)]),
        ({"rank": 4}, {"lr": 3e-3}, [(3e-3, 2), (3e-3, 10)]),
        (None, {"warmup_steps": 0}, [(2e-5, 0), (1e-5, 0)]),
    ],
)
def test_rates_left_out_suit_the_stage_and_stand_in_the_config(lora: Any, given: Any, expected: Any) -> None:
    sft = {"algorithm": "sft", "steps": 40, "optimizer": given}
    grpo = {"algorithm": "grpo", "steps": 100, "minibatches": 2, "epochs": 3, "optimizer": given}
    dumped = dump_recipe(parse_recipe({**BASE, "model": {"source": "some/model", "lora": lora}, "stages": [sft, grpo]}))
    found = [(s["optimizer"]["lr"], s["optimizer"]["warmup_steps"]) for s in dumped["stages"]]
    assert found == [(pytest.approx(rate), warmup) for rate, warmup in expected]
    # Resolved once: the config of a run reads back as it is, whatever the defaults of a later release are.
    assert dump_recipe(parse_recipe(dumped)) == dumped


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: {kind: arithmetic}\nrewards: [tag_answer]\nstages:\n  - {algorithm: sft, steps: 4}\n"
        "  - {algorithm: grpo, steps: 3}\n"
    )
    return path


def test_overrides_reach_into_stages_by_name_or_place(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.grpo.optimizer.lr=1e-4", "stages.0.steps=9", "model.source=x/y"])
    assert recipe.stages[1].optimizer.lr == 1e-4
    assert recipe.stages[0].steps == 9
    assert recipe.model.source == "x/y"


def test_a_stage_keeps_its_name_for_overrides_that_follow_one_of_its_algorithm(recipe_file: Path) -> None:
    given = ["stages.grpo.algorithm=ppo", "stages.grpo.critic.warmup_steps=1", "stages.ppo.steps=7"]
    [_, stage] = load_recipe(recipe_file, given).stages
    assert isinstance(stage, PolicySettings) and stage.critic is not None
    assert (stage.algorithm, stage.critic.warmup_steps, stage.steps) == ("ppo", 1, 7)
    # Where two stages trade algorithms, the file's names say which is which.
    swapped = ["stages.sft.algorithm=grpo", "stages.grpo.algorithm=sft", "stages.sft.steps=5", "stages.grpo.steps=6"]
    found = load_recipe(recipe_file, swapped).stages
    assert [(stage.label, stage.steps) for stage in found] == [("grpo", 5), ("sft", 6)]
    # And where all stages are given anew, the new ones'.
    anew = ["stages=[{algorithm: rloo, steps: 3}]", "stages.rloo.steps=4"]
    assert [(stage.label, stage.steps) for stage in load_recipe(recipe_file, anew).stages] == [("rloo", 4)]


@pytest.mark.parametrize("second", ["stages.grpo.steps=5", "stages.1.steps=4"])
def test_an_override_given_twice_is_refused(recipe_file: Path, second: str) -> None:
    with pytest.raises(ValueError, match=rf"{second}.*given twice, as 'stages\.grpo\.steps=4' before"):
        load_recipe(recipe_file, ["stages.grpo.steps=4", "seed=1", second])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("steps", "key=value"),
        ("stages.grop.steps=3", "is neither a position nor a name; did you mean `grpo`?"),
        ("name.first=x", "is a value, not a group"),
        ("stages.grpo.stepz=3", "`steps`"),
        ("rewards=[tag_anser", "override 'rewards=[tag_anser': not valid YAML"),
        ("model={source: x, source: y}", "override 'model={source: x, source: y}': the key `source` stands twice"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(recipe_file: Path, override: str, part: str) -> None:
    recipe_file.write_text("name: me\n" + recipe_file.read_text())
    with pytest.raises(ValueError, match=re.escape(part)):
        load_recipe(recipe_file, [override])


def test_a_missing_file_names_the_nearest(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match=r"did you mean `mine\.yaml`"):
        load_recipe(recipe_file.with_name("mien.yaml"))


def test_bad_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("task: {kind: arithmetic\nstages: [")
    with pytest.raises(ValueError, match="line 2"):
        load_recipe(path)


def test_a_key_given_twice_is_refused_with_its_lines(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + "model:\n  source: x\n  precision: fp32\n  source: y\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: the key `source` stands twice in one mapping, on lines 7 and 9"):
        load_recipe(recipe_file)


def test_dapo_brings_its_dynamic_sampling_and_overlong_shaping_and_its_loss_alone_does_not() -> None:
    def stage(algorithm: str, **given: Any) -> PolicySettings:
        made = {"algorithm": algorithm, "steps": 3, "sampling": {"max_new_tokens": 50}, **given}
        [parsed] = parse_recipe({**BASE, "stages": [made]}).stages
        assert isinstance(parsed, PolicySettings)
        return parsed

    whole, loss = stage("dapo"), stage("dapo-loss")
    assert (whole.refills, whole.overlong_buffer) == (10, 10)
    assert (loss.refills, loss.overlong_buffer) == (0, 0)
    given = stage("dapo", refills=2, overlong_buffer=0)
    assert (given.refills, given.overlong_buffer) == (2, 0)
    assert whole.optimizer == loss.optimizer
    assert stage("dapo", sampling={"max_new_tokens": 3}).overlong_buffer == 1


def test_a_kind_of_stage_says_of_itself_what_its_rows_say() -> None:
    for kind, names in kinds_of_stage().items():
        rows = [algorithm(name) for name in names]
        assert rows and {(row.source, row.trains) for row in rows} == {(kind.source, kind.trains)}
        assert bool(kind.no_sampling_because) == (kind is not PolicySettings)
