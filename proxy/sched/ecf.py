"""ECF, earliest completion first (Lim et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, eligible, has_room, register

_BETA = 0.25


class EcfScheduler(Scheduler):
    """Smallest round trip first; a slower one only if all is done sooner by it.

    The paper's rule as it stands: the fast one's windows are taken to stay as they are, and what
    the application will yet write does not count.
    """

    __slots__ = ("_waiting",)
    name = "ecf"
    policy = "the shortest round trip of those with room"
    waits = "a faster one is sooner done with it"

    def __init__(self) -> None:
        self._waiting = False

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """None to wait for the fast one."""
        usable = eligible(subflows)
        if not usable:
            return None
        fast = min(usable, key=lambda s: s.srtt)
        if has_room(conn, fast):
            return fast
        slow = min((s for s in usable if has_room(conn, s)), key=lambda s: s.srtt, default=None)
        if slow is None or not fast.bytes_in_flight:
            return slow
        spread = max(fast.rttvar, slow.rttvar)
        alone = (1.0 + conn.pending / fast.cwnd) * fast.srtt
        slack = 1.0 + _BETA if self._waiting else 1.0
        if alone >= slack * (slow.srtt + spread):
            self._waiting = False
            return slow
        if conn.pending / slow.cwnd * slow.srtt < 2.0 * fast.srtt + spread:
            return slow
        self._waiting = True
        return None


def install() -> None:
    """Enter the registry."""
    register(EcfScheduler.name, EcfScheduler)
