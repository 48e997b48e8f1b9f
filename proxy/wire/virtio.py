"""The virtio_net_hdr in front of every packet of a TUN device (linux/virtio_net.h)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from proxy.errors import CodecError

SIZE = 10

NEEDS_CSUM = 1  # the checksum at csum_start + csum_offset holds the pseudo-header sum alone
DATA_VALID = 2  # the device has verified the checksum

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80  # a bit: CWR belongs to the first wire segment alone

_FORMAT = struct.Struct("<BBHHHH")


class VirtioHeader(NamedTuple):
    """The header's fields; all lengths in bytes, ``csum_start`` counted from the IP header."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @classmethod
    def parse(cls, packet: bytes | memoryview) -> VirtioHeader:
        """Reads the first 10 bytes of ``packet``; CodecError if there are fewer."""
        if len(packet) < SIZE:
            raise CodecError("short virtio header")
        return cls(*_FORMAT.unpack_from(packet))

    def build(self) -> bytes:
        """10 bytes."""
        return _FORMAT.pack(*self)
