"""The Python twin of ``_seg``: segments, how they are parsed and built, and checksums."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from proxy.errors import CodecError, LocalProtocolError

if TYPE_CHECKING:
    from typing_extensions import Buffer

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
DSS_ACK, DSS_ACK64, DSS_MAP, DSS_DSN64, DSS_FIN = 1, 2, 4, 8, 16
EMPTY = memoryview(b"")

VIRTIO = 10  # bytes of virtio_net_hdr
NEEDS_CSUM = 1
DATA_VALID = 2
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_ECN = 0x80
_MAX_EXTENSIONS = 8
_TCP = 6


@final
class Segment:
    """One parsed TCP segment; a new object has the values of "absent"."""

    __slots__ = (
        "ack",
        "data_ack",
        "data_ack64",
        "data_length",
        "dport",
        "dsn",
        "dsn64",
        "dss_checksum",
        "dss_count",
        "dss_flags",
        "dst",
        "ecn",
        "flags",
        "gso_size",
        "has_mptcp",
        "key",
        "length",
        "mptcp",
        "mss",
        "payload",
        "sack",
        "sack_permitted",
        "seq",
        "sport",
        "src",
        "ssn",
        "tos",
        "ts_ecr",
        "ts_val",
        "ttl",
        "urgent",
        "window",
        "wscale",
    )

    def __init__(self) -> None:
        self.src = self.dst = self.key = b""
        self.sport = self.dport = self.seq = self.ack = 0
        self.flags = self.window = self.urgent = 0
        self.payload = EMPTY
        self.length = self.gso_size = self.ecn = self.ttl = self.tos = 0
        self.mss = self.wscale = self.ts_val = -1
        self.ts_ecr = 0
        self.sack_permitted = False
        self.sack: tuple[tuple[int, int], ...] = ()
        self.mptcp: tuple[bytes, ...] = ()
        self.has_mptcp = False
        self.dss_flags = self.data_ack = self.dsn = self.dss_checksum = -1
        self.dss_count = self.ssn = self.data_length = 0
        self.data_ack64 = self.dsn64 = False


def checksum(data: Buffer, initial: int = 0) -> int:
    """The folded one's-complement sum of 16-bit words of ``data`` (RFC 1071), not complemented.

    An odd last byte counts as the high half of a word. ``initial`` is an earlier such sum.
    """
    raw = bytes(data)
    words = struct.unpack(f">{len(raw) // 2}H", raw[: len(raw) & ~1])
    total: int = initial + sum(words) + (raw[-1] << 8 if len(raw) & 1 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def dss_checksum(dsn: int, ssn: int, length: int, chunks: Sequence[Buffer]) -> int:
    """The DSS checksum of a mapping (RFC 8684 §3.3.1): complemented, as it goes on the wire.

    ``length`` counts a DATA_FIN; ``chunks`` are the bytes of the mapping, cut anywhere.
    """
    body = struct.pack(">QIHH", dsn, ssn, length, 0) + b"".join(map(bytes, chunks))
    return checksum(body) ^ 0xFFFF


def pseudo_sum(src: bytes, dst: bytes, length: int) -> int:
    return checksum(src + dst + struct.pack(">II", length, _TCP))


def parse(packet: bytes) -> Segment:
    """Parses a virtio header, an IP packet and TCP in it; the payload is a view of ``packet``.

    Raises CodecError for what is to be dropped: short, not TCP, bad lengths, a fragment, a bad
    checksum (unless the device vouches for it), silly addresses, over 8 IPv6 extension headers.
    """
    seg = Segment()
    if len(packet) < VIRTIO + 20:
        raise CodecError("short packet")
    version = packet[VIRTIO] >> 4
    if version == 4:
        tcp, end = _parse_ipv4(seg, packet)
    elif version == 6:
        tcp, end = _parse_ipv6(seg, packet)
    else:
        raise CodecError("not IP")
    _parse_gso(seg, packet, GSO_TCPV4 if version == 4 else GSO_TCPV6)
    _parse_tcp(seg, packet, tcp, end)
    return seg


def _parse_gso(seg: Segment, packet: bytes, expected: int) -> None:
    gso_type = packet[1] & ~GSO_ECN
    if gso_type == 0:
        return
    seg.gso_size = int.from_bytes(packet[4:6], "little")
    if gso_type != expected or seg.gso_size == 0:
        raise CodecError("bad GSO type")


def _parse_ipv4(seg: Segment, packet: bytes) -> tuple[int, int]:
    header = (packet[VIRTIO] & 15) * 4
    total, _, fragment = struct.unpack_from(">HHH", packet, VIRTIO + 2)
    if header < 20 or total < header or VIRTIO + total > len(packet):
        raise CodecError("bad IP length")
    if packet[VIRTIO + 9] != _TCP:
        raise CodecError("not TCP")
    if fragment & 0x3FFF:
        raise CodecError("fragment")
    if checksum(packet[VIRTIO : VIRTIO + header]) != 0xFFFF:
        raise CodecError("bad IP checksum")
    seg.tos, seg.ttl = packet[VIRTIO + 1], packet[VIRTIO + 8]
    seg.ecn = seg.tos & 3
    seg.src, seg.dst = packet[VIRTIO + 12 : VIRTIO + 16], packet[VIRTIO + 16 : VIRTIO + 20]
    for ip in (seg.src, seg.dst):
        if ip[0] == 0 or ip[0] & 0xF0 == 0xE0 or ip == b"\xff" * 4:
            raise CodecError("silly address")
    return VIRTIO + header, VIRTIO + total


def _parse_ipv6(seg: Segment, packet: bytes) -> tuple[int, int]:
    if len(packet) < VIRTIO + 40:
        raise CodecError("short packet")
    word, length, protocol, seg.ttl = struct.unpack_from(">IHBB", packet, VIRTIO)
    end = VIRTIO + 40 + length
    if end > len(packet):
        raise CodecError("bad IP length")
    seg.tos = word >> 20 & 0xFF
    seg.ecn = seg.tos & 3
    seg.src, seg.dst = packet[VIRTIO + 8 : VIRTIO + 24], packet[VIRTIO + 24 : VIRTIO + 40]
    for ip in (seg.src, seg.dst):
        if ip[0] == 0xFF or ip == bytes(16):
            raise CodecError("silly address")
    return skip_extensions(packet, protocol, end), end


def skip_extensions(packet: bytes, protocol: int, end: int) -> int:
    """Where TCP begins. Hop-by-hop, destination and used-up routing headers are skipped."""
    at = VIRTIO + 40
    count = 0
    while protocol != _TCP:
        if protocol == 44:
            raise CodecError("fragment")
        if protocol not in (0, 43, 60):
            raise CodecError("not TCP")
        count += 1
        if count > _MAX_EXTENSIONS:
            raise CodecError("too many extension headers")
        if at + 8 > end:
            raise CodecError("bad IP length")
        if protocol == 43 and packet[at + 3] != 0:
            raise CodecError("not for us")  # segments left (RFC 8200 §4.4)
        protocol = packet[at]
        at += 8 + packet[at + 1] * 8
        if at > end:
            raise CodecError("bad IP length")
    return at


def _parse_tcp(seg: Segment, packet: bytes, tcp: int, end: int) -> None:
    if end - tcp < 20:
        raise CodecError("short TCP header")
    fields = struct.unpack_from(">HHIIBBHHH", packet, tcp)
    seg.sport, seg.dport, seg.seq, seg.ack, offset, seg.flags, seg.window, _, seg.urgent = fields
    header = (offset >> 4) * 4
    if header < 20 or header > end - tcp:
        raise CodecError("bad TCP header length")
    if seg.sport == seg.dport and seg.src == seg.dst:
        raise CodecError("silly address")  # LAND
    if not packet[0] & (NEEDS_CSUM | DATA_VALID):
        total = pseudo_sum(seg.src, seg.dst, end - tcp)
        if checksum(packet[tcp:end], total) != 0xFFFF:
            raise CodecError("bad TCP checksum")
    seg.key = seg.src + seg.dst + packet[tcp : tcp + 4]
    seg.length = end - tcp - header
    if seg.length:
        seg.payload = memoryview(packet)[tcp + header : end]
    _parse_options(seg, packet[tcp + 20 : tcp + header])


def _parse_options(seg: Segment, raw: bytes) -> None:
    """RFC 9293 §3.1; what follows an impossible length is not looked at, the segment stays."""
    at, end = 0, len(raw)
    mptcp: list[bytes] = []
    while at < end and raw[at] != 0:
        if raw[at] == 1:
            at += 1
            continue
        if at + 1 >= end or raw[at + 1] < 2 or at + raw[at + 1] > end:
            break
        option = raw[at : at + raw[at + 1]]
        at += len(option)
        if option[0] == 30:
            if len(option) > 2 and option[2] >> 4 == 2:
                _parse_dss(seg, option)
            elif _mptcp_length_ok(option):
                mptcp.append(option)
        else:
            _parse_plain_option(seg, option)
    seg.mptcp = tuple(mptcp)
    seg.has_mptcp = bool(mptcp) or seg.dss_count > 0


def _parse_plain_option(seg: Segment, option: bytes) -> None:
    kind, length = option[0], len(option)
    if kind == 8 and length == 10:
        seg.ts_val, seg.ts_ecr = struct.unpack(">II", option[2:])
    elif kind == 5 and length in (10, 18, 26, 34):
        edges = struct.unpack(f">{(length - 2) // 4}I", option[2:])
        seg.sack = tuple(zip(edges[::2], edges[1::2], strict=True))
    elif not seg.flags & SYN:
        return
    elif kind == 2 and length == 4:
        seg.mss = int.from_bytes(option[2:], "big")
    elif kind == 3 and length == 3:
        seg.wscale = min(option[2], 14)  # RFC 7323 §2.3
    elif kind == 4 and length == 2:
        seg.sack_permitted = True


_MPTCP_LENGTHS = {
    0: (4, 12, 20, 22, 24),
    1: (12, 16, 24),
    4: tuple(range(4, 41)),
    5: (3,),
    6: (12,),
    7: (12,),
    8: (4,),
}


def _mptcp_length_ok(option: bytes) -> bool:
    """Whether the length is one that the subtype can have; an unknown subtype may have any."""
    if len(option) < 3:
        return False
    subtype = option[2] >> 4
    if subtype == 3:
        return len(option) in ((8, 10, 20, 22) if option[2] & 1 else (16, 18, 28, 30))
    return subtype > 8 or len(option) in _MPTCP_LENGTHS[subtype]


def _parse_dss(seg: Segment, option: bytes) -> None:
    """RFC 8684 §3.3; the first well-formed DSS counts, of others there is only the number."""
    if len(option) < 4:
        return
    flags = option[3] & 0x1F
    ack_size = (8 if flags & DSS_ACK64 else 4) if flags & DSS_ACK else 0
    dsn_size = (8 if flags & DSS_DSN64 else 4) if flags & DSS_MAP else 0
    size = 4 + ack_size + (dsn_size + 6 if dsn_size else 0)
    with_checksum = dsn_size != 0 and len(option) == size + 2
    if len(option) != size and not with_checksum:
        return
    seg.dss_count += 1
    if seg.dss_count > 1:
        return
    seg.dss_flags = flags
    if ack_size:
        seg.data_ack = int.from_bytes(option[4 : 4 + ack_size], "big")
        seg.data_ack64 = ack_size == 8
    if dsn_size:
        at = 4 + ack_size
        seg.dsn = int.from_bytes(option[at : at + dsn_size], "big")
        seg.dsn64 = dsn_size == 8
        seg.ssn, seg.data_length = struct.unpack_from(">IH", option, at + dsn_size)
        if with_checksum:
            seg.dss_checksum = int.from_bytes(option[-2:], "big")


def build_header(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes,
    payload_length: int,
    gso_size: int,
    tos: int = 0,
    ttl: int = 64,
    ident: int = 0,
) -> bytes:
    """The virtio, IP and TCP headers of a packet whose TCP checksum the device completes.

    ``options`` is padded to words, at most 40 bytes; a payload over ``gso_size`` bytes (if that
    is not 0) makes it a GSO packet. DF is set. Raises LocalProtocolError for what does not fit.
    """
    header = 20 + len(options)
    ip_header = 20 if len(src) == 4 else 40
    length = header + payload_length
    if len(options) > 40 or len(options) % 4:
        raise LocalProtocolError("TCP options not padded or too long")
    if len(src) != len(dst) or len(src) not in (4, 16):
        raise LocalProtocolError("addresses of different or unknown families")
    if payload_length < 0 or length + (ip_header if ip_header == 20 else 0) > 65535:
        raise LocalProtocolError("packet too long")
    gso_type = 0
    if 0 < gso_size < payload_length:
        gso_type = GSO_TCPV4 if ip_header == 20 else GSO_TCPV6
        gso_type |= GSO_ECN if flags & CWR else 0
    else:
        gso_size = 0
    fields = (NEEDS_CSUM, gso_type, ip_header + header, gso_size, ip_header, 16)
    virtio = struct.pack("<BBHHHH", *fields)
    if ip_header == 20:
        first = struct.pack(">BBHHHBB", 0x45, tos, 20 + length, ident, 0x4000, ttl, _TCP)
        check = checksum(first + src + dst) ^ 0xFFFF
        ip = first + check.to_bytes(2, "big") + src + dst
    else:
        ip = struct.pack(">IHBB", 6 << 28 | bytes((tos,))[0] << 20, length, _TCP, ttl) + src + dst
    pseudo = pseudo_sum(src, dst, length)
    words = (sport, dport, seq, ack, header << 2, flags, window, pseudo, 0)
    return virtio + ip + struct.pack(">HHIIBBHHH", *words) + options


def timestamps_option(ts_val: int, ts_ecr: int) -> bytes:
    """NOP NOP timestamps (RFC 7323 §3.2, appendix A): 12 bytes."""
    return struct.pack(">IQ", 0x0101080A, ts_val << 32 | ts_ecr)


def dss_option(
    data_ack: int, ack64: bool, dsn: int, ssn: int, length: int, checksum: int, fin: bool
) -> bytes:
    """A DSS option padded with NOPs to words; -1 is absent. The DSN is always sent as 64 bits.

    ``data_ack`` is a whole u64, cut to 32 bits unless ``ack64``; ``checksum`` needs a mapping.
    """
    flags = DSS_FIN if fin else 0
    body = b""
    if data_ack >= 0:
        flags |= DSS_ACK | (DSS_ACK64 if ack64 else 0)
        body = struct.pack(">Q", data_ack) if ack64 else struct.pack(">I", data_ack & 0xFFFFFFFF)
    if dsn >= 0:
        flags |= DSS_MAP | DSS_DSN64
        body += struct.pack(">QIH", dsn, ssn, length)
        if checksum >= 0:
            body += struct.pack(">H", checksum)
    option = bytes((30, 4 + len(body), 0x20, flags)) + body
    return option + b"\x01" * (-len(option) % 4)
