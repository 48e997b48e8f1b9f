"""What a gateway serves itself, so that its clients can test their uplinks: ``doctor``, ``bench``.

A client asks for it by a request like any other, for a port of ``HOST``, an address that no packet
can have (RFC 6666, discard-only). The ports are those of the simple services of RFC 862, 863, 864
and 866. Only clients that prove who they are may, each with a bounded number of streams; what one
stream costs is bounded like that of any other conversation, by congestion and flow control.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from proxy.mptcp.connection import MptcpConnection
from proxy.tcp.events import Event
from proxy.wire.address import Address, parse_ip

if TYPE_CHECKING:
    from proxy.convert.auth import Request
    from proxy.engine.stack import Application, Stack

HOST = parse_ip("100::8803")
PATTERN = hashlib.shake_256(b"mptcp-proxy test stream").digest(65536)
"""What the source sends, again and again. No box on the way takes it for a protocol of its own."""

_QUEUE_LIMIT = 262144  # of an echo
_WINDOW = 1 << 20  # of a discard, at a time


class TrialPort(enum.IntEnum):
    """The services."""

    ECHO = 7
    DISCARD = 9
    SEEN = 11
    SOURCE = 19

    @property
    def address(self) -> Address:
        """The destination to ask the gateway for."""
        return Address(HOST, self)


_PORTS = frozenset(TrialPort)


class TrialStream:
    """The far side of a flow that ends in the gateway itself; a ``ByteStream``."""

    __slots__ = ("_finishing", "_full", "_position", "_queue", "_queued", "_stack", "eof", "port")

    def __init__(self, stack: Stack, port: TrialPort, first: bytes = b"") -> None:
        self.port = port
        self.eof = False
        self._stack = stack
        self._queue: deque[bytes | memoryview] = deque([first] if first else ())
        self._queued = len(first)
        self._position = 0
        self._full = False
        self._finishing = port is TrialPort.SEEN

    @property
    def peer(self) -> Address:
        """What the client asked for."""
        return self.port.address

    def send(self, chunk: bytes | memoryview) -> None:
        """From the client: kept by an echo alone."""
        if self.port is TrialPort.ECHO:
            self._queue.append(chunk)
            self._queued += len(chunk)
            self._stack.event(self, Event.READABLE)

    def send_room(self) -> int:
        """Bytes that the service takes now."""
        if self.port is not TrialPort.ECHO:
            return _WINDOW
        room = max(_QUEUE_LIMIT - self._queued, 0)
        self._full = not room
        return room

    def receive(self, limit: int) -> list[memoryview | bytes]:
        """For the client, up to ``limit`` bytes."""
        if self.port is TrialPort.SOURCE:
            return self._draw(limit)
        chunks: list[memoryview | bytes] = []
        while self._queue and limit:
            chunk = self._queue.popleft()
            if len(chunk) > limit:
                view = memoryview(chunk)
                self._queue.appendleft(view[limit:])
                chunk = view[:limit]
            limit -= len(chunk)
            self._queued -= len(chunk)
            chunks.append(chunk)
        self._finish()
        if chunks and self._full:
            self._full = False
            self._stack.event(self, Event.WRITABLE)
        return chunks

    def shutdown_write(self) -> None:
        """The client has finished: so do we, once it has all."""
        self._finishing = True
        self._finish()
        self._stack.event(self, Event.EOF)

    def abort(self, now: float) -> None:
        """The client is gone."""
        self._queue.clear()
        self._queued = 0

    def _draw(self, limit: int) -> list[memoryview | bytes]:
        if self._finishing:
            return []
        chunk = memoryview(PATTERN)[self._position : self._position + limit]
        self._position = (self._position + len(chunk)) % len(PATTERN)
        return [chunk]

    def _finish(self) -> None:
        if self._finishing and not self.eof and not self._queue:
            self.eof = True
            self._stack.event(self, Event.CLOSED)


class Trials:
    """The streams of all clients; ``limit``: how many one may have open (0: there are none)."""

    def __init__(self, stack: Stack, limit: int) -> None:
        self.limit = limit
        self._stack = stack
        self._open: dict[str, int] = {}

    def serves(self, request: Request) -> bool:
        """Whether that is a wish of a proven client for a service of ours."""
        wish = request.destination
        return (
            wish is not None
            and request.proven
            and self.limit > 0
            and wish.ip == HOST
            and wish.port in _PORTS
        )

    def has_room(self, client: str) -> bool:
        """Whether the client may have one more."""
        return self._open.get(client, 0) < self.limit

    def open(self, client: str, destination: Address, stream: Application) -> TrialStream:
        """One more for ``client``, whose connection is ``stream``."""
        self._open[client] = self._open.get(client, 0) + 1
        port = TrialPort(destination.port)
        first = b""
        if port is TrialPort.SEEN:
            first = json.dumps(self._seen(stream)).encode() + b"\n"
        return TrialStream(self._stack, port, first)

    def leave(self, client: str) -> None:
        """One of the client's has ended."""
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]

    def _seen(self, stream: Application) -> dict[str, Any]:
        """How a client's connection looks from here."""
        return {
            "source": str(stream.remote),
            "mptcp": isinstance(stream, MptcpConnection),
            "enabled": self._stack.mptcp_config.enabled,
        }
