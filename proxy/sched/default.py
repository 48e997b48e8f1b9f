"""The default scheduler: full use of all subflows, and no slow one holds back a fast one.

As the kernel's does, it prefers the subflow that gets the bytes out earliest, and backup subflows
only serve when no other one is left. On top of that it waits for a fast subflow where a slow one
would deliver later (ECF, Lim et al. 2017) or would block the peer's window (BLEST, Ferlin et al.
2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

from proxy.sched.base import ConnectionView, S, Scheduler, register

_UNKNOWN_RTT = 1.0
_FORGET = 0.1  # seconds without progress after which a round trip may have changed
_DISTRUST = 1.5  # ... if it is that many times the shortest one


class DefaultScheduler(Scheduler):
    """Earliest arrival first, with waiting."""

    __slots__ = ("_waiting",)
    name = "default"
    policy = "the shortest round trip of those with room"
    waits = "a faster one is sooner done with it, or needs what is left of the window"

    def __init__(self) -> None:
        self._waiting = False

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """See the class and module; the wait ends with the next ACK of the fast subflow."""
        fast: S | None = None  # the earliest of all
        best: S | None = None  # the earliest of those with room
        fast_at = best_at = 0.0
        spare = True  # only backup subflows seen so far
        least = min(conn.pending, conn.window_left)
        for subflow in subflows:
            if subflow.stale:
                continue
            backup = subflow.backup or subflow.peer_backup
            if backup and not spare:
                continue
            if spare and not backup:
                spare = False
                fast = best = None
            at = arrival(subflow)
            if fast is None or at < fast_at:
                fast, fast_at = subflow, at
            if subflow.room < min(least, subflow.mss >> 1):
                continue
            if best is None or at < best_at:
                best, best_at = subflow, at
        if best is None or fast is None:
            return None
        if best is not fast and self._should_wait(conn, fast, fast_at, best, best_at):
            return None
        if best is fast:
            self._waiting = False
        return best

    def get_probe(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """An idle subflow whose round trip was long when it was measured last.

        Only data measures it again, and it might get none for ever because it was slow once.
        """
        for subflow in subflows:
            if (
                not subflow.bytes_in_flight
                and subflow.srtt > _DISTRUST * subflow.min_rtt
                and now - subflow.last_progress > _FORGET
                and not (subflow.stale or subflow.backup or subflow.peer_backup)
            ):
                return subflow
        return None

    def _should_wait(
        self, conn: ConnectionView, fast: S, fast_at: float, slow: S, slow_at: float
    ) -> bool:
        # BLEST: what the fast one sends until the slow one's bytes are acknowledged must fit.
        if fast.cwnd * (slow_at / fast_at) > conn.window_left:
            return slow.bytes_in_flight > 0 or fast.bytes_in_flight > 0
        if conn.backlogged:
            self._waiting = False
            return False
        # ECF: would the fast one be done with all of it before the slow one delivers its part?
        margin = max(fast.rttvar, slow.rttvar)
        slack = 1.25 if self._waiting else 1.0
        rounds = conn.pending / max(fast.cwnd, 1)
        if fast.cwnd < fast.ssthresh:
            rounds = log2(1.0 + rounds)  # slow start: the window doubles in each
        self._waiting = (1.0 + rounds) * fast_at < slack * (slow_at + margin)
        return self._waiting


def arrival(subflow: S) -> float:
    """Seconds until what is sent now on ``subflow`` will be acknowledged.

    The round trip, as it is: the queue that our own bytes make is a part of it.
    """
    return subflow.srtt or _UNKNOWN_RTT


def install() -> None:
    """Enter the registry."""
    register(DefaultScheduler.name, DefaultScheduler)
