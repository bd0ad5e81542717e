"""Products turned round are the same products."""

import pytest
import torch
from torch import nn

from outscore.rollout.linear import FEW_ROWS, turned_round


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS, FEW_ROWS + 1])
def test_a_layer_computes_what_it_always_does(rows: int, bias: bool) -> None:
    layer, states = nn.Linear(24, 40, bias=bias), torch.randn(1, rows, 24)
    expected = states.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
    with torch.inference_mode(), turned_round(nn.Sequential(layer)):
        found = layer(states)
        strided = layer(states.transpose(1, 2).contiguous().transpose(1, 2))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(strided.double(), expected, rtol=0, atol=1e-5)


def test_a_layer_is_itself_again_after_the_block() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(KeyError), turned_round(layer):
        assert "forward" in vars(layer)
        raise KeyError
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 3, dtype=dtype)
    with turned_round(layer):
        assert "forward" not in vars(layer)
