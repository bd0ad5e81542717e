"""The group engine: every law of samplers on every promised family, and what sets it apart: no work is done twice."""

from dataclasses import replace

import pytest
import torch
from families import EOS_ID, FAMILIES, build_family
from rollout.conformance import (
    PARAMS,
    STOPS,
    Backend,
    FormLaws,
    ModelLaws,
    ids_of,
    logits_from_scratch,
    requests,
    word_tokenizer,
)
from transformers import PreTrainedModel

from outscore.model.policy import Policy
from outscore.records import SamplingParams
from outscore.rollout import GroupEngine, make_sampler
from outscore.rollout.context import DecodeContext

ENDLESS = frozenset[int]()


def make_policy(family: str = "llama", stops: frozenset[int] = STOPS) -> Policy:
    return Policy(build_family(family), word_tokenizer(), stop_token_ids=stops)


def make_backend(family: str, reference: PreTrainedModel) -> Backend:
    policy = make_policy(family)
    return Backend(
        make=lambda max_rows: GroupEngine(policy, max_rows=max_rows), tokenizer=policy.tokenizer, reference=reference
    )


class TestForm(FormLaws):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, family_model):
        return make_backend("llama", family_model("llama"))


class TestFamilies(ModelLaws):
    @pytest.fixture(scope="class", params=FAMILIES)
    @classmethod
    def backend(cls, request, family_model):
        return make_backend(request.param, family_model(request.param))


@pytest.fixture
def forwarded(monkeypatch):
    """The number of tokens of each forward pass."""
    passes: list[int] = []
    hidden = Policy.hidden

    def counted(self, token_ids, positions, context):
        passes.append(token_ids.numel())
        return hidden(self, token_ids, positions, context)

    monkeypatch.setattr(Policy, "hidden", counted)
    return passes


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0])
def test_each_prompt_and_each_different_beginning_is_forwarded_once(forwarded, temperature):
    """Samples of a group that agree are one row until they differ. No row is decoded after its end, and a completion's
    last token is never fed: nothing reads what it predicts."""
    wanted = requests((5, 70, 13), (3, 16, 8))
    groups = GroupEngine(make_policy(), max_rows=64).sample(
        wanted, replace(PARAMS, temperature=temperature), seed=1, step=1
    )
    prompts = sum(len(group.prompt.token_ids) for group in groups)
    beginnings = [{ids[:end] for ids in group for end in range(1, len(ids))} for group in ids_of(groups)]
    assert sum(forwarded) == prompts + sum(map(len, beginnings))
    if temperature == 0:  # the samples of a group are one
        assert len(forwarded) == max(len(ids) for group in ids_of(groups) for ids in group)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_a_prompt_is_forwarded_once_even_if_its_samples_begin_at_different_times(forwarded, max_rows):
    groups = GroupEngine(make_policy(), max_rows=max_rows).sample(requests(), PARAMS, seed=1, step=1)
    prompts = sum(len(group.prompt.token_ids) for group in groups)
    fed = sum(len(ids) - 1 for group in ids_of(groups) for ids in group)
    assert sum(forwarded) <= prompts + fed
    if max_rows == 1:
        assert sum(forwarded) == prompts + fed


def test_prompts_that_enter_together_are_prefilled_in_one_pass(forwarded):
    wanted = requests()
    GroupEngine(make_policy(), max_rows=64).sample(wanted, PARAMS, seed=1, step=1)
    assert forwarded[0] == sum(len(request.prompt.token_ids) for request in wanted)


def test_the_batch_is_never_larger_than_max_rows_and_is_full_while_anything_waits(forwarded):
    wanted = requests((4,), (11,))
    policy = make_policy(stops=ENDLESS)
    GroupEngine(policy, max_rows=4).sample(wanted, replace(PARAMS, max_new_tokens=5), seed=1, step=1)
    assert forwarded == [4] + [4] * 4 + [4] * 4 + [3] * 4  # the prompt once, then 11 samples by 4, 4 and 3


def test_completions_outgrow_the_first_allocation_of_their_keys(family_model):
    params = SamplingParams(max_new_tokens=75)
    wanted = requests((6, 40), (2, 3))
    groups = GroupEngine(make_policy("gemma3", ENDLESS), max_rows=4).sample(wanted, params, seed=2, step=0)
    for group in groups:
        for sampled in group.completions:
            ids = sampled.completion.token_ids
            assert len(ids) == 75
            expected = logits_from_scratch(family_model("gemma3"), group.prompt, ids).log_softmax(-1)
            found = torch.tensor(sampled.sampler_logprobs, dtype=torch.float64)
            torch.testing.assert_close(found, expected[range(75), ids], rtol=0, atol=5e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 0.2)])
def test_other_precisions_sample_what_they_compute(dtype, tolerance):
    """The reference computes its softmax in fp32 whatever the weights are. bf16 keeps 8 bits: log-probs may be off by a
    few times 2^-8 of logits of about 10."""
    reference, model = build_family("qwen3").double(), build_family("qwen3").to(dtype)
    policy = Policy(model, word_tokenizer(), stop_token_ids=STOPS)
    for group in GroupEngine(policy, max_rows=8).sample(requests(), PARAMS, seed=1, step=1):
        for sampled in group.completions:
            ids = sampled.completion.token_ids
            expected = logits_from_scratch(reference, group.prompt, ids).log_softmax(-1)[range(len(ids)), ids]
            found = torch.tensor(sampled.sampler_logprobs, dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_memory_is_released_as_groups_end(monkeypatch):
    """When the last row of a block's prompts has ended, the block is gone; after the call nothing is held."""
    contexts: list[DecodeContext] = []
    begin = DecodeContext.begin

    def spied(self, rows, num_tokens=1):
        contexts.append(self)
        assert {row.prompt.block for row in rows} <= set(self.blocks.values())
        live = {prompt for block in self.blocks.values() for prompt in block.prompts}
        assert {row.prompt for row in rows} <= live
        assert len(live) <= 2  # two rows live: at most two prompts stored
        return begin(self, rows, num_tokens)

    monkeypatch.setattr(DecodeContext, "begin", spied)
    GroupEngine(make_policy(), max_rows=2).sample(requests(), PARAMS, seed=1, step=1)
    assert contexts[-1].blocks == {}


def test_a_prompt_that_leaves_no_room_is_refused_with_the_length_that_would_do():
    policy = make_policy()
    assert policy.context_length == 512
    [fits] = requests((500,), (1,))
    GroupEngine(policy, max_rows=1).sample([fits], replace(PARAMS, max_new_tokens=13), seed=0, step=0)
    with pytest.raises(
        ValueError, match=r"'p0': 500 tokens and max_new_tokens 14 exceed .* 512; use prompts of at most 499"
    ):
        GroupEngine(policy, max_rows=1).sample([fits], replace(PARAMS, max_new_tokens=14), seed=0, step=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_an_error_not_a_token(temperature):
    policy = make_policy()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[EOS_ID] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite at token 0 of sample 0"):
        GroupEngine(policy, max_rows=4).sample(requests(), replace(PARAMS, temperature=temperature), seed=0, step=0)


def test_training_goes_on_after_sampling():
    """Sampling runs in inference mode and must leave nothing behind that autograd refuses."""
    policy = make_policy("gemma2")
    GroupEngine(policy, max_rows=4).sample(requests(), PARAMS, seed=0, step=0)
    policy.model.set_attn_implementation("eager")
    policy.model(torch.arange(3, 30)[None]).logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.model.parameters())


def test_the_layout_decides_the_sampler():
    assert isinstance(make_sampler(make_policy(), 8), GroupEngine)
    separate = Policy(build_family("llama"), word_tokenizer(), stop_token_ids=STOPS, layout="separate_rows")
    with pytest.raises(ValueError, match="make_sampler"):
        GroupEngine(separate, max_rows=8)
    with pytest.raises(ValueError, match="max_rows"):
        GroupEngine(make_policy(), max_rows=0)
