"""How idle subflows find out that their peer or their path is gone, and what that may cost.

A connection that only receives would never learn of a box that died without a word. So a subflow
that heard nothing for ``subflow_keepalive`` seconds asks, and gives up after ``PROBES`` questions.
The side that did not open the subflow waits twice as long: the other's question tells it enough.

Many idle connections must not fill a metered uplink: all subflows of a host together begin to ask
at most ``RATE`` times a second. But when one of them found nobody, all may ask for a while.
"""

from __future__ import annotations

RATE = 0.5  # with answers, some 70 bytes each: at most 6 MB a day and direction
_BURST = 20.0
PROBES = 12
INTERVAL = 1 / 3  # of the idle time, between questions
_ALARM = 60.0


class KeepaliveBudget:
    """One for each host."""

    __slots__ = ("_alarm_until", "_level", "_updated")

    def __init__(self) -> None:
        self._level = _BURST
        self._updated = 0.0
        self._alarm_until = 0.0

    def take(self, now: float) -> bool:
        """Whether one more idle subflow may ask."""
        if now < self._alarm_until:
            return True
        self._level = min(_BURST, self._level + (now - self._updated) * RATE)
        self._updated = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True

    def alarm(self, now: float) -> None:
        """A subflow got no answer: the others should know soon whether they are alive."""
        self._alarm_until = now + _ALARM
