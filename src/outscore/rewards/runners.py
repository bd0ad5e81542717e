"""Where a reward runs: in this process, or in worker processes of its own."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from outscore.rewards.call import Finish, InProcess, Reply
from outscore.rewards.contract import Item, Log, Reward, TrainerState
from outscore.rewards.pool import Pool
from outscore.rewards.process import CannotLoad, WorkerFault
from outscore.rewards.single import prepared
from outscore.rewards.travel import CannotTravel, parcel_of, shared_state
from outscore.settings import ScoringLimits, ScoringSettings

Say = Callable[[str, bool], None]
"""Takes what a person should know, and whether it belongs on the screen or only in a log; from any thread."""


class Runner(Protocol):
    """Makes calls of one reward."""

    @property
    def overlaps(self) -> bool:
        """Whether a call goes on by itself once it has begun."""
        ...

    def begin(self, items: Sequence[Item], state: TrainerState) -> Finish:
        """Begin a call; the function returned waits for it, and raises CallFailed if it gives no rewards.

        Raises:
            ValueError: if the function asks for what there is not, which is no completion's fault.
        """
        ...

    def start(self) -> None:
        """Get ready, without waiting for it."""
        ...

    def close(self) -> None:
        """End what it holds; it may begin calls again."""
        ...


def make_runner(reward: Reward, settings: ScoringSettings, say: Say) -> Runner:
    """Workers for a reward that is to be isolated and can travel, else this process; `say` hears what was decided for
    functions of a script, and why."""
    limits = ScoringLimits.model_validate({**settings.model_dump(exclude={"isolate"}), **reward.limits})
    here = InProcess(reward, limits.retries)
    if not (settings.isolate if reward.isolate is None else reward.isolate):
        return here
    stays = f"reward {reward.name!r} runs in this process, where nothing guards the run against it:"
    if os.name != "posix":
        say(f"{stays} worker processes need Linux or macOS", True)
        return here
    if reward.origin is None and reward.isolate is None and (state := shared_state(reward.function)):
        say(f"{stays} it holds {state}, which a copy would not share; `isolate: true` runs a copy all the same", True)
        return here
    try:
        parcel = parcel_of(reward)
    except CannotTravel as error:
        say(f"{stays} it cannot be sent to another one ({error})", True)
        return here
    each = f"{limits.seconds:g} s a completion, {limits.memory_gb:g} GiB"
    if reward.origin is None:
        say(f"reward {reward.name!r} runs as a copy in a worker process ({each}); `isolate: false` runs it here", True)
    else:
        say(f"reward {reward.name!r} runs in a worker process ({each})", False)
    return Isolated(reward, parcel, limits, say)


class Isolated:
    """Runs a reward in worker processes.

    Args:
        reward: the reward, as this process knows it.
        parcel: the reward, packed.
        limits: its limits.
        say: told when a worker is replaced.
    """

    overlaps = True

    def __init__(self, reward: Reward, parcel: bytes, limits: ScoringLimits, say: Say) -> None:
        self._reward = reward
        self._parcel = parcel
        self._limits = limits
        self._say = say
        self._pool: Pool | None = None
        self._here: InProcess | None = None

    @property
    def pool(self) -> Pool:
        """Its workers; made anew after `close`."""
        if self._pool is None:
            self._pool = Pool(self._reward, self._parcel, self._limits, self._say)
        return self._pool

    def begin(self, items: Sequence[Item], state: TrainerState) -> Finish:
        """See `Runner.begin`."""
        if self._here is not None:
            return self._here.begin(items, state)
        prepared(self._reward, items, state, Log(len(items)))  # a signature that cannot be served is refused here
        waiting = self.pool.begin(items, state)

        def finish() -> Reply:
            try:
                return waiting()
            except (CannotLoad, WorkerFault, OSError) as problem:
                return self._without(problem).begin(items, state)()

        return finish

    def start(self) -> None:
        """Start the first worker."""
        self.pool.start()

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _without(self, problem: Exception) -> InProcess:
        """This process instead of a worker that cannot have the reward: for functions of a script. What a recipe names
        is not run without its guard unless the recipe says so."""
        name = self._reward.name
        if self._reward.origin is not None:
            raise ValueError(
                f"reward {name!r} cannot be loaded in a worker process: {problem}. Raise limits.memory_gb if memory is "
                "short, or run it in this process with `isolate: false`"
            ) from problem
        if self._here is None:
            self._say(f"reward {name!r} runs in this process: a worker process cannot load it ({problem})", True)
            self._here = InProcess(self._reward, self._limits.retries)
        return self._here
