"""A checkpoint of a run with LoRA as the model of another recipe: its adapter is merged, or the recipe refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.stopping import BOUNDARY, Stops, contents

from outscore.config import ModelSettings, parse_recipe
from outscore.model.export import load_with_adapter
from outscore.model.load import load_model
from outscore.report import RunDirectory
from outscore.tasks import make_task
from outscore.train.plan import plan_recipe
from outscore.train.run import resume, run_recipe
from outscore.train.setup import load_policy

SFT = {**BOUNDARY["stages"][0], "steps": 2}
QUIET = {"evaluation": {"problems": 0}, "checkpoints": {"every": 1}}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a short run with LoRA."""
    folder = tmp_path_factory.mktemp("lora")
    base, _ = load_policy(ModelSettings(**BOUNDARY["model"]), make_task(**BOUNDARY["task"]), seed=3)
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    model = {"source": str(folder / "base"), "precision": "fp32", "lora": {"rank": 2}}
    found = run_recipe({**BOUNDARY, **QUIET, "model": model, "stages": [SFT]}, folder / "run").checkpoint
    assert found is not None and (found / "adapter_config.json").is_file()
    return found


def recipe(adapter: Path, **model: Any) -> dict[str, Any]:
    return {**BOUNDARY, **QUIET, "model": {"source": str(adapter), "precision": "fp32", **model}, "stages": [SFT]}


def merged_by_hand(adapter: Path) -> dict[str, torch.Tensor]:
    """The base's weights, with W + (alpha / rank) B A where there is an adapter."""
    stored = load_file(adapter / "adapter_model.safetensors")
    weights = {
        name: each.detach() for name, each in load_model(str(adapter.parents[3] / "base")).model.named_parameters()
    }
    for name in [name for name in stored if "lora_A" in name]:
        place = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        update = stored[name.replace("lora_A", "lora_B")] @ stored[name]
        assert update.abs().max() > 1e-5
        weights[place] = weights[place] + 32.0 / 2 * update
    return weights


def test_it_begins_as_what_base_and_adapter_compute_and_all_weights_are_trained(tmp_path: Path, adapter: Path) -> None:
    policy, found = load_policy(parse_recipe(recipe(adapter)).model, None, seed=0)
    began = dict(policy.model.named_parameters())
    expected = merged_by_hand(adapter)
    assert began.keys() == expected.keys()
    for name, weight in began.items():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-6)
    assert found["weights_sha256"] != load_with_adapter(adapter).sha256  # which is the base's
    whole = run_recipe(recipe(adapter), tmp_path / "whole")
    assert whole.checkpoint is not None
    trained = dict(load_model(str(whole.checkpoint)).model.named_parameters())
    assert all(not torch.equal(trained[name], began[name]) for name in began)
    assert RunDirectory.open(whole.path).weights_sha256 == found["weights_sha256"]


@pytest.mark.parametrize("step", [0, 1])
def test_such_a_run_resumes_exactly(tmp_path: Path, adapter: Path, step: int) -> None:
    run_recipe(recipe(adapter), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(adapter), tmp_path / "run", console=Stops("sft", step))
    assert resume(tmp_path / "run").finished
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_its_memory_is_that_of_a_whole_model(adapter: Path) -> None:
    [merged] = plan_recipe(parse_recipe(recipe(adapter))).stages
    [whole] = plan_recipe(parse_recipe(recipe(adapter.parents[3] / "base"))).stages
    assert merged.phases == whole.phases


def test_adapters_on_adapters_are_refused_before_any_work(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a LoRA adapter, and model\.lora .*`outscore export .* DIRECTORY`"):
        run_recipe(recipe(adapter, lora={"rank": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
