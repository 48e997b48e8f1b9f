"""Follows changes of the host: interfaces, addresses and routes that come and go."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from proxy.errors import MptcpProxyError
from proxy.net.monitor import Monitor

log = logging.getLogger(__name__)

# Changes of the host come in bursts (an interface, its addresses, its routes): one refresh each.
_SETTLE = 0.2


class Followed(Protocol):
    """A role, as far as it has to follow its host."""

    def refresh(self) -> list[str]:
        """Make routes and rules right; on another thread. The commands that were needed."""
        ...

    def follow(self) -> None:
        """Afterwards, on the loop: make the connections right."""
        ...


class Follower:
    """Calls a role's ``refresh`` and ``follow`` while its host changes.

    ``lock`` is held meanwhile: whoever else changes the set-up takes it too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, role: Followed) -> None:
        self.lock = asyncio.Lock()
        self._loop = loop
        self._role = role
        self._monitor = Monitor()
        # Once without being told: something may have changed since the set-up.
        self._waiting: asyncio.TimerHandle | None = loop.call_later(_SETTLE, self._refresh)
        self._running: asyncio.Task[None] | None = None
        loop.add_reader(self._monitor.fileno(), self._on_change)

    async def stop(self) -> None:
        """Stop; returns when no refresh is at work any more."""
        self._loop.remove_reader(self._monitor.fileno())
        if self._waiting is not None:
            self._waiting.cancel()
        if self._running is not None:
            await self._running
        self._monitor.close()

    def _on_change(self) -> None:
        if self._monitor.drain() and self._waiting is None:
            self._waiting = self._loop.call_later(_SETTLE, self._refresh)

    def _refresh(self) -> None:
        self._waiting = None
        if self._running is not None and not self._running.done():
            self._waiting = self._loop.call_later(_SETTLE, self._refresh)
            return
        self._running = self._loop.create_task(self._follow())

    async def _follow(self) -> None:
        async with self.lock:
            try:
                for command in await self._loop.run_in_executor(None, self._role.refresh):
                    log.info("host changed: %s", command)
            except MptcpProxyError as error:
                log.warning("cannot follow a change of the host: %s", error)
            self._role.follow()
