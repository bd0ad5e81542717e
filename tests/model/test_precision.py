"""Choosing a precision, and fp32 masters beside a bf16 model."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from outscore.model.precision import MIN_SPEEDUP, MasterWeights, decide, probe_precision, seconds_per_gemm
from outscore.model.tiny import tiny_model

CPU = torch.device("cpu")


def _tiny() -> LlamaForCausalLM:
    return tiny_model("0123456789", [], 0, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)[0]


@pytest.mark.parametrize(("bf16", "expected"), [(0.25, "bf16"), (1 / 1.31, "bf16"), (1 / 1.29, "fp32"), (4.0, "fp32")])
def test_bf16_must_be_clearly_faster(bf16: float, expected: str) -> None:
    assert MIN_SPEEDUP == 1.3
    assert decide(1.0, bf16).precision == expected


def test_the_probe_sums_the_times_of_the_models_own_products() -> None:
    asked = []

    def timed(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
        assert device == CPU
        asked.append((dtype, shape))
        return 1.0 if dtype == torch.bfloat16 else 3.0

    probe = probe_precision("cpu", hidden_size=8, intermediate_size=16, time_gemm=timed)
    shapes = {(n, *pair) for n in (512, 32) for pair in ((8, 8), (8, 16), (16, 8))}
    assert set(asked) == {(dtype, shape) for dtype in (torch.float32, torch.bfloat16) for shape in shapes}
    assert probe.precision == "bf16" and probe.seconds == {"fp32": 18.0, "bf16": 6.0}
    assert "3.0x" in probe.reason


def test_a_device_without_bf16_products_gets_fp32() -> None:
    def timed(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
        if dtype == torch.bfloat16:
            raise RuntimeError("BFloat16 is not supported")
        return 1.0

    probe = probe_precision("cpu", time_gemm=timed)
    assert probe.precision == "fp32" and "BFloat16 is not supported" in probe.reason


def test_a_real_product_takes_a_positive_time() -> None:
    assert seconds_per_gemm(CPU, torch.float32, (4, 8, 8)) > 0.0


def test_in_fp32_the_masters_are_the_models_parameters() -> None:
    model = _tiny()
    masters = MasterWeights(model, torch.float32)
    assert not masters.separate
    assert all(masters.parameters[name] is p for name, p in model.named_parameters())
    nn.functional.mse_loss(model(torch.tensor([[2, 3]])).logits, torch.zeros(1, 2, 12)).backward()
    gradient = model.model.norm.weight.grad
    masters.gather_gradients()
    assert masters.parameters["model.norm.weight"].grad is gradient is not None
    masters.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_in_bf16_masters_keep_the_exact_weights_and_the_model_their_rounding() -> None:
    model = _tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inverse_frequencies = model.model.rotary_emb.inv_freq.clone()
    masters = MasterWeights(model, torch.bfloat16)
    assert masters.separate and masters.parameters.keys() == before.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(masters.parameters[name], before[name])
        assert torch.equal(parameter, before[name].to(torch.bfloat16))
    assert torch.equal(model.model.rotary_emb.inv_freq, inverse_frequencies)  # fp32: buffers are not cast
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied


def _one_weight() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    return layer


def test_updates_too_small_for_bf16_add_up_in_the_masters() -> None:
    """1 - 2^-10 rounds to 1 in bf16 (spacing 2^-8 below 1); eight such steps make 1 - 2^-7, which bf16 can hold."""
    layer = _one_weight()
    masters = MasterWeights(layer, torch.bfloat16)
    optimizer = torch.optim.SGD(masters.parameters.values(), lr=2.0**-10)
    seen = []
    for _ in range(8):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        masters.gather_gradients()
        optimizer.step()
        masters.copy_back()
        masters.zero_grad()
        seen.append(layer.weight.item())
    assert seen[0] == 1.0 and seen[-1] == 1.0 - 2.0**-7


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    """256 + 1 is not a bf16 number: summed there, the second micro-batch would be lost."""
    layer = _one_weight()
    masters = MasterWeights(layer, torch.bfloat16)
    for value in (256.0, 1.0):
        layer(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
        masters.gather_gradients()
    master = masters.parameters["weight"]
    assert master.grad is not None and master.grad.dtype == torch.float32
    assert master.grad.item() == 257.0 and layer.weight.grad is None


def test_frozen_parameters_have_no_master_but_are_cast() -> None:
    model = _tiny()
    model.model.embed_tokens.weight.requires_grad_(False)
    masters = MasterWeights(model, torch.bfloat16)
    assert "model.embed_tokens.weight" not in masters.parameters
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_restores_masters_and_model(dtype: torch.dtype) -> None:
    first, second = MasterWeights(_tiny(), dtype), _tiny()
    state = {name: value + 0.25 for name, value in first.state_dict().items()}
    masters = MasterWeights(second, dtype)
    masters.load_state_dict(state)
    for name, parameter in second.named_parameters():
        assert torch.equal(masters.parameters[name], state[name])
        assert torch.equal(parameter, state[name].to(dtype))


def test_a_state_of_another_model_is_refused_before_anything_changes() -> None:
    masters = MasterWeights(_tiny(), torch.bfloat16)
    state = {name: value.clone() + 1 for name, value in masters.state_dict().items()}
    before = masters.parameters["model.embed_tokens.weight"].clone()
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' has shape \(3,\), but the model needs \(32,\)"):
        masters.load_state_dict(state | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="differ in 1 parameters, the first 'extra'"):
        masters.load_state_dict(state | {"extra": torch.ones(3)})
    assert torch.equal(masters.parameters["model.embed_tokens.weight"], before)
