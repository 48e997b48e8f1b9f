"""One subflow at a time: the first that works, the others in reserve (``bpf_bkup``)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, Scheduler, has_room, register


class BackupScheduler(Scheduler):
    """The first subflow that is not backup and not stale, else the first that is not stale."""

    __slots__ = ()
    name = "backup"
    policy = "the first that works"
    waits = "the first that works is full"

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """None while the chosen one has no room."""
        chosen: S | None = None
        for subflow in subflows:
            if subflow.stale:
                continue
            if not (subflow.backup or subflow.peer_backup):
                chosen = subflow
                break
            if chosen is None:
                chosen = subflow
        return chosen if chosen is not None and has_room(conn, chosen) else None


def install() -> None:
    """Enter the registry."""
    register(BackupScheduler.name, BackupScheduler)
