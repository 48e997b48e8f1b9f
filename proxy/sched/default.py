"""The default scheduler: full use of all subflows, and no slow one holds back a fast one.

As the kernel's does, it prefers the subflow that gets the bytes out earliest, and backup subflows
only serve when no other one is left. On top of that it waits for a fast subflow where a slow one
would deliver later (ECF, Lim et al. 2017) or would block the peer's window (BLEST, Ferlin et al.
2016).
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, register

_UNKNOWN_RTT = 1.0
_FORGET = 0.5  # seconds without progress


class DefaultScheduler(Scheduler):
    """Smallest round trip first, with waiting."""

    __slots__ = ("_waiting",)
    name = "default"

    def __init__(self) -> None:
        self._waiting = False

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """See the class and module; the wait ends with the next ACK of the fast subflow."""
        fast: S | None = None  # the fastest of all
        best: S | None = None  # the fastest of those with room
        spare = True  # only backup subflows seen so far
        pending = conn.pending
        for subflow in subflows:
            if subflow.stale:
                continue
            backup = subflow.backup or subflow.peer_backup
            if backup and not spare:
                continue
            if spare and not backup:
                spare = False
                fast = best = None
            srtt = subflow.srtt or _UNKNOWN_RTT
            if fast is None or srtt < (fast.srtt or _UNKNOWN_RTT):
                fast = subflow
            if subflow.room < min(pending, conn.window_left, subflow.mss >> 1):
                continue
            if best is None or srtt < (best.srtt or _UNKNOWN_RTT):
                best = subflow
        if best is None or best is fast or fast is None:
            self._waiting = False
            return best
        if self._unknown_by_now(best, now) or not self._should_wait(conn, fast, best):
            return best
        return None

    @staticmethod
    def _unknown_by_now(slow: S, now: float) -> bool:
        # A round trip that was long once says nothing after a while, and only data measures it
        # again: an idle subflow gets one burst now and then, else it might stay idle for ever.
        return not slow.bytes_in_flight and now - slow.last_progress > _FORGET

    def _should_wait(self, conn: ConnectionView, fast: S, slow: S) -> bool:
        fast_rtt = fast.srtt or _UNKNOWN_RTT
        slow_rtt = slow.srtt or _UNKNOWN_RTT
        # BLEST: what the fast one sends until the slow one's bytes are acknowledged must fit.
        if fast.cwnd * (slow_rtt / fast_rtt) > conn.window_left:
            return slow.bytes_in_flight > 0 or fast.bytes_in_flight > 0
        if conn.backlogged:
            self._waiting = False
            return False
        # ECF: would the fast one be done with all of it before the slow one delivers its part?
        margin = max(fast.rttvar, slow.rttvar)
        slack = 1.25 if self._waiting else 1.0
        finish = (1.0 + conn.pending / max(fast.cwnd, 1)) * fast_rtt
        self._waiting = finish < slack * (slow_rtt + margin)
        return self._waiting


def install() -> None:
    """Enter the registry."""
    register(DefaultScheduler.name, DefaultScheduler)
