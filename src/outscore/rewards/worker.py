"""The process behind a supervised reward: takes calls from a socket, answers each, and trusts nothing to stay well.

It is started fresh by `outscore.rewards.process`, in a session of its own, so that Ctrl-C at the terminal does not
reach it, and it ends with the process that started it. Messages are a length of eight bytes and so many bytes more:
pickles on the way in, JSON on the way out, so that nothing a reward returns can run code in the trainer.
"""

import asyncio
import faulthandler
import inspect
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any

import cloudpickle

from outscore.rewards.call import CallFailed, Reply, describe, reply_of
from outscore.rewards.contract import Item, Log, Reward, TrainerState
from outscore.rewards.loading import make_reward
from outscore.rewards.single import prepared
from outscore.rewards.values import written

HEADER = struct.Struct("!Q")
"""The length before each message."""
GROUP_SECONDS = 1.0
"""How much later than its calls' own limits a worker that makes several at a time is ended."""

Call = tuple[Sequence[Item], TrainerState, float]
"""Completions, trainer state and the seconds that the call may take."""


def main(descriptor: int, parent: int) -> None:
    """Load the reward that the first message holds, and answer calls until the socket closes."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    own = os.getpid()
    _end_with(parent, channel)
    faulthandler.enable()
    sys.argv = [""]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # both are pipes
    setup = pickle.loads(_receive(channel))
    limit_memory(setup["memory_bytes"])
    try:
        spec, folder = cloudpickle.loads(setup["parcel"])
        reward = make_reward(spec, folder=folder)
        if reward.prepare is not None:
            reward.prepare()
    except BaseException as error:  # whatever a user's module does when it is loaded is what is reported
        _send(channel, {"failed": describe(error)})
        return
    _send(channel, {"ready": True})
    loop = asyncio.new_event_loop()
    while True:
        calls: list[Call] = [pickle.loads(call) for call in pickle.loads(_receive(channel))]
        for answer in (
            loop.run_until_complete(_together(reward, calls))
            if reward.is_async
            else (_answer(reward, call, loop) for call in calls)
        ):
            if os.getpid() != own:
                os._exit(0)  # a copy that the reward has forked, and come back from
            _send(channel, answer)


def limit_memory(limit: int) -> None:
    """Let the process have this many bytes of private writable memory, and dump no core."""
    import resource  # there is none on Windows, where no worker is started

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # On Linux RLIMIT_DATA counts what is really writable; RLIMIT_AS would count the code of large libraries, too.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    _, hard = resource.getrlimit(kind)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    try:
        resource.setrlimit(kind, (most, most))
    except (OSError, ValueError):  # macOS refuses
        return


def _answer(reward: Reward, call: Call, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    items, state, _ = call
    log = Log(len(items))

    def output() -> Any:
        found = prepared(reward, items, state, log)()
        return loop.run_until_complete(_awaited(found)) if inspect.isawaitable(found) else found

    try:
        return _written(reply_of(output, log, items))
    except BaseException as error:  # a reward may raise anything, KeyboardInterrupt included
        return _failed(error)


async def _together(reward: Reward, calls: Sequence[Call]) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(_answer_async(reward, call) for call in calls)))


async def _answer_async(reward: Reward, call: Call) -> dict[str, Any]:
    items, state, seconds = call
    log = Log(len(items))
    try:
        async with asyncio.timeout(seconds) as limit:
            output = await prepared(reward, items, state, log)()
        return _written(reply_of(lambda: output, log, items))
    except BaseException as error:
        if isinstance(error, TimeoutError) and limit.expired():
            return {"failed": too_long(seconds)}
        return _failed(error)


async def _awaited(output: Any) -> Any:
    return await output


def _written(reply: Reply) -> dict[str, Any]:
    return {"values": written(reply.values), "columns": reply.columns, "metrics": reply.metrics}


def _failed(error: BaseException) -> dict[str, Any]:
    if isinstance(error, CallFailed):
        cause = error.__cause__
        # What has filled the memory may still be held.
        return {"failed": error.reason, "wrong_shape": error.wrong_shape, "spent": isinstance(cause, MemoryError)}
    return {"failed": describe(error), "spent": isinstance(error, MemoryError)}


def too_long(seconds: float) -> str:
    """The reason of a call that ran out of time."""
    return f"took longer than {seconds:g} s"


def _receive(channel: socket.socket) -> bytes:
    (size,) = HEADER.unpack(_exactly(channel, HEADER.size))
    return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = channel.recv(min(size - len(received), 1 << 20))
        if not part:
            os._exit(0)  # nobody is left to answer to
        received += part
    return bytes(received)


def _send(channel: socket.socket, message: Any) -> None:
    body = json.dumps(message, default=_plain).encode()
    channel.sendall(HEADER.pack(len(body)) + body)


def _plain(value: Any) -> Any:
    """What a reward logged, as JSON knows it: numpy scalars and arrays as numbers and lists, the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _end_with(parent: int, channel: socket.socket) -> None:
    """End this process, and what it started, when its parent ends, even by SIGKILL."""
    threading.Thread(target=_watch, args=(channel,), daemon=True).start()
    if sys.platform == "linux":
        import ctypes

        # The watching thread needs the interpreter's lock, which a regular expression may hold for ever.
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _watch(channel: socket.socket) -> None:
    hangup = select.poll()
    hangup.register(channel.fileno(), 0)  # a hang-up is reported whatever is asked for
    while not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in hangup.poll()):
        pass
    os.killpg(0, signal.SIGKILL)
