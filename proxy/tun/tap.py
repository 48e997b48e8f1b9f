"""A device that shows what passes another one to whoever captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.tun.pcap import INBOUND, OUTBOUND

Show = Callable[[list[bytes | memoryview], int], None]
"""Takes a packet as an iovec (virtio header first), and INBOUND or OUTBOUND; must not raise."""


class Below(Protocol):
    """The device that is tapped, as the runtime uses it."""

    def read_batch(self, limit: int) -> list[bytes]: ...
    def write_batch(self, packets: list[list[bytes | memoryview]]) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class TapDevice:
    """Passes everything on as it is; it stands there only while somebody captures."""

    def __init__(self, below: Below, show: Show) -> None:
        self.below = below
        self._show = show

    def read_batch(self, limit: int) -> list[bytes]:
        """As the device below."""
        packets = self.below.read_batch(limit)
        for packet in packets:
            self._show([packet], INBOUND)
        return packets

    def write_batch(self, packets: list[list[bytes | memoryview]]) -> None:
        """As the device below; also shown is what the kernel may then refuse."""
        for packet in packets:
            self._show(packet, OUTBOUND)
        self.below.write_batch(packets)

    def fileno(self) -> int:
        """As the device below."""
        return self.below.fileno()

    def close(self) -> None:
        """As the device below."""
        self.below.close()
