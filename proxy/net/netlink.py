"""Access to rtnetlink that works from anywhere, also from inside a running event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from proxy.errors import DeviceError

__all__ = ["outside_loop", "session"]

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def session() -> Iterator[Any]:
    """An IPRoute socket in the network namespace of this thread."""
    # Late: it takes longer to load than all of ours, and workers need none of it.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        raise DeviceError(f"rtnetlink: {error.args[-1]} (error {error.code})") from error


def outside_loop(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function``, on a thread of its own if this one runs an event loop.

    pyroute2 drives an asyncio loop below its synchronous calls, and a thread can run only one.
    A new thread is in the network namespace of the thread that made it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function(*args, **kwargs)
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*args, **kwargs))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="netlink")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
