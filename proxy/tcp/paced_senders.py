"""How many connections of a host send at a pace, and how long their bursts are therefore.

Each release of a paced sender costs a turn of the event loop, whatever it sends. A hundred senders
that release a thousand times a second, a millisecond's worth each, leave no time for anything
else: so the more there are, the more rarely each one releases, and the more at once.
"""

from __future__ import annotations

MIN_BURST = 0.001
"""Seconds of its rate that any sender may send back to back (Linux: tcp_tso_autosize)."""
RELEASE_TIME = 0.00025
"""Seconds that each sender adds to the bursts of all: 4,000 releases a second together."""
PERIOD = 0.1
"""Seconds over which senders are counted."""


class PacedSenders:
    """Counts those who sent at a pace, O(1) for each transmission and with nothing to clean up."""

    __slots__ = ("_before", "_count", "burst", "ends", "period")

    def __init__(self) -> None:
        self.burst = MIN_BURST
        """Seconds of its rate that a sender may send back to back."""
        self.period = 0
        """Number of the present period: who was counted in it need not be again."""
        self.ends = 0.0
        """When the present period ends."""
        self._count = self._before = 0

    def add(self, now: float) -> int:
        """Count one more sender; returns the period that it was counted in."""
        if now >= self.ends:
            self._before = self._count if now < self.ends + PERIOD else 0
            self._count = 0
            self.period += 1
            self.ends = now + PERIOD
        self._count += 1
        # Early in a period few were counted yet: then what the last one came to holds.
        self.burst = max(MIN_BURST, RELEASE_TIME * max(self._count, self._before))
        return self.period
