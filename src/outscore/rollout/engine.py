"""The built-in sampling engine: every prompt is prefilled once for its group, and the batch holds live rows only.

A group is a tree that grows: as long as samples agree they are one row, computed once, and a row branches where they
differ. A policy that is sure of most tokens is sampled for a fraction of the cost, and a larger group costs what is new
in it.

On a GPU the host looks at what was drawn once in several tokens (`BURST`), because each look waits for the device, and
the rows stay as they are for a stretch of such looks, so that a step can be recorded and replayed
(`outscore.rollout.stretch`): rows that end in between go on, and what they write beyond their end is dropped.

Scheduling is a function of ids and tokens, never of time: completions wait in request and sample order, and whenever
there is room the next ones begin. A row that ends leaves at once, or with its stretch; the last row moves into its
place. A prompt's keys and values are stored from the first of its samples to the last, so a group may be larger than
the batch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.model.policy import Policy
from outscore.records import SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rollout.completions import (
    Draft,
    check_requests,
    completed,
    drafts,
    extend,
    groups,
    take_several,
    upcoming,
)
from outscore.rollout.context import DecodeContext, PrefillContext, StoredPrompt
from outscore.rollout.graphs import Graphs
from outscore.rollout.kv import compaction
from outscore.rollout.linear import turned_round
from outscore.rollout.protocol import OnFinished
from outscore.rollout.stretch import Stretch

PREFILL_TOKENS = 4096
"""Prompt tokens that are prefilled together; a longer prompt is prefilled alone."""

BURST = 16
"""Tokens that a GPU draws between two looks of the host at them."""

ENDED = 0.25
"""The share of a stretch's rows that may have ended before it ends for all of them, though others may wait for their
places. Rows cost little beside the weights that every step reads, and a new stretch costs two steps without a recording
and the reading of new prompts, as much as ten or twenty replayed steps. Counted so, for 64 and 256 rows of unequal
lengths: to begin anew when the first row ends takes up to half as long again; an eighth to a third are alike."""


class GroupEngine:
    """Samples from a policy that takes group rows. Implements `Sampler`.

    Args:
        policy: the model, its tokenizer and its stop tokens.
        max_rows: how many completions are decoded at once. Memory for their keys and values grows with it.
        burst: tokens drawn between two looks of the host at them; None is 1 on a CPU, and `BURST` on a GPU. The draws
            are the same. Above 1, samples that agree so far are computed apart.

    >>> engine = GroupEngine(policy, max_rows=64)
    >>> [group] = engine.sample([SampleRequest(prompt=prompt, num_samples=8, slot=0)], params, seed=0, step=1)
    """

    def __init__(self, policy: Policy, *, max_rows: int, burst: int | None = None) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows: must be at least 1, got {max_rows}")
        if policy.layout != "group_rows":
            raise ValueError(f"this model cannot take group rows (layout {policy.layout!r}); use make_sampler")
        self.policy = policy
        self.max_rows = max_rows
        self.burst = burst or (1 if policy.device.type == "cpu" else BURST)
        self.graphs = Graphs() if policy.device.type == "cuda" else None
        """What records decoding steps, and says if it does not; None for a device without CUDA graphs."""

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
        with torch.inference_mode(), self.policy.evaluating(), turned_round(self.policy.model):
            rollout = _Rollout(self, requests, params, drafts(requests, params, seed=seed, step=step), on_finished)
            while rollout.waiting or rollout.rows:
                if rollout.waiting and rollout.num_live < self.max_rows:
                    rollout.admit()
                elif self.burst == 1:
                    rollout.decode()
                else:
                    rollout.decode_burst(self.burst)
        if self.graphs is not None:
            self.graphs.release()
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
    """The samples of a group that are the same so far: what comes next is computed once for all of them."""

    prompt: StoredPrompt
    drafts: list[Draft]

    @property
    def num_tokens(self) -> int:
        return len(self.drafts[0].token_ids)

    def branches(self) -> list["_Row"]:
        """Rows of those that have not ended, apart by the token drawn last."""
        following: dict[int, list[Draft]] = {}
        for draft in self.drafts:
            if draft.finish is None:
                following.setdefault(draft.token_ids[-1], []).append(draft)
        return [_Row(prompt=self.prompt, drafts=drafts) for drafts in following.values()]


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
        self.policy, self.graphs = engine.policy, engine.graphs
        self.max_rows = min(engine.max_rows, len(waiting))
        self.requests = requests
        self.params = params
        self.waiting = deque(waiting)
        self.on_finished = on_finished
        self.rows: list[_Row] = []
        self.open: dict[int, _OpenGroup] = {}
        self.closed: list[StoredPrompt] = []
        self.stretch: Stretch | None = None
        self.finished: dict[tuple[int, int], SampledCompletion] = {}
        self.device = self.policy.device
        self.context = DecodeContext(self.max_rows, params.max_new_tokens, self.device)

    @property
    def num_live(self) -> int:
        """Samples that have begun and not ended: rows, if all of them differed."""
        return sum(len(row.drafts) for row in self.rows)

    def admit(self) -> None:
        """Begin the next samples, as many as there is room for, and draw their first tokens."""
        free = self.max_rows - self.num_live
        entering = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        by_group: dict[int, list[Draft]] = {}
        for draft in entering:
            by_group.setdefault(draft.request, []).append(draft)
        self._prefill([request for request in by_group if request not in self.open])
        hidden = torch.stack([self.open[request].last_hidden for request in by_group])
        extend(list(by_group.values()), self.policy.logits(hidden), self.policy, self.params)
        for request, own in by_group.items():
            self.rows += _Row(prompt=self.open[request].prompt, drafts=own).branches()
        self._hand_out(entering)

    def decode(self) -> None:
        """Feed every row its last token, draw the next for its samples, and part those that differ."""
        self.context.begin(self.rows)
        token_ids = torch.tensor([[row.drafts[0].token_ids[-1] for row in self.rows]], device=self.device)
        hidden = self.policy.hidden(token_ids, self.context.positions(), self.context)[0]
        fed = self.rows
        extend([row.drafts for row in fed], self.policy.logits(hidden), self.policy, self.params)
        self._go_on(fed)

    def decode_burst(self, burst: int) -> None:
        """Draw several tokens for every sample before the host sees one: nothing in between waits for the device.

        A sample goes on to the end of the burst wherever it ends, and its row to the end of the stretch. None goes
        beyond its limit.
        """
        if self.stretch is None:
            self.stretch = self._begin_stretch(burst)
        every = [row.drafts[0] for row in self.rows]
        live = [draft for draft in every if draft.finish is None]
        num_tokens = min(burst, self.stretch.left, *(draft.limit - len(draft.token_ids) for draft in live))
        ids, logprobs = self.stretch.draw(upcoming(every, num_tokens))
        take_several(every, ids, logprobs, self.policy, self.params)
        self._hand_out(live)
        num_ended = sum(draft.finish is not None for draft in every)
        if self.stretch.left == 0 or num_ended > ENDED * len(every):
            self.stretch = None
            self._go_on(self.rows)

    def _begin_stretch(self, burst: int) -> Stretch:
        self._part()
        counts = [row.num_tokens for row in self.rows]
        room = self.params.max_new_tokens - max(counts)
        if (length := self.policy.context_length) is not None:  # which a row that has ended must not outgrow either
            farthest = max(row.prompt.length + count for row, count in zip(self.rows, counts, strict=True))
            room = min(room, length + 1 - farthest)
        return Stretch(
            self.policy,
            self.context,
            self.rows,
            [row.drafts[0].token_ids[-1] for row in self.rows],
            self.params,
            room=room,
            burst=burst,
            graphs=self.graphs,
        )

    def _part(self) -> None:
        """Give every sample a row of its own."""
        copies: list[tuple[int, int]] = []
        for place, row in enumerate(list(self.rows)):
            for draft in row.drafts[1:]:
                copies.append((place, len(self.rows)))
                self.rows.append(_Row(prompt=row.prompt, drafts=[draft]))
            row.drafts = row.drafts[:1]
        self.context.copy_rows(copies)

    def _go_on(self, fed: Sequence[_Row]) -> None:
        """Go on with the rows that the samples of these ones now need, and hand out those that have ended."""
        branches = [row.branches() for row in fed]
        # The first branch keeps its row's place, the others get places behind, and the last rows fill what is left.
        copies: list[tuple[int, int]] = []
        self.rows = [own[0] if own else row for row, own in zip(fed, branches, strict=True)]
        for place, own in enumerate(branches):
            for branch in own[1:]:
                copies.append((place, len(self.rows)))
                self.rows.append(branch)
        self.context.copy_rows(copies)
        ended = [place for place, own in enumerate(branches) if not own]
        moves = compaction(len(self.rows), ended)
        self.context.copy_rows(moves)
        for source, target in moves:
            self.rows[target] = self.rows[source]
        del self.rows[len(self.rows) - len(ended) :]
        self._hand_out([draft for row in fed for draft in row.drafts])

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
            prefill = PrefillContext(stored, prompts, self.device)
            hidden = self.policy.hidden(prefill.token_ids, prefill.positions, prefill)[0]
            for request, prompt, last in zip(pack, stored, hidden[prefill.last_tokens], strict=True):
                self.open[request] = _OpenGroup(
                    prompt=prompt, last_hidden=last, num_open=self.requests[request].num_samples
                )

    def _hand_out(self, drafts: Sequence[Draft]) -> None:
        """Complete those that have ended, in request and sample order, and drop the prompts nobody continues."""
        ended = [
            draft for draft in drafts if draft.finish is not None and (draft.request, draft.sample) not in self.finished
        ]
        for draft in sorted(ended, key=lambda draft: (draft.request, draft.sample)):
            completion = completed(draft, self.policy)
            self.finished[draft.request, draft.sample] = completion
            group = self.open[draft.request]
            group.num_open -= 1
            if group.num_open == 0:
                self.closed.append(group.prompt)
                del self.open[draft.request]
            if self.on_finished is not None:
                # A reward that trains or caches a model of its own must not be handed inference tensors.
                with torch.inference_mode(False), torch.enable_grad():
                    self.on_finished(draft.request, draft.sample, completion)
        while self.closed and self.stretch is None:  # rows of a stretch read their prompts to its end
            self.context.remove_prompt(self.closed.pop())
