"""What is wrong with a recipe is found before a model is loaded, and demonstrations end as the model ends a turn."""

import sys
from pathlib import Path
from typing import Any

import pytest

from outscore.config import parse_recipe
from outscore.model.policy import Policy
from outscore.model.tiny import tiny_model
from outscore.stage_rows import stage_algorithm
from outscore.tasks import make_task
from outscore.train import setup
from outscore.train.check import check_recipe
from outscore.train.materials import demonstration_groups, end_token_id
from outscore.train.run import run_recipe
from outscore.train.setup import prepare

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
SFT = {"algorithm": "sft", "steps": 1}
GRPO = {"algorithm": "grpo", "steps": 1}
TASK = {"kind": "arithmetic", "num_train": 4, "num_eval": 2, "num_demonstrations": 2}
BASE: dict[str, Any] = {"model": TINY, "task": TASK, "rewards": ["tag_answer"], "stages": [GRPO]}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(setup, "load_policy", load)


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        ({"trackers": ["wandb"]}, "wandb", r"outscore\[wandb\]"),
        ({"model": {"source": "some/model", "lora": {}}}, "peft", r"outscore\[lora\]"),
        ({"evaluation": {"correct": "nothing"}}, None, r"evaluation\.correct = 'nothing' is none of the rewards"),
        ({"stages": [{**GRPO, "name": "warm up"}]}, None, "'warm up' names files"),
    ],
)
def test_before_a_model_is_loaded_or_a_run_is_made(
    tmp_path: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    missing: str | None,
    message: str,
) -> None:
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    recipe = parse_recipe({**BASE, **changes})
    with pytest.raises((ValueError, ImportError), match=message):
        run_recipe(recipe, tmp_path / "run")
    with pytest.raises((ValueError, ImportError), match=message):
        check_recipe(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"algorithm": "grop", "steps": 1},
            r"recipe: `stages\.0\.algorithm` = 'grop' is not known; did you mean `grpo`",
        ),
        ({"algorithm": "stf", "batch_size": 3}, r"= 'stf' is not known; did you mean `sft`"),
        ({**GRPO, "cells": {"clip_hihg": 0.3}}, "stage `grpo`: 'clip_hihg' is not a cell .* did you mean `clip_high`"),
        ({**GRPO, "cells": {"source": "demonstrations"}}, "cells.source = 'demonstrations'"),
        ({**SFT, "cells": {"source": "policy"}}, "cells.source = 'policy'"),
        ({**SFT, "cells": {"mismatch_cap": 2.0}}, "stage `sft`: mismatch_cap=2.0"),
        ({**SFT, "cells": {"clip_high": 0.3}}, "stage `sft`: clip_high=0.3 has no effect"),
        ({**GRPO, "algorithm": "gspo", "cells": {"supervision": "process"}}, "use 'sequence_mean_token'"),
        ({**GRPO, "cells": {"reward": "none", "kl_coef": 0}}, "leaves nothing to learn"),
        ({**GRPO, "refresh_reference_every": 2, "cells": {"kl_coef": 0}}, "refresh_reference_every = 2 has no effect"),
    ],
)
def test_algorithms_and_cells_are_checked_when_a_recipe_is_read(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe({**BASE, "stages": [stage]})


def test_a_cell_that_repeats_the_source_is_fine() -> None:
    [stage] = parse_recipe({**BASE, "stages": [{**GRPO, "cells": {"source": "policy"}}]}).stages
    assert stage_algorithm(stage).source == "policy"


def long_rows(question: int, response: int) -> dict[str, Any]:
    """Two rows with questions and responses of so many characters, which are tokens of a tiny model."""
    rows = [{"question": mark * question, "answer": mark, "response": mark * response} for mark in "12"]
    return {"kind": "data", "rows": rows, "demonstration": "response", "eval_fraction": 0.5}


@pytest.mark.parametrize(("evaluated", "fits"), [(2, False), (0, True)])
def test_supervised_fine_tuning_leaves_the_room_that_its_evaluation_takes(evaluated: int, fits: bool) -> None:
    # Of 512 tokens an evaluation takes 256: a prompt of 300 fits for training only.
    data = {"task": long_rows(300, 4), "stages": [SFT], "evaluation": {"problems": evaluated}}
    recipe = parse_recipe({**BASE, **data})
    if fits:
        assert len(prepare(recipe).materials[0].demonstrations) == 1
    else:
        with pytest.raises(ValueError, match="has 300 tokens, and the model's context holds 512, which leaves 212"):
            prepare(recipe)


def test_a_demonstration_too_long_for_the_model_is_named() -> None:
    recipe = parse_recipe({**BASE, "task": long_rows(10, 502), "stages": [SFT]})
    with pytest.raises(ValueError, match=r"demonstration 'rows/.*' has 513 tokens .* context of 512"):
        prepare(recipe)


def chat_policy(template: str) -> Policy:
    model, tokenizer = tiny_model("0123456789", ["<u>", "<m>", "</t>"], 0, hidden_size=16, num_layers=1, num_heads=2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</t>"]})
    tokenizer.chat_template = template
    return Policy(model, tokenizer, stop_token_ids=frozenset({1}))


TURNS = (
    "{% for m in messages %}{{ '<u>' if m.role == 'user' else '<m>' }}{{ m.content }}</t>{% endfor %}"
    "{% if add_generation_prompt %}<m>{% endif %}"
)


@pytest.mark.parametrize(("template", "closing"), [("chat", "</t>"), ("auto", "</t>"), ("none", "<|end|>")])
def test_a_demonstration_ends_with_the_turn_end_of_the_template_that_renders_it(template: str, closing: str) -> None:
    policy = chat_policy(TURNS)
    task = make_task("data", rows=[{"question": "1", "response": "23"}] * 2, demonstration="response", eval_fraction=0)
    recipe = parse_recipe({**BASE, "prompt": {"template": template}, "stages": [SFT]})
    group = demonstration_groups(task, policy, recipe)[0]
    assert policy.tokenizer.convert_ids_to_tokens(list(group.completion.token_ids)) == ["2", "3", closing]


def test_without_an_end_of_text_any_stop_token_closes_a_demonstration_and_without_any_it_is_said() -> None:
    policy = chat_policy(TURNS)
    policy.tokenizer.eos_token = None
    assert end_token_id(policy, False) == 1
    policy.stop_token_ids = frozenset()
    with pytest.raises(ValueError, match="names an end token"):
        end_token_id(policy, False)
