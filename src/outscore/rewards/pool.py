"""The worker processes of one reward: calls wait in a queue, and a worker that fails is replaced.

Each worker is watched by a thread of its own, which lives as long as the worker: on Linux a process is told of the end
of the *thread* that started it.
"""

import json
import math
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from outscore.rewards.call import CallFailed, Finish, Reply, pause
from outscore.rewards.contract import Item, Reward, TrainerState
from outscore.rewards.process import CannotLoad, WorkerFault, WorkerProcess
from outscore.rewards.values import WrongShape, unwritten, values_of
from outscore.rewards.worker import GROUP_SECONDS, too_long
from outscore.settings import ScoringLimits

MOST_TOGETHER = 64
"""Calls that an asynchronous reward has in one worker at the same time."""
MOST_REFUSALS = 6
"""How often in a row a worker may fail to start again, waiting longer each time, before there is none."""
MOST_AHEAD = 16
"""Calls that a worker is handed at a time, to make one after the other: it need not wait for the next."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Call:
    """A call that waits or is being made."""

    about: str
    request: bytes
    lengths: Sequence[int]
    limit: float
    left: int
    future: "Future[Reply]" = field(default_factory=Future)
    tried: int = 0
    alone: bool = False
    spent: float = 0.0
    queued: float = field(default_factory=time.perf_counter)


class Pool:
    """Makes calls of a reward in worker processes, each within its limits.

    Args:
        reward: the reward, as this process knows it.
        parcel: the reward, packed.
        limits: its limits.
        say: told, from any thread, when a worker is replaced.
    """

    def __init__(self, reward: Reward, parcel: bytes, limits: ScoringLimits, say: Callable[[str, bool], None]) -> None:
        self._reward = reward
        self._parcel = parcel
        self._limits = limits
        self._say = say
        self._most = 1 if reward.batched else limits.workers
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._num_idle = 0
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, WorkerProcess] = {}
        self._closed = threading.Event()
        self._broken: Exception | None = None
        self._has_started = False
        self._num_refused = 0

    def start(self) -> None:
        """Start the first worker, without waiting for it."""
        with self._changed:
            if not self._threads:
                self._add_thread()

    def begin(self, items: Sequence[Item], state: TrainerState) -> Finish:
        """Begin a call as soon as a worker is free; the function returned waits for it.

        Raises:
            ValueError: if a data column cannot be sent to another process.
        """
        limits = self._limits
        limit = limits.seconds if len(items) == 1 else min(len(items) * limits.seconds, limits.batch_seconds)
        call = _Call(
            about=about(items),
            request=self._request(items, state, limit),
            lengths=[len(item.token_ids) for item in items],
            limit=limit,
            left=limits.retries,
        )
        with self._changed:
            self._calls.append(call)
            if self._num_idle < len(self._calls) and len(self._threads) < self._most:
                self._add_thread()
            self._changed.notify()
        return call.future.result

    def close(self) -> None:
        """End all workers; calls that wait for an answer fail."""
        with self._changed:
            self._closed.set()
            threads = list(self._threads)
            for worker in self._workers.values():
                worker.kill()
            self._changed.notify_all()
        for thread in threads:
            thread.join(timeout=10.0)

    def _request(self, items: Sequence[Item], state: TrainerState, limit: float) -> bytes:
        try:
            return pickle.dumps((tuple(items), state, limit), pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # pickling runs the code of whatever object the data hold
            raise ValueError(
                f"reward {self._reward.name!r}: a data column cannot be sent to its worker process "
                f"({type(error).__name__}: {error}); let the reward run in this process with `isolate: false`"
            ) from error

    def _add_thread(self) -> None:
        number = len(self._threads)
        thread = threading.Thread(
            target=self._run, args=(number,), name=f"outscore-{self._reward.name}-{number}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _run(self, number: int) -> None:
        """The life of a thread: take calls and have them answered until the pool closes."""
        worker: WorkerProcess | None = None
        outage = (0.0, 0.0)
        try:
            worker = self._started(number)
            while calls := self._take():
                if worker is None or worker.has_ended:
                    worker, outage = self._replacement(number, worker)
                # What the first call has waited for a new worker is lost.
                calls[0].spent += max(0.0, outage[1] - max(outage[0], calls[0].queued))
                outage = (0.0, 0.0)
                if worker is None:
                    self._fail_all(calls)
                elif not self._serve_all(worker, calls):
                    worker, outage = self._replacement(number, worker)
        finally:
            self._ended(number, worker)

    def _replacement(
        self, number: int, worker: WorkerProcess | None
    ) -> tuple[WorkerProcess | None, tuple[float, float]]:
        """A worker in the place of one that has failed, and from when to when there was none."""
        begun = time.perf_counter()
        self._ended(number, worker)
        return self._started(number), (begun, time.perf_counter())

    def _started(self, number: int) -> WorkerProcess | None:
        """A new worker; None where there can be none, which every call is then told."""
        worker: WorkerProcess | None = None
        while worker is None:
            if self._closed.is_set() or self._broken:
                return None
            try:
                worker = WorkerProcess(self._parcel, memory_bytes=int(self._limits.memory_gb * 2**30))
            except (CannotLoad, WorkerFault, OSError) as problem:
                self._num_refused += 1
                # One that was there before will be there again, when the machine has room.
                if not self._has_started or self._num_refused > MOST_REFUSALS:
                    self._broken = problem
                self._closed.wait(pause(self._num_refused))
        self._has_started, self._num_refused = True, 0
        with self._changed:
            self._workers[number] = worker
            if self._closed.is_set():
                worker.kill()
        return worker

    def _ended(self, number: int, worker: WorkerProcess | None) -> None:
        with self._changed:
            self._workers.pop(number, None)
        if worker is not None:
            worker.end()

    def _take(self) -> list[_Call]:
        """The next call, or as many as an asynchronous reward makes at a time; none when the pool is closed."""
        with self._changed:
            self._num_idle += 1
            self._changed.wait_for(lambda: self._calls or self._closed.is_set())
            self._num_idle -= 1
            if self._closed.is_set():
                self._fail_all(list(self._calls))
                self._calls.clear()
                return []
            # A share of what waits, so that the last calls are spread over all workers.
            share = math.ceil(len(self._calls) / (2 * self._most))
            most = MOST_TOGETHER if self._reward.is_async else min(share, MOST_AHEAD)
            taken = [self._calls.popleft()]
            while len(taken) < most and self._calls and not taken[0].alone and not self._calls[0].alone:
                taken.append(self._calls.popleft())
            return taken

    def _fail_all(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            call.future.set_exception(self._broken or CallFailed("was not called: its workers were closed"))

    def _serve_all(self, worker: WorkerProcess, calls: Sequence[_Call]) -> bool:
        """`_serve`, with nobody left to wait for ever if this very code fails."""
        try:
            return self._serve(worker, calls)
        except Exception as error:
            self._broken = error
            self._fail_all([call for call in calls if not call.future.done()])
            return False

    def _serve(self, worker: WorkerProcess, calls: Sequence[_Call]) -> bool:
        """Have calls answered, in order; whether the worker is good for more."""
        worker.send(pickle.dumps([call.request for call in calls]))
        is_async = self._reward.is_async
        sent = time.perf_counter()
        for place, call in enumerate(calls):
            begun = time.perf_counter()
            try:
                answer = _read(worker.answer(call.limit + (GROUP_SECONDS if is_async else 0.0)))
            except WorkerFault as fault:
                # Asynchronous calls are made at the same time, and nobody knows which of them it was.
                unknown = calls[place:] if is_async and len(calls) > 1 else []
                call.spent += time.perf_counter() - sent if unknown else 0.0
                self._again([_only(each) for each in unknown] or calls[place + 1 :])
                if not unknown:
                    self._fault(worker, call, fault, time.perf_counter() - begun)
                return False
            self._settle(call, answer, time.perf_counter() - begun)
            if answer.get("spent"):
                self._again(calls[place + 1 :])
                return False
        return True

    def _fault(self, worker: WorkerProcess, call: _Call, fault: WorkerFault, seconds: float) -> None:
        reason = fault.reason or too_long(call.limit)
        if not self._closed.is_set():
            self._say(_replaced(self._reward.name, call.about, reason, seconds, worker.printed), False)
        self._failed(call, reason, seconds)

    def _settle(self, call: _Call, answer: Mapping[str, Any], seconds: float) -> None:
        if "failed" in answer:
            self._failed(call, answer["failed"], seconds, wrong_shape=answer.get("wrong_shape", False))
            return
        try:
            values = values_of(unwritten(answer["values"]), call.lengths)
        except WrongShape as error:  # what a reward has done to its process is not to be trusted
            self._failed(call, str(error), seconds, wrong_shape=True)
            return
        metrics = [(name, value) for name, value in answer["metrics"]]
        columns = answer["columns"]
        call.future.set_result(Reply(values=values, columns=columns, metrics=metrics, seconds_lost=call.spent))

    def _failed(self, call: _Call, reason: str, seconds: float, *, wrong_shape: bool = False) -> None:
        call.spent += seconds
        if not call.left or wrong_shape or self._closed.is_set():
            call.future.set_exception(CallFailed(reason, wrong_shape=wrong_shape, seconds=call.spent))
            return
        time.sleep(pause(call.tried))
        call.spent += pause(call.tried)
        call.left, call.tried = call.left - 1, call.tried + 1
        self._again([call])

    def _again(self, calls: Sequence[_Call]) -> None:
        with self._changed:
            self._calls.extendleft(reversed(calls))
            self._changed.notify_all()


def about(items: Sequence[Item]) -> str:
    """Which completions a call is about, in words."""
    first = items[0]
    if len(items) > 1:
        return f"a call for {len(items)} completions"
    return f"problem {first.problem_id!r}, completion {first.sample + 1} of {first.group_size}"


def _read(answer: bytes) -> Mapping[str, Any]:
    """An answer as `worker` writes it. WorkerFault for anything else: a reward has written to its connection."""
    try:
        read = json.loads(answer)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict) or not ("failed" in read or read.keys() >= {"values", "columns", "metrics"}):
        raise WorkerFault(f"has its worker process answer {answer[:40]!r}")
    return read


def _only(call: _Call) -> _Call:
    call.alone = True
    return call


def _replaced(name: str, about: str, reason: str, seconds: float, printed: str) -> str:
    # A crash is followed by where each thread was, the innermost call first.
    crash = printed.rpartition("Fatal Python error")
    thread = crash[2].partition("Current thread")
    shown = (crash[1] + crash[2].partition("\n")[0] + "".join(thread[1:]))[:400] if crash[1] else printed[-200:]
    last = f"; it printed: {shown!r}" if shown else ""
    return f"reward {name!r} {reason} ({about}): its worker is replaced after {seconds:.1f} s{last}"
