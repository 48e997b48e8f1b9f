"""A token bucket: how often something may be done."""

from __future__ import annotations


class TokenBucket:
    """Allows ``rate`` things a second on average and ``burst`` at once."""

    __slots__ = ("_burst", "_level", "_rate", "_updated")

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = rate if burst is None else burst
        self._level = self._burst
        self._updated = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        self._level = min(self._burst, self._level + (now - self._updated) * self._rate)
        self._updated = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
