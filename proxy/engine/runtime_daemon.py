"""A daemon of either role: sets the host up, runs the relay, takes everything back."""

from __future__ import annotations

import asyncio
import random
import resource
import signal

import uvloop

from proxy.config import GatewayConfig, ProxyConfig
from proxy.control import notify
from proxy.control.server import ControlServer
from proxy.engine.runtime import Device, Runtime, settle_memory
from proxy.engine.runtime_follow import Follower
from proxy.engine.runtime_role import (
    HostState,
    HostWatch,
    make_role,
    mptcp_settings,
    ready_line,
)
from proxy.engine.stack import Stack
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.tcp.config import TcpConfig
from proxy.tun.device import TunDevice

Setup = HostSetup | GatewaySetup


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
        device = TunDevice.open(
            config.tun.name,
            queues=config.workers,
            mtu=config.tun.mtu,
            offload=config.tun.offload,
        )
        try:
            setup.apply()
            if config.workers > 1:
                return await _supervise(config, device, setup, stopping)
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
    stack = Stack(random.SystemRandom(), TcpConfig(**config.tcp), mptcp_settings(config))
    runtime = Runtime(loop, device, stack)
    role = make_role(config, runtime, HostState.of(setup))
    role.start()
    follower = Follower(loop, HostWatch(setup, role.follow))
    plane = role.plane
    control = ControlServer(config.control.socket, role.status, plane.commands(), plane.events)
    try:
        await control.start()
        settle_memory()
        _announce_ready(config, setup)
        await _until(stopping, runtime.failed)
        return 0
    finally:
        await control.stop()
        await follower.stop()
        runtime.stop()


async def _supervise(
    config: ProxyConfig | GatewayConfig, device: TunDevice, setup: Setup, stopping: asyncio.Event
) -> int:
    # Late: a single process needs none of it.
    from proxy.engine.runtime_supervisor import Supervisor

    loop = asyncio.get_running_loop()
    supervisor = Supervisor(loop, config, device, HostState.of(setup))
    follower = Follower(loop, HostWatch(setup, supervisor.follow))
    commands = supervisor.commands.commands()
    control = ControlServer(config.control.socket, dict, commands, supervisor.events)
    try:
        await supervisor.start()
        await control.start()
        _announce_ready(config, setup)
        await _until(stopping, supervisor.failed)
        return 0
    finally:
        await control.stop()
        await follower.stop()
        await supervisor.stop()


def _announce_ready(config: ProxyConfig | GatewayConfig, setup: Setup) -> None:
    message = ready_line(config, HostState.of(setup))
    notify.ready(message)
    print(message, flush=True)


async def _until(stopping: asyncio.Event, failed: asyncio.Future[None]) -> None:
    """Wait for ``stopping``; raises what ``failed`` has."""
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if failed.done():
        failed.result()
