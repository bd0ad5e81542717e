"""The benchmark for a GPU: its limits against numbers worked by hand, and all of its code at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from repo.tree import ROOT
from transformers import Qwen2Config


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


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
    assert "TFLOP/s" in said and "Of the bandwidth" in said and "failed" not in said
    for kind in ("step", "decoding"):
        [step] = json.loads((tmp_path / f"results-{kind}-smoke.json").read_text())["steps"]["outscore"]
        assert step["tokens"] == 4 * 12 and step["sample"] > 0
        assert (step["backward"] > 0.001) == (kind == "step")


@pytest.mark.slow
@pytest.mark.peer
def test_the_peer_runs_beside_it(tmp_path):
    said = run(tmp_path, "--kinds", "step", "--sides", "trl", "outscore")
    assert "| trl | outscore |" in said and "failed" not in said
