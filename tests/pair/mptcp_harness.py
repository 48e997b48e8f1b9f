"""Two MPTCP hosts in virtual time, joined by any number of paths.

The client has one address per path, the server one; a packet takes the path of the client's
address. Streams are pseudo-random bytes; what arrives is compared with them.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from proxy.errors import CodecError
from proxy.mptcp.blackhole import Blackhole
from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.keepalive import KeepaliveBudget
from proxy.mptcp.keys import ALL_TOKENS
from proxy.mptcp.trace import Trace
from proxy.pm.base import Endpoint, factory
from proxy.seg import Segment, build_header, gro_merge, parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.mptcp_options import MpCapable, MpJoinSyn, MpTcprst, parse_option
from tests.pair.harness import App, TestHost
from tests.pair.link import Link

SERVER = Address(b"\x0a\x09\x00\x01", 8803)
SERVER_2 = b"\x0a\x09\x00\x02"

Filter = Callable[[int, bool, bytes], list[bytes]]
"""``(path, is_up, packet) -> packets``: a middlebox."""


def client_ip(path: int) -> bytes:
    """The client's address on a path."""
    return bytes((10, path + 1, 0, 1))


def payload(size: int, seed: int = 1) -> bytes:
    """A stream whose every part is different."""
    return random.Random(seed).randbytes(size)


class MptcpTestHost(TestHost):
    """A ``MptcpHost`` on lists and dicts."""

    __test__ = False

    def __init__(
        self,
        seed: int,
        config: TcpConfig | None,
        mptcp: MptcpConfig | None,
        path_manager: str,
        endpoints: Sequence[Endpoint],
    ) -> None:
        super().__init__(seed, config)
        self.mptcp_config = mptcp or MptcpConfig()
        self.token_share = ALL_TOKENS
        self.tokens: dict[int, MptcpConnection] = {}
        self.keepalives = KeepaliveBudget()
        self.trace: Trace | None = None
        self.blackhole = Blackhole(self.mptcp_config.blackhole_timeout, self.counters)
        self.path_manager = factory(path_manager)
        self.local_addresses = list(endpoints)
        self.public_addresses: dict[bytes, bytes] = {}
        self._ports = 40000

    @property
    def demux(self) -> list[TcpConnection]:
        """As ``Stack.demux`` is gone through."""
        return list(self.connections.values())

    def register(self, connection: TcpConnection) -> None:
        self.connections[connection.key] = connection

    def open_local_port(self, local_ip: bytes, remote: Address) -> Address:
        self._ports += 1
        return Address(local_ip, self._ports)

    def reset(self, segment: Segment, now: float, options: bytes = b"") -> None:
        if segment.flags & 16:
            seq, ack, flags = segment.ack, 0, 4
        else:
            seq, ack, flags = 0, (segment.seq + segment.length + 1) & 0xFFFFFFFF, 20
        self.sent.append(
            [
                build_header(
                    segment.dst,
                    segment.src,
                    segment.dport,
                    segment.sport,
                    seq,
                    ack,
                    flags,
                    0,
                    options,
                    0,
                    0,
                )
            ]
        )

    def forget(self, obj: Any) -> None:
        self.forgotten.append(obj)
        key = getattr(obj, "key", None)
        if key is not None:
            self.connections.pop(key, None)
        self.deadlines.pop(obj, None)
        self.woken.pop(obj, None)

    def leftovers(self) -> list[Any]:
        """What should be empty once all connections are gone."""
        return [*self.connections.values(), *self.deadlines, *self.woken, *self.tokens.values()]


@dataclass
class Path:
    """A link each way."""

    up: Link
    down: Link

    @property
    def alive(self) -> bool:
        """Settable: black-holes both directions."""
        return self.up.up

    @alive.setter
    def alive(self, value: bool) -> None:
        self.up.up = self.down.up = value


def path(
    rng: random.Random, mbit: float = 0.0, rtt_ms: float = 20.0, queue_ms: float = 50.0, **more: Any
) -> Path:
    """A symmetric path: rate in Mbit/s, round trip and queue in milliseconds."""
    packets = max(10, int(mbit * 1e6 / 8 * queue_ms / 1e3 / 1500)) if mbit else 0
    links = [
        Link(rng, rate=mbit * 1e6, delay=rtt_ms / 2e3, queue=packets, **more) for _ in range(2)
    ]
    return Path(*links)


@dataclass
class Options:
    """How a pair is set up; ``paths`` are made by ``path``."""

    seed: int = 1
    client: MptcpConfig = field(default_factory=MptcpConfig)
    server: MptcpConfig = field(default_factory=MptcpConfig)
    client_tcp: TcpConfig | None = None
    server_tcp: TcpConfig | None = None
    syn_payload: bytes = b""
    take_syn_payload: bool = True
    backups: tuple[int, ...] = ()
    client_manager: str = "kernel"
    server_manager: str = "passive"
    server_endpoints: tuple[Endpoint, ...] = ()
    gro: bool = True
    filter: Filter | None = None
    start: float = 1000.0
    manual_accept: bool = False
    log: bool = False


class MptcpPair:
    """A client that connects over path 0 and a server."""

    def __init__(
        self,
        paths: Callable[[random.Random], list[Path]],
        client_app: App | None = None,
        server_app: App | None = None,
        **settings: Any,
    ) -> None:
        options = self.options = Options(**settings)
        self.now = options.start
        self.rng = random.Random(options.seed)
        self.paths = paths(self.rng)
        endpoints = [
            Endpoint(
                client_ip(index),
                index + 1,
                uplink=f"u{index}",
                subflow=True,
                backup=index in options.backups,
            )
            for index in range(len(self.paths))
        ]
        self.client_host = MptcpTestHost(
            options.seed * 2, options.client_tcp, options.client, options.client_manager, endpoints
        )
        self.server_host = MptcpTestHost(
            options.seed * 2 + 1,
            options.server_tcp,
            options.server,
            options.server_manager,
            options.server_endpoints,
        )
        self.client_app = client_app or App()
        self.server_app = server_app or App()
        self.filter = options.filter
        self.server: MptcpConnection | TcpConnection | None = None
        self.wire_log: list[tuple[float, int, bool, bytes]] | None = [] if options.log else None
        self.steps = 0
        self._arrivals: list[tuple[float, int, bool, bytes]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.client = MptcpConnection.connect(
            self.client_host,
            self.client_host.open_local_port(client_ip(0), SERVER),
            SERVER,
            self.now,
            syn_payload=options.syn_payload,
            uplink="u0",
        )
        self._settle()

    # -- what happens -------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run ``action`` at a time."""
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run ``action`` some seconds from now."""
        self.at(self.now + seconds, action)

    def inject(self, up: bool, packet: bytes, delay: float = 0.0) -> None:
        """Let a forged packet arrive at the server (``up``) or the client."""
        self._count += 1
        heapq.heappush(self._arrivals, (self.now + delay, self._count, up, packet))

    def _accept(self, seg: Segment) -> None:
        host = self.server_host
        for raw in seg.mptcp:
            option = parse_option(raw, True, False)
            if isinstance(option, MpJoinSyn):
                host.counters.add("MPTcpExtMPJoinSynRx")
                conn = host.tokens.get(option.token)
                if conn is None:
                    host.counters.add("MPTcpExtMPJoinNoTokenFound")
                    host.reset(seg, self.now, MpTcprst(1).build())
                else:
                    conn.on_join(seg, self.now)
                return
        if self.server is not None:
            host.reset(seg, self.now)  # a stripped join: the harness serves one connection
            return
        offers = any(isinstance(parse_option(r, True, False), MpCapable) for r in seg.mptcp)
        if offers and host.mptcp_config.enabled:
            self.server = MptcpConnection.open_passive(host, seg, self.now)
        else:
            plain = TcpConnection(host, Address(seg.dst, seg.dport), Address(seg.src, seg.sport))
            host.register(plain)
            plain.open_passive(seg, self.now)
            self.server = plain
        if not self.options.manual_accept:
            self.accept()

    def accept(self, payload: bytes = b"") -> None:
        """Let the server answer the SYN."""
        assert self.server is not None
        take = self.options.take_syn_payload
        if take:
            self.server_app.received += self.server.syn_payload
        self.server.accept(self.now, take, payload)

    def _receive(self, host: MptcpTestHost, packet: bytes) -> None:
        try:
            seg = parse(packet)
        except CodecError:
            host.counters.add("InErrs")
            return
        conn = host.connections.get(seg.key)
        if conn is not None:
            conn.on_segment(seg, self.now)
        elif seg.flags & 0x16 == 2:
            self._accept(seg)
        elif not seg.flags & 4:
            host.reset(seg, self.now)

    def step(self) -> bool:
        """Go to the next event; False if there is none."""
        due = [t for t in (self.client_host.next_timeout(), self.server_host.next_timeout()) if t]
        if self._arrivals:
            due.append(self._arrivals[0][0])
        if self._timers:
            due.append(self._timers[0][0])
        if not due:
            return False
        self.steps += 1
        self.now = max(self.now, min(due))
        batches: dict[bool, list[bytes]] = {True: [], False: []}
        while self._arrivals and self._arrivals[0][0] <= self.now:
            _, _, up, packet = heapq.heappop(self._arrivals)
            batches[up].append(packet)
        for up, host in ((False, self.client_host), (True, self.server_host)):
            packets = batches[up]
            for packet in gro_merge(packets) if self.options.gro and len(packets) > 1 else packets:
                self._receive(host, packet)
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        self.client_host.fire(self.now)
        self.server_host.fire(self.now)
        self._settle()
        return True

    def _settle(self) -> None:
        for _ in range(200):
            self.client_app.run(self.client, self.now)  # type: ignore[arg-type]
            if self.server is not None:
                self.server_app.run(self.server, self.now)  # type: ignore[arg-type]
            self._collect_events()
            moved = False
            for host, up in ((self.client_host, True), (self.server_host, False)):
                for packet in host.flush(self.now):
                    moved = True
                    self._send(packet, up)
            if not moved:
                return
        raise AssertionError("no end of sending at one instant")

    def _collect_events(self) -> None:
        for host, app in (
            (self.client_host, self.client_app),
            (self.server_host, self.server_app),
        ):
            app.events += [kind for _, kind in host.events]
            host.events.clear()

    def _send(self, packet: bytes, up: bool) -> None:
        # The client's address is the source of what goes up and the destination of the rest.
        index = packet[23 if up else 27] - 1
        if self.wire_log is not None:
            self.wire_log.append((self.now, index, up, packet))
        one = self.paths[index]
        link = one.up if up else one.down
        packets = [packet] if self.filter is None else self.filter(index, up, packet)
        for filtered in packets:
            for at, wire in link.send(filtered, self.now):
                self._count += 1
                heapq.heappush(self._arrivals, (at, self._count, up, wire))

    # -- running --------------------------------------------------------------------------------

    def run(self, until: float = 1e9, max_steps: int = 2_000_000) -> None:
        """Step until both applications saw the end of the stream, or for ``until`` seconds."""
        end = self.now + until
        limit = self.steps + max_steps
        while self.now < end and not self.finished:
            if not self.step():
                return
            assert self.steps < limit, f"no end after {max_steps} steps at {self.now}"

    def run_for(self, seconds: float, max_steps: int = 2_000_000) -> None:
        """Step for a span of virtual time."""
        until = self.now + seconds
        self.at(until, lambda: None)
        limit = self.steps + max_steps
        while self.now < until and self.step():
            assert self.steps < limit, f"no end after {max_steps} steps at {self.now}"

    @property
    def finished(self) -> bool:
        """Both directions ended cleanly."""
        return self.client_app.finished_at is not None and self.server_app.finished_at is not None

    # -- oracles ----------------------------------------------------------------------------------

    def check_streams(self) -> None:
        """Every byte arrived, in order, once, both ways."""
        up = self.options.syn_payload + self.client_app.data
        assert bytes(self.server_app.received) == up, _difference(self.server_app.received, up)
        down = self.server_app.data
        assert bytes(self.client_app.received) == down, _difference(self.client_app.received, down)

    def check_gone(self) -> None:
        """Nothing is left of the connections."""
        self.run_for(200.0)
        assert self.client_host.leftovers() == []
        assert self.server_host.leftovers() == []

    def closed(self) -> bool:
        """Both ends are CLOSED on the data level."""
        return self.client.state is State.CLOSED and (
            self.server is not None and self.server.state is State.CLOSED
        )

    @property
    def counters(self) -> dict[str, int]:
        """The client's counters."""
        return self.client_host.counters

    @property
    def server_counters(self) -> dict[str, int]:
        """The server's counters."""
        return self.server_host.counters


def goodput(app: App, since: float, until: float) -> float:
    """Bits per second that ``app`` received between two times."""
    before = [size for at, size in app.arrivals if at <= since]
    after = [size for at, size in app.arrivals if at <= until]
    first = before[-1] if before else 0
    last = after[-1] if after else 0
    return (last - first) * 8 / (until - since)


def longest_pause(app: App, since: float, until: float) -> float:
    """The longest time without a new byte for the application."""
    times = [since, *(at for at, _ in app.arrivals if since < at < until), until]
    return max(b - a for a, b in pairwise(times))


def _difference(got: bytes | bytearray, wanted: bytes) -> str:
    size = min(len(got), len(wanted))
    at = next((i for i in range(size) if got[i] != wanted[i]), size)
    return f"{len(got)} bytes for {len(wanted)}, first difference at {at}"


__all__ = [
    "SERVER",
    "SERVER_2",
    "App",
    "Event",
    "MptcpPair",
    "Path",
    "client_ip",
    "goodput",
    "longest_pause",
    "path",
    "payload",
]
