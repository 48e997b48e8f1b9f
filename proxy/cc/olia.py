"""Opportunistic linked increases (Khalili et al. 2013, draft-khalili-mptcp-congestion-control)."""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.coupling import Coupled

_TIE = 1.0 - 1e-9


class Olia(Coupled):
    """As LIA, and windows move from congested paths to the best ones.

    The best paths are those with the most bytes between losses, squared, per RTT; where one of
    them has not the largest window, it takes over from those that have it.
    """

    __slots__ = ("_between", "_since")
    name: ClassVar[str] = "olia"

    def __init__(self, mss: int, initial_cwnd: int) -> None:
        super().__init__(mss, initial_cwnd)
        self._since = 0  # bytes delivered since the last loss
        self._between = 0  # and between the last two

    def _on_delivered(self, acked: int) -> None:
        self._since += acked

    def on_congestion(self, now: float) -> None:
        super().on_congestion(now)
        self._between = self._since
        self._since = 0

    def quality(self) -> float:
        """How much a path carries without a loss: the square of the bytes, per RTT."""
        between = float(max(self._since, self._between))
        return between * between / self.srtt

    def _growth(self, acked: int, members: list[Coupled]) -> float:
        rate = 0.0
        for member in members:
            rate += member.cwnd / member.srtt
        basic = self.cwnd / (self.srtt * self.srtt) / (rate * rate)
        return (basic + self._alpha(members) / self.cwnd) * acked * self.mss

    def _alpha(self, members: list[Coupled]) -> float:
        peers = [m for m in members if isinstance(m, Olia)]
        largest = max(m.cwnd for m in peers)
        best = max(m.quality() for m in peers) * _TIE
        collected = [m for m in peers if m.quality() >= best and m.cwnd < largest]
        if not collected:
            return 0.0
        if self in collected:
            return 1.0 / (len(peers) * len(collected))
        if self.cwnd >= largest:
            return -1.0 / (len(peers) * sum(1 for m in peers if m.cwnd >= largest))
        return 0.0
