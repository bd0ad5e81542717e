"""Index tensors on their way to a device; `meta` stands for one that is not a CPU."""

import numpy as np
import pytest
import torch

from outscore.model import transfer
from outscore.model.transfer import indices_on_device, on_device

ARRAYS = [np.arange(6).reshape(2, 3), np.array([7, 8]), np.array([], dtype=np.int64)]


def test_arrays_arrive_with_their_numbers_and_shapes(monkeypatch):
    at_once = indices_on_device(ARRAYS, "cpu")
    monkeypatch.setattr(transfer, "on_device", lambda tensor, device: tensor.clone())
    together = indices_on_device(ARRAYS, "meta")
    for array, one, other in zip(ARRAYS, at_once, together, strict=True):
        assert one.shape == other.shape == array.shape and one.dtype == other.dtype == torch.int64
        assert one.tolist() == other.tolist() == array.tolist()


def test_all_of_them_go_in_one_transfer(monkeypatch):
    moved = []
    monkeypatch.setattr(transfer, "on_device", lambda *call: moved.append(call) or on_device(*call))
    assert [each.device.type for each in indices_on_device(ARRAYS, "meta")] == ["meta"] * 3
    assert [len(tensor) for tensor, _ in moved] == [8]


@pytest.mark.gpu
def test_a_gpu_that_is_at_work_is_not_waited_for():
    values = torch.arange(1 << 20)
    on_device(values, "cuda")  # whatever waits the first time only
    busy = torch.ones(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            busy = busy @ busy
        moved = on_device(values, "cuda")
        assert not torch.cuda.current_stream().query()  # the products go on
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(moved.cpu(), values)
