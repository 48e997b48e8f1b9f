"""BLEST: never let a slow subflow fill the window that a fast one needs (Ferlin et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, eligible, has_room, register

_STEP = 0.01
_LEAST, _MOST = 1.0, 1.3


class BlestScheduler(Scheduler):
    """Smallest round trip first; a slower one only if the window will not run out by it.

    Until the slow one's bytes are acknowledged the fast one sends X = its window, which grows by
    a segment per round trip, times the round trips that fit. It waits if lambda * X is more than
    the connection's window leaves beside what the slow one has in flight. Lambda goes up while
    the window runs short nevertheless, and down while it does not.
    """

    __slots__ = ("_lambda", "_next_change")
    name = "blest"
    policy = "the shortest round trip of those with room"
    waits = "the window would run short for a faster one"

    def __init__(self) -> None:
        self._lambda = _LEAST
        self._next_change = 0.0

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """None to wait for the fast one."""
        usable = eligible(subflows)
        if not usable:
            return None
        fast = min(usable, key=lambda s: s.srtt)
        if now >= self._next_change:
            self._next_change = now + fast.srtt
            short = conn.window_left < fast.cwnd >> 1
            change = _STEP if short else -_STEP
            self._lambda = min(max(self._lambda + change, _LEAST), _MOST)
        if has_room(conn, fast):
            return fast
        slow = min((s for s in usable if has_room(conn, s)), key=lambda s: s.srtt, default=None)
        if slow is None or not fast.srtt:
            return slow
        trips = slow.srtt / fast.srtt
        sent = (fast.cwnd + fast.mss * (trips - 1.0) / 2.0) * trips
        window = conn.window_left + sum(s.bytes_in_flight for s in usable)
        left = window - slow.bytes_in_flight - slow.mss
        return None if self._lambda * sent > left and fast.bytes_in_flight else slow


def install() -> None:
    """Enter the registry."""
    register(BlestScheduler.name, BlestScheduler)
