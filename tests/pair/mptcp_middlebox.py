"""Boxes in the path that change packets: to be used as ``MptcpPair(filter=...)``.

Packets come as the engine emits them (virtio header with NEEDS_CSUM), so a change of bytes needs
no new checksum.
"""

from __future__ import annotations

from collections.abc import Callable

VIRTIO = 10
MPTCP = 30
SYN = 2


def tcp_start(packet: bytes) -> int:
    """Offset of the TCP header."""
    return VIRTIO + ((packet[VIRTIO] & 15) * 4 if packet[VIRTIO] >> 4 == 4 else 40)


def flags_of(packet: bytes) -> int:
    """The TCP flags."""
    return packet[tcp_start(packet) + 13]


def payload_start(packet: bytes) -> int:
    """Offset of the payload."""
    start = tcp_start(packet)
    return start + (packet[start + 12] >> 4) * 4


def options_of(packet: bytes) -> list[tuple[int, int, int]]:
    """(offset, kind, length) of each TCP option but EOL and NOP."""
    found = []
    at, end = tcp_start(packet) + 20, payload_start(packet)
    while at < end:
        kind = packet[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        found.append((at, kind, packet[at + 1]))
        at += packet[at + 1]
    return found


def has_mptcp(packet: bytes, subtype: int | None = None) -> bool:
    """Whether there is an MPTCP option (of ``subtype``)."""
    return any(
        kind == MPTCP and subtype in (None, packet[at + 2] >> 4)
        for at, kind, _ in options_of(packet)
    )


def strip_mptcp(packet: bytes) -> bytes:
    """All MPTCP options replaced by NOPs."""
    out = bytearray(packet)
    for at, kind, length in options_of(packet):
        if kind == MPTCP:
            out[at : at + length] = b"\x01" * length
    return bytes(out)


def strip_payload(packet: bytes) -> bytes:
    """A SYN whose payload was eaten."""
    start = payload_start(packet)
    out = bytearray(packet[:start])
    if packet[VIRTIO] >> 4 == 4:
        out[VIRTIO + 2 : VIRTIO + 4] = (start - VIRTIO).to_bytes(2, "big")
    else:
        out[VIRTIO + 4 : VIRTIO + 6] = (start - VIRTIO - 40).to_bytes(2, "big")
    return bytes(out)


def flip_payload(packet: bytes, at: int = 0) -> bytes:
    """One byte of the payload changed."""
    out = bytearray(packet)
    out[payload_start(packet) + at] ^= 0x55
    return bytes(out)


def flip_option(packet: bytes, subtype: int, at: int) -> bytes:
    """One byte of an MPTCP option changed."""
    out = bytearray(packet)
    for start, kind, _ in options_of(packet):
        if kind == MPTCP and packet[start + 2] >> 4 == subtype:
            out[start + at] ^= 0x55
    return bytes(out)


def when(
    wanted: Callable[[int, bool, bytes], bool], change: Callable[[bytes], bytes | None]
) -> Callable[[int, bool, bytes], list[bytes]]:
    """A filter that changes (or drops, for None) what ``wanted(path, up, packet)`` names."""

    def apply(path: int, up: bool, packet: bytes) -> list[bytes]:
        if not wanted(path, up, packet):
            return [packet]
        changed = change(packet)
        return [] if changed is None else [changed]

    return apply


def drop(packet: bytes) -> None:
    """For ``when``: the packet vanishes."""
