"""Where a sender's time goes: a stop-watch for each thing that can hold it up (Linux: tcp_chrono).

Linux has three (busy, receive window, send buffer); with several paths and a data level above them
there are more things to wait for. One runs at a time, and it changes where the sender comes to know
its limit anyway, so that bulk costs a comparison.
"""

from __future__ import annotations

from array import array
from enum import IntEnum


class Limited(IntEnum):
    """By what. ``NOTHING``: all that there is was sent. Greater ones outrank lesser ones where
    several subflows tell of one connection."""

    NOTHING = 0
    SCHEDULER = 1
    """It could send, and the scheduler gives it nothing."""
    SILENCE = 2
    """A retransmission timed out, and nothing has been acknowledged since."""
    CONGESTION = 3
    """The congestion window is full, or lost data comes first."""
    PACING = 4
    RATE_LIMIT = 5
    """What was set for the uplink."""
    WINDOW = 6
    """The peer's window is full. It is as large as ever: too small for the path, or the first data
    in it is late."""
    READER = 7
    """The window has shrunk, since the peer's application does not read; of a receiver: ours."""
    SEND_BUFFER = 8
    NO_SUBFLOW = 9
    GAP = 10
    """Of a receiver: data waits for bytes before it, for longer than a round trip. Of a subflow: it
    was to bring them."""


class Chronograph:
    """The seconds that each limit has held, and since when the present one holds."""

    __slots__ = ("seconds", "since")

    def __init__(self, now: float) -> None:
        self.seconds = array("d", bytes(8 * len(Limited)))
        self.since = now


class Timed:
    """A sender or receiver that tells by what it is ``limited``.

    It has no chronograph before something limits it for the first time: most connections are idle,
    and memory is dear.
    """

    __slots__ = ("chronograph", "limited")

    chronograph: Chronograph | None
    limited: Limited

    def start_chronograph(self) -> None:
        """For ``__init__``."""
        self.chronograph = None
        self.limited = Limited.NOTHING

    def turn(self, limited: Limited, now: float) -> None:
        """Something else limits it from now on."""
        chronograph = self.chronograph
        if chronograph is None:
            chronograph = self.chronograph = Chronograph(now)
        chronograph.seconds[self.limited] += now - chronograph.since
        chronograph.since = now
        self.limited = limited

    def lap(self, least: float, now: float) -> float:
        """The same limit anew; what it has held counts only if more than ``least`` seconds.

        Returns what was counted.
        """
        chronograph = self.chronograph
        if chronograph is None:
            return 0.0
        seconds = now - chronograph.since
        chronograph.since = now
        if seconds <= least:
            return 0.0
        chronograph.seconds[self.limited] += seconds
        return seconds

    def charge(self, limited: Limited, seconds: float, now: float) -> None:
        """Count time that passed while something else ran."""
        if self.chronograph is None:
            self.chronograph = Chronograph(now)
        self.chronograph.seconds[limited] += seconds

    def spent(self, now: float) -> list[float]:
        """Seconds by ``Limited``, up to ``now``; of ``NOTHING`` only since the first limit."""
        chronograph = self.chronograph
        if chronograph is None:
            return [0.0] * len(Limited)
        seconds = chronograph.seconds.tolist()
        seconds[self.limited] += now - chronograph.since
        return seconds
