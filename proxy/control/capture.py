"""``capture``: the packets of a running daemon, told to one peer of the control socket."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from proxy.control.fields import CommandError, Request, number
from proxy.control.packet_filter import PacketFilter
from proxy.control.schema import VERSION
from proxy.control.server import Command, Feed
from proxy.errors import MptcpProxyError
from proxy.mptcp.subflow import Subflow
from proxy.tun.pcap import INBOUND, OUTBOUND
from proxy.tun.tap import Show
from proxy.wire.head import Head, addresses, parse_head
from proxy.wire.virtio import SIZE, VirtioHeader

if TYPE_CHECKING:
    from proxy.control.workers import WorkerLink
    from proxy.engine.stack import Stack

SNAP_LENGTH = 256
"""Bytes of each packet that are told unless asked otherwise: all headers, and a bit of payload."""
LAN_INTERFACE = "lan"
"""The name of a proxy's LAN side, all of its interfaces together."""
MIN_SNAP_LENGTH, MAX_SNAP_LENGTH = 120, 65535
PACKET_LINE = f'{{"version":{VERSION},"event":"packet'.encode()
"""How the line of each packet begins, and the one that says how many were lost."""
Tell = Callable[[bytes], None]


class Capture(ABC):
    """At most one capture of a daemon at a time, so that it costs no more than that."""

    def __init__(self) -> None:
        self._owner: object = None

    async def begin(self, owner: object, request: Request, tell: Tell) -> object:
        """Each packet is a line for ``tell`` from now on; CommandError EBUSY, EINVAL."""
        if self._owner is not None:
            raise CommandError("EBUSY", "somebody captures already; one can at a time")
        self._owner = owner
        try:
            return await self._start(request, tell)
        except BaseException:
            self._owner = None
            raise

    def end(self, owner: object) -> None:
        """No more packets for ``owner``; harmless if it never captured."""
        if self._owner is owner:
            self._owner = None
            self._stop()

    @abstractmethod
    async def _start(self, request: Request, tell: Tell) -> object:
        """Begin; returns what the peer is to know."""

    @abstractmethod
    def _stop(self) -> None:
        """End what ``_start`` began."""


class StackCapture(Capture):
    """Taps the device of a stack.

    ``tap`` takes what is shown each packet, or None. ``interfaces`` gives the name for each engine
    address; packets of none of these are the interface ``other``'s. ``clock``: nanoseconds since
    1970.
    """

    def __init__(
        self,
        stack: Stack,
        tap: Callable[[Show | None], None],
        interfaces: Callable[[], Mapping[bytes, str]],
        other: str,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__()
        self._stack = stack
        self._tap = tap
        self._interfaces = interfaces
        self._other = other
        self._clock = clock
        self._tell: Tell | None = None
        self._filter = PacketFilter(())
        self._snap_length = SNAP_LENGTH
        self._wanted: frozenset[str] = frozenset()

    async def _start(self, request: Request, tell: Tell) -> object:
        self._filter = PacketFilter(_words(request, "filter"))
        self._snap_length = number(
            request, "snap-length", MIN_SNAP_LENGTH, MAX_SNAP_LENGTH, SNAP_LENGTH
        )
        known = list(dict.fromkeys((self._other, *self._interfaces().values())))
        wanted = _words(request, "interfaces")
        for name in wanted:
            if name not in known:
                raise CommandError("ENODEV", f'no interface "{name}"; there is {", ".join(known)}')
        self._wanted = frozenset(wanted)
        self._tell = tell
        self._tap(self._show)
        return {
            "interfaces": [name for name in known if not wanted or name in wanted],
            "snap-length": self._snap_length,
        }

    def _stop(self) -> None:
        self._tell = None
        self._tap(None)

    def _show(self, packet: list[bytes | memoryview], direction: int) -> None:
        total = sum(map(len, packet)) - SIZE
        begin = bytes(packet[0]) if len(packet[0]) >= SIZE + self._snap_length else b"".join(packet)
        ip = begin[SIZE : SIZE + self._snap_length]
        ends = addresses(ip)
        if ends is None or self._tell is None:
            return
        interface = self._interfaces().get(ends[direction == INBOUND], self._other)
        if self._wanted and interface not in self._wanted:
            return
        head = parse_head(ip)
        if not self._filter.takes(head):
            return
        fields: dict[str, object] = {
            "version": VERSION,
            "event": "packet",
            "time": self._clock(),
            "interface": interface,
            "direction": "in" if direction == INBOUND else "out",
            "length": total,
            "data": base64.b64encode(ip).decode(),
        }
        virtio = VirtioHeader.parse(begin)
        if virtio.gso_type:
            fields["gso-size"] = virtio.gso_size
        if head is not None:
            fields |= self._known(head, total, direction)
        self._tell(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    def _known(self, head: Head, total: int, direction: int) -> dict[str, object]:
        """What the stack knows of the packet: its connection, who chose its way."""
        ends = ((head.src, head.sport), (head.dst, head.dport))
        (remote, rport), (local, lport) = ends if direction == INBOUND else ends[::-1]
        key = remote + local + rport.to_bytes(2, "big") + lport.to_bytes(2, "big")
        subflow = self._stack.demux.find(key)
        if not isinstance(subflow, Subflow):
            return {}
        conn = subflow.conn
        known: dict[str, object] = {"token": f"{conn.local_key.token:08x}"}
        if direction == OUTBOUND and total > head.length and not conn.fallback_reason:
            known["scheduler"] = conn.scheduler.name
        return known


class WorkerCapture(Capture):
    """Has all workers tell their packets. ``links`` gives those that are open."""

    def __init__(self, links: Callable[[], Iterable[WorkerLink]]) -> None:
        super().__init__()
        self._links = links
        self._request: dict[str, object] = {}
        self._tell: Tell | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def request(self) -> dict[str, object] | None:
        """What a worker that starts now is to be asked, if anything."""
        return self._request if self._tell is not None else None

    def take(self, line: bytes) -> None:
        """A line from a worker."""
        if self._tell is not None:
            self._tell(line)

    async def _start(self, request: Request, tell: Tell) -> object:
        links = list(self._links())
        if not links:
            raise CommandError("EAGAIN", "no worker is running just now")
        # What the last capture began is to have an end first.
        await asyncio.gather(*self._ending)
        self._request = {k: v for k, v in request.items() if k not in ("id", "version")}
        self._tell = tell
        try:
            answers = [await link.request(self._request) for link in links]
        except BaseException:
            self._stop()
            raise
        return answers[0]

    def _stop(self) -> None:
        self._tell = None
        task = asyncio.ensure_future(self._end_all())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_all(self) -> None:
        for link in list(self._links()):
            try:
                await link.request({"command": "capture-stop"})
            except MptcpProxyError:
                continue  # it is gone, and what it captured with it


class CapturePeer:
    """The commands of one peer of the control socket."""

    NAMES = ("capture", "capture-stop")

    def __init__(self, feed: Feed, capture: Capture) -> None:
        self._feed = feed
        self._capture = capture
        self.active = False
        """Whether it captures."""
        self._lost = 0

    def commands(self) -> dict[str, Command]:
        """By name."""
        return dict(zip(self.NAMES, (self._begin, self._end), strict=True))

    def stop(self) -> None:
        """It captures no more."""
        self.active = False
        self._capture.end(self)

    async def _begin(self, request: Request) -> object:
        result = await self._capture.begin(self, request, self._tell)
        self._lost = 0
        self.active = True
        return result

    def _end(self, request: Request) -> object:
        if not self.active:
            raise CommandError("EINVAL", "there is no capture to end")
        self.stop()
        return {"lost": self._lost}

    def _tell(self, line: bytes) -> None:
        if self._lost:
            lost = {"version": VERSION, "event": "packets-lost", "lost": self._lost}
            if self._feed.write(json.dumps(lost, separators=(",", ":")).encode() + b"\n"):
                self._lost = 0
        if not self._feed.write(line):
            self._lost += 1


def peer_commands(capture: Capture) -> Callable[[Feed], CapturePeer]:
    """For ``ControlServer``."""
    return lambda feed: CapturePeer(feed, capture)


def _words(request: Request, name: str) -> list[str]:
    value = request.get(name, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CommandError("EINVAL", f"{name} must be a list of words")
    return value
