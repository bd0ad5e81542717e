"""Memory counted before a run: phases by hand, the order of algorithms, no weights, and what a command says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from outscore.cli import app
from outscore.config import parse_recipe
from outscore.model.heads import reward_model_from
from outscore.model.tiny import tiny_model
from outscore.records import Problem, Prompt
from outscore.train.extent import Extent, largest_step, sampling_extent, stored, update_extent
from outscore.train.memory import DecoderShape, working_bytes
from outscore.train.plan import StageMemory, Trained, plan_recipe, plan_stages
from outscore.train.scorers import num_stored, scoring_models
from outscore.train.setup import prepare

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 2, "num_heads": 2}, "precision": "fp32"}
STAGE = {
    "algorithm": "grpo",
    "steps": 1,
    "prompts_per_step": 2,
    "group_size": 3,
    "sampling": {"max_new_tokens": 5},
}


def recipe_of(stage: dict[str, Any], **changes: Any) -> Any:
    data = {
        "model": TINY,
        "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 4, "num_demonstrations": 4, "num_preferences": 4},
        "rewards": ["last_number"],
        "scoring": {"isolate": False},
        "stages": [{**STAGE, **stage}],
    }
    return parse_recipe({**data, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory, and a reward model's below it."""
    folder = tmp_path_factory.mktemp("models")
    workshop = prepare(recipe_of({}))
    workshop.policy.model.save_pretrained(folder / "model")
    workshop.policy.tokenizer.save_pretrained(folder / "model")
    scorer = reward_model_from(workshop.policy, seed=0, end_token_id=None)
    scorer.model.save_pretrained(folder / "scorer")
    workshop.policy.tokenizer.save_pretrained(folder / "scorer")
    return folder


def only(recipe: Any) -> StageMemory:
    [stage] = plan_recipe(recipe).stages
    return stage


def test_each_thing_that_an_algorithm_does_without_is_memory_saved(saved: Path) -> None:
    """PPO > GRPO with a reward model > GRPO with rules > beta = 0, and by what."""
    asks = {"rewards": [{"name": "reward_model", "path": str(saved / "scorer")}]}
    ppo, model, rules, alone = map(
        only,
        (
            recipe_of({"algorithm": "ppo", **asks}),
            recipe_of(asks),
            recipe_of({}),
            recipe_of({"cells": {"kl_coef": 0.0}}),
        ),
    )
    assert ppo.total > model.total > rules.total > alone.total
    assert [set(each.parts) & {"critic", "reward model", "reference"} for each in (ppo, model, rules, alone)] == [
        {"critic", "reward model", "reference"},
        {"reward model", "reference"},
        {"reference"},
        set(),
    ]
    weights = alone.parts["weights"]
    assert rules.total - alone.total == weights  # a copy of the policy
    assert model.total - rules.total == num_stored(saved / "scorer") * 4


SHAPE = DecoderShape(num_layers=2, hidden=4, intermediate=6, query=4, key_value=2, num_heads=2, vocab=10)
EXTENT = Extent(num_tokens=10, num_predictions=7, num_pairs=100, num_micro_batches=1)


def trained(**changes: Any) -> Trained:
    values = {
        "shape": SHAPE,
        "device": torch.device("cpu"),
        "num_parameters": 1000,
        "num_trained": 1000,
        "num_head": 40,
        "is_tied": True,
        "bytes_per_weight": 4,
        "bytes_of_moments": 8000,
        "has_vocabulary": True,
        "recomputed": False,
        "keeps_scores": False,
        "keeps_masks": False,
    }
    return Trained(**{**values, **changes})


LAYER = 2 * 4 * (4 + 8) + (3 * 4 + 2 * 2 + 4 * 6) * 4 + 2 * 4  # norms, inner values, a log-sum-exp for each head


def test_the_backward_pass_by_hand() -> None:
    begins, ends = trained().backward_begins(EXTENT), trained().backward_ends(EXTENT)
    assert trained().held == {"weights": 4000, "masters": 0, "optimizer": 8000}
    # The head's gradient alone; both layers, the last hidden states and what they are gathered to; 7 rows of logits.
    assert begins == {"gradients": 160, "activations": 10 * (2 * LAYER + 3 * 4 * 4), "logits": 4 * 4 * 7 * 10}
    # All gradients, and the tied embedding's a second time; one layer, and what it computes with.
    assert ends == {"gradients": 4160, "activations": 10 * LAYER + 10 * 4 * (2 * 4 + max(3 * 6, 5 * 4 + 6 * 2))}


def test_gradients_of_earlier_micro_batches_wait() -> None:
    second = Extent(num_tokens=10, num_predictions=7, num_pairs=100, num_micro_batches=2)
    assert trained().backward_begins(second)["gradients"] == 4000 + 160
    assert trained().backward_ends(second)["gradients"] == 4000 + 160
    in_bf16 = trained(bytes_per_weight=2)  # its gradients are other tensors than the masters'
    assert in_bf16.held == {"weights": 2000, "masters": 4000, "optimizer": 8000}
    assert in_bf16.backward_begins(EXTENT)["gradients"] == 80
    assert in_bf16.backward_ends(EXTENT)["gradients"] == 4000  # the masters', which 2 bytes a weight became
    assert in_bf16.backward_ends(second)["gradients"] == 4000 + 2000 + 80


def test_adapters_a_scalar_head_recomputation_and_scores() -> None:
    adapters = trained(num_trained=50, num_head=0, bytes_of_moments=400)
    assert adapters.held == {"weights": 4000, "masters": 0, "optimizer": 400}
    assert adapters.backward_ends(EXTENT)["gradients"] == 200
    assert "logits" not in trained(has_vocabulary=False, num_head=0).backward_begins(EXTENT)
    plain, recomputed = trained().backward_begins(EXTENT), trained(recomputed=True).backward_begins(EXTENT)
    assert plain["activations"] - recomputed["activations"] == 10 * LAYER - 10 * 2 * 4 * 4
    scores = trained(keeps_scores=True).backward_begins(EXTENT)["activations"] - plain["activations"]
    assert scores == 2 * 4 * 2 * 100 * 2  # scores and weights, fp32, heads, pairs, layers


def test_the_largest_step_is_packed_as_the_trainer_packs() -> None:
    recipe = recipe_of({"token_budget": 30})
    workshop = prepare(recipe, outlined=True)
    stage, materials = recipe.stages[0], workshop.materials[0]
    lengths = sorted((len(prompt.token_ids) for prompt in materials.train_prompts), reverse=True)[:2]
    groups = largest_step(stage, materials)
    assert [len(group.prompt_ids) for group in groups] == lengths
    assert all(len(c.token_ids) == 5 for group in groups for c in group.completions)
    found = update_extent(stage, materials, workshop.policy)
    assert found.num_micro_batches == 2  # each group is at most 30 tokens, both are more
    assert (found.num_tokens, found.num_predictions) == (lengths[0] + 15, 15)
    # A subtree this small is one problem: all its tokens against all.
    assert found.num_pairs == found.num_tokens**2


def test_what_an_engine_stores_by_hand() -> None:
    problem = Problem(id="p", question="", answer=None, columns={})
    prompts = [Prompt(problem=problem, text="", token_ids=(1,) * size) for size in (100, 90, 70, 10)]
    # All four prompts are open for 8 rows of groups of 2: three in a block of 128, which has 4 entries, one in 64.
    found = stored(prompts, 2, max_rows=100, max_new_tokens=7)
    assert (found.num_rows, found.num_slots, found.num_prefilled) == (8, 4 * 128 + 64 + 8 * 7, 270)
    few = stored(prompts, 2, max_rows=3, max_new_tokens=7)  # two prompts at a time
    assert (few.num_rows, few.num_slots, few.num_prefilled) == (3, 2 * 128 + 3 * 7, 190)


@pytest.mark.parametrize(
    "stage",
    [
        {},
        {"algorithm": "ppo"},
        {"algorithm": "sft", "batch_size": 2},
        {"algorithm": "dpo", "batch_size": 2},
        {"algorithm": "reward-model", "batch_size": 2},
        {"algorithm": "rft", "num_prompts": 4},
        {"algorithm": "outcome-reward-model", "sample": {"num_prompts": 4, "sampling": {"max_new_tokens": 5}}},
    ],
    ids=lambda stage: str(stage.get("algorithm", "grpo")),
)
def test_every_kind_of_stage_is_counted_alike_with_and_without_weights(stage: dict[str, Any]) -> None:
    own = {"algorithm": "grpo", "steps": 1, **stage}
    sampled = own["algorithm"] in ("grpo", "ppo")
    recipe = recipe_of({}, stages=[{**STAGE, **own} if sampled else own])
    workshop = prepare(recipe, outlined=True)
    assert all(parameter.device.type == "meta" for parameter in workshop.policy.model.parameters())
    counted = plan_stages(recipe, workshop)
    assert counted == plan_stages(recipe, prepare(recipe))
    assert (sampling_extent(recipe.stages[0], workshop.materials[0]) is None) == ("sampling" not in counted[0].phases)
    assert counted[0].total == sum(counted[0].phases[counted[0].peak].values()) > 0


def test_a_directory_needs_no_weights(saved: Path, tmp_path: Path) -> None:
    for file in (saved / "model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    found = only(recipe_of({}, model={"source": str(tmp_path), "precision": "fp32"}))
    built = only(recipe_of({}))
    assert found == built
    with pytest.raises(ValueError, match="no weights"):
        prepare(recipe_of({}, model={"source": str(tmp_path), "precision": "fp32"}))


def test_models_that_score_are_found_by_path_stage_and_name(saved: Path) -> None:
    recipe = recipe_of({})
    policy = prepare(recipe, outlined=True).policy
    named = {"rewards": [{"name": "reward_model", "path": [str(saved / "scorer"), str(saved / "scorer")]}]}
    found = scoring_models(recipe_of(named), recipe_of(named).stages[0], policy)
    assert len(found) == 2 and found[0].num_bytes == 4 * num_stored(saved / "scorer")
    own = {"rewards": [{"name": "perplexity", "path": str(saved / "model"), "token_budget": 64}]}
    [judge] = scoring_models(recipe_of(own), recipe_of(own).stages[0], policy)
    assert judge.num_parameters == sum(p.numel() for p in policy.model.parameters())
    # 64 tokens are two rows of 30; each layer's states, and a mask that was true and false before it was numbers.
    assert judge.working_bytes(8, 30) == working_bytes(judge.shape, 60, bytes_per_value=4) + 5 * 2 * 30 * 30
    assert scoring_models(recipe, recipe.stages[0], policy) == []


def test_weights_are_counted_from_the_header_of_their_file(saved: Path) -> None:
    model, _ = tiny_model("ab", [], 0, hidden_size=16, num_layers=1, num_heads=2)
    model.save_pretrained(saved / "other")
    assert num_stored(saved / "other") == model.num_parameters()


def test_the_command_prints_a_table_or_data(saved: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    stage = json.dumps(STAGE)
    recipe.write_text(
        f"model: {json.dumps(TINY)}\ntask: {{kind: arithmetic, num_train: 8, num_eval: 4}}\nrewards: [last_number]\n"
        f"stages: [{stage}]\n"
    )
    shown = CliRunner().invoke(app, ["plan", str(recipe)])
    assert shown.exit_code == 0, shown.output
    assert "backward begins" in shown.output.replace("\n", " ") or "backward" in shown.output
    assert "at the peak" in shown.output and "Taken for granted" in shown.output
    data = json.loads(CliRunner().invoke(app, ["plan", str(recipe), "--json", "stages.grpo.group_size=6"]).output)
    assert data["stages"][0]["total"] > 0 and data["total"] == data["interpreter"] + data["stages"][0]["total"]
    wrong = CliRunner().invoke(app, ["plan", str(recipe), "stages.grpo.token_budgt=5"])
    assert wrong.exit_code == 1 and "did you mean `token_budget`" in wrong.output


def test_planning_leaves_torch_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    plan_recipe(recipe_of({}))
    assert torch.equal(torch.rand(1), expected)
