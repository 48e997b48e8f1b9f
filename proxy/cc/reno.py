"""NewReno (RFC 5681, with byte counting by RFC 3465)."""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.base import CongestionControl


class Reno(CongestionControl):
    """Slow start doubles, congestion avoidance adds a segment per window, a loss halves."""

    __slots__ = ("_counted",)

    name: ClassVar[str] = "reno"

    def __init__(self, mss: int, initial_cwnd: int) -> None:
        super().__init__(mss, initial_cwnd)
        self._counted = 0

    def on_ack(self, acked: int, rtt: float, now: float, in_flight: int, app_limited: bool) -> None:
        if app_limited:
            return
        cwnd = self.cwnd
        if cwnd < self.ssthresh:
            grown = min(cwnd + acked, max(self.ssthresh, cwnd))
            acked -= grown - cwnd
            self.cwnd = cwnd = grown
        self._counted += acked
        if self._counted >= cwnd:
            self._counted -= cwnd
            self.cwnd = cwnd + self.mss
