"""A rate that connections share: what one sends makes the others wait."""

from __future__ import annotations

LIMIT_SLACK = 0.004
"""Seconds of unused sending time that may be made up for, as timers are late by about 1 ms."""


class RateLimit:
    """At most ``rate`` bytes a second together; 0: no limit. May be changed at any time.

    Connections book what they send. Who finds the line taken books one burst behind all others
    and waits for that moment, so each in turn gets one burst, and none has to be woken in vain.
    """

    __slots__ = ("free_at", "rate")

    def __init__(self, rate: float = 0.0) -> None:
        self.rate = rate
        self.free_at = 0.0

    def book(self, size: int, now: float) -> float:
        """Take ``size`` bytes' time behind all others; returns when it begins."""
        earliest = now - LIMIT_SLACK
        start = self.free_at
        if start < earliest:
            start = earliest
        self.free_at = start + size / self.rate
        return start
