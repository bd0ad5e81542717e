"""LoRA: the update is (alpha / rank) B A, and off means the base model exactly."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import build_family, each_family
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from outscore.model.adapters import add_lora, has_adapters, load_lora, merge, trainable_parameters

IDS = torch.tensor([[3, 9, 4, 17, 8], [5, 5, 6, 30, 2]])
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def _trained(family: str = "llama") -> PreTrainedModel:
    """A model whose adapters are not at their neutral start."""
    model = add_lora(build_family(family), rank=4, alpha=8.0)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@each_family
def test_a_new_adapter_changes_nothing(family: str, family_model: Callable[[str], PreTrainedModel]) -> None:
    model = add_lora(build_family(family), rank=4, alpha=8.0)
    torch.testing.assert_close(_logits(model), _logits(family_model(family)), rtol=0, atol=0)


@each_family
def test_switched_off_the_model_is_its_base(family: str, family_model: Callable[[str], PreTrainedModel]) -> None:
    model = _trained(family)
    base = _logits(family_model(family))
    assert not torch.allclose(_logits(model), base, atol=1e-3)
    model.disable_adapters()
    torch.testing.assert_close(_logits(model), base, rtol=0, atol=0)
    model.enable_adapters()
    assert not torch.allclose(_logits(model), base, atol=1e-3)


@each_family
def test_merged_the_model_computes_what_it_did_with_adapters(family: str) -> None:
    model = _trained(family)
    expected = _logits(model)
    merge(model)
    assert not has_adapters(model)
    assert model.state_dict().keys() == build_family(family).state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(_logits(model), expected, rtol=1e-4, atol=1e-4)


def test_merging_adds_alpha_over_rank_times_b_a() -> None:
    model = _trained()
    layer = model.get_submodule("model.layers.1.self_attn.q_proj")
    a = layer.lora_A["default"].weight.detach()
    b = layer.lora_B["default"].weight.detach()
    base = layer.get_base_layer().weight.detach().clone()
    expected = base.clone()
    for i in range(expected.shape[0]):
        for j in range(expected.shape[1]):
            expected[i, j] += 8.0 / 4 * sum(b[i, r] * a[r, j] for r in range(4))
    merge(model)
    torch.testing.assert_close(model.get_parameter("model.layers.1.self_attn.q_proj.weight"), expected)
    assert not torch.allclose(expected, base)


def test_only_adapters_train_and_they_cover_all_linear_layers_but_the_head() -> None:
    model = add_lora(build_family("llama"), rank=4, alpha=8.0)
    trainable = trainable_parameters(model)
    assert all("lora_" in name for name in trainable)
    assert sorted({name.split(".lora_")[0].rpartition(".")[2] for name in trainable}) == LINEAR
    layer = [p for name, p in trainable.items() if ".layers.0.self_attn.q_proj." in name]
    assert sorted(tuple(p.shape) for p in layer) == [(4, 32), (32, 4)]


def test_targets_choose_the_layers() -> None:
    model = add_lora(build_family("llama"), rank=2, alpha=2.0, targets=["v_proj", "q_proj"])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable_parameters(model)} == {"q_proj", "v_proj"}


def test_an_unknown_target_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"'q_porj' is no linear layer .* did you mean `q_proj`\?"):
        add_lora(build_family("llama"), rank=2, alpha=2.0, targets=["q_porj"])


@pytest.mark.parametrize(("rank", "dropout"), [(0, 0.0), (4, 1.0), (4, -0.1)])
def test_impossible_settings_are_refused(rank: int, dropout: float) -> None:
    with pytest.raises(ValueError, match=f"rank={rank}, dropout={dropout}"):
        add_lora(build_family("llama"), rank=rank, alpha=2.0, dropout=dropout)


def test_the_seed_decides_a_and_torchs_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    models = [add_lora(build_family("llama"), rank=4, alpha=8.0, seed=seed) for seed in (0, 0, 1)]
    states = [trainable_parameters(model) for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    a = next(name for name in states[0] if "lora_A" in name)
    assert not torch.equal(states[0][a], states[2][a])
    torch.random.set_rng_state(before)


def test_a_saved_adapter_goes_back_into_its_base(tmp_path: Path) -> None:
    model = _trained()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()
    again = load_lora(build_family("llama"), tmp_path)
    torch.testing.assert_close(_logits(again), _logits(model), rtol=0, atol=0)
    assert not trainable_parameters(again)
    assert trainable_parameters(load_lora(build_family("llama"), tmp_path, trainable=True)).keys() == (
        trainable_parameters(model).keys()
    )


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    add_lora(build_family("llama"), rank=2, alpha=2.0, targets=["q_proj"]).save_pretrained(tmp_path)
    other = tmp_path / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): t for name, t in load_file(other).items()}, other)
    with pytest.raises(ValueError, match=r"is of another model: 4 weights, as 'model\.layers\.1"):
        load_lora(build_family("llama"), tmp_path)


def test_what_needs_adapters_says_so(tmp_path: Path) -> None:
    model = build_family("llama")
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge(model)
    with pytest.raises(ValueError, match="holds no LoRA adapter"):
        load_lora(model, tmp_path)
    with pytest.raises(ValueError, match="adapter already"):
        add_lora(_trained(), rank=2, alpha=2.0)


def test_a_broken_adapter_is_not_merged() -> None:
    model = _trained()
    with torch.no_grad():
        next(iter(trainable_parameters(model).values())).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        merge(model)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"outscore\[lora\]"):
        add_lora(build_family("llama"), rank=2, alpha=2.0)
