"""One budget for the receive buffers of all connections of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.tcp.host import Counters


class MemoryBudget:
    """Bytes that receive buffers have grown by, and how many they may.

    What counts is what was promised: a window cannot be taken back (RFC 9293 §3.8.6), so a buffer
    that has grown may be filled whenever its peer likes, and its reader is slow. The buffer that
    every connection begins with is not counted. ``tight``, from when a quarter is left until a
    half is: who does not use what he has should give it back.
    """

    __slots__ = ("_counters", "limit", "tight", "used")

    def __init__(self, limit: int, counters: Counters) -> None:
        self.limit = limit
        self.used = 0
        self.tight = False
        self._counters = counters

    def take(self, count: int) -> int:
        """``count`` bytes more for a buffer; returns how many it gets."""
        left = self.limit - self.used
        if count > left:
            self._counters.add("TCPRcvGrowthDenied")
            count = left if left > 0 else 0
        self.used += count
        if not self.tight and self.used > self.limit - (self.limit >> 2):
            self.tight = True
            self._counters.add("TCPMemoryPressures")
        return count

    def give_back(self, count: int) -> None:
        """``count`` bytes are neither held nor promised any more."""
        self.used -= count
        if self.tight and self.used <= self.limit >> 1:
            self.tight = False
