"""Headers, options and checksums of what is sent, against kernel captures and dpkt."""

from __future__ import annotations

import struct
from types import ModuleType

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import _seg, _seg_py
from proxy.errors import LocalProtocolError
from tests.unit.seg_packets import A4, A6, B4, B6, NEEDS_CSUM, ones_sum, tcp_packet, u16, u32, u64

BOTH = (_seg, _seg_py)


def test_header_of_ipv4(seg: ModuleType) -> None:
    options = seg.timestamps_option(1, 2)
    header = seg.build_header(A4, B4, 1, 2, 3, 4, 0x18, 5, options, 100, 1400, 0xB9, 7, 0x1234)
    fields = struct.unpack("<BBHHHH", header[:10])
    assert fields == (NEEDS_CSUM, 0, 20 + 32, 0, 20, 16)
    ip = dpkt.ip.IP(header[10:])
    assert (ip.src, ip.dst, ip.p, ip.ttl, ip.tos, ip.id) == (A4, B4, 6, 7, 0xB9, 0x1234)
    assert (ip.len, ip.df, ip.mf, ip.offset) == (20 + 32 + 100, 1, 0, 0)
    assert ones_sum(header[10:30]) == 0xFFFF
    tcp = ip.data
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.win) == (1, 2, 3, 4, 5)
    assert (tcp.flags, tcp.off, tcp.urp, tcp.opts) == (0x18, 8, 0, options)
    assert tcp.sum == ones_sum(A4 + B4 + struct.pack(">II", 6, 132))


def test_header_of_ipv6(seg: ModuleType) -> None:
    header = seg.build_header(A6, B6, 1, 2, 3, 4, 0x18, 5, b"", 100, 1400, 0xB9, 7, 0x1234)
    assert struct.unpack("<BBHHHH", header[:10]) == (NEEDS_CSUM, 0, 40 + 20, 0, 40, 16)
    ip = dpkt.ip6.IP6(header[10:])
    assert (ip.src, ip.dst, ip.nxt, ip.hlim, ip.fc, ip.flow) == (A6, B6, 6, 7, 0xB9, 0)
    assert ip.plen == 120
    assert ip.data.sum == ones_sum(A6 + B6 + struct.pack(">II", 6, 120))


def test_payload_over_the_gso_size_makes_a_gso_packet(seg: ModuleType) -> None:
    def gso(src: bytes, dst: bytes, payload: int, size: int, flags: int = 16) -> tuple[int, int]:
        header = seg.build_header(src, dst, 1, 2, 3, 4, flags, 5, b"", payload, size)
        return header[1], int.from_bytes(header[4:6], "little")

    assert gso(A4, B4, 1400, 1400) == (0, 0)
    assert gso(A4, B4, 1401, 1400) == (1, 1400)
    assert gso(A6, B6, 1401, 1400) == (4, 1400)
    assert gso(A4, B4, 1401, 1400, flags=0x90) == (0x81, 1400)
    assert gso(A4, B4, 60000, 0) == (0, 0)


def test_packet_of_the_largest_size_is_built_and_no_larger_one(seg: ModuleType) -> None:
    def build(address: bytes, other: bytes, payload: int) -> None:
        seg.build_header(address, other, 1, 2, 3, 4, 16, 5, bytes(40), payload, 1400)

    build(A4, B4, 65535 - 80)
    build(A6, B6, 65535 - 60)
    for address, other, payload in ((A4, B4, 65536 - 80), (A6, B6, 65536 - 60), (A4, B4, -1)):
        with pytest.raises(LocalProtocolError):
            build(address, other, payload)


@pytest.mark.parametrize(
    ("src", "dst", "options"),
    [(A4, B6, b""), (b"", b"", b""), (A4[:3], B4[:3], b""), (A4, B4, b"\1"), (A4, B4, bytes(44))],
)
def test_header_that_cannot_be_is_our_own_fault(
    seg: ModuleType, src: bytes, dst: bytes, options: bytes
) -> None:
    with pytest.raises(LocalProtocolError):
        seg.build_header(src, dst, 1, 2, 3, 4, 16, 5, options, 0, 0)


def test_values_out_of_range_are_refused(seg: ModuleType) -> None:
    for seq, flags, tos in ((2**32, 0, 0), (-1, 0, 0), (0, 256, 0), (0, 0, 256)):
        for src, dst in ((A4, B4), (A6, B6)):
            with pytest.raises((OverflowError, struct.error, ValueError)):
                seg.build_header(src, dst, 1, 2, seq, 0, flags, 5, b"", 0, 0, tos)


def test_timestamps_are_padded_as_linux_does(seg: ModuleType) -> None:
    built = seg.timestamps_option(0x172091DD, 2**32 - 1)
    assert built == bytes.fromhex("0101080a172091ddffffffff")


def test_dss_option_as_a_kernel_sends_it(seg: ModuleType) -> None:
    # "raw first data DSS": dack32, dsn64, checksum off
    built = seg.dss_option(0xFF77CD2E79, False, 0x4291FC58C280C909, 1, 5, -1, False)
    assert built == bytes.fromhex("1e16200d77cd2e794291fc58c280c909000000010005 0101")


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        ((-1, False, -1, 0, 0, -1, False), "1e042000"),
        ((7, True, -1, 0, 0, -1, False), "1e0c2003 0000000000000007"),
        ((2**64 - 1, True, -1, 0, 0, -1, False), "1e0c2003 ffffffffffffffff"),
        ((-1, False, 8, 0, 1, 0x0167, True), "1e14201c 0000000000000008 00000000 0001 0167"),
        (
            (7, True, 2**64 - 1, 2**32 - 1, 65535, 0xFFFF, True),
            "1e1c201f 0000000000000007 ffffffffffffffff ffffffff ffff ffff",
        ),
    ],
)
def test_dss_option(seg: ModuleType, arguments: tuple[int, ...], raw: str) -> None:
    assert seg.dss_option(*arguments) == bytes.fromhex(raw)


@given(
    st.one_of(st.just(-1), u64),
    st.booleans(),
    st.one_of(st.just(-1), u64),
    u32,
    u16,
    st.one_of(st.just(-1), u16),
    st.booleans(),
)
def test_dss_option_parses_back(
    data_ack: int, ack64: bool, dsn: int, ssn: int, length: int, checksum: int, fin: bool
) -> None:
    arguments = (data_ack, ack64, dsn, ssn, length, checksum, fin)
    option = _seg.dss_option(*arguments)
    assert option == _seg_py.dss_option(*arguments)
    assert len(option) % 4 == 0
    parsed = _seg.parse(tcp_packet(options=option))
    assert parsed.dss_count == 1
    assert parsed.dsn == dsn
    assert bool(parsed.dss_flags & _seg.DSS_FIN) == fin
    cut = data_ack if ack64 or data_ack < 0 else data_ack & 0xFFFFFFFF
    assert parsed.data_ack == cut
    if dsn >= 0:
        assert (parsed.ssn, parsed.data_length, parsed.dss_checksum) == (ssn, length, checksum)


# Captured from a Linux 6.18 peer and recomputed.
KERNEL_DSS_CHECKSUMS = [
    (8632439083950984880, 1, 5, b"hello", 0xA7F5),
    (5491851161293436064, 1, 5, b"world", 0x7B87),
    (8632439083950984885, 6, 20000, b"z" * 20000, 0x4D52),
    (8632439083951044885, 0, 1, b"", 0x0167),  # DATA_FIN alone
]


@pytest.mark.parametrize(("dsn", "ssn", "length", "data", "expected"), KERNEL_DSS_CHECKSUMS)
def test_dss_checksum_is_the_kernels(
    seg: ModuleType, dsn: int, ssn: int, length: int, data: bytes, expected: int
) -> None:
    assert seg.dss_checksum(dsn, ssn, length, [data]) == expected
    cut = [data[:1], memoryview(data)[1:4], bytearray(data[4:7]), b"", data[7:]]
    assert seg.dss_checksum(dsn, ssn, length, cut) == expected


@given(u64, u32, u16, st.lists(st.binary(max_size=70), max_size=6))
def test_dss_checksum_does_not_depend_on_where_the_data_is_cut(
    dsn: int, ssn: int, length: int, chunks: list[bytes]
) -> None:
    head = struct.pack(">QIHH", dsn, ssn, length, 0)
    expected = ones_sum(head + b"".join(chunks)) ^ 0xFFFF
    for module in BOTH:
        assert module.dss_checksum(dsn, ssn, length, chunks) == expected
        assert module.dss_checksum(dsn, ssn, length, tuple(map(memoryview, chunks))) == expected


@given(st.binary(max_size=300), u16, st.integers(0, 8))
def test_checksum_is_the_ones_complement_sum(data: bytes, initial: int, skip: int) -> None:
    expected = ones_sum(initial.to_bytes(2, "big") + data[skip:])
    for module in BOTH:
        assert module.checksum(data[skip:], initial) == expected
        assert module.checksum(memoryview(data)[skip:], initial) == expected


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1399, 65535, 65536, 300001])
def test_checksum_of_the_extremes(seg: ModuleType, size: int) -> None:
    assert seg.checksum(bytes(size)) == 0
    ones = b"\xff" * size
    assert seg.checksum(ones) == ones_sum(ones)


def test_buffers_must_be_contiguous_in_the_extension() -> None:
    with pytest.raises(BufferError):
        _seg.checksum(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        _seg.dss_checksum(1, 2, 3, ["text"])  # type: ignore[list-item]


@given(u32, u32)
def test_timestamps_parse_back(ts_val: int, ts_ecr: int) -> None:
    option = _seg.timestamps_option(ts_val, ts_ecr)
    assert option == _seg_py.timestamps_option(ts_val, ts_ecr)
    parsed = _seg.parse(tcp_packet(options=option))
    assert (parsed.ts_val, parsed.ts_ecr) == (ts_val, ts_ecr)
