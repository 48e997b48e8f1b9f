"""What every device offers, and how a packet is made plain for one without offload."""

from __future__ import annotations

from typing import Protocol

from proxy.errors import CodecError
from proxy.seg import gso_split

__all__ = [
    "HEADER_LENGTH",
    "MAX_PACKET",
    "NO_OFFLOAD",
    "Device",
    "DeviceCounters",
    "OneByOne",
    "complete",
]

HEADER_LENGTH = 10
"""Octets of the virtio_net_hdr before every packet (linux/virtio_net.h, without num_buffers)."""

MAX_PACKET = HEADER_LENGTH + 65536
"""The longest read: virtio header and one IP packet (the kernel's GSO_LEGACY_MAX_SIZE)."""

NO_OFFLOAD = bytes(HEADER_LENGTH)
"""The virtio header of a packet that is complete: no checksum to fill in, nothing to segment."""


_NEEDS_CSUM = 1  # in the flags, which are the first octet
_GSO_TYPE = 1  # the offset of the type, 0 for none


class DeviceCounters:
    """What passed a device and what did not. Packets are as the engine sees them (super-segments).

    ``dropped``: no room (EAGAIN, ENOBUFS, ENOMEM). ``rejected``: not accepted as a packet (EINVAL
    and whatever is not listed elsewhere). ``down``: the interface was down (EIO).
    """

    __slots__ = (
        "down",
        "dropped",
        "read_bytes",
        "read_packets",
        "rejected",
        "written_bytes",
        "written_packets",
    )

    def __init__(self) -> None:
        self.read_packets = 0
        self.read_bytes = 0
        self.written_packets = 0
        self.written_bytes = 0
        self.dropped = 0
        self.rejected = 0
        self.down = 0

    def as_dict(self) -> dict[str, int]:
        """Name and value of each, for status and metrics."""
        return {name: getattr(self, name) for name in self.__slots__}


class Device(Protocol):
    """A place to read packets from and to write packets to; never blocks.

    A packet begins with a virtio_net_hdr of ``HEADER_LENGTH`` octets, then the IP packet.
    """

    @property
    def name(self) -> str:
        """The interface's name."""

    @property
    def offload(self) -> bool:
        """Whether super-segments and unfinished checksums pass as they are."""

    @property
    def counters(self) -> DeviceCounters:
        """What passed so far."""

    def read(self) -> bytes | None:
        """The next packet, or None when there is none now."""

    def read_batch(self, limit: int) -> list[bytes]:
        """The next packets, ``limit`` at most; an empty list when there is none now."""

    def write(self, packet: list[bytes | memoryview]) -> bool:
        """Send one packet, given as an iovec. False: it was dropped, and counted."""

    def write_batch(self, packets: list[list[bytes | memoryview]]) -> None:
        """Send packets in order; what is dropped is counted."""

    def fileno(self) -> int:
        """A descriptor that is readable when ``read`` has something to give."""

    def close(self) -> None:
        """Give up the device. Idempotent."""


class OneByOne:
    """Batches for a device that does something with each packet."""

    __slots__ = ()

    def read(self) -> bytes | None:
        """The next packet, or None when there is none now."""
        raise NotImplementedError

    def write(self, packet: list[bytes | memoryview]) -> bool:
        """Send one packet, given as an iovec. False: it was dropped, and counted."""
        raise NotImplementedError

    def read_batch(self, limit: int) -> list[bytes]:
        """The next packets, ``limit`` at most; an empty list when there is none now."""
        packets: list[bytes] = []
        while len(packets) < limit:
            packet = self.read()
            if packet is None:
                break
            packets.append(packet)
        return packets

    def write_batch(self, packets: list[list[bytes | memoryview]]) -> None:
        """Send packets in order; what is dropped is counted."""
        for packet in packets:
            self.write(packet)


def complete(packet: bytes) -> list[bytes]:
    """A joined packet as what a wire would carry: segments of at most one MSS, checksums done.

    One that is complete already is not touched. An empty list when it cannot be completed, which
    only a bug of the caller explains.
    """
    if not packet[0] & _NEEDS_CSUM and not packet[_GSO_TYPE]:
        return [NO_OFFLOAD + packet[HEADER_LENGTH:]]
    try:
        return gso_split(packet)
    except CodecError:
        return []
