"""HyStart++ (RFC 9406): leave slow start when the delay rises, before the queue overflows."""

from __future__ import annotations

MIN_RTT_THRESH = 0.004
MAX_RTT_THRESH = 0.016
MIN_RTT_DIVISOR = 8
RTT_SAMPLES = 8
CSS_GROWTH_DIVISOR = 4
CSS_ROUNDS = 5

_INFINITE = float("inf")


class HyStart:
    """Rounds of one slow start.

    Rounds are counted by delivered bytes: one ends when all that was in flight at its start has
    been delivered. A rise of the delay starts Conservative Slow Start, which grows by a quarter;
    if the delay falls below its baseline the rise was jitter and slow start goes on.

    DEVIATION: where the least delay of a whole round of CSS rises by the threshold once more, the
    queue is certain and slow start ends at once, not after five rounds: with a deep queue these
    would triple the window, and the delay with it.
    """

    __slots__ = ("_baseline", "_css_rounds", "_delivered", "_last_min", "_min", "_round_end",
                 "_samples", "_threshold", "certain", "in_css")  # fmt: skip

    def __init__(self) -> None:
        self._delivered = 0
        self._round_end = 0
        self._last_min = self._min = _INFINITE
        self._samples = 0
        self._baseline = _INFINITE
        self._threshold = 0.0
        self._css_rounds = 0
        self.in_css = False
        self.certain = False

    def on_ack(self, acked: int, rtt: float, in_flight: int) -> bool:
        """Count one ACK of slow start; True: leave slow start now."""
        self._delivered += acked
        if rtt > 0.0:
            self._samples += 1
            if rtt < self._min:
                self._min = rtt
        if self._samples >= RTT_SAMPLES:
            self._judge()
        if self._delivered < self._round_end:
            return False
        return self._next_round(in_flight)

    def _judge(self) -> None:
        if self.in_css:
            if self._min < self._baseline:  # RFC 9406 §4.2: the rise was spurious
                self.in_css = False
                self._baseline = _INFINITE
                self._css_rounds = 0
        elif self._last_min < _INFINITE:
            threshold = min(max(self._last_min / MIN_RTT_DIVISOR, MIN_RTT_THRESH), MAX_RTT_THRESH)
            if self._min >= self._last_min + threshold:
                self._threshold = threshold
                self.in_css = True
                self._baseline = self._min
                self._css_rounds = 0

    def _next_round(self, in_flight: int) -> bool:
        self._round_end = self._delivered + in_flight
        rising = self._samples >= RTT_SAMPLES and self._min >= self._baseline + self._threshold
        if self._samples >= RTT_SAMPLES or self._last_min == _INFINITE:
            self._last_min = self._min
        self._min = _INFINITE
        self._samples = 0
        if self.in_css:
            self._css_rounds += 1
            if rising:
                self.certain = True
            return rising or self._css_rounds >= CSS_ROUNDS
        return False
