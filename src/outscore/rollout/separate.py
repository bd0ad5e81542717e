"""Sampling from models that cannot take group rows: state space and linear attention, or any other Hugging Face model.

One group at a time, one row for each completion. All rows have the same prompt, so nothing is padded; the prompt is
forwarded for every row, and rows that have ended are carried along until the last one ends. The model keeps its cache.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch

from outscore.model.policy import Policy
from outscore.records import SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rollout.completions import Draft, check_requests, completed, drafts, extend, groups
from outscore.rollout.protocol import OnFinished


class SeparateEngine:
    """Samples from any Hugging Face causal language model. Implements `Sampler`, with the same draws as `GroupEngine`.

    Args:
        policy: the model, its tokenizer and its stop tokens; of any layout but `group_rows`.
        max_rows: how many completions are decoded at once.
    """

    def __init__(self, policy: Policy, *, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows: must be at least 1, got {max_rows}")
        if policy.layout != "separate_rows":
            raise ValueError(f"the layout of this policy is {policy.layout!r}, not 'separate_rows'; use make_sampler")
        self.policy = policy
        self.max_rows = max_rows

    def sample(
        self,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        *,
        seed: int,
        step: int,
        on_finished: OnFinished | None = None,
    ) -> list[SampledGroup]:
        """See `Sampler.sample`."""
        check_requests(requests, params, self.policy.context_length)
        finished: dict[tuple[int, int], SampledCompletion] = {}
        rows = drafts(requests, params, seed=seed, step=step)
        for index, request in enumerate(requests):
            group = [row for row in rows if row.request == index]
            for start in range(0, len(group), self.max_rows):
                part = group[start : start + self.max_rows]
                with torch.inference_mode(), self.policy.evaluating():
                    self._decode(request.prompt.token_ids, part, params)
                for row in part:
                    completion = finished[index, row.sample] = completed(row, self.policy)
                    if on_finished is not None:
                        on_finished(index, row.sample, completion)
        return groups(requests, finished)

    def _decode(self, prompt: Sequence[int], rows: Sequence[Draft], params: SamplingParams) -> None:
        model = cast(Any, self.policy.model)
        token_ids = torch.tensor([prompt] * len(rows), device=self.policy.device)
        cache: dict[str, Any] = {}
        while any(row.finish is None for row in rows):
            output = model(input_ids=token_ids, use_cache=True, return_dict=True, **cache)
            cache = _cache_of(output)
            logits = output.logits[:, -1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            live = [index for index, row in enumerate(rows) if row.finish is None]
            extend([[rows[index]] for index in live], logits[live], self.policy, params)
            # A row that has ended repeats its last token; nothing reads what it predicts.
            token_ids = torch.tensor([[row.token_ids[-1]] for row in rows], device=self.policy.device)


def _cache_of(output: Any) -> dict[str, Any]:
    """What the model remembers, under the name it takes it back by: attention caches, Mamba's, RWKV's."""
    for name in ("past_key_values", "cache_params", "state"):
        if output.get(name) is not None:
            return {name: output[name]}
    raise ValueError(
        f"the model returned no cache with use_cache=True, only {sorted(output)}; it cannot be sampled from"
    )
