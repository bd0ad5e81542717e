"""What any sampling backend must do.

A backend's tests subclass `FormLaws`, and `ModelLaws` if a model stands behind it, and provide the fixture `backend`.
The first say what is handed out, the second that it is what the model says; an engine that computes the model itself
runs the second on every family of models it promises.

>>> class TestMyBackend(FormLaws, ModelLaws):
...     @pytest.fixture(scope="class")
...     @classmethod
...     def backend(cls): return Backend(make=..., tokenizer=word_tokenizer(), reference=...)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from families import BOS_ID, EOS_ID, VOCAB_SIZE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from outscore.records import Problem, Prompt, SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rollout import Sampler
from outscore.rollout.random import row_keys, uniforms

LIMIT = 12
PARAMS = SamplingParams(max_new_tokens=LIMIT)
STOPS = frozenset({EOS_ID, 5, 6, 7})  # several, so that completions end at many lengths


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word per id, and the end token is the padding token."""
    vocab = {"<s>": BOS_ID, "</s>": EOS_ID} | {f"w{i}": i for i in range(VOCAB_SIZE) if i not in (BOS_ID, EOS_ID)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A sampler under test."""

    make: Callable[[int], Any]
    """max_rows -> the sampler."""
    tokenizer: PreTrainedTokenizerFast
    """What decodes its completions."""
    stops: frozenset[int] = STOPS
    """The tokens that end a completion."""
    reference: PreTrainedModel | None = None
    """The same weights in an unmodified Hugging Face model, if there is a model."""
    set_version: Callable[[Any, int], None] = lambda sampler, version: setattr(sampler.policy, "version", version)
    """Makes the sampler's policy one of so many optimizer steps."""


def requests(
    lengths: Sequence[int] = (5, 70, 13, 33, 1), sizes: Sequence[int] = (3, 4, 6, 1, 2)
) -> list[SampleRequest]:
    """Ragged groups: prompts on both sides of the sliding window and of a block of 64, the last as short as can be. End
    tokens stand inside prompts: a backend that infers masks from token ids fails."""
    generator = torch.Generator().manual_seed(7)
    built = []
    for slot, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        ids = torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()
        if length > 4:
            ids[0], ids[3] = EOS_ID, EOS_ID
        problem = Problem(id=f"p{slot}", question="", answer=None, columns={})
        prompt = Prompt(problem=problem, text="", token_ids=tuple(ids))
        built.append(SampleRequest(prompt=prompt, num_samples=size, slot=slot, attempt=slot % 2))
    return built


def ids_of(groups: Sequence[SampledGroup]) -> list[list[tuple[int, ...]]]:
    """Only the sampled tokens."""
    return [[sampled.completion.token_ids for sampled in group.completions] for group in groups]


def logits_from_scratch(model: PreTrainedModel, prompt: Prompt, completion: Sequence[int]) -> torch.Tensor:
    """[token, vocab], by one plain forward pass over prompt and completion."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt.token_ids, *completion]])).logits[0]
    return logits[len(prompt.token_ids) - 1 : -1].double()


def sample(
    backend: Backend, wanted: Sequence[SampleRequest] | None = None, max_rows: int = 64, **options: Any
) -> list[SampledGroup]:
    """Sample these requests, or those of `requests()`; the parameters, seed and step are the same unless given."""
    sampler: Sampler = backend.make(max_rows)
    call: dict[str, Any] = {"params": PARAMS, "seed": 3, "step": 4, **options}
    return sampler.sample(requests() if wanted is None else wanted, call.pop("params"), **call)


class FormLaws:
    """Laws of every backend: what a completion is, and who is told of it."""

    def test_groups_come_in_request_order_with_all_their_samples(self, backend):
        wanted = requests()
        groups = sample(backend, wanted)
        assert [group.prompt for group in groups] == [request.prompt for request in wanted]
        assert [len(group.completions) for group in groups] == [request.num_samples for request in wanted]
        assert [(group.slot, group.attempt) for group in groups] == [(r.slot, r.attempt) for r in wanted]

    @pytest.mark.parametrize("limit", [1, 2, LIMIT])
    def test_a_stop_token_ends_a_completion_and_stands_nowhere_else(self, backend, limit):
        for group in sample(backend, params=replace(PARAMS, max_new_tokens=limit)):
            for sampled in group.completions:
                *before, last = sampled.completion.token_ids
                assert not backend.stops.intersection(before)
                assert (sampled.finish == "stop") == (last in backend.stops)
                assert len(before) + 1 == limit if sampled.finish == "length" else len(before) + 1 <= limit

    def test_every_token_has_a_log_prob_and_counts(self, backend):
        for group in sample(backend):
            for sampled in group.completions:
                num_tokens = len(sampled.completion.token_ids)
                assert len(sampled.sampler_logprobs) == num_tokens
                assert all(logprob <= 1e-9 and math.isfinite(logprob) for logprob in sampled.sampler_logprobs)
                assert sampled.completion.counts == (True,) * num_tokens

    def test_text_is_the_decoded_completion_without_special_tokens(self, backend):
        for group in sample(backend):
            for sampled in group.completions:
                ids = [i for i in sampled.completion.token_ids if i not in (BOS_ID, EOS_ID)]
                assert sampled.completion.text == " ".join(f"w{i}" for i in ids)

    def test_each_completion_is_announced_once_as_it_will_be_returned(self, backend):
        announced: dict[tuple[int, int], SampledCompletion] = {}

        def on_finished(request: int, sample: int, completion: SampledCompletion) -> None:
            assert (request, sample) not in announced
            assert not torch.is_inference_mode_enabled()
            announced[request, sample] = completion

        groups = sample(backend, max_rows=3, on_finished=on_finished)
        returned = {
            (index, sample): completion
            for index, group in enumerate(groups)
            for sample, completion in enumerate(group.completions)
        }
        assert announced == returned

    def test_the_same_call_gives_the_same_completions(self, backend):
        assert sample(backend) == sample(backend)

    def test_completions_carry_the_policy_version(self, backend):
        sampler = backend.make(64)
        backend.set_version(sampler, 17)
        [group, *_] = sampler.sample(requests(), PARAMS, seed=3, step=4)
        assert {sampled.policy_version for sampled in group.completions} == {17}

    def test_a_group_may_have_a_limit_of_its_own(self, backend):
        free, wanted = sample(backend), requests()
        limited = sample(backend, [replace(wanted[0], max_new_tokens=3), *wanted[1:]])
        assert ids_of(limited)[1:] == ids_of(free)[1:]
        for sampled, whole in zip(limited[0].completions, free[0].completions, strict=True):
            assert sampled.completion.token_ids == whole.completion.token_ids[:3]
            ends = whole.finish == "stop" and len(whole.completion.token_ids) <= 3
            assert sampled.finish == ("stop" if ends else "length")

    def test_a_completion_waits_once_it_has_written_what_it_was_told(self, backend):
        """Its tokens are those it would have had, up to the first after which the text stands there."""
        free = sample(backend)
        texts = tuple(f"w{group.completions[0].completion.token_ids[1]}" for group in free[:2])
        paused = 0
        for group, whole in zip(sample(backend, params=replace(PARAMS, until=texts)), free, strict=True):
            for sampled, other in zip(group.completions, whole.completions, strict=True):
                ids = other.completion.token_ids
                decoded = [backend.tokenizer.decode(ids[: t + 1], skip_special_tokens=True) for t in range(len(ids))]
                waits = [t for t, text in enumerate(decoded) if any(each in text for each in texts)]
                is_last = not waits or waits[0] == len(ids) - 1
                assert sampled.completion.token_ids == (ids if is_last else ids[: waits[0] + 1])
                assert sampled.finish == (other.finish if is_last else "pause")
                paused += sampled.finish == "pause"
        assert paused > 2

    def test_no_requests_give_no_groups(self, backend):
        assert sample(backend, []) == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"num_samples": 0}, "num_samples"), ({"prompt": replace(requests()[0].prompt, token_ids=())}, "no tokens")],
    )
    def test_impossible_requests_are_refused_by_name(self, backend, change, message):
        with pytest.raises(ValueError, match=rf"'p0'.*{message}"):
            sample(backend, [replace(requests()[0], **change)])

    def test_impossible_parameters_are_refused(self, backend):
        with pytest.raises(ValueError, match="top_p"):
            sample(backend, params=replace(PARAMS, top_p=0.0))


class ModelLaws:
    """Laws of backends that sample from a model: tokens and log-probs are those of the model itself."""

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_log_probs_equal_a_forward_pass_from_scratch(self, backend, temperature):
        for group in sample(backend, params=replace(PARAMS, temperature=temperature), max_rows=7):
            for sampled in group.completions:
                ids = sampled.completion.token_ids
                logits = logits_from_scratch(backend.reference, group.prompt, ids)
                expected = (logits / temperature).log_softmax(-1)[range(len(ids)), ids]
                torch.testing.assert_close(
                    torch.tensor(sampled.sampler_logprobs, dtype=torch.float64), expected, rtol=0, atol=5e-5
                )

    def test_log_probs_under_truncation_are_those_of_the_truncated_distribution(self, backend):
        for group in sample(backend, params=replace(PARAMS, temperature=1.5, top_k=4)):
            for sampled in group.completions:
                ids = sampled.completion.token_ids
                logits = logits_from_scratch(backend.reference, group.prompt, ids) / 1.5
                kept = logits.topk(4).values
                expected = logits[range(len(ids)), ids] - kept.logsumexp(-1)
                torch.testing.assert_close(
                    torch.tensor(sampled.sampler_logprobs, dtype=torch.float64), expected, rtol=0, atol=5e-5
                )

    def test_every_token_is_where_its_keyed_draw_falls_in_the_cumulative_distribution(self, backend):
        """The documented key (seed, step, slot, attempt, sample, token) and vocabulary order, on every token."""
        for group in sample(backend, max_rows=4):
            keys = row_keys(3, 4, group.slot, group.attempt, range(len(group.completions)))
            for key, sampled in zip(keys, group.completions, strict=True):
                ids = sampled.completion.token_ids
                ends = logits_from_scratch(backend.reference, group.prompt, ids).softmax(-1).cumsum(-1)
                draws = uniforms(np.full(len(ids), key), np.arange(len(ids)))
                for token, token_id in enumerate(ids):
                    start = float(ends[token, token_id - 1]) if token_id else 0.0
                    assert start - 1e-5 <= draws[token] <= float(ends[token, token_id]) + 1e-5

    def test_a_completion_does_not_depend_on_what_shares_its_batch(self, backend):
        together = ids_of(sample(backend))
        for index in (1, 4):
            assert ids_of(sample(backend, [requests()[index]])) == [together[index]]
        fewer = [replace(request, num_samples=1) for request in reversed(requests())]
        assert ids_of(sample(backend, fewer)) == [[group[0]] for group in reversed(together)]

    def test_the_number_of_rows_decoded_at_once_changes_no_token(self, backend):
        together = ids_of(sample(backend))
        for max_rows in (2, 5):
            assert ids_of(sample(backend, max_rows=max_rows)) == together

    def test_every_name_in_the_key_changes_the_draws(self, backend):
        base = requests((9,), (8,))
        variants = [
            sample(backend, base),
            sample(backend, base, seed=5),
            sample(backend, base, step=5),
            sample(backend, [replace(base[0], slot=5)]),
            sample(backend, [replace(base[0], attempt=5)]),
        ]
        assert len({str(ids_of(variant)) for variant in variants}) == len(variants)
        assert len(set(ids_of(variants[0])[0])) > 1  # samples of a group differ

    def test_greedy_equals_greedy_generate(self, backend):
        params = replace(PARAMS, temperature=0.0, top_p=0.5)
        for group in sample(backend, params=params):
            prompt = torch.tensor([group.prompt.token_ids])
            generated = backend.reference.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=LIMIT,
                do_sample=False,
                eos_token_id=sorted(backend.stops),
                pad_token_id=EOS_ID,
            )
            expected = tuple(generated[0, len(group.prompt.token_ids) :].tolist())
            for sampled in group.completions:
                assert sampled.completion.token_ids == expected
                assert set(sampled.sampler_logprobs) == {0.0}

    def test_the_mode_of_the_model_is_restored(self, backend):
        sampler = backend.make(4)
        for training in (True, False):
            sampler.policy.model.train(training)
            sampler.sample(requests((5,), (2,)), PARAMS, seed=0, step=0)
            assert sampler.policy.model.training is training
