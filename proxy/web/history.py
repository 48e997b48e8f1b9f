"""How fast each uplink was: every second of a quarter of an hour, every minute of a day."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

SECONDS = 900
MINUTES = 1440

Rate = tuple[int, int]
"""Bytes a second, down and up."""


class Track:
    """The rates of one uplink, the newest last."""

    __slots__ = ("minutes", "seconds")

    def __init__(self) -> None:
        self.seconds: deque[Rate] = deque(maxlen=SECONDS)
        self.minutes: deque[Rate] = deque(maxlen=MINUTES)

    def end_minute(self) -> None:
        """The mean of the last minute becomes one of the minutes."""
        last = list(self.seconds)[-60:]
        self.minutes.append((sum(r[0] for r in last) // 60, sum(r[1] for r in last) // 60))


class History:
    """Fed with what each uplink has carried so far; one that is not named any more is forgotten."""

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self._at: float | None = None
        self._totals: Mapping[str, Rate] = {}

    def add(self, now: float, totals: Mapping[str, Rate]) -> None:
        """``totals``: bytes down and up by uplink at ``now``, a monotonic time in seconds.

        Seconds for which it was not called had the mean of the time between.
        """
        before, self._at = self._at, now
        known, self._totals = self._totals, totals
        self.tracks = {name: self.tracks.get(name) or Track() for name in totals}
        if before is None or now <= before:
            return
        ticks = range(int(before) + 1, int(now) + 1)
        # Of a long sleep (the host was suspended) no more than there is room for.
        for tick in ticks[-SECONDS:]:
            for name, track in self.tracks.items():
                track.seconds.append(
                    _rate(known.get(name, totals[name]), totals[name], now - before)
                )
                if tick % 60 == 0:
                    track.end_minute()

    def latest(self, name: str) -> Rate:
        """The rate of the last second; 0 while there was none."""
        track = self.tracks.get(name)
        return track.seconds[-1] if track is not None and track.seconds else (0, 0)


def _rate(before: Rate, after: Rate, seconds: float) -> Rate:
    down, up = (max(0, int((b - a) / seconds)) for a, b in zip(before, after, strict=True))
    return down, up
