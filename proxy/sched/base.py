"""What a packet scheduler is asked and told, and the registry of schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from proxy.errors import ConfigError

ENTRY_POINTS = "mptcp_proxy.schedulers"


class SubflowView(Protocol):
    """What a scheduler may look at. Times in seconds, sizes in bytes.

    ``room`` is how much new data may go to the network at once, computed before each decision.
    ``min_rtt`` is the shortest round trip of the last minutes (infinite: none yet),
    ``delivery_rate`` bytes per second (0: not measured), ``cwnd`` below ``ssthresh`` means slow
    start, ``last_progress`` is when something was acknowledged last. ``backup`` is what we want,
    ``peer_backup`` what the peer asked for; ``stale``: time-outs without progress. ``weight`` (1 or
    more) and ``priority`` (0 goes first) are those of the uplink.
    """

    room: int
    srtt: float
    rttvar: float
    min_rtt: float
    delivery_rate: float
    cwnd: int
    ssthresh: int
    bytes_in_flight: int
    last_progress: float
    mss: int
    backup: bool
    peer_backup: bool
    stale: bool
    weight: int
    priority: int


class ConnectionView(Protocol):
    """The connection's side of a decision.

    ``pending``: bytes written and never sent; ``window_left``: how many more the peer takes;
    ``backlogged``: the application has more than the send buffer holds.
    """

    pending: int
    window_left: int
    backlogged: bool


S = TypeVar("S", bound=SubflowView)


class Scheduler:
    """Asked once per burst; ``subflows`` are those that may carry data, in order of creation.

    One object per connection, so it may keep state.
    """

    __slots__ = ()
    name: str = ""
    policy: str = "the scheduler's choice"
    """Why one with room is chosen before others, in words, for traces."""
    waits: str = "the scheduler waits"
    """Why none is chosen though one has room, likewise."""
    duplicates: bool = False
    """True: what one subflow got is also sent on all others that have room."""

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """The subflow for the next burst of new data; None to wait."""
        raise NotImplementedError

    def get_probe(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """A subflow that shall carry a copy of the first bytes that have just been sent.

        Asked after each burst if there are several subflows. Base: None.
        """
        return None

    def get_retrans(
        self, conn: ConnectionView, subflows: Sequence[S], now: float, exclude: S | None
    ) -> S | None:
        """The subflow for data to be sent again, not ``exclude``; None to wait.

        Base: the one of the smallest round trip, backup subflows last.
        """
        best: S | None = None
        best_key = (True, 0.0)
        for subflow in subflows:
            if subflow is exclude or subflow.stale or subflow.room < 1:
                continue
            key = (subflow.backup or subflow.peer_backup, subflow.srtt)
            if best is None or key < best_key:
                best, best_key = subflow, key
        return best


def eligible(subflows: Sequence[S]) -> list[S]:
    """Those that are neither stale nor backup; if there are none, those that are not stale."""
    regular = [s for s in subflows if not (s.stale or s.backup or s.peer_backup)]
    return regular or [s for s in subflows if not s.stale]


def has_room(conn: ConnectionView, subflow: SubflowView) -> bool:
    """Whether it can send now, and more than a sliver unless that is all there is."""
    return subflow.room >= min(conn.pending, conn.window_left, subflow.mss >> 1)


_registry: dict[str, Callable[[], Scheduler]] = {}


def register(name: str, factory: Callable[[], Scheduler]) -> None:
    """Make a scheduler known under ``name``."""
    _registry[name] = factory


def names() -> list[str]:
    """All known names, as in ``net.mptcp.available_schedulers``."""
    _load_builtin()
    return sorted(set(_registry) | {entry.name for entry in entry_points(group=ENTRY_POINTS)})


def create(name: str) -> Scheduler:
    """A new scheduler; ConfigError for an unknown name."""
    factory = _registry.get(name)
    if factory is None:
        _load_builtin()
        factory = _registry.get(name)
    if factory is None:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            factory = entry.load()
            register(name, factory)
    if factory is None:
        raise ConfigError("mptcp.scheduler", f"{name!r} is none of {', '.join(names())}")
    return factory()


def _load_builtin() -> None:
    # Late, since they import this module.
    from proxy.sched import (
        backup,
        blest,
        default,
        ecf,
        overflow,
        redundant,
        roundrobin,
        weighted,
    )

    for module in (backup, blest, default, ecf, overflow, redundant, roundrobin, weighted):
        module.install()
