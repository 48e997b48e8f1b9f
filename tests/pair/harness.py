"""Two TCP endpoints in virtual time, joined by a link in each direction.

``Pair.step()`` goes to the next event: an arrival, or a timer. Everything that happens at one
instant is one batch, as it is for the engine that reads all waiting packets before it sends.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from proxy.seg import Segment, gro_merge, parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.limit import RateLimit
from proxy.tcp.memory import MemoryBudget
from proxy.tcp.paced_senders import PacedSenders
from proxy.tcp.path_mtus import PathMtus
from proxy.tcp.states import State
from proxy.wire.address import Address
from tests.pair.link import Link

CLIENT = Address(b"\x0a\x00\x00\x01", 40000)
SERVER = Address(b"\x0a\x00\x00\x02", 80)


class CounterTable(Counter[str]):
    """``Counters`` for tests."""

    def add(self, name: str, count: int = 1, /) -> None:
        self[name] += count


class TestHost:
    """A ``Host`` that keeps packets in a list and calls back when told."""

    __test__ = False

    def __init__(self, seed: int, config: TcpConfig | None = None) -> None:
        self.rng = random.Random(seed)
        self.secret = self.rng.randbytes(16)
        self.path_mtus = PathMtus()
        self.paced_senders = PacedSenders()
        self.limits: dict[str, RateLimit] = {}
        self.header_prediction = True
        self.tcp_config = config or TcpConfig()
        self.counters = CounterTable()
        self.memory = MemoryBudget(self.tcp_config.memory, self.counters)
        self.sent: list[list[Any]] = []
        self.events: list[tuple[Any, Event]] = []
        self.woken: dict[Any, None] = {}
        self.deadlines: dict[Any, float] = {}
        self.connections: dict[bytes, TcpConnection] = {}
        self.forgotten: list[Any] = []

    def transmit(self, packet: list[Any]) -> None:
        self.sent.append(packet)

    def wake(self, obj: Any) -> None:
        self.woken[obj] = None

    def arm(self, obj: Any) -> None:
        due = obj.next_timeout()
        if due is None:
            self.deadlines.pop(obj, None)
        else:
            self.deadlines[obj] = due

    def event(self, obj: Any, kind: Event) -> None:
        self.events.append((obj, kind))

    def forget(self, obj: Any) -> None:
        self.forgotten.append(obj)
        self.connections.pop(obj.key, None)
        self.deadlines.pop(obj, None)
        self.woken.pop(obj, None)

    def next_timeout(self) -> float | None:
        return min(self.deadlines.values(), default=None)

    def fire(self, now: float) -> None:
        for obj, due in list(self.deadlines.items()):
            if due <= now and obj in self.deadlines:
                obj.on_timeout(now)
                if obj not in self.forgotten:
                    self.arm(obj)

    def flush(self, now: float) -> list[bytes]:
        """Poll who was woken, until nobody is; the packets, joined."""
        for _ in range(1000):
            if not self.woken:
                break
            woken, self.woken = self.woken, {}
            for obj in woken:
                obj.poll(now)
        else:
            raise AssertionError("a connection wakes itself for ever")
        sent, self.sent = self.sent, []
        return [b"".join(packet) for packet in sent]


class App:
    """An application: sends ``data``, reads what comes (at ``read_rate`` if given), closes."""

    def __init__(self, data: bytes = b"", chunk: int = 46_000, close: bool = True) -> None:
        self.data = data
        self.offset = 0
        self.chunk = chunk
        self.close = close
        self.received = bytearray()
        self.events: list[Event] = []
        self.reading = True
        self.read_limit = 1 << 30
        self.finished_at: float | None = None
        self.first_byte_at: float | None = None
        self.arrivals: list[tuple[float, int]] = []

    def run(self, conn: TcpConnection, now: float) -> None:
        """Read and write as much as the connection takes."""
        if self.reading and conn.receivable:
            for piece in conn.receive(self.read_limit):
                self.received += piece
            if self.first_byte_at is None:
                self.first_byte_at = now
            self.arrivals.append((now, len(self.received)))
        if conn.eof and self.finished_at is None:
            self.finished_at = now
        if conn.state not in (State.ESTABLISHED, State.CLOSE_WAIT):
            return
        while self.offset < len(self.data):
            room = conn.send_room()
            if room <= 0:
                return
            piece = memoryview(self.data)[self.offset : self.offset + min(room, self.chunk)]
            conn.send(piece)
            self.offset += len(piece)
        if self.close:
            conn.shutdown_write()


class Pair:
    """A client and a server; a link each way."""

    def __init__(
        self,
        seed: int = 1,
        *,
        up: Link | None = None,
        down: Link | None = None,
        client_app: App | None = None,
        server_app: App | None = None,
        client_config: TcpConfig | None = None,
        server_config: TcpConfig | None = None,
        syn_payload: bytes = b"",
        take_syn_payload: bool = False,
        gro: bool = True,
        start: float = 1000.0,
        client: Address = CLIENT,
        server: Address = SERVER,
    ) -> None:
        self.now = start
        self.rng = random.Random(seed)
        self.up = up or Link(self.rng, delay=0.01)
        self.down = down or Link(self.rng, delay=0.01)
        self.client_host = TestHost(seed * 2, client_config)
        self.server_host = TestHost(seed * 2 + 1, server_config)
        self.client_app = client_app or App()
        self.server_app = server_app or App()
        self.gro = gro
        self.take_syn_payload = take_syn_payload
        self.on_syn: Callable[[TcpConnection, float], None] | None = None
        self.syn_filter: Callable[[bytes, Segment], bool] | None = None
        self._arrivals: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self.steps = 0
        self.wire_log: list[tuple[float, bool, bytes]] | None = None
        self.server: TcpConnection | None = None
        self.client = TcpConnection(self.client_host, client, server)
        self.client_host.connections[self.client.key] = self.client
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.client.connect(self.now, syn_payload)
        self._settle()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run ``action`` at a time."""
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, action))

    def _accept(self, seg: Segment) -> None:
        conn = TcpConnection(
            self.server_host, Address(seg.dst, seg.dport), Address(seg.src, seg.sport)
        )
        self.server = conn
        self.server_host.connections[conn.key] = conn
        conn.open_passive(seg, self.now)
        if self.on_syn is not None:
            self.on_syn(conn, self.now)
        else:
            conn.accept(self.now, take_syn_payload=self.take_syn_payload)
            if self.take_syn_payload:
                self.server_app.received += conn.syn_payload

    def _receive(self, host: TestHost, packet: bytes) -> None:
        seg = parse(packet)
        conn = host.connections.get(seg.key)
        if conn is not None:
            if conn.state is State.TIME_WAIT and seg.flags & 2 and conn.accepts_reuse(seg):
                host.forget(conn)
            else:
                conn.on_segment(seg, self.now)
                return
        if host is self.server_host and seg.flags & 0x16 == 2:
            self._accept(seg)

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
        batches: dict[int, list[bytes]] = {0: [], 1: []}
        while self._arrivals and self._arrivals[0][0] <= self.now:
            _, _, side, packet = heapq.heappop(self._arrivals)
            batches[side].append(packet)
        for side, host in ((0, self.client_host), (1, self.server_host)):
            packets = batches[side]
            for packet in gro_merge(packets) if self.gro and len(packets) > 1 else packets:
                self._receive(host, packet)
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        self.client_host.fire(self.now)
        self.server_host.fire(self.now)
        self._settle()
        return True

    def _settle(self) -> None:
        """Let applications and connections act until nothing more happens at this instant."""
        for _ in range(100):
            self.client_app.run(self.client, self.now)
            if self.server is not None:
                self.server_app.run(self.server, self.now)
            for host, app in (
                (self.client_host, self.client_app), (self.server_host, self.server_app)
            ):  # fmt: skip
                app.events += [kind for _, kind in host.events]
                host.events.clear()
            moved = False
            for host, link, side in (
                (self.client_host, self.up, 1), (self.server_host, self.down, 0)
            ):  # fmt: skip
                for packet in host.flush(self.now):
                    moved = True
                    if self.wire_log is not None:
                        self.wire_log.append((self.now, side == 1, packet))
                    for at, wire in link.send(packet, self.now):
                        self._count += 1
                        heapq.heappush(self._arrivals, (at, self._count, side, wire))
            if not moved:
                return
        raise AssertionError("no end of sending at one instant")

    def run(self, until: float = 1e9, max_steps: int = 2_000_000) -> None:
        """Step until both applications saw the end of the stream, or ``until`` (virtual time)."""
        limit = self.steps + max_steps
        while self.now < until and not self.finished:
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
