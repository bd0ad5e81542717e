"""Several tokens drawn between two looks of the host: the laws of samplers, and the tokens of an engine that looks at
each."""

import warnings
from dataclasses import replace

import pytest
import torch
from families import build_family
from rollout.conformance import PARAMS, STOPS, Backend, FormLaws, ModelLaws, ids_of, requests, word_tokenizer

from outscore.model.policy import Policy
from outscore.rollout import GroupEngine
from outscore.rollout.engine import BURST


def make_policy(family: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Policy:
    model = build_family(family).to(device, dtype)  # type: ignore[call-overload]
    return Policy(model, word_tokenizer(), stop_token_ids=STOPS)


class TestBurst(FormLaws, ModelLaws):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, family_model):
        policy = make_policy("llama")
        return Backend(
            make=lambda max_rows: GroupEngine(policy, max_rows=max_rows, burst=5),
            tokenizer=policy.tokenizer,
            reference=family_model("llama"),
        )


@pytest.mark.parametrize(
    ("max_rows", "burst", "change"),
    [(3, 7, {}), (64, 2, {"temperature": 0.7, "top_p": 0.8}), (64, 100, {"temperature": 0.0})],
)
def test_the_tokens_are_those_of_single_steps(max_rows, burst, change) -> None:
    policy = make_policy("gemma2", dtype=torch.float64)  # in which no draw is so near an edge that rounding moves it
    params = replace(PARAMS, **change)
    single, several = (GroupEngine(policy, max_rows=max_rows, burst=each) for each in (1, burst))
    expected = ids_of(single.sample(requests(), params, seed=3, step=2))
    assert ids_of(several.sample(requests(), params, seed=3, step=2)) == expected


def test_a_request_with_a_limit_of_its_own_ends_there() -> None:
    policy = make_policy("llama")
    asked = [
        replace(request, max_new_tokens=limit) for request, limit in zip(requests(), (1, 2, 5, 9, 12), strict=True)
    ]
    found = GroupEngine(policy, max_rows=64, burst=4).sample(asked, PARAMS, seed=0, step=1)
    for request, group in zip(asked, found, strict=True):
        lengths = [len(drawn.completion.token_ids) for drawn in group.completions]
        assert max(lengths) <= request.max_new_tokens


def test_the_device_decides_how_often_the_host_looks() -> None:
    assert GroupEngine(make_policy("llama"), max_rows=4).burst == 1


@pytest.mark.gpu
class TestOnGpu(FormLaws):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, family_model):
        policy = make_policy("llama", "cuda")
        return Backend(
            make=lambda max_rows: GroupEngine(policy, max_rows=max_rows),
            tokenizer=policy.tokenizer,
            reference=family_model("llama"),
        )


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_a_gpu_draws_the_tokens_of_a_cpu(family: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        engine = GroupEngine(make_policy(family, device, torch.float64), max_rows=64)
        assert engine.burst == (1 if device == "cpu" else BURST)
        found.append(ids_of(engine.sample(requests(), PARAMS, seed=3, step=2)))
    assert found[0] == found[1]


@pytest.mark.gpu
def test_the_host_waits_for_the_gpu_once_in_several_tokens() -> None:
    policy = make_policy("llama", "cuda")
    policy.stop_token_ids = frozenset()
    engine, params = GroupEngine(policy, max_rows=64), replace(PARAMS, max_new_tokens=64)
    engine.sample(requests(), params, seed=0, step=1)  # whatever waits the first time only
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            engine.sample(requests(), params, seed=0, step=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < len(waits) <= 63 // 3
