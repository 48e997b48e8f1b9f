"""A daemon of either role: sets the host up, runs the relay, takes everything back."""

from __future__ import annotations

import asyncio
import inspect
import random
import resource
import signal
from typing import Any

import uvloop

from proxy.config import Changes, Config, ProxyConfig
from proxy.control import notify
from proxy.control.capture import peer_commands
from proxy.control.fields import Request
from proxy.control.rules import add_bypassed
from proxy.control.server import Command, ControlServer
from proxy.engine.runtime import Device, Runtime, settle_memory
from proxy.engine.runtime_follow import Follower
from proxy.engine.runtime_reload import Load, Reloader
from proxy.engine.runtime_role import (
    HostState,
    HostWatch,
    make_role,
    mptcp_settings,
    ready_line,
    set_log_level,
)
from proxy.engine.stack import Stack
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.tcp.config import TcpConfig
from proxy.tun.device import TunDevice
from proxy.web.server import MetricsServer

Setup = HostSetup | GatewaySetup


def run(config: Config, load: Load) -> int:
    """Run the role that ``config`` describes until SIGTERM or SIGINT; returns an exit status.

    ``load`` reads the configuration again, on SIGHUP and when asked to.

    Raises ConfigError or DeviceError when the host cannot be set up; nothing is left behind then.
    """
    _allow_descriptors()
    return uvloop.run(_serve(config, load))


def _allow_descriptors() -> None:
    """A descriptor for each connection to a server: the usual soft limit, 1024, is a relic of
    select(), which is not used here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config, load: Load) -> int:
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
                return await _supervise(config, load, device, setup, stopping)
            return await _serve_on(config, load, device, setup, stopping)
        finally:
            notify.stopping()
            setup.undo()
            device.close()
    except BaseException:
        setup.undo()
        raise


async def _serve_on(
    config: Config, load: Load, device: Device, setup: Setup, stopping: asyncio.Event
) -> int:
    loop = asyncio.get_running_loop()
    stack = Stack(random.SystemRandom(), TcpConfig(**config.tcp), mptcp_settings(config))
    runtime = Runtime(loop, device, stack)
    role = make_role(config, runtime, HostState.of(setup))
    role.start()
    follower = Follower(loop, HostWatch(setup, role.follow))

    async def apply(changes: Changes, host: HostState) -> None:
        set_log_level(changes)
        role.reconfigure(changes.config, host)

    metrics = MetricsServer(role.reading().report)
    reloader = Reloader(config, load, setup, follower, apply, metrics)
    loop.add_signal_handler(signal.SIGHUP, reloader.on_signal)
    commands = {**role.commands(), "reload": reloader.command}
    _add_of_setup(commands, setup, follower)
    control = ControlServer(
        config.control.socket,
        role.status,
        commands,
        role.plane.events,
        peer_commands(role.capture()),
    )
    try:
        await control.start()
        await metrics.configure(config.metrics)
        settle_memory()
        _announce_ready(config, setup)
        await _until(stopping, runtime.failed)
        return 0
    finally:
        await metrics.stop()
        await control.stop()
        await follower.stop()
        runtime.stop()


async def _supervise(
    config: Config, load: Load, device: TunDevice, setup: Setup, stopping: asyncio.Event
) -> int:
    # Late: a single process needs none of it.
    from proxy.engine.runtime_supervisor import Supervisor

    loop = asyncio.get_running_loop()
    supervisor = Supervisor(loop, config, device, HostState.of(setup))
    follower = Follower(loop, HostWatch(setup, supervisor.follow))
    metrics = MetricsServer(supervisor.reports.report)
    reloader = Reloader(config, load, setup, follower, supervisor.reconfigure, metrics)
    loop.add_signal_handler(signal.SIGHUP, reloader.on_signal)
    commands: dict[str, Command] = {
        **supervisor.commands.commands(),
        "reload": reloader.command,
    }
    _add_of_setup(commands, setup, follower)
    control = ControlServer(
        config.control.socket,
        dict,
        commands,
        supervisor.events,
        peer_commands(supervisor.capture),
    )
    try:
        await supervisor.start()
        await control.start()
        await metrics.configure(config.metrics)
        _announce_ready(config, setup)
        await _until(stopping, supervisor.failed)
        return 0
    finally:
        await metrics.stop()
        await control.stop()
        await follower.stop()
        await supervisor.stop()


def _add_of_setup(commands: dict[str, Command], setup: Setup, follower: Follower) -> None:
    """What the set-up of a proxy's host knows: what nft has counted, for the command ``rules``;
    the command ``lan``, the interfaces whose TCP is taken."""
    if not isinstance(setup, HostSetup):
        return
    rules = commands["rules"]

    async def counted(request: Request) -> object:
        result: Any = rules(request)
        if inspect.isawaitable(result):
            result = await result
        loop = asyncio.get_running_loop()
        return add_bypassed(result, await loop.run_in_executor(None, setup.bypassed))

    commands["rules"] = counted

    async def lan(request: Request) -> object:
        async with follower.lock:  # no earlier than the connections know it too
            return {"interfaces": [{"name": n, "index": i} for n, i in setup.lan.items()]}

    commands["lan"] = lan


def _announce_ready(config: Config, setup: Setup) -> None:
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
