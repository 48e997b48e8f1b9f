"""Counters under the kernel's names (``MPTcpExt*``, ``TcpExt*`` without prefix)."""

from __future__ import annotations

GAUGES = frozenset({"MPTcpExtMPCurrEstab"})
"""What says how many there are now, not how often something happened."""


class CounterTable(dict[str, int]):
    """A mapping from name to count; a name that was never counted reads as 0."""

    __slots__ = ()

    def __missing__(self, name: str) -> int:
        return 0

    def add(self, name: str, count: int = 1, /) -> None:
        """Count ``count`` more of ``name``."""
        self[name] = self.get(name, 0) + count
