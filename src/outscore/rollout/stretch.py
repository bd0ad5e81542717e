"""Many tokens for the same rows, with nothing for the host to do between two of them.

Every number that changes from token to token lies on the device and is moved on there: the last tokens, how many
tokens each row has, which draws are next, and where results go. All else, from the keys that attention reads to the
memory that holds them, is settled for the whole stretch, so that the step of each token is the same operations on the
same memory (`outscore.rollout.graphs`). Rows that end go on, and what they write beyond their end is dropped.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64

from outscore.model.policy import Policy
from outscore.model.transfer import on_device
from outscore.records import SamplingParams
from outscore.rollout.context import DecodeContext, LiveRow
from outscore.rollout.graphs import Graphs, Repeated
from outscore.rollout.sampling import choose

STRETCH = 128
"""Tokens of a stretch at most: attention reads the places of all of them from the first on."""

WORTH_RECORDING = 8
"""Recording a step takes about as long as running it twice."""


class Stretch:
    """The next tokens of some rows.

    Args:
        policy: the model.
        context: what its attention remembers.
        rows: the rows, in their places.
        last_ids: the token of each that is fed first.
        params: how to draw.
        room: the most tokens that any row may get.
        burst: the most tokens that are drawn in one go.
        graphs: what records the step; None for a device that runs it each time.
    """

    def __init__(
        self,
        policy: Policy,
        context: DecodeContext,
        rows: Sequence[LiveRow],
        last_ids: Sequence[int],
        params: SamplingParams,
        *,
        room: int,
        burst: int,
        graphs: Graphs | None,
    ) -> None:
        self.left = min(STRETCH, room)
        """Tokens that may still be drawn."""
        self._policy, self._context, self._params = policy, context, params
        context.begin(rows, self.left)
        device, size = policy.device, min(burst, self.left)
        self._last = on_device(torch.tensor(last_ids), device)
        self._owners = torch.arange(len(rows), device=device)
        self._draws = torch.zeros(size, len(rows), dtype=torch.float64, device=device)
        self._ids = torch.zeros(size, len(rows), dtype=torch.int64, device=device)
        self._logprobs = torch.zeros_like(self._draws)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # of the token, in this burst
        self._step = Repeated(self._draw, graphs if self.left >= WORTH_RECORDING else None)

    def draw(
        self, draws: Float64[np.ndarray, "token row"]
    ) -> tuple[Int64[np.ndarray, "token row"], Float64[np.ndarray, "token row"]]:
        """The next tokens of every row by their uniform draws, and their log-probs; the host waits for them once all
        are drawn."""
        num_tokens = len(draws)
        assert num_tokens <= min(self.left, len(self._draws))
        self._draws[:num_tokens].copy_(on_device(torch.from_numpy(draws), self._draws.device))
        self._number.zero_()
        for _ in range(num_tokens):
            self._step()
        self.left -= num_tokens
        return self._ids[:num_tokens].numpy(force=True), self._logprobs[:num_tokens].numpy(force=True)

    def _draw(self) -> None:
        """One token for every row. What it changes it changes last, so that it may be begun again."""
        hidden = self._policy.hidden(self._last[None], self._context.positions(), self._context)[0]
        draws = self._draws.index_select(0, self._number)[0]
        ids, logprobs = choose(self._policy.logits(hidden), draws, self._owners, self._params)
        self._ids.index_copy_(0, self._number, ids[None])
        self._logprobs.index_copy_(0, self._number, logprobs[None])
        self._last.copy_(ids)
        self._number.add_(1)
        self._context.advance()
