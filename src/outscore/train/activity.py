"""What a run says it is doing while a step or an evaluation goes on: nothing of it is kept."""

from collections.abc import Callable
from itertools import count

from outscore.records import SampledCompletion
from outscore.rollout.protocol import OnFinished

Tell = Callable[[str], None]
"""Takes what is going on, such as `sampling 12/32`, whenever that changes."""


def tell_nobody(what: str) -> None:
    """For where nobody watches."""


def both(first: OnFinished, second: OnFinished) -> OnFinished:
    """What a sampler calls with each completion for two that want to know."""

    def on_finished(request: int, sample: int, completion: SampledCompletion) -> None:
        first(request, sample, completion)
        second(request, sample, completion)

    return on_finished


def counting(what: str, total: int, tell: Tell) -> OnFinished:
    """Says `what 0/total` now, and returns what a sampler calls with each completion, which counts on."""
    finished = count(1)

    def on_finished(request: int, sample: int, completion: SampledCompletion) -> None:
        tell(f"{what} {next(finished)}/{total}")

    tell(f"{what} 0/{total}")
    return on_finished
