"""What conversations amount to: bytes and connections of each LAN host or client, distributions.

Nothing is counted per packet. What a conversation has moved is taken over when somebody asks and
when it ends, so that the sums only grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from proxy.mptcp.connection import MptcpConnection
from proxy.relay.flow import Flow

OTHER = "other"
"""Those for whom the table had no room, together."""
MAX_HOSTS = 256
RTT_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
REINJECTED_BOUNDS = (0.0, 1e4, 1e5, 1e6, 1e7, 1e8)
MAX_SLICE = 256
"""Conversations that are read at a time; what moves packets gets its turn in between."""


class Histogram:
    """Counts values by upper ``bounds`` (inclusive), the last bucket without one."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """Sum of the values."""

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, counts: Iterable[int], total: float) -> None:
        """Those of another one with the same bounds."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.total += total

    def take(self) -> tuple[list[int], float]:
        """Counts and sum since the last time."""
        taken = self.counts, self.total
        self.counts, self.total = [0] * len(self.counts), 0.0
        return taken


class Account:
    """Of one LAN host or client. Bytes are payload: ``sent`` by it, ``received`` by it."""

    __slots__ = ("open", "opened", "received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.opened = 0
        """Conversations so far."""
        self.open = 0
        """Conversations just now."""

    def add(self, sent: int, received: int, opened: int) -> None:
        """Count so much more."""
        self.sent += sent
        self.received += received
        self.opened += opened

    def take(self) -> list[int]:
        """What was counted since the last time, and ``open``."""
        taken = [self.sent, self.received, self.opened, self.open]
        self.sent = self.received = self.opened = 0
        return taken


class Usage:
    """Accounts by name, ``limit`` at most beside ``other``; round-trip times in seconds by label;
    bytes that each ended conversation sent again on another subflow."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.accounts: dict[str, Account] = {}
        self.rtt: dict[str, Histogram] = {}
        self.reinjected = Histogram(REINJECTED_BOUNDS)

    def account(self, name: str) -> Account:
        """The account of ``name``, or the common one if all others are in use."""
        account = self.accounts.pop(name, None)
        if account is None and name != OTHER and not self._has_room():
            return self.account(OTHER)
        # The last in order is the one that was asked for last.
        self.accounts[name] = account = account or Account()
        return account

    def rtt_of(self, label: str) -> Histogram:
        """The round-trip times of an uplink."""
        histogram = self.rtt.get(label)
        if histogram is None:
            histogram = self.rtt[label] = Histogram(RTT_BOUNDS)
        return histogram

    def take(self) -> dict[str, Any]:
        """What was counted since the last time, for ``add`` in another process."""
        return {
            "accounts": {name: account.take() for name, account in self.accounts.items()},
            "rtt": {label: histogram.take() for label, histogram in self.rtt.items()},
            "reinjected": self.reinjected.take(),
        }

    def add(self, taken: Mapping[str, Any]) -> None:
        """What another process has counted; not which conversations are open."""
        for name, (sent, received, opened, _) in taken["accounts"].items():
            if sent or received or opened:
                self.account(name).add(sent, received, opened)
        for label, (counts, total) in taken["rtt"].items():
            self.rtt_of(label).add(counts, total)
        self.reinjected.add(*taken["reinjected"])

    def set_open(self, parts: Iterable[Mapping[str, int]]) -> None:
        """How many conversations are open, by name, at each of those who have some."""
        for account in self.accounts.values():
            account.open = 0
        for part in parts:
            for name, count in part.items():
                self.account(name).open += count

    def _has_room(self) -> bool:
        """Make room if need be: who was idle the longest is counted with the others from now on,
        and what he had before with him."""
        if len(self.accounts) - (OTHER in self.accounts) < self._limit:
            return True
        for name, account in self.accounts.items():
            if not account.open and name != OTHER:
                del self.accounts[name]
                self.account(OTHER).add(account.sent, account.received, account.opened)
                return True
        return False


class _Reading:
    """What of one conversation is in its account."""

    __slots__ = ("account", "received", "sent")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.sent = 0
        self.received = 0


class Meters:
    """Reads the conversations of a relay into ``usage``."""

    def __init__(self, limit: int) -> None:
        self.usage = Usage(limit)
        self._readings: dict[Flow, _Reading] = {}

    def begin(self, flow: Flow, name: str) -> None:
        """A conversation of ``name`` has begun."""
        account = self.usage.account(name)
        account.opened += 1
        account.open += 1
        self._readings[flow] = _Reading(account)

    def end(self, flow: Flow) -> None:
        """It is over."""
        self._read(flow)
        reading = self._readings.pop(flow, None)
        if reading is None:
            return
        reading.account.open -= 1
        for stream in (flow.near, flow.far):
            if isinstance(stream, MptcpConnection):
                self.usage.reinjected.observe(stream.tx.bytes_reinjected)

    def slices(self) -> list[list[Flow]]:
        """All conversations, as many together as may be read at a time."""
        flows = list(self._readings)
        return [flows[at : at + MAX_SLICE] for at in range(0, len(flows), MAX_SLICE)]

    def read(self, flows: Collection[Flow]) -> None:
        """Take over what these have moved."""
        for flow in flows:
            self._read(flow)

    def sample(self, flows: Collection[Flow], since: float) -> None:
        """Read the round-trip time of each subflow that has heard something since then."""
        for flow in flows:
            for stream in (flow.near, flow.far):
                if isinstance(stream, MptcpConnection):
                    self._sample(stream, since)

    def _read(self, flow: Flow) -> None:
        reading = self._readings.get(flow)
        if reading is None:
            return  # it has ended meanwhile
        sent, received = flow.bytes_out, flow.bytes_in
        reading.account.add(sent - reading.sent, received - reading.received, 0)
        reading.sent, reading.received = sent, received

    def _sample(self, stream: MptcpConnection, since: float) -> None:
        for subflow in stream.subflows:
            if subflow.srtt and subflow.last_received >= since:
                self.usage.rtt_of(subflow.uplink or "").observe(subflow.srtt)
