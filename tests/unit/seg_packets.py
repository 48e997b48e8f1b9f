"""Packets for the tests of the segment fast path, made by hand and by hypothesis.

Nothing here uses the code under test: checksums are summed up anew, word by word.
"""

from __future__ import annotations

import struct

from hypothesis import strategies as st

A4, B4 = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 7))
A6 = bytes.fromhex("20010db8000000000000000000000001")
B6 = bytes.fromhex("20010db8000100000000000000000002")

NO_VIRTIO = bytes(10)
NEEDS_CSUM = 1
DATA_VALID = 2


def ones_sum(data: bytes) -> int:
    """The folded one's-complement sum, the slow way."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def virtio(flags: int = 0, gso_type: int = 0, gso_size: int = 0, start: int = 0) -> bytes:
    offset = 16 if flags & NEEDS_CSUM else 0
    return struct.pack("<BBHHHH", flags, gso_type, 0, gso_size, start, offset)


def tcp_packet(
    payload: bytes = b"",
    options: bytes = b"",
    *,
    src: bytes = A4,
    dst: bytes = B4,
    sport: int = 1234,
    dport: int = 80,
    seq: int = 1000,
    ack: int = 2000,
    flags: int = 16,
    window: int = 512,
    urgent: int = 0,
    tos: int = 0,
    ttl: int = 64,
    ident: int = 0,
    fragment: int = 0x4000,
    ip_options: bytes = b"",
    extensions: bytes = b"",
    first_extension: int = 6,
    device: bytes = NO_VIRTIO,
    checksum: int | None = None,
) -> bytes:
    """A packet as it comes from a device, with right lengths and checksums."""
    assert len(options) % 4 == 0
    assert len(ip_options) % 4 == 0
    tcp = struct.pack(
        ">HHIIBBHHH", sport, dport, seq, ack, (20 + len(options)) << 2, flags, window, 0, urgent
    )
    tcp += options + payload
    if checksum is None:
        checksum = ones_sum(src + dst + struct.pack(">II", len(tcp), 6) + tcp) ^ 0xFFFF
    tcp = tcp[:16] + checksum.to_bytes(2, "big") + tcp[18:]
    if len(src) == 4:
        ip = struct.pack(
            ">BBHHHBBH4s4s",
            0x45 + len(ip_options) // 4,
            tos,
            20 + len(ip_options) + len(tcp),
            ident,
            fragment,
            ttl,
            6,
            0,
            src,
            dst,
        )
        ip += ip_options
        ip = ip[:10] + (ones_sum(ip) ^ 0xFFFF).to_bytes(2, "big") + ip[12:]
    else:
        length = len(extensions) + len(tcp)
        ip = struct.pack(">IHBB", 6 << 28 | tos << 20, length, first_extension, ttl)
        ip += src + dst + extensions
    return device + ip + tcp


def dss_size(flags: int) -> int:
    """What follows the 4 bytes of head of a DSS with these flags, without a checksum."""
    size = (8 if flags & 2 else 4) if flags & 1 else 0
    if flags & 4:
        size += 14 if flags & 8 else 10
    return size


def pad(options: bytes) -> bytes:
    return options + b"\x01" * (-len(options) % 4)


u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)


def _option(kind: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """An option that may have any length at all, even one that lies."""
    return st.builds(
        lambda k, body, lie: bytes((k, lie if lie is not None else 2 + len(body))) + body,
        kind,
        st.binary(max_size=30),
        st.one_of(st.none(), st.none(), st.none(), u8),
    )


_mptcp = st.builds(
    lambda subtype, low, body: bytes((30, 3 + len(body), subtype << 4 | low)) + body,
    st.integers(0, 15),
    st.integers(0, 15),
    st.one_of([st.binary(min_size=n, max_size=n) for n in (0, 1, 5, 7, 9, 13, 17, 19, 21, 25)]),
)
_dss = st.builds(
    lambda flags, body, delta: (
        bytes((30, 4 + max(dss_size(flags) + delta, 0), 0x20, flags))
        + body[: max(dss_size(flags) + delta, 0)]
    ),
    u8,
    st.binary(min_size=28, max_size=28),
    st.sampled_from((0, 0, 0, 2, 2, 1, -1, -4)),
)
_plain = st.sampled_from(
    (
        b"\x01",
        b"\x01\x01",
        b"\x00",
        b"\x02\x04\x05\xb4",
        b"\x03\x03\x0f",
        b"\x04\x02",
        b"\x08\x0a\x00\x00\x00\x01\xff\xff\xff\xff",
        b"\x05\x0a" + bytes(range(8)),
        b"\x05\x12" + bytes(range(16)),
        b"\x1e",
        b"\x1e\x02",
        b"\x1e\x03\x20",
    )
)


options = st.lists(
    st.one_of(_plain, _mptcp, _dss, _option(u8), _option(st.just(30))), max_size=6
).map(lambda parts: pad(b"".join(parts)[:40]))


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Well-formed packets with options of every sort."""
    v6 = draw(st.booleans())
    device = draw(st.sampled_from((NO_VIRTIO, virtio(DATA_VALID), virtio(NEEDS_CSUM, start=20))))
    if draw(st.booleans()):
        device = virtio(NEEDS_CSUM, 4 if v6 else 1, draw(st.integers(1, 1500)), 40 if v6 else 20)
    return tcp_packet(
        draw(st.binary(max_size=200)),
        draw(options),
        src=A6 if v6 else A4,
        dst=B6 if v6 else B4,
        sport=draw(u16),
        dport=draw(u16),
        seq=draw(u32),
        ack=draw(u32),
        flags=draw(u8),
        window=draw(u16),
        urgent=draw(u16),
        tos=draw(u8),
        ttl=draw(u8),
        device=device,
    )


@st.composite
def mutated_packets(draw: st.DrawFn) -> bytes:
    """Packets with some bytes changed, or cut short, or with a tail."""
    packet = bytearray(draw(packets()))
    for _ in range(draw(st.integers(0, 4))):
        packet[draw(st.integers(0, min(len(packet) - 1, 90)))] = draw(u8)
    if draw(st.booleans()):
        packet[0] |= DATA_VALID  # else hardly one gets past the checksum
    if draw(st.booleans()):
        del packet[draw(st.integers(0, len(packet))) :]
    if draw(st.booleans()):
        packet += draw(st.binary(max_size=8))
    return bytes(packet)
