"""ICMP and ICMPv6 errors about TCP segments: those that come in, and those that we send.

Packets have a virtio header in front, as everywhere. What an error means for a connection is
decided in ``proxy.tcp`` (RFC 5461, RFC 5927); here is what it says.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import Enum

from proxy.errors import CodecError
from proxy.seg import ACK, SYN, Segment, build_header, checksum
from proxy.wire.address import Address
from proxy.wire.virtio import DATA_VALID, NEEDS_CSUM
from proxy.wire.virtio import SIZE as VIRTIO

_ICMP, _TCP, _ICMPV6 = 1, 6, 58

# ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443)
UNREACHABLE4, TIME_EXCEEDED4, PARAMETER4 = 3, 11, 12
UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, PARAMETER6 = 1, 2, 3, 4
FRAGMENTATION_NEEDED = 4  # code of UNREACHABLE4

# By code: the errno, and whether Linux ends a connection by it (net/ipv4/icmp.c
# icmp_err_convert, net/ipv6/icmp.c tab_unreach).
_UNREACHABLE4 = (
    (errno.ENETUNREACH, False),
    (errno.EHOSTUNREACH, False),
    (errno.ENOPROTOOPT, True),
    (errno.ECONNREFUSED, True),
    (errno.EMSGSIZE, False),
    (errno.EOPNOTSUPP, False),
    (errno.ENETUNREACH, True),
    (errno.EHOSTDOWN, True),
    (errno.ENONET, True),
    (errno.ENETUNREACH, True),
    (errno.EHOSTUNREACH, True),
    (errno.ENETUNREACH, False),
    (errno.EHOSTUNREACH, False),
    (errno.EHOSTUNREACH, True),
    (errno.EHOSTUNREACH, True),
    (errno.EHOSTUNREACH, True),
)
_UNREACHABLE6 = (
    (errno.ENETUNREACH, False),
    (errno.EACCES, True),
    (errno.EHOSTUNREACH, False),
    (errno.EHOSTUNREACH, False),
    (errno.ECONNREFUSED, True),
    (errno.EACCES, True),
    (errno.EACCES, True),
)


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error about a segment that was sent from ``local`` to ``remote``.

    ``key`` is that of the segments which come back (``Segment.key``), so the demux finds the
    connection; ``seq`` is quoted. ``mtu`` is of packet-too-big alone, else 0; it is also 0 from
    routers older than RFC 1191. ``sender`` is the router (or host) that complains.
    """

    sender: bytes
    type: int
    code: int
    mtu: int
    local: Address
    remote: Address
    seq: int
    key: bytes
    errno: int
    hard: bool

    @property
    def too_big(self) -> bool:
        """The segment did not fit: the path MTU is to be lowered."""
        return self.errno == errno.EMSGSIZE


def parse_icmp(packet: bytes) -> IcmpError:
    """Reads an ICMP or ICMPv6 error that quotes a TCP segment.

    Raises CodecError for all else: other ICMP, bad checksum, a fragment, too little quoted.
    """
    if len(packet) < VIRTIO + 20:
        raise CodecError("short packet")
    version = packet[VIRTIO] >> 4
    if version == 4:
        return _parse4(packet)
    if version == 6:
        return _parse6(packet)
    raise CodecError("not IP")


def _parse4(packet: bytes) -> IcmpError:
    header = (packet[VIRTIO] & 15) * 4
    total, _, fragment = struct.unpack_from(">HHH", packet, VIRTIO + 2)
    if header < 20 or total < header or VIRTIO + total > len(packet):
        raise CodecError("bad IP length")
    if packet[VIRTIO + 9] != _ICMP or fragment & 0x3FFF:
        raise CodecError("not ICMP")
    body = packet[VIRTIO + header : VIRTIO + total]
    _check_icmp(packet, body, 0)
    kind, code = body[0], body[1]
    if kind == UNREACHABLE4 and code < len(_UNREACHABLE4):
        number, hard = _UNREACHABLE4[code]
    elif kind == TIME_EXCEEDED4:
        number, hard = errno.EHOSTUNREACH, False
    elif kind == PARAMETER4:
        number, hard = errno.EPROTO, False
    else:
        raise CodecError("no ICMP error")
    mtu = int.from_bytes(body[6:8], "big") if number == errno.EMSGSIZE else 0
    local, remote, seq = _quoted4(body[8:])
    sender = packet[VIRTIO + 12 : VIRTIO + 16]
    return _error(sender, kind, code, mtu, local, remote, seq, number, hard)


def _parse6(packet: bytes) -> IcmpError:
    if len(packet) < VIRTIO + 40:
        raise CodecError("short packet")
    length, protocol = struct.unpack_from(">HB", packet, VIRTIO + 4)
    end = VIRTIO + 40 + length
    if end > len(packet):
        raise CodecError("bad IP length")
    at, protocol = _skip_extensions(packet[:end], VIRTIO + 40, protocol)
    if protocol != _ICMPV6:
        raise CodecError("not ICMP")
    body = packet[at:end]
    addresses = packet[VIRTIO + 8 : VIRTIO + 40]
    _check_icmp(packet, body, checksum(addresses + struct.pack(">II", len(body), _ICMPV6)))
    kind, code, mtu = body[0], body[1], 0
    if kind == UNREACHABLE6 and code < len(_UNREACHABLE6):
        number, hard = _UNREACHABLE6[code]
    elif kind == TOO_BIG6:
        number, hard, mtu = errno.EMSGSIZE, False, int.from_bytes(body[4:8], "big")
    elif kind == TIME_EXCEEDED6:
        number, hard = errno.EHOSTUNREACH, False
    elif kind == PARAMETER6:
        number, hard = errno.EPROTO, True
    else:
        raise CodecError("no ICMP error")
    local, remote, seq = _quoted6(body[8:])
    return _error(addresses[:16], kind, code, mtu, local, remote, seq, number, hard)


def _check_icmp(packet: bytes, body: bytes, pseudo: int) -> None:
    if len(body) < 8:
        raise CodecError("short ICMP")
    if not packet[0] & (NEEDS_CSUM | DATA_VALID) and checksum(body, pseudo) != 0xFFFF:
        raise CodecError("bad ICMP checksum")


def _skip_extensions(packet: bytes, at: int, protocol: int) -> tuple[int, int]:
    """Where the first header is that is no extension header, and its protocol."""
    for _ in range(8):
        if protocol not in (0, 43, 60) or at + 8 > len(packet):
            break
        protocol, at = packet[at], at + 8 + packet[at + 1] * 8
    return at, protocol


def _quoted4(quote: bytes) -> tuple[Address, Address, int]:
    if len(quote) < 20 or quote[0] >> 4 != 4:
        raise CodecError("short quote")
    header = (quote[0] & 15) * 4
    if quote[9] != _TCP or int.from_bytes(quote[6:8], "big") & 0x1FFF:
        raise CodecError("quote is not TCP")
    return _quoted_tcp(quote[12:16], quote[16:20], quote[max(header, 20) :])


def _quoted6(quote: bytes) -> tuple[Address, Address, int]:
    if len(quote) < 40 or quote[0] >> 4 != 6:
        raise CodecError("short quote")
    at, protocol = _skip_extensions(quote, 40, quote[6])
    if protocol != _TCP:
        raise CodecError("quote is not TCP")
    return _quoted_tcp(quote[8:24], quote[24:40], quote[at:])


def _quoted_tcp(src: bytes, dst: bytes, tcp: bytes) -> tuple[Address, Address, int]:
    if len(tcp) < 8:
        raise CodecError("short quote")
    sport, dport, seq = struct.unpack_from(">HHI", tcp)
    return Address(src, sport), Address(dst, dport), seq


def _error(
    sender: bytes,
    kind: int,
    code: int,
    mtu: int,
    local: Address,
    remote: Address,
    seq: int,
    number: int,
    hard: bool,
) -> IcmpError:
    key = remote.ip + local.ip + struct.pack(">HH", remote.port, local.port)
    return IcmpError(sender, kind, code, mtu, local, remote, seq, key, number, hard)


class Unreachable(Enum):
    """Why a destination is out of reach: (ICMP code, ICMPv6 code) of type unreachable."""

    NETWORK = (0, 0)
    HOST = (1, 3)
    PORT = (3, 4)
    PROHIBITED = (13, 1)


def build_unreachable(seg: Segment, why: Unreachable, source: bytes | None = None) -> bytes:
    """Tells the sender of ``seg`` that its destination is out of reach.

    ``source`` is the address to send from, the destination itself if None. The quote is the
    IP header and the TCP header without options.
    """
    code4, code6 = why.value
    if len(seg.src) == 4:
        return _build4(seg, source or seg.dst, code4, 0)
    return _build6(seg, source or seg.dst, UNREACHABLE6, code6, 0)


def build_too_big(seg: Segment, mtu: int, source: bytes | None = None) -> bytes:
    """Tells the sender of ``seg`` that packets over ``mtu`` bytes do not fit (RFC 1191, 4443)."""
    if len(seg.src) == 4:
        return _build4(seg, source or seg.dst, FRAGMENTATION_NEEDED, mtu)
    return _build6(seg, source or seg.dst, TOO_BIG6, 0, mtu)


def _quote(seg: Segment) -> bytes:
    room = 65535 - 60  # what was joined may have been a super-segment
    packet = build_header(
        seg.src,
        seg.dst,
        seg.sport,
        seg.dport,
        seg.seq,
        seg.ack,
        seg.flags & (SYN | ACK),
        seg.window,
        b"",
        min(seg.length, room),
        0,
        seg.tos,
        seg.ttl,
    )
    return packet[VIRTIO:]


def _build4(seg: Segment, source: bytes, code: int, mtu: int) -> bytes:
    body = struct.pack(">BBHHH", UNREACHABLE4, code, 0, 0, mtu) + _quote(seg)
    body = body[:2] + (checksum(body) ^ 0xFFFF).to_bytes(2, "big") + body[4:]
    # Precedence of network control, as routers do (RFC 1812 §4.3.2.5).
    ip = struct.pack(">BBHHHBB", 0x45, 0xC0, 20 + len(body), 0, 0, 64, _ICMP)
    check = checksum(ip + source + seg.src) ^ 0xFFFF
    return bytes(VIRTIO) + ip + check.to_bytes(2, "big") + source + seg.src + body


def _build6(seg: Segment, source: bytes, kind: int, code: int, mtu: int) -> bytes:
    body = struct.pack(">BBHI", kind, code, 0, mtu) + _quote(seg)
    addresses = source + seg.src
    total = checksum(body, checksum(addresses + struct.pack(">II", len(body), _ICMPV6)))
    body = body[:2] + (total ^ 0xFFFF).to_bytes(2, "big") + body[4:]
    return bytes(VIRTIO) + struct.pack(">IHBB", 6 << 28, len(body), _ICMPV6, 64) + addresses + body
