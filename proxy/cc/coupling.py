"""Coupled congestion controls: the subflows of one connection grow together as one TCP would."""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.base import CongestionControl
from proxy.cc.hystart import CSS_GROWTH_DIVISOR, HyStart


class Coupling:
    """The coupled controls of one connection's subflows, in no order."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: list[Coupled] = []

    def active(self) -> list[Coupled]:
        """Those that have measured their round trip: the others carry nothing yet."""
        return [m for m in self.members if m.srtt > 0.0]

    def dissolve(self) -> None:
        """The connection is gone; nobody refers to anybody any more."""
        for member in list(self.members):
            member.release()


class Coupled(CongestionControl):
    """Base of coupled controls: slow start and everything else as NewReno (RFC 6356 §3).

    Alone (plain TCP, or the only subflow) each of them is NewReno. ``srtt`` is the round trip in
    seconds as this control has seen it; 0: nothing was delivered yet.

    ``cwnd`` is ``ssthresh`` during recovery, since PRR belongs to the connection; so the others
    count it as RFC 6356 §3 wants.
    """

    __slots__ = ("_coupling", "_hystart", "_remainder", "srtt")

    coupled: ClassVar[bool] = True

    def __init__(self, mss: int, initial_cwnd: int) -> None:
        super().__init__(mss, initial_cwnd)
        self._coupling: Coupling | None = None
        self._hystart: HyStart | None = HyStart()
        self._remainder = 0.0
        self.srtt = 0.0

    def couple(self, coupling: Coupling) -> None:
        """Join the others."""
        self._coupling = coupling
        coupling.members.append(self)

    def release(self) -> None:
        """Leave the others; their share grows from now on."""
        coupling = self._coupling
        if coupling is not None:
            self._coupling = None
            coupling.members.remove(self)

    def take_over(self, cwnd: int, ssthresh: int, srtt: float, min_rtt: float, rate: float) -> None:
        super().take_over(cwnd, ssthresh, srtt, min_rtt, rate)
        self.srtt = srtt

    def on_ack(self, acked: int, rtt: float, now: float, in_flight: int, app_limited: bool) -> None:
        if rtt > 0.0:
            srtt = self.srtt
            self.srtt = srtt + 0.125 * (rtt - srtt) if srtt else rtt
        self._on_delivered(acked)
        if app_limited:
            return
        if self.cwnd < self.ssthresh:
            self._slow_start(acked, rtt, in_flight)
            return
        coupling = self._coupling
        members = coupling.active() if coupling is not None else []
        cwnd = self.cwnd
        if len(members) > 1 and self.srtt > 0.0:
            grow = self._growth(acked, members)
            limit = acked * self.mss / cwnd
            if grow > limit:
                grow = limit  # never faster than a TCP on this path (RFC 6356 §3)
        else:
            grow = acked * self.mss / cwnd
        grow += self._remainder
        whole = int(grow)
        self._remainder = grow - whole
        self.cwnd = max(cwnd + whole, self.mss)

    def _slow_start(self, acked: int, rtt: float, in_flight: int) -> None:
        # RFC 9406 serves every slow start; it keeps the first overshoot from filling the queue.
        hystart = self._hystart
        if hystart is not None:
            if hystart.on_ack(acked, rtt, in_flight):
                self._hystart = None
                self.ssthresh = self.cwnd
                return
            if hystart.in_css:
                acked = max(acked // CSS_GROWTH_DIVISOR, 1)
        self.cwnd = min(self.cwnd + acked, self.ssthresh)

    def _growth(self, acked: int, members: list[Coupled]) -> float:
        """Bytes by which ``cwnd`` grows for ``acked`` in congestion avoidance.

        ``members``: two at least, this one among them, each with ``srtt`` > 0.
        """
        raise NotImplementedError

    def _on_delivered(self, acked: int) -> None:
        """Any bytes delivered, whether the window grows or not."""

    def on_congestion(self, now: float) -> None:
        super().on_congestion(now)
        self._hystart = None
        self._remainder = 0.0
