"""Schedules by hand; the order of problems as a function of the step."""

import pytest
import torch
from safetensors.torch import save_file
from train.building import learner_of, tiny_policy

import outscore.train.checkpoint as checkpoint_module
from outscore.config import parse_recipe
from outscore.stage_parts import OptimizerSettings
from outscore.train.checkpoint import Progress, load_trainer_state
from outscore.train.optim import learning_rate, make_optimizer, moment_bytes, take_step
from outscore.train.order import batch_indices, refill_index
from outscore.train.setup import check_before_loading


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


def test_moments_in_8_bits_by_hand():
    # 8 bytes a weight; or a byte for each moment with a scale for each 256, of tensors that are large enough.
    assert moment_bytes([5000, 100], "fp32") == 8 * 5100
    assert moment_bytes([5000, 100], "8bit") == 2 * 5000 + 2 * 4 * 20 + 8 * 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they work")
def test_moments_in_8_bits_need_a_gpu_and_the_error_says_what_would_help():
    recipe = {
        "task": {"kind": "arithmetic"},
        "rewards": ["last_number"],
        "stages": [{"algorithm": "grpo", "steps": 1, "optimizer": {"states": "8bit"}}],
    }
    with pytest.raises(ValueError, match=r"stage `grpo`: optimizer.states = '8bit' needs a CUDA GPU.*model.lora"):
        check_before_loading(parse_recipe(recipe))


@pytest.mark.gpu
def test_moments_in_8_bits_take_nearly_the_step_of_fp32():
    pytest.importorskip("bitsandbytes")
    moved = {}
    for states in ("fp32", "8bit"):
        weight = torch.nn.Parameter(torch.zeros(128, 128, device="cuda"))
        optimizer = make_optimizer([weight], OptimizerSettings(lr=0.1, states=states))
        generator = torch.Generator("cuda").manual_seed(0)
        for _ in range(5):
            weight.grad = torch.randn(128, 128, device="cuda", generator=generator)
            take_step(optimizer, [weight], 0.1, 1e9)
        moved[states] = weight.detach()
    assert (moved["8bit"] - moved["fp32"]).norm() <= 0.1 * moved["fp32"].norm()


class OneNumber(torch.optim.Optimizer):
    """Keeps its state as bitsandbytes does: steps in a plain number, a table that parameters share."""

    table = torch.arange(4.0)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                before = self.state[parameter].get("step", 0)
                state1 = torch.full_like(parameter, 7, dtype=torch.uint8)
                self.state[parameter] = {"step": before + 1, "state1": state1, "qmap1": self.table}


def test_states_of_any_optimizer_go_through_a_checkpoint(tmp_path):
    policy = tiny_policy()
    learner = learner_of(policy)
    parameters = list(learner.masters.parameters.values())
    learner.optimizer = OneNumber(parameters, {})
    learner.optimizer.step()
    learner.optimizer.step()
    tensors = checkpoint_module._trainer_tensors(learner)
    save_file(tensors, tmp_path / "trainer.safetensors")
    other = learner_of(tiny_policy())
    progress = Progress(stage="s", step=2, finished=False, policy_version=2, num_updates=2)
    load_trainer_state(tmp_path, other, progress)
    for parameter in other.masters.parameters.values():
        state = other.optimizer.state[parameter]
        assert state["step"] == 2 and isinstance(state["step"], int)
        assert state["state1"].dtype is torch.uint8 and int(state["state1"].max()) == 7
        assert torch.equal(state["qmap1"], OneNumber.table)


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
