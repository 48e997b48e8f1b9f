"""The head of a captured TCP packet: who to whom, flags, options; the payload may be cut off."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.tcp_options import MPTCP, split_options

_TCP = 6
_SYN = 2


@dataclass(frozen=True, slots=True)
class Head:
    """Addresses are 4 or 16 bytes, ``flags`` the octet of TCP's, ``options`` raw."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    flags: int
    options: bytes
    length: int
    """Of IP and TCP header together (bytes)."""

    @property
    def syn(self) -> bool:
        """Whether the packet opens a connection, or answers one that does."""
        return bool(self.flags & _SYN)

    @property
    def subtypes(self) -> frozenset[int]:
        """The subtypes of its MPTCP options (RFC 8684 §8.3)."""
        found = (raw for kind, raw in split_options(self.options) if kind == MPTCP)
        return frozenset(raw[2] >> 4 for raw in found if len(raw) > 2)


def addresses(ip: bytes) -> tuple[bytes, bytes] | None:
    """Source and destination of an IP packet, None if it is none."""
    if len(ip) >= 20 and ip[0] >> 4 == 4:
        return ip[12:16], ip[16:20]
    if len(ip) >= 40 and ip[0] >> 4 == 6:
        return ip[8:24], ip[24:40]
    return None


def parse_head(ip: bytes) -> Head | None:
    """What begins an IP packet that holds TCP; None for all else, fragments and stumps included."""
    ends = addresses(ip)
    if ends is None:
        return None
    if len(ends[0]) == 4:
        start, protocol = (ip[0] & 15) * 4, ip[9]
        fragment = int.from_bytes(ip[6:8], "big") & 0x1FFF
    else:
        start, protocol, fragment = 40, ip[6], 0
    if protocol != _TCP or fragment or len(ip) < start + 20:
        return None
    tcp = ip[start:]
    length = (tcp[12] >> 4) * 4
    if not 20 <= length <= len(tcp):
        return None
    return Head(
        src=ends[0],
        dst=ends[1],
        sport=int.from_bytes(tcp[0:2], "big"),
        dport=int.from_bytes(tcp[2:4], "big"),
        flags=tcp[13],
        options=tcp[20:length],
        length=start + length,
    )
