"""Shares by the weights of the uplinks."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.sched.base import ConnectionView, S, register
from proxy.sched.default import DefaultScheduler

_CREDIT_MAX = 262144.0  # four bursts
_CREDIT_FIRST = 16384.0


class WeightedScheduler(DefaultScheduler):
    """As ``default``, but a light uplink carries no more than its share.

    The subflows of the greatest weight are used as much as they can be. Whenever one of them
    sends, each lighter one earns the right to send in proportion to its weight; what it does not
    use in time it loses. So weights never slow down the heaviest, and equal weights change
    nothing.
    """

    __slots__ = ("_credit",)
    name = "weighted"
    policy = "the shortest round trip of those with room and a share left"

    def __init__(self) -> None:
        super().__init__()
        self._credit: dict[int, float] = {}

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """The choice of ``default`` among those that may send."""
        most = 0
        for subflow in subflows:
            if subflow.weight > most and not subflow.stale:
                most = subflow.weight
        credit = self._credit
        allowed = [
            s
            for s in subflows
            if s.weight >= most or credit.get(id(s), _CREDIT_FIRST) > 0.0 or s.stale
        ]
        chosen = super().get_send(conn, allowed, now)
        if chosen is not None:
            count = min(chosen.room, conn.pending)
            if chosen.weight < most:
                credit[id(chosen)] = credit.get(id(chosen), _CREDIT_FIRST) - count
            else:
                self._earn(subflows, most, count)
        return chosen

    def _earn(self, subflows: Sequence[S], most: int, count: int) -> None:
        heavy = 0
        for subflow in subflows:
            if subflow.weight >= most and not subflow.stale:
                heavy += most
        share = count / heavy
        credit = self._credit
        for subflow in subflows:
            if subflow.weight < most:
                earned = credit.get(id(subflow), _CREDIT_FIRST) + share * subflow.weight
                credit[id(subflow)] = min(earned, _CREDIT_MAX)


def install() -> None:
    """Enter the registry."""
    register(WeightedScheduler.name, WeightedScheduler)
