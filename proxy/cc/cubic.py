"""CUBIC (RFC 9438) with HyStart++ (RFC 9406)."""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.base import CongestionControl
from proxy.cc.hystart import CSS_GROWTH_DIVISOR, HyStart

C = 0.4
BETA = 0.7
ALPHA = 3.0 * (1.0 - BETA) / (1.0 + BETA)  # RFC 9438 §4.3: as much as Reno with beta 0.7

_OFF = -1.0


class Cubic(CongestionControl):
    """The window follows a cubic of the time since the last loss, at least as fast as Reno."""

    __slots__ = ("_epoch", "_hystart", "_k", "_last_ack", "_min_rtt", "_origin", "_prior_w_max",
                 "_remainder", "_w_est", "_w_max")  # fmt: skip

    name: ClassVar[str] = "cubic"

    def __init__(self, mss: int, initial_cwnd: int) -> None:
        super().__init__(mss, initial_cwnd)
        self._hystart: HyStart | None = HyStart()
        self._epoch = _OFF  # when the current growth began
        self._w_max = 0.0  # segments
        self._prior_w_max = 0.0
        self._origin = 0.0
        self._k = 0.0
        self._w_est = 0.0
        self._min_rtt = 0.0
        self._remainder = 0.0
        self._last_ack = 0.0

    def on_ack(self, acked: int, rtt: float, now: float, in_flight: int, app_limited: bool) -> None:
        if rtt > 0.0 and (rtt < self._min_rtt or self._min_rtt == 0.0):
            self._min_rtt = rtt
        if app_limited:
            # RFC 9438 §5.8: time without use of the window is no time of growth.
            if self._epoch != _OFF:
                self._epoch += now - self._last_ack
            self._last_ack = now
            return
        self._last_ack = now
        if self.cwnd < self.ssthresh:
            self._slow_start(acked, rtt, in_flight)
        else:
            self._avoid(acked, now)

    def _slow_start(self, acked: int, rtt: float, in_flight: int) -> None:
        hystart = self._hystart
        if hystart is not None:
            if hystart.on_ack(acked, rtt, in_flight):
                self._hystart = None
                if hystart.certain and rtt > 0.0:
                    # The delay that showed the queue is one round old, and the window has
                    # doubled since: take that back, but keep half as much again as fills the path.
                    path = self.cwnd * min(self._min_rtt / rtt, 1.0)
                    self.cwnd = min(self.cwnd, max(self.cwnd // 2, int(path * 1.5)))
                self.ssthresh = self.cwnd
                return
            if hystart.in_css:
                acked = max(acked // CSS_GROWTH_DIVISOR, 1)
        self.cwnd = min(self.cwnd + acked, self.ssthresh)

    def _avoid(self, acked: int, now: float) -> None:
        mss = self.mss
        cwnd = self.cwnd / mss
        if self._epoch == _OFF:
            self._begin_epoch(cwnd, now)
        segments = acked / mss
        alpha = ALPHA if self._w_est < self._origin else 1.0
        self._w_est += alpha * segments / cwnd
        t = now - self._epoch + self._min_rtt - self._k
        target = C * t * t * t + self._origin
        if target > 1.5 * cwnd:
            target = 1.5 * cwnd
        if target < self._w_est:
            target = self._w_est
        if target > cwnd:
            grow = (target - cwnd) * segments / cwnd * mss + self._remainder
            whole = int(grow)
            self._remainder = grow - whole
            self.cwnd += whole

    def _begin_epoch(self, cwnd: float, now: float) -> None:
        self._epoch = now
        self._w_est = cwnd
        if cwnd < self._w_max:
            self._k = ((self._w_max - cwnd) / C) ** (1.0 / 3.0)
            self._origin = self._w_max
        else:
            self._k = 0.0
            self._origin = cwnd

    def on_congestion(self, now: float) -> None:
        self._save()
        self._prior_w_max = self._w_max
        cwnd = self.cwnd / self.mss
        # RFC 9438 §4.7: fast convergence gives room to a new flow.
        self._w_max = cwnd * (1.0 + BETA) / 2.0 if cwnd < self._w_max else cwnd
        self.ssthresh = max(int(self.cwnd * BETA), 2 * self.mss)
        self.cwnd = self.ssthresh
        self._epoch = _OFF
        self._hystart = None  # RFC 9406 §4.3: for the initial slow start

    def on_undo(self) -> None:
        super().on_undo()
        self._w_max = max(self._w_max, self._prior_w_max)
        self._epoch = _OFF

    def on_restart(self, idle: float) -> None:
        super().on_restart(idle)
        self._epoch = _OFF

    def restore(self, cwnd: int, ssthresh: int) -> None:
        super().restore(cwnd, ssthresh)
        self._w_max = ssthresh / self.mss
        self._epoch = _OFF
