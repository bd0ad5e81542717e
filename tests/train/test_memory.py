"""What memory is counted for a stage: by hand, against what autograd keeps, and against what a process needs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import build_family
from torch import Tensor, nn

import outscore.train.check as check_module
from outscore.config import parse_recipe
from outscore.model.attention import TreeAttention
from outscore.model.forest import Segment
from outscore.model.logprobs import chunk_tokens
from outscore.train.check import check_recipe
from outscore.train.memory import (
    activation_bytes,
    cache_bytes,
    decoder_shape,
    in_words,
    logit_bytes,
    peak_bytes,
    resident_bytes,
    score_bytes,
    state_bytes,
)

RECIPE = {
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 4, "num_demonstrations": 4},
    "rewards": ["tag_answer"],
    "stages": [
        {"algorithm": "sft", "steps": 1, "batch_size": 2},
        {
            "algorithm": "grpo",
            "steps": 1,
            "prompts_per_step": 2,
            "group_size": 2,
            "sampling": {"max_new_tokens": 4},
            "cells": {"kl_coef": 0.04},
        },
    ],
}


def total(*models: dict[str, int]) -> int:
    return sum(sum(parts.values()) for parts in models)


def test_bytes_per_parameter_of_each_kind_of_training() -> None:
    """With fp32 Adam: 16 bytes a trained parameter, 4 a frozen one, whichever models an algorithm keeps."""
    trained, frozen = state_bytes(1000, 1000), state_bytes(1000, 0)
    with_reference = state_bytes(1000, 1000, reference=True)
    assert total(with_reference, trained, frozen) == 40_000  # PPO: policy and critic, reference and reward model
    assert total(with_reference, frozen) == 24_000  # GRPO with a reward model
    assert total(with_reference) == 20_000  # GRPO with rules for rewards
    assert total(trained) == 16_000  # the same with beta = 0: the policy only


def test_bf16_has_masters_and_adapters_train_little() -> None:
    # 1000 weights in 2 bytes; 4 + 2 + 4 + 8 for the master, both gradients and the moments; 2 for the reference.
    bf16 = {"weights": 2000, "masters": 4000, "gradients": 6000, "optimizer": 8000, "reference": 2000}
    assert state_bytes(1000, 1000, bytes_per_weight=2, reference=True) == bf16
    # 1000 frozen weights and 50 adapters in fp32: 4 · 1050 + (4 + 8 + 4) · 50.
    assert total(state_bytes(1050, 50, reference=True)) == 5000


def kept_by_autograd(model: nn.Module) -> tuple[TreeAttention, int]:
    """Bytes that a forward pass of 25 tokens keeps, weights aside."""
    model.set_attn_implementation("outscore")
    segments = [Segment(start=0, length=9, parent=-1), Segment(start=9, length=16, parent=0)]
    tree = TreeAttention(segments)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps addresses from being used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(
            input_ids=torch.full((1, 25), 3), position_ids=tree.positions[None], use_cache=False, context=tree
        )
    return tree, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "mistral"])
def test_activations_are_those_that_autograd_keeps(family: str, dtype: torch.dtype) -> None:
    model = build_family(family).to(dtype)
    _, measured = kept_by_autograd(model)
    counted = activation_bytes(decoder_shape(model.config, 64), 25, bytes_per_value=dtype.itemsize)
    # Gemma's norms multiply by their weights in fp32 too, and keep the normalised input in it.
    within = 0.15 if (family, dtype) == ("gemma", torch.bfloat16) else 0.1
    assert counted == pytest.approx(measured, rel=within)


def test_scores_are_kept_where_no_fused_kernel_does_without() -> None:
    """Soft-capped scores, as on a device without the CPU's kernel, by what the same model keeps without the cap."""
    model = build_family("gemma2")
    tree, capped = kept_by_autograd(model)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    _, fused = kept_by_autograd(model)
    shape = decoder_shape(model.config, 64)
    assert tree.num_pairs == 25 * 25  # so small a subtree is one problem
    assert capped - fused >= score_bytes(shape, tree.num_pairs)


def test_recomputed_activations_and_the_cache_by_hand() -> None:
    shape = decoder_shape(build_family("llama").config, 64)  # 3 layers, width 32, 4 and 2 heads of 8, inner width 48
    # Norms keep fp32 beside bf16; then queries, keys, values and inner values, and a number for each head.
    layer = 2 * 32 * (4 + 2 + 2) + (3 * 32 + 2 * 16 + 4 * 48) * 2 + 4 * 4
    assert activation_bytes(shape, 10, bytes_per_value=2) == 10 * 3 * layer
    assert activation_bytes(shape, 10, bytes_per_value=2, recomputed=True) == 10 * (3 * 32 * 2 + layer)
    assert cache_bytes(shape, 10, bytes_per_value=2) == 10 * 2 * 2 * 16 * 3
    cpu = torch.device("cpu")
    assert logit_bytes(shape, 10, cpu) == 4 * 4 * 10 * 64
    assert logit_bytes(shape, 10**9, cpu) == 4 * 4 * (1 << 24)


@pytest.mark.parametrize(("gib", "num_logits"), [(139, 1 << 28), (80, 1 << 27), (24, 1 << 25), (4, 1 << 24)])
def test_a_chunk_of_logits_is_as_large_as_a_gpus_memory_allows(
    gib: int, num_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a 128th of it, so that the four arrays of a backward pass take at most a 32nd; and no less than on a
    CPU."""
    found = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    shape = replace(decoder_shape(build_family("llama").config, 64), vocab=1 << 17)
    assert chunk_tokens(1 << 17, torch.device("cuda")) == num_logits >> 17
    assert logit_bytes(shape, 10**9, torch.device("cuda")) == 4 * 4 * num_logits


def test_in_words() -> None:
    parts = {"weights": 3 << 30, "masters": 0, "gradients": 1 << 29}
    assert in_words(parts) == "about 3.50 GiB: weights 3.00, gradients 0.50"
    small = {"weights": 3 << 20, "reference": 0, "optimizer": 1 << 19, "logits": 9}
    assert in_words(small) == "about 3.50 MiB: weights 3.00, optimizer 0.50"


def test_check_names_the_largest_stage_and_warns_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> check_module.Finding:
        return next(found for found in check_recipe(parse_recipe(RECIPE)) if found.what == "memory")

    assert finding().status == "ok"
    monkeypatch.setattr(check_module, "device_bytes", lambda device: 1000)
    assert finding().status == "warn" and "token_budget" in finding().detail


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it in a second way")
def test_the_peak_is_measured_in_bytes() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert resident_bytes() == pytest.approx(1024 * int(status["VmRSS"].split()[0]), rel=0.05)
    assert peak_bytes()["rss"] == pytest.approx(1024 * int(status["VmHWM"].split()[0]), rel=0.05)


MEASURE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from outscore.model.adapters import trainable_parameters
from outscore.model.policy import Policy
from outscore.model.tiny import character_tokenizer
from outscore.algorithms.rows import algorithm
from outscore.train.memory import peak_bytes
from outscore.train.step import Reference, update
from train.building import batch_of, learner_of, plan_of

torch.set_num_threads(1)
sizes = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=5, num_attention_heads=12)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
policy = Policy(model, character_tokenizer("a", []), stop_token_ids=frozenset())
reference = Reference(trainable_parameters(policy.model)) if sys.argv[1] == "reference" else None
learner = learner_of(policy, reference)
row = algorithm("grpo", kl_coef=0.04 if reference else 0.0)
for _ in range(2):
    update(learner, batch_of(policy, [[1.0, -1.0]], [[3, 3]]), plan_of(row))
print(sum(parameter.numel() for parameter in policy.model.parameters()), peak_bytes()["rss"])
"""


@pytest.mark.slow
def test_a_process_with_a_reference_needs_its_copy_more() -> None:
    def measured(kind: str) -> tuple[int, int]:
        found = subprocess.run(
            [sys.executable, "-c", MEASURE, kind],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        num_parameters, peak = map(int, found.stdout.split())
        return num_parameters, peak

    (num_parameters, alone), (_, compared) = measured("alone"), measured("reference")
    copy = state_bytes(num_parameters, num_parameters, reference=True)["reference"]
    assert compared - alone == pytest.approx(copy, rel=0.2)
    assert alone > total(state_bytes(num_parameters, num_parameters))
