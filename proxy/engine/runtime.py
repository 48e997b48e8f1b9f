"""The only event loop: gives the stack a clock, a TUN device and kernel sockets."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import time
from collections.abc import Callable
from typing import Protocol

import uvloop

from proxy.config import MAX_UPLINKS, GatewayConfig, ProxyConfig
from proxy.control import notify
from proxy.control.schema import StatusSource
from proxy.control.server import ControlServer
from proxy.control.status import gateway_status, proxy_status
from proxy.engine.runtime_socket import Dial, KernelStream
from proxy.engine.stack import Application, Stack
from proxy.errors import DeviceError
from proxy.mptcp.config import MptcpConfig
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.relay.flow import ByteStream
from proxy.relay.gateway import GatewayRelay
from proxy.relay.lan import LanRelay
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.tcp.host import Packet
from proxy.tun.device import TunDevice
from proxy.wire.address import Address

log = logging.getLogger(__name__)

# Packets taken from the device before what they caused is written: enough to coalesce
# acknowledgements, few enough that no connection waits long.
_BATCH = 64
# The loop's clock counts milliseconds, so an earlier wake-up would only spin until the deadline.
_MIN_DELAY = 0.001


class Device(Protocol):
    """What the runtime needs of a device (``tun.device.TunDevice`` or a wrapper of it)."""

    def read(self) -> bytes | None: ...
    def write(self, packet: Packet) -> bool: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Relay(Protocol):
    """A role: what is done with connections."""

    def on_event(self, stream: Application, kind: Event, now: float) -> None: ...
    def close(self, now: float) -> None: ...


class Runtime:
    """Drives one stack and its relay over one device."""

    def __init__(self, loop: asyncio.AbstractEventLoop, device: Device, stack: Stack) -> None:
        self.loop = loop
        self.device = device
        self.stack = stack
        self.relay: Relay | None = None
        self.failed: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._unflushed: list[KernelStream] = []
        self._turning = False
        self._turn_again = False

    def start(self, relay: Relay) -> None:
        """Begin to move packets."""
        self.relay = relay
        self.loop.add_reader(self.device.fileno(), self._on_readable)

    def stop(self) -> None:
        """Reset what is open, write it out and leave the loop."""
        self.loop.remove_reader(self.device.fileno())
        if self.relay is not None:
            self.relay.close(time.monotonic())
            self.turn()
        if self._timer is not None:
            self._timer.cancel()

    def dial(self, server: Address, done: Callable[[ByteStream | None, int], None]) -> Dial:
        """Connect to a server with a kernel socket; ``done(stream | None, errno)`` follows."""

        def finished(stream: KernelStream | None, code: int) -> None:
            done(stream, code)
            if stream is not None:
                stream.start(self._on_socket_event)
            self.turn()

        return Dial(self.loop, server, finished, self._unflushed.append)

    def turn(self) -> None:
        """Deliver events, write packets and sockets until nothing is left, then set the timer."""
        if self._turning:
            self._turn_again = True
            return
        self._turning = True
        try:
            self._run_turn()
        finally:
            self._turning = False

    def _run_turn(self) -> None:
        stack = self.stack
        relay = self.relay
        write = self.device.write
        now = time.monotonic()
        while True:
            self._turn_again = False
            while (event := stack.next_event()) is not None:
                if relay is not None:
                    relay.on_event(event[0], event[1], now)
            packets = stack.poll_transmit(now)
            for packet in packets:
                write(packet)
            if self._unflushed:
                streams, self._unflushed[:] = self._unflushed[:], []
                for stream in streams:
                    stream.flush()
            elif not packets and not self._turn_again:
                break
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        deadline = self.stack.next_timeout()
        if self._timer is not None:
            if deadline is not None and self._deadline <= deadline and not self._timer.cancelled():
                return  # it fires early and is set again then: cheaper than a new one each turn
            self._timer.cancel()
            self._timer = None
        if deadline is None:
            return
        self._deadline = deadline
        self._timer = self.loop.call_later(max(deadline - now, _MIN_DELAY), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.stack.handle_timeout(time.monotonic())
        self.turn()

    def _on_readable(self) -> None:
        read = self.device.read
        receive = self.stack.receive
        now = time.monotonic()
        try:
            for _ in range(_BATCH):
                packet = read()
                if packet is None:
                    break
                receive(packet, now)
        except DeviceError as error:
            self.loop.remove_reader(self.device.fileno())
            if not self.failed.done():
                self.failed.set_exception(error)
            return
        self.turn()

    def _on_socket_event(self, stream: KernelStream, kind: Event) -> None:
        if self.relay is not None:
            self.relay.on_event(stream, kind, time.monotonic())  # type: ignore[arg-type]
        self.turn()


def run(config: ProxyConfig | GatewayConfig) -> int:
    """Run the role that ``config`` describes until SIGTERM or SIGINT; returns an exit status.

    Raises ConfigError or DeviceError when the host cannot be set up; nothing is left behind then.
    """
    return uvloop.run(_serve(config))


async def _serve(config: ProxyConfig | GatewayConfig) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    setup = HostSetup(config) if isinstance(config, ProxyConfig) else GatewaySetup(config)
    setup.clean_stale()
    device = TunDevice.open(config.tun.name, mtu=config.tun.mtu, offload=config.tun.offload)
    try:
        setup.apply()
        try:
            return await _serve_on(config, device, stopping)
        finally:
            notify.stopping()
            setup.undo()
    finally:
        device.close()


async def _serve_on(
    config: ProxyConfig | GatewayConfig, device: Device, stopping: asyncio.Event
) -> int:
    loop = asyncio.get_running_loop()
    stack = Stack(random.SystemRandom(), TcpConfig(**config.tcp), _mptcp_settings(config))
    runtime = Runtime(loop, device, stack)
    source = _start_role(config, runtime)
    control = ControlServer(config.control.socket, source)
    await control.start()
    # What exists now lives as long as the process: keep the collector off it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
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
        runtime.stop()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _mptcp_settings(config: ProxyConfig | GatewayConfig) -> MptcpConfig:
    settings = {key: value for key, value in config.mptcp.items() if key != "path_manager"}
    # One subflow per uplink; the gateway takes what a proxy with the most uplinks opens.
    subflows = len(config.uplinks) if isinstance(config, ProxyConfig) else MAX_UPLINKS
    return MptcpConfig(subflows=subflows, **settings)


def _start_role(config: ProxyConfig | GatewayConfig, runtime: Runtime) -> StatusSource:
    stack = runtime.stack
    now = time.monotonic
    if isinstance(config, ProxyConfig):
        proxy = LanRelay(config, stack, time.time, now())
        runtime.start(proxy)
        return lambda: proxy_status(proxy, now())
    gateway = GatewayRelay(config, stack, runtime.dial, now, time.time)
    runtime.start(gateway)
    return lambda: gateway_status(gateway, now())


def ready_line(config: ProxyConfig | GatewayConfig) -> str:
    """The line printed when traffic may flow."""
    if isinstance(config, ProxyConfig):
        uplinks = ", ".join(uplink.name for uplink in config.uplinks)
        gateway = Address(config.gateway.address, config.gateway.port)
        return f"ready proxy on {config.tun.name}: uplinks {uplinks}; gateway {gateway}"
    addresses = ", ".join(str(Address(ip, config.listen.port)) for ip in config.listen.addresses)
    return f"ready gateway on {config.tun.name}: listening on {addresses}"
