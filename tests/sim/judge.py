"""The rules that every run is held to, while it goes on and when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import MAX_NOTES, Fallback
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from tests.sim.endpoint import FAILURES, End, Failure

if TYPE_CHECKING:
    from proxy.engine.stack import Application
    from tests.sim.world import Flow, World

_WATCH = 0.25
_LOOK_INTO = 64  # steps between two looks into the connections' memory
_SLACK = 65536 + 65535  # a super-segment and the rounding of the window scale
_PATIENCE = 2.5
_PATIENCE_SHARED = 8.0  # small queues, filled by others
_PATIENCE_BOXES = 20.0  # fall-backs by time-out
_PATIENCE_LOSSY = 40.0
_PATIENCE_DEAD = 75.0
_LOSSY = 0.02
MASK = 0xFFFFFFFF


class _Watch:
    """What is known about the paths of one flow."""

    __slots__ = ("dark", "looked_at", "paths", "paths_since", "stall")

    def __init__(self, now: float) -> None:
        self.looked_at = now
        self.dark = 0.0
        self.stall = 0.0  # the longest
        self.paths: set[int] = set()
        self.paths_since = 0.0


class Judge:
    """Watches a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._next = world.now
        self._watches = [_Watch(world.now) for _ in world.flows]
        self.patience = _PATIENCE
        if len(world.flows) > 1:
            self.patience = _PATIENCE_SHARED
        if any(path.strip or path.corrupt for path in world.scenario.paths):
            self.patience = _PATIENCE_BOXES
        slowest = min(
            (r for p in world.scenario.paths for r in (p.rate_up, p.rate_down) if r), default=1e9
        )
        self.patience += 1e6 / slowest  # what a queue or a mapping holds takes its time
        hasty = any(h.tcp.user_timeout for h in (world.scenario.client, world.scenario.server))
        outages = any(path.outages for path in world.scenario.paths)
        if world.scenario.loss > _LOSSY or (hasty and outages):
            self.patience = _PATIENCE_LOSSY  # one end may be gone: only keep-alives tell
        self.changed = 0

    @property
    def longest_stall(self) -> float:
        """Seconds without progress although a path worked, blackouts before it taken off."""
        return max(watch.stall for watch in self._watches)

    # -- while it runs ----------------------------------------------------------------------------

    def watch(self) -> None:
        """Called after each step."""
        world = self.world
        if world.steps % _LOOK_INTO == 0:
            for conn in world.ends:
                self._within_bounds(conn)
        if world.now < self._next:
            return
        self._next = world.now + _WATCH
        for flow, watch in zip(world.flows, self._watches, strict=True):
            if flow.client.conn is not None and not flow.over:
                self._watch_flow(flow, watch)

    def _watch_flow(self, flow: Flow, watch: _Watch) -> None:
        now = self.world.now
        paths = self._eligible(flow)
        if paths != watch.paths:
            watch.paths = paths
            watch.paths_since = now
        self._measure_darkness(watch, now)
        up_since = min(self.world.paths[index].up_since(now) for index in paths)
        if up_since > now:
            return
        up_since = max(up_since, watch.paths_since)
        for end in (flow.client, flow.server):
            if end.choked():
                stall = _stall(now, end.room_at, up_since, end.room_at)
                if stall > self.patience:
                    raise Failure(f"{end.name} has no room to write for {stall:.1f} s")
            if not end.starved():
                continue
            stall = _stall(now, end.progress_at, up_since, end.peer.waited_for_since())
            if end.peer.done_at is not None:
                # Nothing will come; the worst way to learn it are keep-alives.
                if stall > _PATIENCE_DEAD and now - end.peer.done_at > _PATIENCE_DEAD:
                    raise Failure(f"{end.name} does not notice that {end.peer.name} is gone")
                continue
            watch.stall = max(watch.stall, stall)
            if stall > self.patience:
                raise Failure(
                    f"{end.name} waits for {now - end.progress_at:.1f} s, "
                    f"paths {sorted(paths)} carry packets since {now - up_since:.1f} s"
                )

    def _measure_darkness(self, watch: _Watch, now: float) -> None:
        """For how long there was no path, also while nothing happened."""
        at = watch.looked_at
        while at < now:
            at = min(at + _WATCH, now)
            if not any(self.world.paths[index].up_since(at) <= at for index in watch.paths):
                watch.dark += _WATCH
        watch.looked_at = now

    def _eligible(self, flow: Flow) -> set[int]:
        """The paths of which one is enough for progress."""
        initial = {flow.plan.path}
        scenario = self.world.scenario
        for end in (flow.client, flow.server):
            conn = end.conn
            if not isinstance(conn, MptcpConnection) or not conn.fully_established:
                return initial
            if conn.fallback is not Fallback.NONE:
                return initial
        limits = min(scenario.client.mptcp.subflows, scenario.server.mptcp.subflows)
        addresses = 2 if scenario.announce and scenario.client.mptcp.add_addr_accepted else 1
        if limits + 1 < len(scenario.paths) * addresses:
            return initial
        present = {endpoint.id - 1 for endpoint in self.world.stacks[0].local_addresses}
        clean = {
            index
            for index, path in enumerate(scenario.paths)
            if index in present and not path.strip and not path.corrupt
        }
        return clean or initial

    def _within_bounds(self, conn: Application) -> None:
        if isinstance(conn, MptcpConnection):
            self._mptcp_within_bounds(conn)
        else:
            _tcp_within_bounds(conn)

    def _mptcp_within_bounds(self, conn: MptcpConnection) -> None:
        config = conn.tcp_config
        stream = conn.rx.stream
        held = stream.ready_bytes + stream.waiting_bytes
        if held > config.receive_buffer_max + _SLACK:
            raise Failure(
                f"{held} bytes received and not read, {config.receive_buffer_max} allowed"
            )
        if stream.ready_bytes != conn.receivable:
            raise Failure(f"receivable is {conn.receivable}, {stream.ready_bytes} bytes are there")
        unacked = conn.tx.end - conn.tx.una
        # The first send is not limited by the buffer if the handshake leaves payload over.
        if unacked > max(config.send_buffer_max, 4096) + 2048:
            raise Failure(f"{unacked} bytes to send are held, {config.send_buffer_max} allowed")
        if conn._notes is not None and len(conn._notes) > MAX_NOTES:
            raise Failure(f"{len(conn._notes)} notes")
        if len(conn.subflows) > 17 or len(conn.tx.reinject) > 4096:
            raise Failure(f"{len(conn.subflows)} subflows, {len(conn.tx.reinject)} reinjections")
        for subflow in conn.subflows:
            _tcp_within_bounds(subflow)
            if len(subflow.mappings) > 8192:
                raise Failure(f"{len(subflow.mappings)} mappings on one subflow")

    # -- bytes ----------------------------------------------------------------------------------

    def changed_bytes(self, end: End, start: int, piece: bytes) -> None:
        """Bytes differ from what was written: only a box on a path without checksums may do so."""
        wanted = end.peer.out[start : start + len(piece)]
        at = next(i for i in range(len(piece)) if piece[i] != wanted[i])
        plain = not isinstance(end.conn, MptcpConnection)
        if isinstance(end.conn, MptcpConnection):
            plain = end.conn.fallback is not Fallback.NONE
        path = self._flow_of(end).plan.path
        differing = sum(a != b for a, b in zip(piece, wanted, strict=True))
        if plain and differing <= self.world.paths[path].changed:
            self.changed += differing
            return
        raise Failure(f"{end.name}: byte {start + at} of the stream is wrong ({differing} are)")

    def _flow_of(self, end: End) -> Flow:
        return next(flow for flow in self.world.flows if end in (flow.client, flow.server))

    # -- when it is over --------------------------------------------------------------------------

    def verdict(self) -> None:
        """Nothing is due any more: every flow has ended as it should, and nothing is left."""
        for flow, watch in zip(self.world.flows, self._watches, strict=True):
            self._judge_flow(flow, watch)
        for name, stack in zip(("client", "server"), self.world.stacks, strict=True):
            left = {
                "demux": len(stack.demux),
                "tokens": len(stack.tokens),
                "timers": len(stack.timers),
                "awake": len(stack._awake),
            }
            if any(left.values()):
                raise Failure(f"the {name} keeps {left}")

    def _judge_flow(self, flow: Flow, watch: _Watch) -> None:
        client, server = flow.client, flow.server
        if not flow.over:
            raise Failure(f"nothing happens any more: {client.describe()}; {server.describe()}")
        if client.closed or server.closed:
            return  # how it ends depends on what was still to come
        if client.aborted or server.aborted:
            self._judge_abort(client, server)
            return
        if flow.plan.answer != "accept":
            self._judge_refusal(flow, client)
            return
        if client.terminal is Event.CLOSED and server.terminal is Event.CLOSED:
            if not (client.complete() and server.complete()):
                raise Failure(f"closed too early: {client.describe()}; {server.describe()}")
            return
        excuse = self._excuse(flow, watch)
        if not excuse:
            raise Failure(f"failed for no reason: {client.describe()}; {server.describe()}")

    def _judge_abort(self, client: End, server: End) -> None:
        for end in (client, server):
            if end.aborted or end.terminal in FAILURES or end.conn is None:
                continue
            if not (end.terminal is Event.CLOSED and end.complete()):
                raise Failure(f"the peer has aborted: {end.describe()}")

    def _judge_refusal(self, flow: Flow, client: End) -> None:
        wanted = (Event.RESET,) if flow.plan.answer == "refuse" else (Event.TIMED_OUT,)
        if client.terminal not in wanted and not self.world.scenario.paths[flow.plan.path].outages:
            raise Failure(f"{flow.plan.answer}d: {client.describe()}")

    def _excuse(self, flow: Flow, watch: _Watch) -> str:
        """Why a flow need not end cleanly; empty if there is no reason."""
        scenario = self.world.scenario
        client, server = flow.client, flow.server
        hasty = any(host.tcp.user_timeout for host in (scenario.client, scenario.server))
        # A corrupting box makes us reset subflows: for the last DATA_ACK that is as an outage.
        unsteady = hasty or any(path.outages or path.corrupt for path in scenario.paths)
        if client.got_eof and server.got_eof and unsteady:
            return "everything arrived, the end was cut off"
        if not (client.established and server.established):
            return "cut off while it opened" if watch.dark >= 4.0 else ""
        limit = 3.0 if hasty else 18.0
        return "no path worked for too long" if watch.dark >= limit else ""


def _stall(now: float, progress_at: float, up_since: float, sent_at: float) -> float:
    """Seconds without progress that nothing excuses.

    Time-outs double: the next try may come as late again as the paths were dead for what was
    first sent at ``sent_at``.
    """
    dead = max(up_since - sent_at, 0.0)
    return now - max(progress_at, up_since) - 1.2 * dead


def _tcp_within_bounds(conn: TcpConnection) -> None:
    config = conn.config
    held = conn.receivable
    if conn._reassembly is not None:
        held += conn._reassembly.size
        if len(conn._reassembly.ranges) > config.max_out_of_order:
            raise Failure(f"{len(conn._reassembly.ranges)} ranges out of order")
    if held > config.receive_buffer_max + _SLACK:
        raise Failure(f"{held} bytes received and not read, {config.receive_buffer_max} allowed")
    flight = lost = sacked = 0
    for tx in conn._flight:
        length = (tx.end - tx.seq) & MASK
        if tx.sacked:
            sacked += length
        elif tx.lost:
            lost += length
        else:
            flight += length
    counted = (conn.bytes_in_flight, conn._lost_bytes, conn._sacked_bytes)
    if counted != (flight, lost, sacked):
        raise Failure(f"in flight, lost, sacked: {counted} counted, {(flight, lost, sacked)} are")
