"""Schedules by hand; the order of problems as a function of the step."""

import pytest
import torch

from outscore.stage_parts import OptimizerSettings
from outscore.train.optim import learning_rate, make_optimizer, take_step
from outscore.train.order import batch_indices, refill_index


def rates(steps: int, **settings) -> list[float]:
    return [learning_rate(OptimizerSettings(lr=1.0, **settings), update, steps) for update in range(steps)]


def test_warm_up_climbs_to_the_peak_and_stays():
    assert rates(5, warmup_steps=3) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_falls_evenly_to_its_final_fraction():
    assert rates(5, schedule="linear", final_fraction=0.0) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_in_the_middle():
    assert rates(4, schedule="cosine", final_fraction=0.2)[2] == pytest.approx(0.6)


def test_weight_decay_touches_matrices_only():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([matrix, vector], OptimizerSettings(lr=0.1, weight_decay=0.5))
    take_step(optimizer, [matrix, vector], 0.1, 1.0)
    assert torch.allclose(matrix, torch.full((2, 2), 0.95)) and torch.equal(vector, torch.ones(2))


def test_gradients_are_scaled_to_the_norm_and_the_norm_before_is_reported():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.SGD([parameter], lr=9.0)
    assert float(take_step(optimizer, [parameter], 1.0, 1.0)) == pytest.approx(5.0)
    assert torch.allclose(parameter, torch.tensor([-0.6, -0.8]))
    assert parameter.grad is None


def test_a_gradient_that_is_no_number_changes_nothing():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([float("nan"), 1.0])
    with pytest.raises(FloatingPointError, match="not applied"):
        take_step(torch.optim.SGD([parameter], lr=1.0), [parameter], 1.0, 1.0)
    assert torch.equal(parameter, torch.zeros(2))


def test_every_epoch_is_a_permutation_and_epochs_differ():
    drawn = [i for step in range(1, 8) for i in batch_indices(0, 0, step, 3, 7)]
    epochs = [drawn[:7], drawn[7:14], drawn[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(batch_indices(0, 0, 1, 6, 3)) == [0, 0, 1, 1, 2, 2]


def test_seeds_and_stages_have_orders_of_their_own():
    orders = {tuple(batch_indices(seed, stage, 1, 20, 20)) for seed in (0, 1) for stage in (0, 1)}
    assert len(orders) == 4


def test_refills_depend_on_their_key_alone():
    keys = [(0, 1, 2, 3, 4), (0, 1, 2, 3, 5), (0, 1, 2, 4, 4), (1, 1, 2, 3, 4)]
    drawn = [refill_index(*key, 10**9) for key in keys]
    assert drawn == [refill_index(*key, 10**9) for key in keys]
    assert len(set(drawn)) == 4
