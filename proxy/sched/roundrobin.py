"""Subflows in turn, whatever their round trip (the kernel's ``bpf_rr``)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, eligible, has_room, register


class RoundRobinScheduler(Scheduler):
    """The next subflow with room after the one used last."""

    __slots__ = ("_turn",)
    name = "roundrobin"
    policy = "its turn"

    def __init__(self) -> None:
        self._turn = 0

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """Backup subflows only when there are no others."""
        usable = eligible(subflows)
        count = len(usable)
        for step in range(count):
            subflow = usable[(self._turn + step) % count]
            if has_room(conn, subflow):
                self._turn = (self._turn + step + 1) % count
                return subflow
        return None


def install() -> None:
    """Enter the registry."""
    register(RoundRobinScheduler.name, RoundRobinScheduler)
