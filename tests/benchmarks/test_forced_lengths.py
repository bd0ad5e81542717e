"""Completions of the benchmark end where the workload says, token by token or in bursts."""

import pytest
from train.building import tiny_policy

from outscore.records import Problem, Prompt, SampleRequest, SamplingParams
from outscore.rollout.engine import GroupEngine


@pytest.mark.parametrize("burst", [1, 4])
def test_every_completion_has_its_own_length_and_ends_with_the_end_token(burst: int) -> None:
    from outscore_side import ForcedSampler

    policy = tiny_policy()
    prompt = Prompt(problem=Problem(id="1", question="1+1=", answer="2", columns={}), text="1+1=", token_ids=(5, 6, 7))
    requests = [SampleRequest(prompt=prompt, num_samples=3, slot=slot) for slot in range(2)]
    lengths, stops = [2, 9, 5, 7, 1, 4], policy.stop_token_ids
    forced = ForcedSampler(GroupEngine(policy, max_rows=4, burst=burst), policy, lengths, 3)
    found = [
        each
        for g in forced.sample(requests, SamplingParams(max_new_tokens=9), seed=0, step=1)
        for each in g.completions
    ]
    assert (
        [len(each.completion.token_ids) for each in found] == lengths == [len(each.sampler_logprobs) for each in found]
    )
    assert {each.completion.token_ids[-1] for each in found} == {min(stops)} and {each.finish for each in found} == {
        "stop"
    }
    assert policy.stop_token_ids == stops
