"""Path managers that open nothing: for the side that only answers, and for single path."""

from __future__ import annotations

from proxy.pm.base import PathConnection, PathManager, register


class NonePathManager(PathManager):
    """One subflow only: joins are refused."""

    __slots__ = ()
    name = "none"


class PassivePathManager(PathManager):
    """Takes joins up to the limit, opens and announces nothing."""

    __slots__ = ()
    name = "passive"

    def accepts_join(self, conn: PathConnection, now: float) -> bool:
        """Additional subflows of both directions count (EP-02)."""
        return len(conn.path_subflows) <= conn.limits.subflows


def install() -> None:
    """Enter the registry."""
    register(NonePathManager.name, NonePathManager)
    register(PassivePathManager.name, PassivePathManager)
