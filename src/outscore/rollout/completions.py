"""What every sampling backend does alike: checking what it is asked for, keying the draws, and making the records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from outscore.model.policy import Policy
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
        if context_length is not None and length + params.max_new_tokens - 1 > context_length:
            longest = context_length + 1 - params.max_new_tokens
            raise ValueError(
                f"{name}: {length} tokens and max_new_tokens {params.max_new_tokens} exceed the model's context of "
                f"{context_length}; use prompts of at most {longest} tokens, or lower max_new_tokens"
            )


def drafts(requests: Sequence[SampleRequest], *, seed: int, step: int) -> list[Draft]:
    """Every completion that is asked for, in request and sample order."""
    return [
        Draft(request=index, sample=sample, key=key)
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
    owners = torch.tensor([index for index, row in enumerate(rows) for _ in row], device=logits.device)
    token_index = np.array([len(draft.token_ids) for draft in every])
    draws = uniforms(np.array([draft.key for draft in every]), token_index)
    ids, logprobs = choose(logits, torch.from_numpy(draws).to(logits.device), owners, params)
    for draft, token_id, logprob in zip(every, ids.tolist(), logprobs.tolist(), strict=True):
        if math.isnan(logprob):
            raise ValueError(
                f"the model's logits are not finite at token {len(draft.token_ids)} of sample {draft.sample}: its "
                f"weights hold NaN or infinity, or its precision ({policy.compute_dtype}) overflows"
            )
        draft.token_ids.append(token_id)
        draft.logprobs.append(logprob)
        if token_id in policy.stop_token_ids:
            draft.finish = "stop"
        elif len(draft.token_ids) == params.max_new_tokens:
            draft.finish = "length"


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
