"""Several tokens drawn between two looks of the host: the laws of samplers, and the tokens of an engine that looks at
each."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import build_family, each_family
from rollout.conformance import PARAMS, STOPS, Backend, FormLaws, ModelLaws, ids_of, requests, word_tokenizer
from rollout.recording import OperatorGraphs

from outscore.model.policy import Policy
from outscore.records import SampledGroup
from outscore.rollout import GroupEngine, engine, sampling, stretch
from outscore.rollout.engine import BURST
from outscore.rollout.graphs import Graphs, Repeated
from outscore.rollout.stretch import Stretch


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


def check_equal(found: list[SampledGroup], expected: list[SampledGroup]) -> None:
    """The same tokens, ends and log-probs."""
    assert ids_of(found) == ids_of(expected)
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one.completions, other.completions, strict=True):
            assert ours.finish == theirs.finish
            assert ours.sampler_logprobs == pytest.approx(theirs.sampler_logprobs, abs=1e-9)


@pytest.mark.parametrize(
    ("max_rows", "burst", "change"),
    [(5, 7, {"min_p": 0.1}), (64, 2, {"temperature": 0.7, "top_p": 0.8}), (64, 100, {"temperature": 0.0})],
)
def test_the_tokens_are_those_of_single_steps(max_rows, burst, change) -> None:
    policy = make_policy("gemma2", dtype=torch.float64)  # in which no draw is so near an edge that rounding moves it
    params = replace(PARAMS, **change)
    single, several = (GroupEngine(policy, max_rows=max_rows, burst=each) for each in (1, burst))
    check_equal(several.sample(requests(), params, seed=3, step=2), single.sample(requests(), params, seed=3, step=2))


@each_family
def test_a_recorded_step_draws_the_tokens_of_single_steps(family, monkeypatch) -> None:
    """As a CUDA graph would, but operator by operator: nothing that the host knew at the second token may still matter
    at the last, whether rows end on the way, prompts differ in length, windows move or filters cut."""
    monkeypatch.setattr(sampling, "_num_sorted", lambda weights, negligible: weights.shape[1])  # as on a GPU
    monkeypatch.setattr(stretch, "WORTH_RECORDING", 3)
    monkeypatch.setattr(engine, "ENDED", 0.6)
    policy = make_policy(family, dtype=torch.float64)
    filters = {} if family == "llama" else {"temperature": 0.8, "top_k": 9, "top_p": 0.9}
    params, limits = replace(PARAMS, max_new_tokens=18, **filters), (9, 18, 17)
    asked = [
        replace(request, max_new_tokens=limit)
        for request, limit in zip(requests((5, 70, 13), (3, 4, 2)), limits, strict=True)
    ]
    expected = GroupEngine(policy, max_rows=64).sample(asked, params, seed=3, step=2)
    recorded = GroupEngine(policy, max_rows=6, burst=5)
    recorded.graphs = graphs = OperatorGraphs()
    check_equal(recorded.sample(asked, params, seed=3, step=2), expected)
    assert graphs.num_recorded >= 2 and graphs.num_replayed >= 4


@pytest.mark.parametrize("length", [1, 4, 1000])
@pytest.mark.parametrize("ended", [0.0, 0.5])
def test_how_long_rows_stay_as_they_are_changes_no_token(length, ended, monkeypatch) -> None:
    policy = make_policy("mistral", dtype=torch.float64)
    expected = GroupEngine(policy, max_rows=64).sample(requests(), PARAMS, seed=3, step=2)
    monkeypatch.setattr(stretch, "STRETCH", length)
    monkeypatch.setattr(engine, "ENDED", ended)
    check_equal(GroupEngine(policy, max_rows=64, burst=3).sample(requests(), PARAMS, seed=3, step=2), expected)


@pytest.mark.parametrize(("ended", "num_stretches"), [(0.25, 2), (0.0, 3)])
def test_one_row_that_ended_ends_no_stretch_though_another_waits_for_its_place(ended, num_stretches, monkeypatch):
    """The first of four rows ends after 4 tokens of 33, and a fifth completion waits."""
    monkeypatch.setattr(engine, "ENDED", ended)
    begun = []
    begin = Stretch.__init__
    monkeypatch.setattr(Stretch, "__init__", lambda self, *given, **named: begun.append(begin(self, *given, **named)))
    policy = make_policy("llama")
    policy.stop_token_ids = frozenset()
    asked = [
        replace(request, max_new_tokens=limit)
        for request, limit in zip(requests(sizes=(1,) * 5), (4, 33, 33, 33, 33), strict=True)
    ]
    found = GroupEngine(policy, max_rows=4, burst=4).sample(asked, replace(PARAMS, max_new_tokens=33), seed=0, step=0)
    assert len(begun) == num_stretches
    assert [len(group.completions[0].completion.token_ids) for group in found] == [4, 33, 33, 33, 33]


def test_where_nothing_can_be_recorded_tokens_are_the_same_and_the_log_says_why_once(monkeypatch, caplog) -> None:
    def fails(self: Graphs, step: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graphs, "_capture", fails)
    monkeypatch.setattr(stretch, "WORTH_RECORDING", 3)
    policy = make_policy("llama", dtype=torch.float64)
    expected = GroupEngine(policy, max_rows=64).sample(requests(), PARAMS, seed=3, step=2)
    refusing = GroupEngine(policy, max_rows=5, burst=4)
    refusing.graphs = Graphs()
    check_equal(refusing.sample(requests(), PARAMS, seed=3, step=2), expected)
    assert refusing.graphs.refused is not None and "operation not permitted" in refusing.graphs.refused
    assert [record.levelname for record in caplog.records if "CUDA graph" in record.message] == ["WARNING"]


def test_a_step_is_recorded_at_its_second_call_and_replayed_from_then_on() -> None:
    calls: list[str] = []

    class Fake(Graphs):
        def record(self, step):
            calls.append("record")
            return lambda: calls.append("replay")

    step = Repeated(lambda: calls.append("run"), Fake())
    for _ in range(4):
        step()
    assert calls == ["run", "record", "replay", "replay", "replay"]
    calls.clear()
    for _ in range(2):
        Repeated(lambda: calls.append("run"), None)()
    assert calls == ["run", "run"]


def test_rows_that_have_ended_stay_within_the_models_context() -> None:
    """A row that was short of room goes on beside others; its position stays one that the model knows."""
    policy = make_policy("llama")
    farthest = []
    hidden = policy.hidden

    def watched(token_ids, positions, context):
        farthest.append(int(positions.max()))
        return hidden(token_ids, positions, context)

    policy.hidden = watched  # type: ignore[method-assign]
    asked = [
        replace(request, max_new_tokens=limit)
        for request, limit in zip(requests((505, 4), (1, 7)), (3, 60), strict=True)
    ]
    policy.stop_token_ids = frozenset()
    GroupEngine(policy, max_rows=8, burst=4).sample(asked, replace(PARAMS, max_new_tokens=60), seed=0, step=0)
    assert max(farthest) < policy.context_length


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
@each_family
def test_a_gpu_draws_the_tokens_of_a_cpu_recorded_or_not(family: str) -> None:
    params, found = replace(PARAMS, max_new_tokens=40), []
    for device, records in (("cpu", False), ("cuda", False), ("cuda", True)):
        sampler = GroupEngine(make_policy(family, device, torch.float64), max_rows=64)
        assert sampler.burst == (1 if device == "cpu" else BURST)
        if not records:
            sampler.graphs = None
        found.append(ids_of(sampler.sample(requests(), params, seed=3, step=2)))
        if records:
            assert sampler.graphs is not None and sampler.graphs.refused is None
            assert sampler.graphs.num_recorded > 0
    assert found[0] == found[1] == found[2]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "change", [{"temperature": 0.7, "top_p": 0.8}, {"top_k": 7, "min_p": 0.05}, {"temperature": 0.0}]
)
def test_every_filter_can_be_recorded(change) -> None:
    policy = make_policy("gemma2", "cuda", torch.float64)
    params = replace(PARAMS, max_new_tokens=40, **change)
    recorded, plain = (GroupEngine(policy, max_rows=9) for _ in range(2))
    plain.graphs = None
    expected = plain.sample(requests(), params, seed=3, step=2)
    for _ in range(2):  # and over again, in memory that was given back
        check_equal(recorded.sample(requests(), params, seed=3, step=2), expected)
    assert recorded.graphs is not None and recorded.graphs.refused is None and recorded.graphs.num_recorded > 1


@pytest.mark.gpu
def test_a_step_that_waits_is_not_recorded_and_changes_nothing(caplog) -> None:
    policy = make_policy("llama", "cuda", torch.float64)
    params = replace(PARAMS, max_new_tokens=40)
    expected = GroupEngine(policy, max_rows=64).sample(requests(), params, seed=3, step=2)
    hidden = policy.hidden

    def waiting(token_ids, positions, context):
        positions.max().item()
        return hidden(token_ids, positions, context)

    policy.hidden = waiting  # type: ignore[method-assign]
    sampler = GroupEngine(policy, max_rows=64)
    check_equal(sampler.sample(requests(), params, seed=3, step=2), expected)
    assert sampler.graphs is not None and sampler.graphs.refused is not None and caplog.records
    torch.cuda.empty_cache()  # the allocator is as good as before
    torch.ones(1, device="cuda").item()


@pytest.mark.gpu
def test_the_host_waits_for_the_gpu_twice_in_a_burst(monkeypatch) -> None:
    """For the ids and for the log-probs, wherever in a stretch: while a step runs as it is, is recorded, or is
    replayed."""
    policy = make_policy("llama", "cuda")
    policy.stop_token_ids = frozenset()
    sampler, params = GroupEngine(policy, max_rows=64), replace(PARAMS, max_new_tokens=64)
    sampler.sample(requests(), params, seed=0, step=1)  # whatever waits the first time only
    waits: list[int] = []
    draw = Stretch.draw

    def watched(self: Stretch, draws: np.ndarray) -> object:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return draw(self, draws)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits.append(sum("synchronizing" in str(warning.message) for warning in caught))

    monkeypatch.setattr(Stretch, "draw", watched)
    sampler.sample(requests(), params, seed=0, step=1)
    assert waits == [2] * -(-63 // BURST)
