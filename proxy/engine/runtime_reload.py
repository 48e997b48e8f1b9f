"""Takes a changed configuration file over while the daemon runs: all of it, or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.config import Changes, Config, GatewayConfig, MetricsConfig, ProxyConfig, compare
from proxy.control import notify
from proxy.control.fields import CommandError, Request
from proxy.convert.auth import keys_of
from proxy.engine.runtime_follow import Follower
from proxy.engine.runtime_role import HostState
from proxy.errors import ConfigError, MptcpProxyError
from proxy.net.setup import GatewaySetup, HostSetup

log = logging.getLogger(__name__)

Load = Callable[[], Config]
"""Reads and checks the configuration file; raises ConfigError."""

Apply = Callable[[Changes, HostState], Awaitable[None]]
"""Makes the connections go by a configuration, on a host that was set up for it."""


class Metrics(Protocol):
    """What listens for Prometheus."""

    async def configure(self, config: MetricsConfig) -> None:
        """Go by ``config``; DeviceError if that cannot be, and then all is as it was."""
        ...


class Reloader:
    """One reload at a time, and none while the set-up follows a change of the host."""

    def __init__(
        self,
        config: Config,
        load: Load,
        setup: HostSetup | GatewaySetup,
        follower: Follower,
        apply: Apply,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._load = load
        self._setup = setup
        self._follower = follower
        self._apply = apply
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self) -> Changes:
        """Raises ConfigError or DeviceError; then everything is as it was."""
        loop = asyncio.get_running_loop()
        notify.reloading()
        try:
            async with self._follower.lock:
                new = await loop.run_in_executor(None, self._load)
                changes = compare(self._config, new)
                await self._take_over(changes)
                self._config = changes.config
        finally:
            notify.ready()
        return changes

    def on_signal(self) -> None:
        """SIGHUP: what came of it is in the log."""
        task = asyncio.get_running_loop().create_task(self._reload_and_log())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def command(self, request: Request) -> object:
        """``reload``: what was changed, and which keys need a restart."""
        del request
        # Whoever asked may go away meanwhile; the work is not left half done for that.
        try:
            changes = await asyncio.shield(self.reload())
        except ConfigError as error:
            raise CommandError("EINVAL", self._refusal(error)) from error
        except MptcpProxyError as error:
            raise CommandError("EIO", self._refusal(error)) from error
        _log(changes)
        return {"changed": list(changes.changed), "needs-restart": list(changes.need_restart)}

    async def _take_over(self, changes: Changes) -> None:
        loop = asyncio.get_running_loop()
        await self._metrics.configure(changes.config.metrics)
        try:
            host = await loop.run_in_executor(None, self._prepare, changes.config)
            await self._apply(changes, host)
        except MptcpProxyError:
            await self._metrics.configure(self._config.metrics)
            raise

    def _prepare(self, config: Config) -> HostState:
        if isinstance(config, GatewayConfig):
            # Nothing of its set-up depends on what can change.
            keys_of(config.clients, config.listen.service)
        elif isinstance(config, ProxyConfig) and isinstance(self._setup, HostSetup):
            self._setup.reconfigure(config)
        return HostState.of(self._setup)

    async def _reload_and_log(self) -> None:
        try:
            _log(await self.reload())
        except MptcpProxyError as error:
            log.error("reload: %s", self._refusal(error))

    def _refusal(self, error: MptcpProxyError) -> str:
        return f"{self._config.source}: {error} (nothing was changed)"


def _log(changes: Changes) -> None:
    log.info("reloaded: %s", ", ".join(changes.changed) or "nothing has changed")
    if changes.need_restart:
        log.warning("needs a restart: %s", ", ".join(changes.need_restart))
