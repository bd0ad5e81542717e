"""One event loop in a thread of its own, for asynchronous rewards.

It lives as long as the process, so that what a reward keeps between steps (a client session) stays usable, and it
works in a notebook, whose own loop is already running.
"""

import asyncio
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from functools import cache
from typing import Any


def submit(awaitable: Awaitable[Any]) -> "Future[Any]":
    """Start an awaitable on the background loop."""

    async def wait() -> Any:
        try:
            return await awaitable
        except SystemExit as error:  # it would end the loop, and with it every reward that waits there
            raise RuntimeError(f"called sys.exit({error.code!r})") from error

    return asyncio.run_coroutine_threadsafe(wait(), _loop())


_starting = threading.Lock()  # `cache` alone lets two threads that come first make a loop each


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _started()


@cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="outscore-rewards", daemon=True).start()
    return loop
