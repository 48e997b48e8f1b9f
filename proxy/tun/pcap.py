"""A device that writes what passes another one to a pcapng file (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from proxy.tun.base import HEADER_LENGTH, OneByOne, complete

if TYPE_CHECKING:
    from proxy.tun.base import Device, DeviceCounters

__all__ = ["INBOUND", "OUTBOUND", "PcapDevice", "PcapWriter"]

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC = 0x1A2B3C4D
_LINKTYPE_RAW = 101  # IPv4 or IPv6, told apart by the version
_COMMENT, _IF_NAME, _IF_TSRESOL, _EPB_FLAGS = 1, 2, 9, 2
_NANOSECONDS = 9
INBOUND, OUTBOUND = 1, 2


class PcapWriter:
    """Writes one section; ``interface`` gives the number to write packets with."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._interfaces = 0
        body = struct.pack("<IHHq", _MAGIC, 1, 0, -1)
        application = b"mptcp-proxy"
        self._block(_SECTION, body + _option(4, application) + _END)

    def interface(self, name: str) -> int:
        """Describe an interface; returns its number."""
        options = _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, bytes((_NANOSECONDS,)))
        self._block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_RAW, 0, 0) + options + _END)
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        ip: bytes,
        nanoseconds: int,
        direction: int,
        *,
        length: int | None = None,
        comment: str = "",
    ) -> None:
        """Write one IP packet; ``direction`` is INBOUND (read from the device) or OUTBOUND.

        ``length``: how long the packet was, if ``ip`` is only its beginning.
        """
        whole = len(ip) if length is None else length
        head = struct.pack(
            "<IIIII", interface, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF, len(ip), whole
        )
        options = _option(_COMMENT, comment.encode()) if comment else b""
        options += _option(_EPB_FLAGS, struct.pack("<I", direction))
        self._block(_PACKET, head + _padded(ip) + options + _END)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def _block(self, kind: int, body: bytes) -> None:
        length = struct.pack("<I", len(body) + 12)
        self._file.write(struct.pack("<I", kind) + length + body + length)


class PcapDevice(OneByOne):
    """Passes everything on and records it, read packets as inbound, written ones as outbound.

    With ``split`` (the default) super-segments are recorded as the segments that a wire would
    carry, with complete checksums, so that a dissector has nothing to complain about.
    """

    def __init__(
        self,
        device: Device,
        writer: PcapWriter,
        *,
        split: bool = True,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._device = device
        self._writer = writer
        self._split = split
        self._clock = clock
        self._interface = writer.interface(device.name)

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
        """Those of the device below."""
        return self._device.counters

    def read(self) -> bytes | None:
        """As the device below."""
        packet = self._device.read()
        if packet is not None:
            self._record(packet, INBOUND)
        return packet

    def write(self, packet: list[bytes | memoryview]) -> bool:
        """As the device below; what it dropped is not recorded."""
        joined = b"".join(packet)
        if not self._device.write(packet):
            return False
        self._record(joined, OUTBOUND)
        return True

    def fileno(self) -> int:
        """As the device below."""
        return self._device.fileno()

    def close(self) -> None:
        """Close the device below; the file belongs to who opened it."""
        self._writer.flush()
        self._device.close()

    def _record(self, packet: bytes, direction: int) -> None:
        now = self._clock()
        # What cannot be split (not TCP) is recorded as it is.
        segments = (complete(packet) if self._split else []) or [packet]
        for segment in segments:
            self._writer.packet(self._interface, segment[HEADER_LENGTH:], now, direction)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


_END = bytes(4)
