"""Linked increases (RFC 6356)."""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.coupling import Coupled


class Lia(Coupled):
    """All subflows together take as much as one TCP on the best of the paths."""

    __slots__ = ()
    name: ClassVar[str] = "lia"

    def _growth(self, acked: int, members: list[Coupled]) -> float:
        # RFC 6356 §3: alpha = total * max(cwnd_i / rtt_i^2) / (sum(cwnd_i / rtt_i))^2,
        # and alpha * acked * mss / total is the increase; the total cancels out.
        best = 0.0
        rate = 0.0
        for member in members:
            share = member.cwnd / member.srtt
            rate += share
            share /= member.srtt
            if share > best:
                best = share
        return best / (rate * rate) * acked * self.mss
