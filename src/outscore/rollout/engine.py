"""The built-in sampling engine: every prompt is prefilled once for its group, and the batch holds live rows only.

Scheduling is a function of ids and lengths, never of time: completions wait in request and sample order, and whenever
rows are free the next ones take them. A row that ends leaves at once; the last row moves into its place. A prompt's
keys and values are stored from the first of its samples to the last, so a group may be larger than the batch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.model.policy import Policy
from outscore.records import SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rollout.completions import Draft, check_requests, completed, drafts, extend, groups
from outscore.rollout.context import DecodeContext, PrefillContext, StoredPrompt
from outscore.rollout.kv import compaction
from outscore.rollout.protocol import OnFinished

PREFILL_TOKENS = 4096
"""Prompt tokens that are prefilled together; a longer prompt is prefilled alone."""


class GroupEngine:
    """Samples from a policy that takes group rows. Implements `Sampler`.

    Args:
        policy: the model, its tokenizer and its stop tokens.
        max_rows: how many completions are decoded at once. Memory for their keys and values grows with it.

    >>> engine = GroupEngine(policy, max_rows=64)
    >>> [group] = engine.sample([SampleRequest(prompt=prompt, num_samples=8, slot=0)], params, seed=0, step=1)
    """

    def __init__(self, policy: Policy, *, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows: must be at least 1, got {max_rows}")
        if policy.layout != "group_rows":
            raise ValueError(f"this model cannot take group rows (layout {policy.layout!r}); use make_sampler")
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
        with torch.inference_mode(), self.policy.evaluating():
            rollout = _Rollout(self, requests, params, drafts(requests, seed=seed, step=step), on_finished)
            while rollout.waiting or rollout.rows:
                if rollout.waiting and len(rollout.rows) < self.max_rows:
                    rollout.admit()
                else:
                    rollout.decode()
        return groups(requests, rollout.finished)


@dataclass(kw_only=True, slots=True, eq=False)
class _OpenGroup:
    """A group some of whose samples are live or waiting."""

    prompt: StoredPrompt
    last_hidden: Float[Tensor, " hidden"]
    """The hidden state that predicts every sample's first token."""
    num_open: int
    """Samples that have not ended."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Row:
    draft: Draft
    prompt: StoredPrompt

    @property
    def num_tokens(self) -> int:
        return len(self.draft.token_ids)


class _Rollout:
    """One call of `GroupEngine.sample`."""

    def __init__(
        self,
        engine: GroupEngine,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        waiting: Sequence[Draft],
        on_finished: OnFinished | None,
    ) -> None:
        self.policy = engine.policy
        self.max_rows = min(engine.max_rows, len(waiting))
        self.requests = requests
        self.params = params
        self.waiting = deque(waiting)
        self.on_finished = on_finished
        self.rows: list[_Row] = []
        self.open: dict[int, _OpenGroup] = {}
        self.finished: dict[tuple[int, int], SampledCompletion] = {}
        self.device = self.policy.device
        self.context = DecodeContext(self.max_rows, params.max_new_tokens, self.device)

    def admit(self) -> None:
        """Fill the free rows with the next completions and draw their first tokens."""
        free = self.max_rows - len(self.rows)
        entering = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        self._prefill([request for request, _ in groupby(row.request for row in entering) if request not in self.open])
        self.rows += [_Row(draft=draft, prompt=self.open[draft.request].prompt) for draft in entering]
        # All first tokens of a group come from one distribution: the output layer is applied once for each prompt.
        indices = {request: index for index, request in enumerate(dict.fromkeys(d.request for d in entering))}
        hidden = torch.stack([self.open[request].last_hidden for request in indices])
        repeats = torch.tensor([indices[draft.request] for draft in entering], device=self.device)
        extend(entering, self.policy.logits(hidden).index_select(0, repeats), self.policy, self.params)
        self._retire()

    def decode(self) -> None:
        """Feed every live row its last token and draw the next."""
        positions = self.context.begin_step(self.rows)
        token_ids = torch.tensor([[row.draft.token_ids[-1] for row in self.rows]], device=self.device)
        hidden = self.policy.hidden(token_ids, positions, self.context)[0]
        extend([row.draft for row in self.rows], self.policy.logits(hidden), self.policy, self.params)
        self._retire()

    def _prefill(self, entering: Sequence[int]) -> None:
        """Store the prompts of these requests, packed in rows of `PREFILL_TOKENS`."""
        packs: list[list[int]] = []
        room = 0
        for request in entering:
            length = len(self.requests[request].prompt.token_ids)
            if length > room:
                packs.append([])
                room = PREFILL_TOKENS
            packs[-1].append(request)
            room -= length
        for pack in packs:
            prompts = [self.requests[request].prompt.token_ids for request in pack]
            stored = [self.context.add_prompt(len(token_ids)) for token_ids in prompts]
            prefill = PrefillContext(stored, self.device)
            token_ids = torch.tensor([[token_id for prompt in prompts for token_id in prompt]], device=self.device)
            hidden = self.policy.hidden(token_ids, prefill.positions[None], prefill)[0]
            for request, prompt, last in zip(pack, stored, hidden[prefill.last_tokens], strict=True):
                self.open[request] = _OpenGroup(
                    prompt=prompt, last_hidden=last, num_open=self.requests[request].num_samples
                )

    def _retire(self) -> None:
        """Hand out the completions that have ended, drop their rows, and the prompts nobody continues."""
        ended = [index for index, row in enumerate(self.rows) if row.draft.finish is not None]
        for draft in sorted((self.rows[i].draft for i in ended), key=lambda draft: (draft.request, draft.sample)):
            self._hand_out(draft)
        moves = compaction(len(self.rows), ended)
        self.context.move_rows(moves)
        for source, target in moves:
            self.rows[target] = self.rows[source]
        del self.rows[len(self.rows) - len(ended) :]

    def _hand_out(self, draft: Draft) -> None:
        completion = completed(draft, self.policy)
        self.finished[draft.request, draft.sample] = completion
        group = self.open[draft.request]
        group.num_open -= 1
        if group.num_open == 0:
            self.context.remove_prompt(group.prompt)
            del self.open[draft.request]
        if self.on_finished is not None:
            # A reward that trains or caches a model of its own must not be handed inference tensors.
            with torch.inference_mode(False), torch.enable_grad():
                self.on_finished(draft.request, draft.sample, completion)
