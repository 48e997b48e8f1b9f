"""One run: two stacks, the paths between them and the applications, in virtual time."""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

from proxy.engine.stack import Application, Stack
from proxy.errors import CodecError
from proxy.mptcp import keys
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.connection_core import congestion_config
from proxy.pm.base import Endpoint, factory
from proxy.seg import Segment, gro_merge, parse
from proxy.tcp import handshake
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from tests.sim.boxes import DOWN, UP
from tests.sim.endpoint import TERMINAL, End, Failure
from tests.sim.judge import Judge
from tests.sim.monitor import Monitor
from tests.sim.network import Path, server_ip
from tests.sim.scenario import Change, FlowPlan, HostPlan, Scenario

START = 1000.0
PORT = 8803
MAX_STEPS = 150_000
MAX_ROUNDS = 300
SIDES = ("client", "server")
Tracer = Callable[[float, str], None]


class _Listener:
    """What a host does with segments of no connection."""

    def __init__(self, world: World, side: int) -> None:
        self._world = world
        self._side = side

    def on_syn(self, syn: Segment, now: float) -> None:
        """A SYN that joins nothing."""
        self._world.on_syn(self._side, syn, now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """A segment of no connection: refused by a RST."""
        return True


class Flow:
    """One conversation: both ends and what is known of it. ``client`` is who connects."""

    def __init__(self, plan: FlowPlan, client: End, server: End, port: int) -> None:
        self.plan = plan
        self.client = client
        self.server = server
        client.peer, server.peer = server, client
        self.port = port
        self.opener = 1 if plan.reverse else 0
        self.refused = False
        self.accepted = False

    @property
    def over(self) -> bool:
        """Neither application waits for anything."""
        client, server = self.client, self.server
        if client.done_at is None:
            return False
        return server.done_at is not None or server.conn is None


class World:
    """Built from a scenario; ``run`` plays it and raises ``Failure`` if a rule is broken."""

    def __init__(self, scenario: Scenario, trace: Tracer | None = None) -> None:
        self.scenario = scenario
        self.trace = trace
        self.now = START
        self.steps = 0
        self.rng = random.Random(scenario.seed ^ 0x5EED)
        v6 = scenario.v6
        self.paths = [
            Path(plan, index, v6, random.Random(self.rng.getrandbits(64)), START)
            for index, plan in enumerate(scenario.paths)
        ]
        self._by_address = {path.inside: path for path in self.paths}
        self._by_address.update({path.outside: path for path in self.paths})
        plans = (scenario.client, scenario.server)
        self.stacks = tuple(self._stack(plan) for plan in plans)
        self._late = tuple(plan.late for plan in plans)
        self._gro = tuple(plan.gro for plan in plans)
        self.monitors = tuple(
            Monitor(name, stack, plan.tcp.mtu6 if v6 else plan.tcp.mtu4)
            for name, stack, plan in zip(SIDES, self.stacks, plans, strict=True)
        )
        self._configure_paths()
        self.ends: dict[Application, End] = {}
        self.strangers: set[Application] = set()
        self.flows = [self._flow(index, plan) for index, plan in enumerate(scenario.flows)]
        self._by_port = {flow.port: flow for flow in self.flows}
        self._opening: dict[Application, Flow] = {}
        self._arrivals: list[tuple[float, int, int, Path, bytes]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._instant = 0
        self._dead_addresses: set[bytes] = set()
        self.ever_removed: set[int] = set()  # paths whose endpoint was
        for side, stack in enumerate(self.stacks):
            stack.listener = _Listener(self, side)
        self.judge = Judge(self)
        for path in self.paths:
            path.on_drop = self._trace_drop

    # -- setting up ---------------------------------------------------------------------------

    def _stack(self, plan: HostPlan) -> Stack:
        return Stack(random.Random(self.rng.getrandbits(64)), plan.tcp, plan.mptcp)

    def _configure_paths(self) -> None:
        client, server = self.stacks
        v6 = self.scenario.v6
        client.path_manager = factory("kernel")
        flags = self.scenario.uplink_flags
        self._uplinks = [
            Endpoint(
                path.inside,
                path.index + 1,
                uplink=f"u{path.index}",
                subflow="subflow" in flags,
                signal="signal" in flags,
                fullmesh="fullmesh" in flags,
                laminar="laminar" in flags,
                backup=path.plan.backup,
            )
            for path in self.paths
        ]
        client.local_addresses = self._uplinks
        addresses = self.scenario.addresses
        initiates = any(flow.reverse for flow in self.scenario.flows)
        active = bool(addresses or initiates or self.scenario.server_joins)
        server.path_manager = factory("kernel" if active else "passive")
        self._server_endpoints = {
            a.number: Endpoint(
                server_ip(v6, a.number), a.number, signal=a.signal,
                subflow=a.subflow and not (a.signal and a.port), port=a.port if a.signal else None,
            )
            for a in addresses
        }  # fmt: skip
        server.local_addresses = [self._server_endpoints[a.number] for a in addresses if a.present]
        if self.scenario.server_joins:
            first = Endpoint(server_ip(v6), 1, subflow=True, fullmesh=True)
            server.local_addresses = [first, *server.local_addresses]

    def _flow(self, index: int, plan: FlowPlan) -> Flow:
        rng = self.rng
        name = f"flow {index}" if len(self.scenario.flows) > 1 else "flow"
        client = End(self, f"{name} client", plan.client, rng.randbytes(plan.client.size), True)
        server = End(self, f"{name} server", plan.server, rng.randbytes(plan.server.size), False)
        return Flow(plan, client, server, PORT + index)

    # -- time ---------------------------------------------------------------------------------

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run ``action`` later."""
        self._count += 1
        heapq.heappush(self._timers, (self.now + seconds, self._count, action))

    def log(self, text: str) -> None:
        """A line for the trace."""
        if self.trace is not None:
            self.trace(self.now, text)

    # -- the run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the scenario to its end."""
        for flow in self.flows:
            self.after(flow.plan.start, lambda flow=flow: self._open(flow))  # type: ignore[misc]
        for change in self.scenario.changes:
            self.after(change.at, lambda change=change: self._change(change))  # type: ignore[misc]
        with near_wrap(self.rng) if self.scenario.wrap else nullcontext():
            self._settle()
            while self._step():
                self.judge.watch()
        self.judge.verdict()

    def _next(self) -> float:
        """When something happens next; infinity for never."""
        due = float("inf")
        for stack, late in zip(self.stacks, self._late, strict=True):
            deadline = stack.next_timeout()
            if deadline is not None and deadline + late < due:
                due = deadline + late
        if self._arrivals and self._arrivals[0][0] < due:
            due = self._arrivals[0][0]
        if self._timers and self._timers[0][0] < due:
            due = self._timers[0][0]
        return due

    def _step(self) -> bool:
        due = self._next()
        if due == float("inf"):
            return False
        self.steps += 1
        if due > self.now:
            self.now = due
            self._instant = 0
        else:
            self._instant += 1
            if self._instant > MAX_ROUNDS:
                raise Failure(f"time stands still at {self.now - START:.6f}")
        if self.steps > MAX_STEPS:
            raise Failure(f"no end after {self.steps} steps")
        now = self.now
        if self._arrivals and self._arrivals[0][0] <= now:
            self._deliver(now)
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        for side, stack in enumerate(self.stacks):
            deadline = stack.next_timeout()
            if deadline is not None and deadline + self._late[side] <= now:
                stack.handle_timeout(now)
        self._settle()
        return True

    def _deliver(self, now: float) -> None:
        batches: tuple[list[bytes], list[bytes]] = ([], [])
        merging: dict[tuple[int, int], list[bytes]] = {}
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now:
            _, _, side, path, packet = heapq.heappop(arrivals)
            direction = UP if side else DOWN
            if path.outages and path.dead(direction, now, arriving=True):
                self._trace_drop(path.index, direction, packet, "outage on the way")
                continue
            if path.plan.coalesce:
                merging.setdefault((side, path.index), []).append(packet)
            else:
                batches[side].append(packet)
        for (side, index), held in merging.items():
            batches[side].extend(self.paths[index].merge(held))
        for side, packets in enumerate(batches):
            if not packets:
                continue
            if self._gro[side] and len(packets) > 1:
                packets = gro_merge(packets)
            for packet in packets:
                self._receive(side, packet)

    def _receive(self, side: int, packet: bytes) -> None:
        try:
            seg = parse(packet)
        except CodecError:
            self.log(f"{SIDES[side]} gets no TCP: {packet[10:].hex()}")
        else:
            self.monitors[side].received(seg)
            if self.trace is not None:
                self._trace_segment(f"  -> {SIDES[side]}", seg)
        self.stacks[side].receive(packet, self.now)

    def _settle(self) -> None:
        """Events and packets, until nothing more happens at this instant."""
        now = self.now
        for _ in range(MAX_ROUNDS):
            busy = False
            for side, stack in enumerate(self.stacks):
                while (event := stack.next_event()) is not None:
                    busy = True
                    self._on_event(side, event[0], event[1])
                packets = stack.poll_transmit(now)
                for packet in packets:
                    busy = True
                    self._transmit(side, b"".join(packet))
            if not busy:
                return
        raise Failure("no end of sending at one instant")

    def _transmit(self, side: int, packet: bytes) -> None:
        try:
            seg = parse(packet)
        except CodecError as error:
            raise Failure(f"{SIDES[side]} sends what cannot be parsed: {error}") from error
        path = self._by_address[seg.dst if side else seg.src]
        if self.trace is not None:
            self._trace_segment(f"{SIDES[side]} ->  [{path.index}]", seg)
        self.monitors[side].transmitted(seg, len(packet) - 10)
        if (seg.src if side else seg.dst) in self._dead_addresses:
            return
        arrivals, back, on = path.send(packet, DOWN if side else UP, self.now)
        for at, wire in arrivals:
            self._count += 1
            heapq.heappush(self._arrivals, (at, self._count, 1 - side, path, wire))
        for to, own in ((side, back), (1 - side, on)):
            for wire in own:
                self._count += 1
                at = self.now + path.plan.delay / 2
                heapq.heappush(self._arrivals, (at, self._count, to, path, wire))

    # -- the operator ---------------------------------------------------------------------------

    def _change(self, change: Change) -> None:
        what, _, name = change.what.partition(":")
        self.log(f"operator: {change.what} {change.which}")
        if what == "scheduler":
            for conn in self._connections(0) + self._connections(1):
                conn.set_scheduler(name)
        elif what == "control":
            self._set_control(name)
        elif what in ("withdraw", "announce"):
            self._change_server(what, change.which)
        elif what in ("backup", "regular"):
            ip = self._uplinks[change.which].ip
            for conn in self._connections(0):
                for subflow in conn.path_subflows:
                    if subflow.local.ip == ip:
                        conn.set_backup(subflow, what == "backup", self.now)
        else:
            self._change_uplink(what, self.paths[change.which])

    def _set_control(self, name: str) -> None:
        for stack in self.stacks:
            stack.tcp_config = congestion_config(stack.tcp_config, name)
        for conn in list(self.ends):
            if conn.state is State.CLOSED:
                continue
            if isinstance(conn, MptcpConnection):
                conn.set_congestion_control(name)
            else:
                conn.set_congestion_control(name, self.now)

    def _change_uplink(self, what: str, path: Path) -> None:
        endpoint = self._uplinks[path.index]
        present = list(self.stacks[0].local_addresses)
        if what in ("remove", "vanish"):
            if endpoint not in present:
                return
            self.ever_removed.add(path.index)
            if what == "vanish":
                path.vanish(self.now)
                path.gone = True
            self._forget_endpoint(0, endpoint, what == "vanish")
        elif endpoint not in present and path.gone == (what == "appear"):
            if path.gone:
                path.appear(self.now)
                path.gone = False
            ordered = [e for e in self._uplinks if e in (*present, endpoint)]
            self._new_endpoint(0, endpoint, ordered)

    def _change_server(self, what: str, number: int) -> None:
        endpoint = self._server_endpoints.get(number)
        if endpoint is None:
            return
        present = list(self.stacks[1].local_addresses)
        if what == "withdraw" and endpoint in present:
            self._forget_endpoint(1, endpoint, False)
            self._dead_addresses.add(endpoint.ip)
        elif what == "announce" and endpoint not in present:
            self._dead_addresses.discard(endpoint.ip)
            self._new_endpoint(1, endpoint, [*present, endpoint])

    def _forget_endpoint(self, side: int, endpoint: Endpoint, vanished: bool) -> None:
        # As ``relay.hotplug`` and ``control.endpoints`` do it.
        stack = self.stacks[side]
        over = [
            (conn, [s for s in conn.subflows if s.local.ip == endpoint.ip])
            for conn in self._connections(side)
        ]
        if vanished:
            for conn, subflows in over:
                for subflow in subflows:
                    conn.lose_path(subflow, self.now)
        stack.local_addresses = [e for e in stack.local_addresses if e is not endpoint]
        for conn in self._connections(side):
            conn.path_manager.on_endpoint_removed(conn, endpoint, self.now)
        if vanished:
            for conn, subflows in over:
                for subflow in subflows:
                    if subflow in conn.subflows:
                        conn.forsake_subflow(subflow, self.now)

    def lost_paths(self) -> set[int]:
        """Paths whose subflows may have been ended by something else than their two hosts."""
        return self.ever_removed | {path.index for path in self.paths if path.killed}

    def _new_endpoint(self, side: int, endpoint: Endpoint, ordered: list[Endpoint]) -> None:
        self.stacks[side].local_addresses = ordered
        for conn in self._connections(side):
            conn.path_manager.on_endpoint_added(conn, endpoint, self.now)

    def _connections(self, side: int) -> list[MptcpConnection]:
        return [c for c in self.stacks[side].tokens.values() if c.fully_established]

    # -- connections ----------------------------------------------------------------------------

    def _open(self, flow: Flow) -> None:
        plan = flow.plan
        stack = self.stacks[flow.opener]
        own, other = self.paths[plan.path].inside, server_ip(self.scenario.v6)
        if plan.reverse:
            own, other = other, own
        remote = Address(other, flow.port)
        payload = flow.client.out[: plan.syn_payload]
        self.log(f"{flow.client.name} connects over path {plan.path}")
        conn: Application
        if plan.kind == "mptcp":
            conn = stack.connect_mptcp(own, remote, self.now, payload, f"u{plan.path}")
        else:
            conn = TcpConnection(stack, stack.open_local_port(own, remote), remote)
            stack.register(conn)
            conn.connect(self.now, payload)
        self.ends[conn] = flow.client
        flow.client.begin(conn, given=len(payload))

    def on_syn(self, side: int, syn: Segment, now: float) -> None:
        """A SYN that joins nothing has come to one of the hosts."""
        flow = self._by_port.get(syn.dport)
        stack = self.stacks[side]
        if flow is None or flow.opener == side:
            self.log(f"{SIDES[side]} refuses a SYN")
            stack.reset(syn, now)
            return
        if flow.server.conn is not None:
            if not self._belongs(syn, flow):
                # A join whose options were stripped looks like any client.
                self.log(f"{flow.server.name} takes a stranger")
                stranger = stack.open_passive(syn, now, mptcp=True)
                self.strangers.add(stranger)
                stranger.accept(now)
                return
            # Its first answer was discarded, or this is a late copy of the SYN.
            if flow.server.conn in self._opening or not self._may_retry(flow):
                self.log(f"{flow.server.name} ignores a SYN")
                return
            self._retry(flow)
        conn = stack.open_passive(syn, now, mptcp=True)
        self.log(f"{flow.server.name}: {type(conn).__name__} for a SYN")
        self.ends[conn] = flow.server
        flow.server.conn = conn
        self._opening[conn] = flow
        if flow.plan.answer_after:
            self.after(flow.plan.answer_after, lambda: self._answer(flow, conn))
        else:
            self._answer(flow, conn)

    def _belongs(self, syn: Segment, flow: Flow) -> bool:
        """Whether the SYN is the flow's own, sent by an application."""
        conn = flow.client.conn
        if conn is None or (conn.remote.ip, conn.local.port) != (syn.dst, syn.sport):
            return False
        path = self._by_address[syn.src if flow.opener == 0 else syn.dst]
        return path.index == flow.plan.path

    def _may_retry(self, flow: Flow) -> bool:
        """The earlier connection for this flow came to nothing."""
        return flow.refused or (flow.server.terminal is not None and not flow.server.established)

    def _retry(self, flow: Flow) -> None:
        old = flow.server
        fresh = End(self, old.name, old.plan, old.out, False)
        flow.server = fresh
        fresh.peer, flow.client.peer = flow.client, fresh

    def _answer(self, flow: Flow, conn: Application) -> None:
        self._opening.pop(conn, None)
        end = flow.server
        if end.conn is not conn or end.terminal is not None:
            return
        plan = flow.plan
        if plan.answer != "accept":
            flow.refused = True
            end.done_at = self.now
            if plan.answer == "refuse":
                conn.refuse(self.now)
            else:
                conn.discard(self.now)
            return
        flow.accepted = True
        payload = end.out[: plan.syn_ack_payload]
        taken = conn.syn_payload if plan.take_syn_payload else b""
        end.begin(conn, taken, len(payload))
        conn.accept(self.now, plan.take_syn_payload, payload)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """A segment of no connection: refused by a RST."""
        return True

    def _on_event(self, side: int, stream: Application, kind: Event) -> None:
        if stream in self.strangers:
            return
        end = self.ends.get(stream)
        if self.trace is not None:
            name = end.name if end is not None else SIDES[side]
            detail = self._note(stream)
            self.log(f"{name}: {kind.name}{detail}")
        if end is None:
            raise Failure(f"{SIDES[side]}: {kind.name} for an unknown connection")
        if end.conn is not stream:
            return
        if side == 1 and stream in self._opening and kind not in TERMINAL:
            raise Failure(f"{end.name}: {kind.name} before it was accepted")
        end.on_event(kind)

    def queued_events(self, conn: Application) -> int:
        """Events of ``conn`` that wait to be told."""
        return sum(1 for stack in self.stacks for stream, _ in stack._events if stream is conn)

    @staticmethod
    def _note(stream: Application) -> str:
        if isinstance(stream, MptcpConnection):
            if stream._notes:
                return f" {stream.notes.popleft()}"
            return f" {stream.error}" if stream.error else ""
        return f" {stream.error}" if stream.error else ""

    def judge_changed_bytes(self, end: End, start: int, piece: bytes) -> None:
        """``piece`` is not what was written."""
        self.judge.changed_bytes(end, start, piece)

    # -- traces -----------------------------------------------------------------------------------

    def _trace_drop(self, index: int, direction: int, packet: bytes, why: str) -> None:
        if self.trace is not None:
            try:
                self._trace_segment(f"  X  [{index}] {why}:", parse(packet))
            except CodecError:
                self.log(f"  X  [{index}] {why}")

    def _trace_segment(self, prefix: str, seg: Segment) -> None:
        from tests.sim.trace import describe

        self.log(f"{prefix} {describe(seg)}")


@contextmanager
def near_wrap(rng: random.Random) -> Iterator[None]:
    """Let ISNs, timestamps and IDSNs begin where they wrap soon, at 2**31, 2**32 or 2**64."""
    salt = rng.getrandbits(32)
    derive = keys.derive

    def initial_numbers(secret: bytes, key: bytes, now: float) -> tuple[int, int]:
        own = random.Random(zlib.crc32(secret + key))
        isn = own.choice((1 << 31, 1 << 32)) - own.randrange(30_000)
        offset = own.choice((1 << 31, 1 << 32)) - int(now * 1000.0) - own.randrange(3000)
        return isn & 0xFFFFFFFF, offset & 0xFFFFFFFF

    def derive_near_wrap(key: bytes) -> keys.Key:
        own = random.Random(int.from_bytes(key, "big") ^ salt)
        near = own.choice((1 << 64, 1 << 63, (own.getrandbits(32) << 32) | 0x80000000, 1 << 32))
        return derive(key)._replace(idsn=(near - own.randrange(30_000)) % (1 << 64))

    with (
        mock.patch.object(handshake, "initial_numbers", initial_numbers),
        mock.patch.object(keys, "derive", derive_near_wrap),
    ):
        yield


def run(scenario: Scenario, trace: Tracer | None = None) -> World:
    """Play ``scenario``; raises ``Failure`` (or whatever the engine raised)."""
    world = World(scenario, trace)
    world.run()
    return world


__all__: list[Any] = ["Flow", "World", "run"]
