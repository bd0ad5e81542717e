"""What every sampling backend does alike: checking what it is asked for, keying the draws, and making the records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from outscore.model.policy import Policy
from outscore.model.transfer import on_device
from outscore.records import Completion, Finish, SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rollout.random import row_keys, uniforms
from outscore.rollout.sampling import check_params, choose


@dataclass(kw_only=True, slots=True, eq=False)
class Draft:
    """A completion being sampled."""

    request: int
    """Index of its request."""
    sample: int
    """Its place in the group."""
    key: np.uint64
    """What keys its draws."""
    limit: int
    """The most tokens it may have."""
    token_ids: list[int] = field(default_factory=list)
    """The tokens so far."""
    logprobs: list[float] = field(default_factory=list)
    """Their log-probs under the distribution they were drawn from."""
    finish: Finish | None = None
    """Why it ended, once it has."""


def check_requests(requests: Sequence[SampleRequest], params: SamplingParams, context_length: int | None) -> None:
    """Raise ValueError, naming the request, for what cannot be sampled.

    Args:
        requests: the groups wanted.
        params: how to draw.
        context_length: the longest sequence the model was built for, or None if it has no limit.
    """
    check_params(params)
    for request in requests:
        name = f"prompt {request.prompt.problem.id!r}"
        if request.num_samples < 1:
            raise ValueError(f"{name}: num_samples must be at least 1, got {request.num_samples}")
        length = len(request.prompt.token_ids)
        if length == 0:
            raise ValueError(
                f"{name} has no tokens; a template that adds a start token gives the model something to read"
            )
        # The last token is never fed back, so it needs no place.
        limit = token_limit(request, params)
        if limit < 1:
            raise ValueError(f"{name}: max_new_tokens must be at least 1, got {limit}")
        if context_length is not None and length + limit - 1 > context_length:
            longest = context_length + 1 - limit
            raise ValueError(
                f"{name}: {length} tokens and max_new_tokens {limit} exceed the model's context of "
                f"{context_length}; use prompts of at most {longest} tokens, or lower max_new_tokens"
            )


def token_limit(request: SampleRequest, params: SamplingParams) -> int:
    """The most tokens that a completion of this request may have."""
    own = request.max_new_tokens
    return params.max_new_tokens if own is None else min(own, params.max_new_tokens)


def drafts(requests: Sequence[SampleRequest], params: SamplingParams, *, seed: int, step: int) -> list[Draft]:
    """Every completion that is asked for, in request and sample order."""
    return [
        Draft(request=index, sample=sample, key=key, limit=token_limit(request, params))
        for index, request in enumerate(requests)
        for sample, key in enumerate(row_keys(seed, step, request.slot, request.attempt, range(request.num_samples)))
    ]


def extend(
    rows: Sequence[Sequence[Draft]], logits: Float[Tensor, "row vocab"], policy: Policy, params: SamplingParams
) -> None:
    """Draw the next token of every draft, and mark those that end with it.

    Args:
        rows: the drafts that continue each row of logits.
        logits: what the model says comes next.
        policy: whose stop tokens end a draft.
        params: how to draw.

    Raises:
        ValueError: if the model's logits are not finite.
    """
    every = [draft for row in rows for draft in row]
    owners = on_device(torch.tensor([index for index, row in enumerate(rows) for _ in row]), logits.device)
    draws = on_device(torch.from_numpy(upcoming(every, 1)[0]), logits.device)
    ids, logprobs = choose(logits, draws, owners, params)
    for draft, token_id, logprob in zip(every, ids.tolist(), logprobs.tolist(), strict=True):
        take(draft, token_id, logprob, policy, params)


def upcoming(every: Sequence[Draft], num_tokens: int) -> Float64[np.ndarray, "token draft"]:
    """The uniform numbers that draw the next tokens of every draft."""
    keys = np.array([draft.key for draft in every])
    places = np.array([len(draft.token_ids) for draft in every]) + np.arange(num_tokens)[:, None]
    return uniforms(np.tile(keys, num_tokens), places.ravel()).reshape(places.shape)


def take(draft: Draft, token_id: int, logprob: float, policy: Policy, params: SamplingParams) -> None:
    """Give a draft its next token, and mark it where it ends with that.

    Raises:
        ValueError: if the model's logits were not finite.
    """
    if math.isnan(logprob):
        raise ValueError(
            f"the model's logits are not finite at token {len(draft.token_ids)} of sample {draft.sample}: its "
            f"weights hold NaN or infinity, or its precision ({policy.compute_dtype}) overflows"
        )
    draft.token_ids.append(token_id)
    draft.logprobs.append(logprob)
    if token_id in policy.stop_token_ids:
        draft.finish = "stop"
    elif len(draft.token_ids) == draft.limit:
        draft.finish = "length"
    elif params.until and wrote_one_of(params.until, draft.token_ids, policy.tokenizer.decode):
        draft.finish = "pause"


def take_several(
    every: Sequence[Draft],
    ids: Int64[np.ndarray, "token draft"],
    logprobs: Float64[np.ndarray, "token draft"],
    policy: Policy,
    params: SamplingParams,
) -> None:
    """`take` these tokens for every draft that has not ended, up to the one that ends it: at most its limit.

    Raises:
        ValueError: if the model's logits were not finite before that.
    """
    if params.until:  # what a token wrote is known by reading it
        for given in zip(ids.tolist(), logprobs.tolist(), strict=True):
            for draft, token_id, logprob in zip(every, *given, strict=True):
                if draft.finish is None:
                    take(draft, token_id, logprob, policy, params)
        return
    ends = np.isin(ids, [*policy.stop_token_ids]) | np.isnan(logprobs)
    ends[-1] = True
    columns = ids.T.tolist(), logprobs.T.tolist(), ends.argmax(0).tolist()
    for draft, own_ids, own_logprobs, last in zip(every, *columns, strict=True):
        if draft.finish is None:
            draft.token_ids += own_ids[:last]
            draft.logprobs += own_logprobs[:last]
            take(draft, own_ids[last], own_logprobs[last], policy, params)


TAIL = 16
"""Tokens that are read back for a text that may have ended with the last of them."""


def wrote_one_of(texts: Sequence[str], token_ids: Sequence[int], decode: Callable[..., Any]) -> bool:
    """Whether the last token ended one of the texts, which is no longer than `TAIL` tokens."""
    tail = list(token_ids[-TAIL:])
    now, before = (decode(ids, skip_special_tokens=True) for ids in (tail, tail[:-1]))
    return any(now.count(text) > before.count(text) for text in texts)


def completed(row: Draft, policy: Policy) -> SampledCompletion:
    """The record of a row that has ended."""
    assert row.finish is not None
    text = policy.tokenizer.decode(row.token_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return SampledCompletion(
        completion=Completion(token_ids=tuple(row.token_ids), text=text, counts=(True,) * len(row.token_ids)),
        sampler_logprobs=tuple(row.logprobs),
        finish=row.finish,
        policy_version=policy.version,
    )


def groups(requests: Sequence[SampleRequest], finished: dict[tuple[int, int], SampledCompletion]) -> list[SampledGroup]:
    """The groups of finished completions, keyed by (request, sample), in request and sample order."""
    return [
        SampledGroup(
            prompt=request.prompt,
            completions=tuple(finished[index, sample] for sample in range(request.num_samples)),
            slot=request.slot,
            attempt=request.attempt,
        )
        for index, request in enumerate(requests)
    ]
