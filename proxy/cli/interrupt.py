"""Running something that takes back what it set up, also when it is interrupted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def until_interrupted(main: Coroutine[Any, Any, T]) -> T:
    """The result of ``main``, which SIGINT and SIGTERM cancel: KeyboardInterrupt then."""

    async def cancellable() -> T:
        task = asyncio.ensure_future(main)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await task

    try:
        return uvloop.run(cancellable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
