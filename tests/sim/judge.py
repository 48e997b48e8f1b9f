"""The rules that every run is held to, while it goes on and when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.tcp.events import Event
from tests.sim import invariants
from tests.sim.endpoint import FAILURES, End, Failure
from tests.sim.scenario import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.engine.stack import Stack
    from tests.sim.world import Flow, World

_WATCH = 0.25
_LOOK_INTO = 16  # steps between two looks into all connections
_PATIENCE = 2.5
_PATIENCE_SHARED = 8.0  # small queues, filled by others
_PATIENCE_BOXES = 20.0  # fall-backs by time-out
_PATIENCE_LOSSY = 40.0
_PATIENCE_BLACK_HOLE = 60.0  # time-outs that double; or only a keep-alive tells of a rebinding
_PATIENCE_DEAD = 75.0
_PATIENCE_UNREACHABLE = 1000.0  # all of TCP's retries
_LOSSY = 0.02


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
        if any(
            path.hinders or path.drop_capable or path.black_hole for path in world.scenario.paths
        ):
            self.patience = _PATIENCE_BOXES
        slowest = min(
            (r for p in world.scenario.paths for r in (p.rate_up, p.rate_down) if r), default=1e9
        )
        self.patience += 1e6 / slowest  # what a queue or a mapping holds takes its time
        hasty = any(h.tcp.user_timeout for h in (world.scenario.client, world.scenario.server))
        outages = any(path.outages for path in world.scenario.paths)
        if world.scenario.loss > _LOSSY or (hasty and outages):
            self.patience = _PATIENCE_LOSSY  # one end may be gone: only keep-alives tell
        if any(path.black_hole or path.rebinds for path in world.scenario.paths):
            self.patience = _PATIENCE_BLACK_HOLE
        self.changed = 0
        # By the flow: a second SYN may bring a new end.
        self._ends: list[Callable[[], End]] = []
        for flow in world.flows:
            self._ends += [lambda flow=flow: flow.client, lambda flow=flow: flow.server]  # type: ignore[misc]

    @property
    def longest_stall(self) -> float:
        """Seconds without progress although a path worked, blackouts before it taken off."""
        return max(watch.stall for watch in self._watches)

    # -- while it runs ----------------------------------------------------------------------------

    def watch(self) -> None:
        """Called after each step."""
        world = self.world
        for name, stack in zip(("client", "server"), world.stacks, strict=True):
            invariants.settled(stack, name)
        ends = self._ends
        end = ends[world.steps % len(ends)]()  # one each step, in turns
        if end.conn is not None and end.terminal is None:
            invariants.timers(end.conn, self._stack_of(end))
            invariants.pair(end, end.peer)
        if world.steps % _LOOK_INTO == 0:
            for conn in world.ends:
                invariants.bounds(conn)
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
        up_since = min((self.world.paths[i].up_since(now) for i in paths), default=FOREVER)
        if up_since > now:
            return
        up_since = max(up_since, watch.paths_since)
        for end in (flow.client, flow.server):
            if end.peer.done_at is not None:
                self._notices(flow, end, up_since)
                continue
            if end.choked():
                stall = _stall(now, end.room_at, up_since, end.room_at)
                if stall > self.patience:
                    raise Failure(f"{end.name} has no room to write for {stall:.1f} s")
            if not end.starved():
                continue
            stall = _stall(now, end.progress_at, up_since, end.peer.waited_for_since())
            watch.stall = max(watch.stall, stall)
            if stall > self.patience:
                raise Failure(
                    f"{end.name} waits for {now - end.progress_at:.1f} s, "
                    f"paths {sorted(paths)} carry packets since {now - up_since:.1f} s"
                )

    def _notices(self, flow: Flow, end: End, up_since: float) -> None:
        # Nothing will come; the worst way to learn it are keep-alives.
        if not (end.choked() or end.starved()):
            return
        now = self.world.now
        done_at = end.peer.done_at or now
        forgotten = self.world.scenario.paths[flow.plan.path].rebinds
        limit = _PATIENCE_UNREACHABLE if forgotten else _PATIENCE_DEAD
        since = max(done_at, end.progress_at)
        if _stall(now, since, up_since, since) > limit:
            raise Failure(f"{end.name} does not notice that {end.peer.name} is gone")

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
        present = {endpoint.id - 1 for endpoint in self.world.stacks[0].local_addresses}
        initial = initial & present  # else its subflow was closed
        if not self._rejoins:
            return initial - self.world.lost_paths()
        limits = min(scenario.client.mptcp.subflows, scenario.server.mptcp.subflows)
        addresses = 1 + len(scenario.addresses) + scenario.server_joins
        if limits + 1 < len(scenario.paths) * addresses or flow.plan.reverse:
            return initial
        clean = {i for i, path in enumerate(scenario.paths) if i in present and not path.hinders}
        return clean or initial

    def _stack_of(self, end: End) -> Stack:
        opener = self._flow_of(end).opener
        return self.world.stacks[opener if end.opener else 1 - opener]

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
            invariants.nothing_left(stack, name)
        if not any(path.duplicate for path in self.world.scenario.paths):
            invariants.counters_agree(*self.world.stacks)

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

    @property
    def _rejoins(self) -> bool:
        """Whether a path manager opens subflows to an initial address again."""
        scenario = self.world.scenario
        hosts = (scenario.client, scenario.server)
        willing = {"subflow", "fullmesh"} & set(scenario.uplink_flags)
        return bool(willing) and all(h.mptcp.allow_join_initial_addr_port for h in hosts)

    @staticmethod
    def _speaks_mptcp(flow: Flow) -> bool:
        """Both ends know that the other one speaks MPTCP, and still do."""
        return all(
            isinstance(conn, MptcpConnection)
            and conn.fully_established
            and conn.fallback is Fallback.NONE
            for conn in (flow.client.conn, flow.server.conn)
        )

    def _excuse(self, flow: Flow, watch: _Watch) -> str:
        """Why a flow need not end cleanly; empty if there is no reason."""
        rejoins = self._speaks_mptcp(flow) and self._rejoins
        if flow.plan.path in self.world.lost_paths() and not rejoins:
            return "a box or an operator ended its only TCP connection"
        scenario = self.world.scenario
        client, server = flow.client, flow.server
        hasty = any(host.tcp.user_timeout for host in (scenario.client, scenario.server))
        # A corrupting box makes us reset subflows: for the last DATA_ACK that is as an outage.
        # So is an operator who takes the last address away, and a box that ends subflows.
        unsteady = hasty or bool(self.world.lost_paths())
        unsteady |= any(path.outages or path.corrupt for path in scenario.paths)
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
