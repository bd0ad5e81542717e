"""Several tokens for many drafts at once are the same as token after token."""

import random
from dataclasses import replace

import numpy as np
import pytest
from families import build_family
from rollout.conformance import PARAMS, word_tokenizer

from outscore.model.policy import Policy
from outscore.rollout.completions import Draft, take, take_several, upcoming
from outscore.rollout.random import row_keys, uniforms


def policy_of(stops: frozenset[int]) -> Policy:
    return Policy(build_family("llama", num_layers=1), word_tokenizer(), stop_token_ids=stops)


def some_drafts(draw: random.Random, number: int) -> list[Draft]:
    """At different lengths and limits, some of them ended."""
    made = [Draft(request=0, sample=i, key=key, limit=20) for i, key in enumerate(row_keys(1, 2, 3, 0, range(number)))]
    for draft in made:
        draft.token_ids = [draw.randrange(8, 60) for _ in range(draw.randrange(12))]
        draft.logprobs = [-1.0] * len(draft.token_ids)
        draft.limit = len(draft.token_ids) + draw.randrange(6, 9)
        draft.finish = draw.choice((None, None, None, "stop"))
    return made


@pytest.mark.parametrize("stops", [frozenset(), frozenset({9}), frozenset({9, 10, 11})])
@pytest.mark.parametrize("until", [(), ("w12",), ("w12 w13", "w14")])
@pytest.mark.parametrize("num_tokens", [1, 6])
def test_several_tokens_at_once_are_taken_as_one_after_the_other(stops, until, num_tokens):
    policy, params, finishes = policy_of(stops), replace(PARAMS, until=until), set()
    for seed in range(20):
        drawn = np.random.default_rng(seed)
        ids, logprobs = drawn.integers(8, 24, (num_tokens, 9)), -drawn.random((num_tokens, 9))
        one, other = (some_drafts(random.Random(seed), 9) for _ in range(2))
        take_several(one, ids, logprobs, policy, params)
        for place, draft in enumerate(other):
            for token in range(num_tokens):
                if draft.finish is None:
                    take(draft, int(ids[token, place]), float(logprobs[token, place]), policy, params)
        for ours, theirs in zip(one, other, strict=True):
            assert (ours.token_ids, ours.logprobs, ours.finish) == (theirs.token_ids, theirs.logprobs, theirs.finish)
            assert all(type(value) is int for value in ours.token_ids)
            finishes.add(ours.finish)
    assert finishes >= {None, "stop", *(["pause"] if until else []), *(["length"] if num_tokens == 6 else [])}


def test_logits_that_are_not_finite_are_an_error_at_their_token_and_none_behind_the_end():
    policy = policy_of(frozenset({9}))
    ids = np.array([[20, 20], [21, 9], [22, 23]])
    logprobs = np.zeros((3, 2))
    logprobs[2, 1] = np.nan  # behind the end of the second
    made = [Draft(request=0, sample=i, key=np.uint64(i), limit=20) for i in range(2)]
    take_several(made, ids, logprobs, policy, PARAMS)
    assert [draft.token_ids for draft in made] == [[20, 21, 22], [20, 9]]
    logprobs[1, 0] = np.nan
    made = [Draft(request=0, sample=i, key=np.uint64(i), limit=20) for i in range(2)]
    with pytest.raises(ValueError, match="not finite at token 1 of sample 0"):
        take_several(made, ids, logprobs, policy, PARAMS)


def test_the_draws_of_several_tokens_are_those_of_each():
    made = some_drafts(random.Random(0), 5)
    found = upcoming(made, 4)
    for token in range(4):
        for place, draft in enumerate(made):
            [expected] = uniforms(np.array([draft.key]), np.array([len(draft.token_ids) + token]))
            assert found[token, place] == expected
