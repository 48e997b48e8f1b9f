"""All data on all subflows: the earliest copy wins (the kernel's ``bpf_red``)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, has_room, register


class RedundantScheduler(Scheduler):
    """The fastest subflow with room leads; all others with room get the same bytes."""

    __slots__ = ()
    name = "redundant"
    policy = "the shortest round trip of those with room; the others get copies"
    duplicates = True

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """The lead; backup subflows count as all others here."""
        best: S | None = None
        for subflow in subflows:
            if subflow.stale or not has_room(conn, subflow):
                continue
            if best is None or subflow.srtt < best.srtt:
                best = subflow
        return best


def install() -> None:
    """Enter the registry."""
    register(RedundantScheduler.name, RedundantScheduler)
