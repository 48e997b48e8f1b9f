"""Two devices in one process, joined back to back: what one writes, the other reads."""

from __future__ import annotations

import os
from collections import deque

from proxy.tun.base import HEADER_LENGTH, DeviceCounters, OneByOne, complete

__all__ = ["MemoryDevice", "memory_pair"]


class MemoryDevice(OneByOne):
    """One end of a pair; make it with ``memory_pair``.

    Each packet is copied once, as the kernel would. Where either end has no offload, super-segments
    are split and checksums completed on the way.
    """

    __slots__ = ("_event", "_peer", "_queue", "capacity", "counters", "name", "offload")

    def __init__(self, name: str, offload: bool, capacity: int) -> None:
        self.name = name
        self.offload = offload
        self.capacity = capacity
        self.counters = DeviceCounters()
        self._queue: deque[bytes] = deque()
        self._peer: MemoryDevice | None = None
        self._event = -1

    def __len__(self) -> int:
        """Packets that wait to be read here."""
        return len(self._queue)

    def read(self) -> bytes | None:
        """The next packet from the other end, or None."""
        if not self._queue:
            if self._event >= 0:
                self._drain()
            return None
        packet = self._queue.popleft()
        self.counters.read_packets += 1
        self.counters.read_bytes += len(packet)
        return packet

    def write(self, packet: list[bytes | memoryview]) -> bool:
        """Queue a packet at the other end. False: no room there (or the end is closed)."""
        peer = self._peer
        joined = b"".join(packet)
        if peer is None:
            self.counters.down += 1
            return False
        if len(joined) <= HEADER_LENGTH:
            self.counters.rejected += 1
            return False
        segments = [joined] if self.offload and peer.offload else complete(joined)
        if not segments:
            self.counters.rejected += 1
            return False
        if len(peer._queue) + len(segments) > peer.capacity:
            self.counters.dropped += 1
            return False
        peer._queue.extend(segments)
        peer._notify()
        self.counters.written_packets += 1
        self.counters.written_bytes += len(joined)
        return True

    def fileno(self) -> int:
        """An eventfd that is readable while packets wait; made at the first call."""
        if self._event < 0:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if self._queue:
                self._notify()
        return self._event

    def close(self) -> None:
        """Leave the pair: the other end's packets go nowhere from now on."""
        if self._peer is not None:
            self._peer._peer = None
            self._peer = None
        self._queue.clear()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    def _notify(self) -> None:
        if self._event >= 0:
            os.eventfd_write(self._event, 1)

    def _drain(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return


def memory_pair(
    first: str = "mem0", second: str = "mem1", *, offload: bool = True, capacity: int = 4096
) -> tuple[MemoryDevice, MemoryDevice]:
    """Two joined devices; ``capacity`` is the number of packets that wait at each end at most."""
    one, two = MemoryDevice(first, offload, capacity), MemoryDevice(second, offload, capacity)
    one._peer, two._peer = two, one
    return one, two
