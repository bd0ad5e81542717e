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
        ({"stages": [{**GRPO, "group_sise": 8}]}, ["stages.0.group_sise", "`group_size`"]),
        ({"stages": [{**GRPO, "optimizer": {"learning_rate": 1}}]}, ["stages.0.optimizer.learning_rate", "lr"]),
        ({"stages": [{**GRPO, "group_size": 0}]}, ["stages.0.group_size", "0", "greater than or equal to 1"]),
        ({"stages": [{**GRPO, "steps": 0}]}, ["stages.0.steps", "0"]),
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


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("steps", "key=value"),
        ("stages.grop.steps=3", "there are sft, grpo"),
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
