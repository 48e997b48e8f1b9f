"""A link in virtual time: rate, delay, queue, loss, reordering, duplication, black-outs."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from proxy.seg import gso_split

VIRTIO = 10


@dataclass
class Link:
    """One direction of a path. Times in seconds, ``rate`` in bits per second (0: no limit).

    A packet waits in a drop-tail queue of ``queue`` wire packets (0: no limit), takes its
    serialisation time at ``rate`` and then ``delay`` plus a uniform part of ``jitter`` (which
    keeps the order; ``reorder`` is the share of packets that take ``reorder_delay`` longer and
    are overtaken). Super-segments are split to wire packets, as a NIC does, unless ``offload``.
    Wire packets beyond ``mtu`` are reported to ``too_big``, not delivered.
    """

    rng: random.Random
    rate: float = 0.0
    delay: float = 0.0
    queue: int = 0
    loss: float = 0.0
    jitter: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.0
    duplicate: float = 0.0
    offload: bool = False
    mtu: int = 65535
    batch: float = 0.0
    up: bool = True
    dropped: int = 0
    carried: int = 0
    payload_rules: list[object] = field(default_factory=list)
    too_big: list[bytes] = field(default_factory=list)
    _free_at: float = 0.0
    _last: float = 0.0
    _departures: deque[float] = field(default_factory=deque)

    def send(self, packet: bytes, now: float) -> list[tuple[float, bytes]]:
        """When and what arrives of ``packet``, which enters now."""
        arrivals: list[tuple[float, bytes]] = []
        for wire in [packet] if self.offload else gso_split(packet):
            arrivals += self._send_one(wire, now)
        return arrivals

    def _send_one(self, wire: bytes, now: float) -> list[tuple[float, bytes]]:
        rng = self.rng
        if len(wire) - VIRTIO > self.mtu:
            self.too_big.append(wire)
            return []
        departures = self._departures
        while departures and departures[0] <= now:
            departures.popleft()
        if not self.up or (self.queue and len(departures) >= self.queue):
            self.dropped += 1
            return []
        if self.rate:
            start = max(now, self._free_at)
            self._free_at = leaves = start + (len(wire) - VIRTIO + 14) * 8 / self.rate
            departures.append(leaves)
        else:
            leaves = now
        if self.loss and rng.random() < self.loss:
            self.dropped += 1
            return []
        self.carried += 1
        at = leaves + self.delay + (rng.random() * self.jitter if self.jitter else 0.0)
        if self.batch:
            at = (int(at / self.batch) + 1) * self.batch
        if self.reorder and rng.random() < self.reorder:
            at += self.reorder_delay
        else:
            at = self._last = max(at, self._last)
        arrivals = [(at, wire)]
        if self.duplicate and rng.random() < self.duplicate:
            arrivals.append((at + self.delay / 4, wire))
        return arrivals
