"""A device that loses, duplicates, reorders and damages what passes another one, by a seed."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.tun.base import HEADER_LENGTH, NO_OFFLOAD, OneByOne, complete

if TYPE_CHECKING:
    from proxy.tun.base import Device, DeviceCounters

__all__ = ["FaultDevice", "Faults"]


@dataclass(frozen=True, slots=True)
class Faults:
    """How often each thing happens to a packet: probabilities from 0 to 1, checked in this order.

    A reordered packet is overtaken by ``depth`` others (or comes when nothing follows it).
    """

    loss: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    depth: int = 3


class _Lane:
    """One direction: packets in, packets out, some of them held back."""

    def __init__(self, faults: Faults, rng: random.Random, split: bool) -> None:
        self._faults = faults
        self._rng = rng
        self._split = split
        self._held: list[tuple[int, bytes]] = []
        self._passed = 0
        self.lost = self.corrupted = self.duplicated = self.reordered = 0

    def pass_through(self, packet: bytes) -> list[bytes]:
        """What comes out when ``packet`` goes in."""
        out: list[bytes] = []
        for segment in (complete(packet) or [packet]) if self._split else [packet]:
            self._one(segment, out)
        return out

    def flush(self) -> list[bytes]:
        """All that is held back."""
        out = [packet for _, packet in self._held]
        self._held.clear()
        return out

    def _one(self, packet: bytes, out: list[bytes]) -> None:
        faults, chance = self._faults, self._rng.random
        if faults.loss and chance() < faults.loss:
            self.lost += 1
            return
        packets = [packet]
        if faults.corrupt and chance() < faults.corrupt:
            packets = self._damage(packet)
            self.corrupted += 1
        if faults.duplicate and chance() < faults.duplicate:
            packets += packets
            self.duplicated += 1
        if faults.reorder and chance() < faults.reorder:
            due = self._passed + faults.depth
            self._held.extend((due, held) for held in packets)
            self.reordered += 1
            return
        out.extend(packets)
        self._passed += 1
        while self._held and self._held[0][0] <= self._passed:
            out.append(self._held.pop(0)[1])

    def _damage(self, packet: bytes) -> list[bytes]:
        """Flip one bit behind a checksum that is complete: else nobody could notice."""
        segments = complete(packet) or [packet]
        victim = self._rng.randrange(len(segments))
        damaged = bytearray(segments[victim])
        position = self._rng.randrange(HEADER_LENGTH, len(damaged))
        damaged[position] ^= 1 << self._rng.randrange(8)
        damaged[:HEADER_LENGTH] = NO_OFFLOAD
        segments[victim] = bytes(damaged)
        return segments


class FaultDevice(OneByOne):
    """Applies ``inbound`` faults to what is read and ``outbound`` faults to what is written.

    The same ``seed`` and traffic give the same faults. ``split`` makes a super-segment suffer
    segment by segment, as on a wire. ``inbound.lost`` and so on count what was done.
    """

    def __init__(
        self,
        device: Device,
        seed: int,
        *,
        inbound: Faults | None = None,
        outbound: Faults | None = None,
        split: bool = False,
    ) -> None:
        self._device = device
        rng = random.Random(seed)
        self.inbound = _Lane(inbound or Faults(), random.Random(rng.getrandbits(64)), split)
        self.outbound = _Lane(outbound or Faults(), random.Random(rng.getrandbits(64)), split)
        self._ready: deque[bytes] = deque()

    @property
    def name(self) -> str:
        """The name of the device below."""
        return self._device.name

    @property
    def offload(self) -> bool:
        """As the device below."""
        return self._device.offload

    @property
    def counters(self) -> DeviceCounters:
        """Those of the device below, which do not know of the faults."""
        return self._device.counters

    def read(self) -> bytes | None:
        """The next packet that survived, or None. What was held back comes when nothing else does,
        in both directions: a delay must not become a loss because the traffic ended."""
        while not self._ready:
            packet = self._device.read()
            if packet is None:
                for held in self.outbound.flush():
                    self._device.write([held])
                self._ready.extend(self.inbound.flush())
                return self._ready.popleft() if self._ready else None
            self._ready.extend(self.inbound.pass_through(packet))
        return self._ready.popleft()

    def write(self, packet: list[bytes | memoryview]) -> bool:
        """Send what survives. True also for what was lost here: a wire does not tell."""
        delivered = True
        for out in self.outbound.pass_through(b"".join(packet)):
            delivered = self._device.write([out]) and delivered
        return delivered

    def fileno(self) -> int:
        """As the device below."""
        return self._device.fileno()

    def close(self) -> None:
        """Close the device below; what was held back is gone."""
        self.outbound.flush()
        self.inbound.flush()
        self._ready.clear()
        self._device.close()
