"""The benchmark for a GPU: its limits against numbers worked by hand, and all of its code at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from repo.tree import ROOT
from transformers import Qwen2Config

CONFIG = Qwen2Config(
    vocab_size=10,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
)
"""A layer: 8 × (8 + 8 + 4 + 4) weights of attention and 3 × 8 × 16 of the feed-forward network, 576; the head: 80."""
SHAPES = {"name": "by-hand", "num_prompts": 2, "group_size": 3, "prompt_tokens": 5, "shortest": 4, "longest": 4}


def test_what_decoding_must_read():
    """Three steps read 1,728 + 80 weights; the t-th t tokens of 6 rows, and each the 5 of 2 prompts; a token is keys
    and values of 4 in 3 layers; two bytes a value."""
    from gpu_limits import decoding_bytes
    from workloads import Workload

    assert decoding_bytes(CONFIG, Workload(**SHAPES)) == 2 * (3 * 1_808 + 24 * (6 * (1 + 2 + 3) + 3 * 2 * 5))


def test_what_an_update_must_multiply():
    """For each prompt 5 + 12 tokens in the layers and 12 at the head. Pairs: 15 in the prompt, and for each completion
    10 of its own and 4 × 5; a pair costs 2 × 8 multiply-adds a layer. Two operations each, and three passes."""
    from gpu_limits import update_flops
    from workloads import Workload

    pairs = 15 + 3 * (10 + 20)
    assert update_flops(CONFIG, Workload(**SHAPES)) == 2 * 3 * 2 * (1_728 * 17 + 80 * 12 + 3 * 2 * 8 * pairs)


def test_unequal_lengths_read_and_multiply_their_own_tokens():
    """Two completions of 2 and 4 tokens after a prompt of 5: the longer takes three steps, in which weights and prompt
    are read; own tokens read are 1 and 1 + 2 + 3; pairs 3 + 2 × 5 and 10 + 4 × 5, beside the prompt's 15."""
    from gpu_limits import counted_limits, decoding_bytes, update_flops
    from workloads import Workload

    shapes = SHAPES | {"num_prompts": 1, "group_size": 2, "shortest": 2}
    work = Workload(**shapes)
    assert sorted(work.lengths()) == [2, 4]
    read = 2 * (3 * 1_808 + 24 * (1 + 6 + 3 * 5))
    multiplied = 6 * (1_728 * 11 + 80 * 6 + 3 * 2 * 8 * (15 + 13 + 30))
    assert decoding_bytes(CONFIG, work) == read and update_flops(CONFIG, work) == multiplied
    limits = counted_limits(CONFIG, work, 2.0, 4.0)
    assert limits == {"bandwidth": 2.0, "peak": 4.0, "sample": read / 2, "backward": multiplied / 4}
    flat = Workload(**shapes | {"num_prompts": 2, "flat_groups": 1})  # the flat group is sampled, and not trained on
    assert update_flops(CONFIG, flat) < 1.2 * multiplied < decoding_bytes(CONFIG, flat) * 40
    assert "backward" not in counted_limits(CONFIG, Workload(**shapes, kind="sampling"), 2.0, 4.0)


def test_a_gpu_runs_the_workloads_of_a_cpu_and_the_two_of_its_goals():
    from gpu_workloads import GPU_WORKLOADS, LARGE, SIZES
    from on_gpu import sides_of
    from workloads import WORKLOADS

    of_a_cpu = {name for name, work in WORKLOADS.items() if not work.demo_model}  # the demo's runs as it is
    assert LARGE.keys() == of_a_cpu | {"decoding", "step"}
    sides = ["trl", "trl, continuous batching", "outscore"]
    for name, work in GPU_WORKLOADS.items():
        assert work.num_completions % (work.trl_batch or 1) == 0
        padded = (work.trl_batch or 1) * (work.prompt_tokens + work.longest)
        assert padded <= next(sizes.trl_tokens for model, sizes in SIZES.items() if name.endswith(model))
        equal = len(set(work.lengths())) == 1
        assert sides_of(work, sides) == (sides if equal else ["trl", "outscore"])
        assert equal == name.startswith(("decoding-", "step-"))


def test_a_backward_pass_of_the_gpus_step_is_filled_by_whole_groups():
    from gpu_workloads import GPU_WORKLOADS

    for model in ("qwen-0.5b", "qwen-1.5b"):
        work = GPU_WORKLOADS[f"step-{model}"]
        group = work.prompt_tokens + sum(work.lengths()[: work.group_size])
        assert work.token_budget is not None and work.token_budget % group == 0


def test_the_models_have_the_sizes_of_their_names():
    from gpu_limits import num_weights
    from gpu_workloads import SIZES

    for name, billions in (("qwen-0.5b", 0.494), ("qwen-1.5b", 1.54)):
        assert sum(num_weights(Qwen2Config(**SIZES[name].config))) / 1e9 == pytest.approx(billions, rel=0.01)


def run(out: Path, *arguments: str) -> str:
    command = [sys.executable, "benchmarks/on_gpu.py", "--smoke", "--rounds", "1", "--steps", "2", *arguments]
    command += ["--out", str(out), "--keep", str(out / "models")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_all_of_it_runs_at_tiny_sizes(tmp_path):
    said = run(tmp_path, "--sides", "outscore")
    assert "TFLOP/s" in said and "Asked for: 60 % of the bandwidth." in said and "failed" not in said
    for kind, tokens in (("step", 48), ("decoding", 48), ("short", 3 + 6 + 9 + 12)):
        [record] = json.loads((tmp_path / f"results-{kind}-smoke.json").read_text())["measured"]
        [[step]] = record["rounds"]["outscore"]
        assert step["tokens"] == tokens and step["sample"] > 0
        assert (step["backward"] > 0.001) == (kind != "decoding") == ("backward" in record["limits"][0])
    assert "round 1" not in run(tmp_path, "--sides", "outscore")  # it goes on from what is there


@pytest.mark.slow
@pytest.mark.peer
def test_the_peer_runs_beside_it(tmp_path):
    said = run(tmp_path, "--workloads", "short", "--sides", "trl", "outscore")
    assert "| times TRL | limit |" in said and "failed" not in said
    [record] = json.loads((tmp_path / "results-short-smoke.json").read_text())["measured"]
    assert record["trial"].keys() == {"fp32", "bf16", "bf16-autocast"} and all(record["trial"].values())
    [[[step], *_], [[own], *_]] = (record["rounds"][side] for side in ("trl", "outscore"))
    assert step["tokens"] == own["tokens"] == 30
    assert step["precision"] == min(record["trial"], key=record["trial"].get)
