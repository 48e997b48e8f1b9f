"""Balanced linked adaptation (Peng et al. 2016, draft-walid-mptcp-congestion-control)."""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.coupling import Coupled


class Balia(Coupled):
    """Between LIA's fairness and OLIA's responsiveness, provably stable.

    ``alpha`` is how much faster the fastest path is than this one.
    """

    __slots__ = ()
    name: ClassVar[str] = "balia"

    def _growth(self, acked: int, members: list[Coupled]) -> float:
        total = 0.0
        best = 0.0
        for member in members:
            rate = member.cwnd / member.srtt
            total += rate
            if rate > best:
                best = rate
        own = self.cwnd / self.srtt
        alpha = best / own
        basic = own / self.srtt / (total * total)
        return basic * (1.0 + alpha) / 2.0 * (4.0 + alpha) / 5.0 * acked * self.mss

    def on_congestion(self, now: float) -> None:
        super().on_congestion(now)
        coupling = self._coupling
        members = coupling.active() if coupling is not None else []
        if len(members) < 2 or self.srtt <= 0.0:
            return
        before = self._prior_cwnd
        own = before / self.srtt
        best = max(own, max(m.cwnd / m.srtt for m in members if m is not self))
        # A slower path gives up to three quarters, the fastest one half, as Reno.
        share = min(best / own, 1.5) / 2.0
        self.ssthresh = self.cwnd = max(int(before * (1.0 - share)), 2 * self.mss)
