"""The seam between whoever wants completions and whoever samples them: one method."""

from collections.abc import Callable, Sequence
from typing import Protocol

from outscore.records import SampledCompletion, SampledGroup, SampleRequest, SamplingParams

OnFinished = Callable[[int, int, SampledCompletion], None]
"""Called with (request index, sample index, completion) once for each completion, as soon as it ends."""


class Sampler(Protocol):
    """Anything that turns prompts into groups of completions."""

    def sample(
        self,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        *,
        seed: int,
        step: int,
        on_finished: OnFinished | None = None,
    ) -> list[SampledGroup]:
        """Sample every requested completion.

        Args:
            requests: the groups wanted. Draws are keyed by (seed, step, slot, attempt, sample, token), so two requests
                of one step must not share slot and attempt unless they should draw alike.
            params: how to draw.
            seed: the run's seed.
            step: the optimizer step the completions are for.
            on_finished: told of each completion as it ends, in an order that depends on ids and lengths only.

        Returns:
            One group per request, in request order, its completions in sample order.

        Raises:
            ValueError: if a request or a parameter is impossible, before anything is sampled.
        """
        ...
