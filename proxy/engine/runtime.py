"""The only event loop: gives the stack a clock, a TUN device and kernel sockets."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from proxy.engine.runtime_poll import SocketPoll
from proxy.engine.runtime_socket import Dial, KernelStream
from proxy.engine.stack import Application, Stack
from proxy.errors import DeviceError
from proxy.relay.flow import ByteStream
from proxy.seg import gro_merge
from proxy.tcp.events import Event
from proxy.tcp.host import Packet
from proxy.tun.tap import Show, TapDevice
from proxy.wire.address import Address

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

# Packets taken from the device before what they caused is written: enough to join those of one
# conversation (where MTU-sized ones come singly) and to coalesce acknowledgements, few enough
# that no connection waits long.
_BATCH = 64
# The loop's clock counts milliseconds, so an earlier wake-up would only spin until the deadline.
_MIN_DELAY = 0.001


class Device(Protocol):
    """What the runtime needs of a device (``tun.device.TunDevice`` or a wrapper of it)."""

    def read_batch(self, limit: int) -> list[bytes]: ...
    def write_batch(self, packets: list[Packet]) -> None: ...
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
        self._sockets = SocketPoll()
        self._unflushed: list[KernelStream] = []
        self._turning = False
        self._turn_again = False

    def start(self, relay: Relay) -> None:
        """Begin to move packets."""
        self.relay = relay
        self.loop.add_reader(self.device.fileno(), self._on_readable)
        self.loop.add_reader(self._sockets.fileno(), self._on_sockets)

    def stop(self) -> None:
        """Reset what is open, write it out and leave the loop."""
        self.loop.remove_reader(self.device.fileno())
        if self.relay is not None:
            self.relay.close(time.monotonic())
            self.turn()
        if self._timer is not None:
            self._timer.cancel()
        self.loop.remove_reader(self._sockets.fileno())
        self._sockets.stop()

    def tap(self, show: Show | None) -> None:
        """Show each packet in and out of the device from now on; None: no more."""
        if isinstance(self.device, TapDevice):
            self.device = self.device.below
        if show is not None:
            self.device = TapDevice(self.device, show)

    def dial(self, server: Address, done: Callable[[ByteStream | None, int], None]) -> Dial:
        """Connect to a server with a kernel socket; ``done(stream | None, errno)`` follows."""

        def finished(stream: KernelStream | None, code: int) -> None:
            try:
                done(stream, code)
            except Exception:
                self._internal_error()
                if stream is not None:
                    stream.abort(time.monotonic())
            if stream is not None:
                stream.start(self._on_socket_event)
            self.turn()

        return Dial(self.loop, self._sockets, server, finished, self._unflushed.append)

    def adopt(self, connected: socket.socket, peer: Address) -> KernelStream:
        """A kernel socket that is connected already; what happens to it the relay is told."""
        connected.setblocking(False)
        stream = KernelStream(self.loop, self._sockets, connected, peer, self._unflushed.append)
        stream.start(self._on_socket_event)
        self._sockets.watch(connected, stream.on_ready)
        return stream

    def turn(self) -> None:
        """Deliver events, write packets and sockets until nothing is left, then set the timer."""
        if self._turning:
            self._turn_again = True
            return
        self._turning = True
        try:
            self._run_turn()
        except Exception:
            self._internal_error()
            self._turn_later()
        finally:
            self._turning = False
            self._set_timer(time.monotonic())

    def _run_turn(self) -> None:
        stack = self.stack
        relay = self.relay
        now = time.monotonic()
        while True:
            self._turn_again = False
            while (event := stack.next_event()) is not None:
                if relay is not None:
                    relay.on_event(event[0], event[1], now)
            packets = stack.poll_transmit(now)
            if packets:
                self.device.write_batch(packets)
            if self._unflushed:
                streams, self._unflushed[:] = self._unflushed[:], []
                for stream in streams:
                    stream.flush()
            elif not packets and not self._turn_again:
                break

    def _turn_later(self) -> None:
        # What the failed turn left undone is done by a turn of its own.
        self.loop.call_soon(self.turn)

    def _internal_error(self) -> None:
        """A bug of ours must not stop the traffic of all others: log it, count it, go on."""
        self.stack.counters.add("InternalErrors")
        log.exception("internal error")

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
        try:
            self.stack.handle_timeout(time.monotonic())
        except Exception:
            self._internal_error()
        self.turn()

    def _on_readable(self) -> None:
        receive = self.stack.receive
        now = time.monotonic()
        try:
            packets = self.device.read_batch(_BATCH)
        except DeviceError as error:
            self.loop.remove_reader(self.device.fileno())
            if not self.failed.done():
                self.failed.set_exception(error)
            return
        if len(packets) > 1:
            packets = gro_merge(packets)
        for packet in packets:
            try:
                receive(packet, now)
            except Exception:
                self._internal_error()
        self.turn()

    def _on_sockets(self) -> None:
        self._turning = True  # one turn for all that has happened
        try:
            self._sockets.dispatch(self._internal_error)
        finally:
            self._turning = False
        self.turn()

    def _on_socket_event(self, stream: KernelStream, kind: Event) -> None:
        if self.relay is not None:
            try:
                self.relay.on_event(stream, kind, time.monotonic())  # type: ignore[arg-type]
            except Exception:
                self._internal_error()
                stream.abort(time.monotonic())
        self.turn()


def settle_memory() -> None:
    """What exists now lives as long as the process: keep the collector off it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
