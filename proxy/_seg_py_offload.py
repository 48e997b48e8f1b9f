"""The Python twin of ``_seg``: what an offloading device does (checksums, GSO split, GRO merge)."""

from __future__ import annotations

import struct

from proxy._seg_py_codec import (
    ACK,
    CWR,
    DATA_VALID,
    FIN,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    PSH,
    RST,
    SYN,
    URG,
    VIRTIO,
    Segment,
    checksum,
    parse,
    pseudo_sum,
    skip_extensions,
)
from proxy.errors import CodecError


def finish_checksum(packet: bytes) -> bytes:
    """Completes the checksum that the virtio header asks for; other packets stay as they are.

    Raises CodecError if its place is outside of the packet.
    """
    if not packet or not packet[0] & NEEDS_CSUM:
        return packet
    if len(packet) < VIRTIO:
        raise CodecError("short packet")
    flags, gso_type, headers, gso_size, start, offset = struct.unpack_from("<BBHHHH", packet)
    at = VIRTIO + start + offset
    if at + 2 > len(packet):
        raise CodecError("bad checksum position")
    total = checksum(packet[VIRTIO + start :]) ^ 0xFFFF
    fields = (flags & ~NEEDS_CSUM, gso_type, headers if gso_type else 0, gso_size, 0, 0)
    virtio = struct.pack("<BBHHHH", *fields)
    return virtio + packet[VIRTIO:at] + total.to_bytes(2, "big") + packet[at + 2 :]


def _locate(packet: bytes) -> tuple[Segment, int, int]:
    """The segment (checksum unchecked), and where TCP and its payload begin."""
    seg = parse(bytes((DATA_VALID,)) + packet[1:])
    if packet[VIRTIO] >> 4 == 4:
        tcp = VIRTIO + (packet[VIRTIO] & 15) * 4
    else:
        tcp = skip_extensions(packet, packet[VIRTIO + 6], len(packet))
    return seg, tcp, tcp + (packet[tcp + 12] >> 4) * 4


def _with_lengths(ip: bytes, length: int, ident: int) -> bytes:
    """The IP header for ``length`` bytes of payload; ``ident`` is added to the IPv4 id."""
    if ip[0] >> 4 == 6:
        return ip[:4] + (length + len(ip) - 40).to_bytes(2, "big") + ip[6:]
    number = (int.from_bytes(ip[4:6], "big") + ident) & 0xFFFF
    ip = ip[:2] + struct.pack(">HH", len(ip) + length, number) + ip[6:10] + bytes(2) + ip[12:]
    return ip[:10] + (checksum(ip) ^ 0xFFFF).to_bytes(2, "big") + ip[12:]


def gso_split(packet: bytes) -> list[bytes]:
    """What the wire would carry: packets of at most ``gso_size`` payload, checksums complete.

    As the kernel's TSO: IPv4 ids count up, CWR stays on the first, PSH and FIN on the last
    (net/ipv4/tcp_offload.c tcp_gso_segment). The virtio headers are zero. A packet that is not
    GSO comes back alone, TCP or not. Raises CodecError if a GSO packet does not parse.
    """
    if len(packet) < VIRTIO:
        raise CodecError("short packet")
    if packet[1] & ~GSO_ECN == 0:
        return [bytes(VIRTIO) + finish_checksum(packet)[VIRTIO:]]
    seg, tcp, data = _locate(packet)
    packets = []
    for count, at in enumerate(range(0, max(seg.length, 1), seg.gso_size)):
        payload = packet[data + at : data + min(at + seg.gso_size, seg.length)]
        flags = seg.flags & ~(CWR if at else 0)
        if at + seg.gso_size < seg.length:
            flags &= ~(PSH | FIN)
        words = ((seg.seq + at) & 0xFFFFFFFF, seg.ack, packet[tcp + 12], flags, seg.window, 0)
        header = packet[tcp : tcp + 4] + struct.pack(">IIBBHH", *words) + packet[tcp + 18 : data]
        total = checksum(
            payload, checksum(header, pseudo_sum(seg.src, seg.dst, data - tcp + len(payload)))
        )
        header = header[:16] + (total ^ 0xFFFF).to_bytes(2, "big") + header[18:]
        ip = _with_lengths(packet[VIRTIO:tcp], len(header) + len(payload), count)
        packets.append(bytes(VIRTIO) + ip + header + payload)
    return packets


class _Group:
    """Segments of one flow that are to become one packet."""

    __slots__ = (
        "data",
        "first",
        "flags",
        "head",
        "length",
        "limit",
        "open",
        "packets",
        "seq",
        "size",
        "tcp",
    )

    def __init__(self, packet: bytes, seg: Segment, tcp: int, data: int) -> None:
        self.first, self.tcp, self.data = packet, tcp, data
        self.packets = [packet[data : data + seg.length]]
        self.head = _equal_parts(packet, tcp, data)
        self.length = seg.length
        self.seq = (seg.seq + seg.length) & 0xFFFFFFFF
        self.size = seg.gso_size or seg.length
        self.flags = seg.flags
        self.limit = 65535 - (data - VIRTIO)
        self.open = not seg.flags & (PSH | FIN) and seg.length % self.size == 0

    def take(self, packet: bytes, seg: Segment, tcp: int, data: int) -> bool:
        """Appends a segment if it continues this one (net/ipv4/tcp_offload.c tcp_gro_receive)."""
        if (
            not self.open
            or seg.seq != self.seq
            or (seg.gso_size != self.size if seg.gso_size else seg.length > self.size)
            or seg.flags & CWR
            or self.length + seg.length > self.limit
            or _equal_parts(packet, tcp, data) != self.head
        ):
            return False
        self.packets.append(packet[data : data + seg.length])
        self.length += seg.length
        self.seq = (seg.seq + seg.length) & 0xFFFFFFFF
        self.flags |= seg.flags
        self.open = not seg.flags & (PSH | FIN) and seg.length % self.size == 0
        return True

    def join(self) -> bytes:
        """The one packet."""
        if len(self.packets) == 1:
            return self.first
        first, tcp, data = self.first, self.tcp, self.data
        ip = _with_lengths(first[VIRTIO:tcp], data - tcp + self.length, 0)
        version4 = len(ip) == 20
        gso_type = (GSO_TCPV4 if version4 else GSO_TCPV6) | (GSO_ECN if self.flags & CWR else 0)
        fields = (NEEDS_CSUM, gso_type, data - VIRTIO, self.size, len(ip), 16)
        virtio = struct.pack("<BBHHHH", *fields)
        addresses = ip[12:20] if version4 else ip[8:40]
        pseudo = pseudo_sum(addresses, b"", data - tcp + self.length).to_bytes(2, "big")
        header = first[tcp : tcp + 13] + bytes((self.flags,)) + first[tcp + 14 : tcp + 16]
        return virtio + ip + header + pseudo + first[tcp + 18 : data] + b"".join(self.packets)


def _equal_parts(packet: bytes, tcp: int, data: int) -> bytes:
    """What must be equal to join: all but lengths, ids, sums, seq, FIN, PSH, CWR."""
    if packet[VIRTIO] >> 4 == 4:
        ip = packet[VIRTIO : VIRTIO + 2] + packet[VIRTIO + 6 : VIRTIO + 10]
    else:
        ip = packet[VIRTIO : VIRTIO + 4] + packet[VIRTIO + 6 : VIRTIO + 8]
    flags = bytes((packet[tcp + 13] & ~(FIN | PSH | CWR),))
    rest = (
        packet[tcp + 8 : tcp + 13] + flags + packet[tcp + 14 : tcp + 16] + packet[tcp + 18 : data]
    )
    return ip + rest


def gro_merge(packets: list[bytes]) -> list[bytes]:
    """Joins segments that follow each other in their flow into super-segments.

    As the kernel's GRO: equal IP header, ACK, window, flags and options; none longer than the
    first; a shorter one, PSH or FIN ends it; at most 65535 bytes of IP. Segments of other flows
    may stand between. The order within a flow stays. What is joined had a good checksum (or the
    device vouched for it) and asks for a new one; all else comes back as the same object.
    """
    groups: dict[bytes, _Group] = {}
    out: list[bytes | _Group] = []
    for packet in packets:
        try:
            seg = parse(packet)
        except CodecError:
            out.append(packet)
            continue
        _, tcp, data = _locate(packet)
        group = groups.get(seg.key)
        if not _joinable(packet, seg, tcp):
            groups.pop(seg.key, None)
            out.append(packet)
        elif group is None or not group.take(packet, seg, tcp, data):
            groups[seg.key] = group = _Group(packet, seg, tcp, data)
            out.append(group)
    return [item if isinstance(item, bytes) else item.join() for item in out]


def _joinable(packet: bytes, seg: Segment, tcp: int) -> bool:
    plain_ip = tcp == VIRTIO + (20 if packet[VIRTIO] >> 4 == 4 else 40)
    return (
        plain_ip and seg.length > 0 and not seg.flags & (SYN | RST | URG) and bool(seg.flags & ACK)
    )
