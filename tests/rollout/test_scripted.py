"""The scripted sampler: the laws that need no model, and that it says what it is told to."""

import pytest
from families import EOS_ID
from rollout.conformance import PARAMS, Backend, FormLaws, requests, word_tokenizer

from outscore.records import SamplingParams
from outscore.rollout import ScriptedSampler

SCRIPT = {f"p{slot}": ["w10 w11", "w12", " ".join(f"w{i}" for i in range(20, 40))] for slot in range(5)}


class TestScriptedSampler(FormLaws):
    @pytest.fixture
    def backend(self):
        tokenizer = word_tokenizer()
        return Backend(
            make=lambda max_rows: ScriptedSampler(SCRIPT, tokenizer),
            tokenizer=tokenizer,
            stops=frozenset({EOS_ID}),
            set_version=lambda sampler, version: setattr(sampler, "policy_version", version),
        )


def test_samples_take_the_texts_in_turn_and_long_ones_are_cut():
    sampler = ScriptedSampler(SCRIPT, word_tokenizer(), logprob=-0.5)
    [group] = sampler.sample(requests((3,), (4,)), PARAMS, seed=0, step=0)
    first, second, third, fourth = group.completions
    assert first.completion.token_ids == (10, 11, EOS_ID) and first.completion.text == "w10 w11"
    assert first.sampler_logprobs == (-0.5, -0.5, -0.5)
    assert second.completion.token_ids == (12, EOS_ID) and second.finish == "stop"
    assert third.completion.token_ids == tuple(range(20, 32)) and third.finish == "length"
    assert fourth == first


def test_a_function_may_write_the_script():
    sampler = ScriptedSampler(lambda prompt, sample: f"w{10 + sample + len(prompt.token_ids)}", word_tokenizer())
    [group] = sampler.sample(requests((3,), (2,)), PARAMS, seed=0, step=0)
    assert [sampled.completion.text for sampled in group.completions] == ["w13", "w14"]


def test_greedy_log_probs_are_zero():
    params = SamplingParams(max_new_tokens=4, temperature=0)
    [group] = ScriptedSampler(SCRIPT, word_tokenizer()).sample(requests((3,), (1,)), params, seed=0, step=0)
    assert set(group.completions[0].sampler_logprobs) == {0.0}


def test_a_problem_without_a_script_is_named():
    with pytest.raises(ValueError, match=r"no completion for problem 'p0'; it has \['other'\]"):
        ScriptedSampler({"other": ["w1"]}, word_tokenizer()).sample(requests(), PARAMS, seed=0, step=0)
