"""A daemon of either role: sets the host up, runs the relay, takes everything back."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import resource
import signal
import time
from collections.abc import Callable

import uvloop

from proxy.config import MAX_UPLINKS, GatewayConfig, ProxyConfig
from proxy.control import notify
from proxy.control.plane import ControlPlane
from proxy.control.schema import StatusSource
from proxy.control.server import ControlServer
from proxy.control.status import gateway_status, proxy_status
from proxy.engine.runtime import Device, Runtime
from proxy.engine.stack import Stack
from proxy.errors import MptcpProxyError
from proxy.mptcp.config import MptcpConfig
from proxy.net.links import own_addresses
from proxy.net.monitor import Monitor
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.relay.gateway import GatewayRelay
from proxy.relay.lan import LanRelay
from proxy.tcp.config import TcpConfig
from proxy.tun.device import TunDevice
from proxy.wire.address import Address

log = logging.getLogger(__name__)

# Changes of the host come in bursts (an interface, its addresses, its routes): one refresh each.
_SETTLE = 0.2

Setup = HostSetup | GatewaySetup


class Follower:
    """Keeps routes and rules right while interfaces, addresses and routes of the host change."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, setup: Setup, refreshed: Callable[[], None]
    ) -> None:
        """``refreshed`` is called, in another thread, after each change that was followed."""
        self._loop = loop
        self._setup = setup
        self._refreshed = refreshed
        self._monitor = Monitor()
        self._waiting: asyncio.TimerHandle | None = None
        self._running: asyncio.Future[None] | None = None
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
        self._running = self._loop.run_in_executor(None, self._follow)

    def _follow(self) -> None:
        try:
            for command in self._setup.refresh():
                log.info("host changed: %s", command)
            self._refreshed()
        except MptcpProxyError as error:
            log.warning("cannot follow a change of the host: %s", error)


def run(config: ProxyConfig | GatewayConfig) -> int:
    """Run the role that ``config`` describes until SIGTERM or SIGINT; returns an exit status.

    Raises ConfigError or DeviceError when the host cannot be set up; nothing is left behind then.
    """
    _allow_descriptors()
    return uvloop.run(_serve(config))


def _allow_descriptors() -> None:
    """A descriptor for each connection to a server: the usual soft limit, 1024, is a relic of
    select(), which is not used here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: ProxyConfig | GatewayConfig) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    setup = HostSetup(config) if isinstance(config, ProxyConfig) else GatewaySetup(config)
    setup.clean_stale()
    try:
        device = TunDevice.open(config.tun.name, mtu=config.tun.mtu, offload=config.tun.offload)
        try:
            setup.apply()
            return await _serve_on(config, device, setup, stopping)
        finally:
            notify.stopping()
            setup.undo()
            device.close()
    except BaseException:
        setup.undo()
        raise


async def _serve_on(
    config: ProxyConfig | GatewayConfig, device: Device, setup: Setup, stopping: asyncio.Event
) -> int:
    loop = asyncio.get_running_loop()
    stack = Stack(random.SystemRandom(), TcpConfig(**config.tcp), _mptcp_settings(config))
    runtime = Runtime(loop, device, stack)
    plane, source, refreshed = _start_role(config, runtime)
    follower = Follower(loop, setup, refreshed)
    control = ControlServer(config.control.socket, source, plane.commands(), plane.events)
    try:
        await control.start()
        # What exists now lives as long as the process: keep the collector off it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        message = ready_line(config)
        notify.ready(message)
        print(message, flush=True)
        stopped = asyncio.ensure_future(_until(stopping))
        await asyncio.wait((stopped, runtime.failed), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if runtime.failed.done():
            runtime.failed.result()
        return 0
    finally:
        await control.stop()
        await follower.stop()
        runtime.stop()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _mptcp_settings(config: ProxyConfig | GatewayConfig) -> MptcpConfig:
    # One subflow per uplink; the gateway takes what a proxy with the most uplinks opens.
    subflows = len(config.uplinks) if isinstance(config, ProxyConfig) else MAX_UPLINKS
    return MptcpConfig(subflows=subflows, **config.mptcp)


def _start_role(
    config: ProxyConfig | GatewayConfig, runtime: Runtime
) -> tuple[ControlPlane, StatusSource, Callable[[], None]]:
    """Start the relay; returns its control, its status, and what to do when the host changed."""
    stack = runtime.stack
    now = time.monotonic
    manager = stack.mptcp_config.path_manager
    source: StatusSource
    if isinstance(config, ProxyConfig):
        proxy = LanRelay(config, stack, time.time, now())
        source = lambda: proxy_status(proxy, now())  # noqa: E731
        plane = ControlPlane(stack, lambda: proxy.flows, source, now, runtime.turn, manager)
        runtime.start(proxy)
        return plane, source, lambda: None
    gateway = GatewayRelay(config, stack, runtime.dial, now, time.time)

    def learn_addresses() -> None:
        gateway.policy.own_addresses = own_addresses() | frozenset(config.listen.addresses)

    learn_addresses()
    source = lambda: gateway_status(gateway, now())  # noqa: E731
    plane = ControlPlane(
        stack, lambda: gateway.flows, source, now, runtime.turn, manager, config.listen.addresses
    )
    runtime.start(gateway)
    return plane, source, learn_addresses


def ready_line(config: ProxyConfig | GatewayConfig) -> str:
    """The line printed when traffic may flow."""
    if isinstance(config, ProxyConfig):
        uplinks = ", ".join(uplink.name for uplink in config.uplinks)
        gateway = Address(config.gateway.address, config.gateway.port)
        return f"ready proxy on {config.tun.name}: uplinks {uplinks}; gateway {gateway}"
    addresses = ", ".join(str(Address(ip, config.listen.port)) for ip in config.listen.addresses)
    return f"ready gateway on {config.tun.name}: listening on {addresses}"
