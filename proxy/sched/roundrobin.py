"""Subflows in turn, whatever their round trip (the kernel's ``bpf_rr``)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, register


class RoundRobinScheduler(Scheduler):
    """The next subflow with room after the one used last."""

    __slots__ = ("_turn",)
    name = "roundrobin"

    def __init__(self) -> None:
        self._turn = 0

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """Backup subflows only when there are no others."""
        usable = [s for s in subflows if not (s.stale or s.backup or s.peer_backup)]
        if not usable:
            usable = [s for s in subflows if not s.stale]
        count = len(usable)
        for step in range(count):
            subflow = usable[(self._turn + step) % count]
            if subflow.room >= min(conn.pending, conn.window_left, subflow.mss >> 1):
                self._turn = (self._turn + step + 1) % count
                return subflow
        return None


def install() -> None:
    """Enter the registry."""
    register(RoundRobinScheduler.name, RoundRobinScheduler)
