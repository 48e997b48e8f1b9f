"""Batches of packets from and to a descriptor: the Python twin of ``_seg_device.pxi``."""

from __future__ import annotations

import os

_MAX_PACKET = 10 + 65536
_MAX_VECTOR = 1024


def read_packets(fd: int, limit: int) -> list[bytes]:
    """At most ``limit`` packets from a descriptor that does not block, in order.

    An empty list when there is none now. Raises OSError if the first read fails otherwise; a later
    failure ends the batch and is found again by the next call.
    """
    packets: list[bytes] = []
    while len(packets) < limit:
        try:
            packets.append(os.read(fd, _MAX_PACKET))
        except BlockingIOError:
            break
        except OSError:
            if not packets:
                raise
            break
    return packets


def write_packets(
    fd: int, packets: list[list[bytes | memoryview]], start: int
) -> tuple[int, int, int]:
    """Write packets, each a list of buffers, from index ``start`` on, one system call each.

    Ends at the first that is refused. Returns how many were written, their bytes, and the errno of
    the one that was not (0: all were written).
    """
    total = 0
    for index in range(start, len(packets)):
        packet = packets[index]
        if len(packet) > _MAX_VECTOR:
            packet = [b"".join(packet)]
        try:
            total += os.writev(fd, packet)
        except OSError as error:
            return index - start, total, error.errno or 0
    return len(packets) - start, total, 0
