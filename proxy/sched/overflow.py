"""One uplink, and the next only for what the first cannot carry."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, eligible, has_room, register


class OverflowScheduler(Scheduler):
    """Subflows in the order of their uplinks; each one only while all before it are full.

    Full means that the congestion window is used up and has found its limit: it does not grow by
    slow start any more. So a short transfer stays on the first uplink, however many bursts it
    takes, and a long one overflows once that is busy.
    """

    __slots__ = ()
    name = "overflow"
    policy = "the first uplink with room"
    waits = "the uplink before it still grows"

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """None while one that has room to grow is waited for."""
        for subflow in sorted(eligible(subflows), key=lambda s: s.priority):
            if has_room(conn, subflow):
                return subflow
            if subflow.cwnd < subflow.ssthresh:
                return None
        return None


def install() -> None:
    """Enter the registry."""
    register(OverflowScheduler.name, OverflowScheduler)
