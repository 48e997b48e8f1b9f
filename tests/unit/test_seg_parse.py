"""Parsing packets: what a Segment says, what is dropped, what is ignored."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import dpkt
import pytest

from proxy.errors import CodecError
from tests.unit.seg_packets import (
    A4,
    A6,
    B4,
    B6,
    DATA_VALID,
    NEEDS_CSUM,
    dss_size,
    pad,
    tcp_packet,
    virtio,
)

TS = bytes.fromhex("0101080a0000000700000009")
DSS_ACK32 = bytes.fromhex("1e082001 0a0b0c0d")
# dack32, dsn64, no checksum: as captured from a kernel
DSS_KERNEL = bytes.fromhex("1e16200d 77cd2e79 4291fc58c280c909 00000001 0005 0101")


def v6(payload: bytes = b"", options: bytes = b"", **fields: Any) -> bytes:
    return tcp_packet(payload, options, **({"src": A6, "dst": B6} | fields))


def test_segment_has_all_header_fields(seg: ModuleType) -> None:
    packet = tcp_packet(
        b"hello", TS, seq=2**32 - 1, ack=7, flags=24, window=65535, urgent=9, tos=0xB9, ttl=3
    )
    parsed = seg.parse(packet)
    assert (parsed.src, parsed.dst, parsed.sport, parsed.dport) == (A4, B4, 1234, 80)
    assert parsed.key == A4 + B4 + bytes((4, 210, 0, 80))
    assert (parsed.seq, parsed.ack, parsed.flags) == (2**32 - 1, 7, seg.ACK | seg.PSH)
    assert (parsed.window, parsed.urgent) == (65535, 9)
    assert (parsed.tos, parsed.ecn, parsed.ttl) == (0xB9, 1, 3)
    assert bytes(parsed.payload) == b"hello"
    assert (parsed.length, parsed.gso_size) == (5, 0)
    assert (parsed.ts_val, parsed.ts_ecr) == (7, 9)


def test_segment_of_ipv6_has_all_header_fields(seg: ModuleType) -> None:
    parsed = seg.parse(v6(b"hello", tos=0x2E, ttl=255))
    assert (parsed.src, parsed.dst) == (A6, B6)
    assert parsed.key == A6 + B6 + bytes((4, 210, 0, 80))
    assert (parsed.tos, parsed.ecn, parsed.ttl) == (0x2E, 2, 255)
    assert bytes(parsed.payload) == b"hello"


def test_payload_is_a_view_of_the_packet(seg: ModuleType) -> None:
    packet = tcp_packet(b"hello")
    payload = seg.parse(packet).payload
    assert isinstance(payload, memoryview)
    assert payload.obj is packet
    assert payload.readonly


def test_absent_options_have_the_values_of_absence(seg: ModuleType) -> None:
    parsed, new = seg.parse(tcp_packet()), seg.Segment()
    for segment in (parsed, new):
        assert (segment.mss, segment.wscale, segment.ts_val, segment.ts_ecr) == (-1, -1, -1, 0)
        assert segment.sack_permitted is False
        assert segment.has_mptcp is False
        assert (segment.sack, segment.mptcp) == ((), ())
        assert (segment.dss_flags, segment.dss_count) == (-1, 0)
        assert (segment.data_ack, segment.dsn, segment.dss_checksum) == (-1, -1, -1)
        assert (segment.data_ack64, segment.dsn64) == (False, False)
        assert (segment.ssn, segment.data_length) == (0, 0)
        assert len(segment.payload) == 0


def test_attributes_are_writable(seg: ModuleType) -> None:
    segment = seg.Segment()
    for name, value in {
        "src": A4,
        "seq": 2**32 - 1,
        "payload": memoryview(b"x"),
        "dsn": 2**64 - 1,
        "data_ack": 0,
        "ts_val": 2**32 - 1,
        "sack": ((1, 2),),
        "mss": 1460,
    }.items():
        setattr(segment, name, value)
        assert getattr(segment, name) == value
    segment.dsn = -1
    assert segment.dsn == -1


def test_syn_options_as_a_kernel_sends_them(seg: ModuleType) -> None:
    options = bytes.fromhex("020405b4 0402 080a172091dd00000000 01 03030a 1e040101")
    parsed = seg.parse(tcp_packet(options=options, flags=2))
    assert (parsed.mss, parsed.wscale, parsed.sack_permitted) == (1460, 10, True)
    assert (parsed.ts_val, parsed.ts_ecr) == (0x172091DD, 0)
    assert parsed.mptcp == (bytes.fromhex("1e040101"),)
    assert parsed.has_mptcp is True


def test_syn_options_are_ignored_outside_of_a_syn(seg: ModuleType) -> None:
    parsed = seg.parse(tcp_packet(options=bytes.fromhex("020405b4 0402 0101 0103030a")))
    assert (parsed.mss, parsed.wscale, parsed.sack_permitted) == (-1, -1, False)


def test_window_scale_is_at_most_14(seg: ModuleType) -> None:
    assert seg.parse(tcp_packet(options=b"\x01\x03\x03\xff", flags=2)).wscale == 14


def test_sack_blocks(seg: ModuleType) -> None:
    options = b"\x01\x01\x05\x12" + b"".join(n.to_bytes(4, "big") for n in (1, 2, 2**32 - 1, 5))
    assert seg.parse(tcp_packet(options=options)).sack == ((1, 2), (2**32 - 1, 5))


@pytest.mark.parametrize("length", [2, 3, 9, 11])
def test_sack_of_a_wrong_length_is_ignored(seg: ModuleType, length: int) -> None:
    options = pad(bytes((5, length)) + bytes(length - 2) + TS)
    parsed = seg.parse(tcp_packet(options=options))
    assert parsed.sack == ()
    assert parsed.ts_val == 7


def test_dss_as_a_kernel_sends_it(seg: ModuleType) -> None:
    parsed = seg.parse(tcp_packet(b"hello", TS + DSS_KERNEL))
    assert parsed.dss_flags == seg.DSS_ACK | seg.DSS_MAP | seg.DSS_DSN64
    assert (parsed.data_ack, parsed.data_ack64) == (0x77CD2E79, False)
    assert (parsed.dsn, parsed.dsn64) == (0x4291FC58C280C909, True)
    assert (parsed.ssn, parsed.data_length, parsed.dss_checksum) == (1, 5, -1)
    assert (parsed.dss_count, parsed.mptcp, parsed.has_mptcp) == (1, (), True)


def test_dss_with_all_64_bit_fields_and_checksum(seg: ModuleType) -> None:
    option = bytes.fromhex("1e1c 201f ffffffffffffffff fffffffffffffffe fffffffd fffc fffb")
    parsed = seg.parse(tcp_packet(options=TS + option))
    assert parsed.dss_flags == 0x1F
    assert (parsed.data_ack, parsed.data_ack64) == (2**64 - 1, True)
    assert (parsed.dsn, parsed.dsn64) == (2**64 - 2, True)
    assert (parsed.ssn, parsed.data_length, parsed.dss_checksum) == (2**32 - 3, 0xFFFC, 0xFFFB)


def test_reserved_dss_flags_are_ignored(seg: ModuleType) -> None:
    parsed = seg.parse(tcp_packet(options=bytes.fromhex("1e08 2fe1 0a0b0c0d")))
    assert (parsed.dss_flags, parsed.data_ack) == (1, 0x0A0B0C0D)


def wrong_dss_sizes() -> list[tuple[int, int]]:
    """(flags, bytes after the flags) that do not fit together, as far as there is room."""
    cases = []
    for flags in range(32):
        size = dss_size(flags)
        right = (size, size + 2) if flags & 4 else (size,)
        wrong = {size + extra for extra in (-3, -2, -1, 1, 2, 3, 4)} - set(right)
        cases += [(flags, wrong_size) for wrong_size in sorted(wrong) if 0 <= wrong_size <= 28]
    return cases


@pytest.mark.parametrize(("flags", "size"), wrong_dss_sizes())
def test_dss_of_a_wrong_length_leaves_nothing_behind(
    seg: ModuleType, flags: int, size: int
) -> None:
    bad = bytes((30, 4 + size, 0x20, flags)) + b"\xee" * size
    parsed = seg.parse(tcp_packet(options=pad(bad + DSS_ACK32)))
    alone = seg.parse(tcp_packet(options=DSS_ACK32))
    for name in (
        "dss_flags",
        "dss_count",
        "data_ack",
        "data_ack64",
        "dsn",
        "dsn64",
        "ssn",
        "data_length",
        "dss_checksum",
        "has_mptcp",
    ):
        assert getattr(parsed, name) == getattr(alone, name), name


def test_second_dss_is_only_counted(seg: ModuleType) -> None:
    parsed = seg.parse(tcp_packet(options=DSS_ACK32 + bytes.fromhex("1e082001 ffffffff")))
    assert (parsed.dss_count, parsed.data_ack) == (2, 0x0A0B0C0D)


@pytest.mark.parametrize(
    "option",
    [
        "1e02",
        "1e0300",  # MP_CAPABLE
        "1e0800010a0b0c0d",
        "1e041000",  # MP_JOIN
        "1e0c300100000000 00000000",  # ADD_ADDR, no echo, no HMAC
        "1e103101 00000000 0000000000000000",  # an echo with HMAC
        "1e0340",  # REMOVE_ADDR without an id
        "1e045001",  # MP_PRIO of version 0
        "1e0460ff",
        "1e0370",
        "1e0380",
        "1e0320",
    ],
)
def test_mptcp_option_of_a_wrong_length_is_dropped_alone(seg: ModuleType, option: str) -> None:
    parsed = seg.parse(tcp_packet(b"x", options=pad(bytes.fromhex(option) + TS)))
    assert (parsed.mptcp, parsed.has_mptcp, parsed.dss_count) == ((), False, 0)
    assert (parsed.ts_val, parsed.length) == (7, 1)


def test_mptcp_options_come_raw_and_in_order(seg: ModuleType) -> None:
    prio, remove, private = (bytes.fromhex(t) for t in ("1e0351", "1e04 4003", "1e05f01234"))
    options = pad(prio + DSS_ACK32 + b"\x01" + remove + private)
    parsed = seg.parse(tcp_packet(options=options))
    assert parsed.mptcp == (prio, remove, private)
    assert parsed.dss_count == 1


@pytest.mark.parametrize("tail", ["00080a00", "08000000", "08010000", "08ff0000", "01010108"])
def test_impossible_option_length_ends_the_options_and_keeps_the_segment(
    seg: ModuleType, tail: str
) -> None:
    parsed = seg.parse(tcp_packet(b"data", TS + bytes.fromhex(tail)))
    assert (parsed.ts_val, parsed.length) == (7, 4)


def test_options_after_eol_do_not_count(seg: ModuleType) -> None:
    assert seg.parse(tcp_packet(options=b"\x01\x01\x01\x00" + TS)).ts_val == -1


def test_gso_packet_has_its_size(seg: ModuleType) -> None:
    device = virtio(NEEDS_CSUM, 1, 1400, 20)
    assert seg.parse(tcp_packet(bytes(4000), device=device)).gso_size == 1400
    device = virtio(NEEDS_CSUM, 4 | 0x80, 1400, 40)
    assert seg.parse(v6(bytes(4000), device=device)).gso_size == 1400


@pytest.mark.parametrize("flags", [NEEDS_CSUM, DATA_VALID])
def test_checksum_is_not_verified_when_the_device_vouches(seg: ModuleType, flags: int) -> None:
    packet = tcp_packet(b"hello", checksum=0x1234, device=virtio(flags))
    assert seg.parse(packet).length == 5


def test_bytes_behind_the_ip_packet_are_no_payload(seg: ModuleType) -> None:
    assert bytes(seg.parse(tcp_packet(b"hi") + b"padding").payload) == b"hi"
    assert bytes(seg.parse(v6(b"hi") + b"padding").payload) == b"hi"


def test_ip_options_are_skipped(seg: ModuleType) -> None:
    parsed = seg.parse(tcp_packet(b"hi", ip_options=b"\x01" * 40))
    assert (bytes(parsed.payload), parsed.key[-4:]) == (b"hi", bytes((4, 210, 0, 80)))


def test_ipv6_extension_headers_are_skipped(seg: ModuleType) -> None:
    extensions = (
        bytes((60, 0, 1, 4, 0, 0, 0, 0))  # hop-by-hop
        + bytes((43, 1)) + bytes(14)  # destination options of 16 bytes
        + bytes((6, 0, 0, 0, 0, 0, 0, 0))  # routing, no segment left
    )  # fmt: skip
    parsed = seg.parse(v6(b"hi", extensions=extensions, first_extension=0))
    assert bytes(parsed.payload) == b"hi"


def extension_chain(count: int) -> bytes:
    return b"".join(bytes((60 if n < count - 1 else 6, 0)) + bytes(6) for n in range(count))


def test_eight_extension_headers_are_the_most(seg: ModuleType) -> None:
    seg.parse(v6(extensions=extension_chain(8), first_extension=60))
    with pytest.raises(CodecError, match="too many extension headers"):
        seg.parse(v6(extensions=extension_chain(9), first_extension=60))


def cut_to(packet: bytes, at: int, value: int, size: int = 1) -> bytes:
    return packet[:at] + value.to_bytes(size, "big") + packet[at + size :]


BROADCAST, MULTICAST4 = b"\xff" * 4, bytes((224, 0, 0, 1))
MULTICAST6 = b"\xff\x02" + bytes(13) + b"\x01"

DROPPED = {
    "empty": (b"", "short packet"),
    "virtio header alone": (bytes(10), "short packet"),
    "20 bytes of IPv6": (v6()[:30], "short packet"),
    "version 5": (cut_to(tcp_packet(), 10, 0x55), "not IP"),
    "IP header under 20 bytes": (cut_to(tcp_packet(), 10, 0x44), "bad IP length"),
    "IP header beyond the packet": (cut_to(tcp_packet(), 12, 16, 2), "bad IP length"),
    "total length beyond the packet": (cut_to(tcp_packet(), 12, 41, 2), "bad IP length"),
    "IPv6 length beyond the packet": (cut_to(v6(), 14, 21, 2), "bad IP length"),
    "IPv4 checksum": (cut_to(tcp_packet(), 18, 1), "bad IP checksum"),
    "UDP": (cut_to(tcp_packet(), 19, 17), "not TCP"),
    "UDP over IPv6": (v6(first_extension=17), "not TCP"),
    "first fragment": (tcp_packet(fragment=0x2000), "fragment"),
    "later fragment": (tcp_packet(fragment=1), "fragment"),
    "IPv6 fragment": (
        v6(extensions=bytes((6, 0, 0, 1, 0, 0, 0, 0)), first_extension=44),
        "fragment",
    ),
    "segments left": (
        v6(extensions=bytes((6, 0, 0, 1, 0, 0, 0, 0)), first_extension=43),
        "not for us",
    ),
    "extension beyond the packet": (
        v6(extensions=bytes((6, 9, 0, 0, 0, 0, 0, 0)), first_extension=60),
        "bad IP length",
    ),
    "TCP header cut": (cut_to(v6(), 14, 19, 2), "short TCP header"),
    "TCP header under 20 bytes": (cut_to(tcp_packet(), 42, 0x40), "bad TCP header length"),
    "TCP header beyond the packet": (cut_to(tcp_packet(), 42, 0x60), "bad TCP header length"),
    "TCP checksum": (tcp_packet(b"x", checksum=0x1234), "bad TCP checksum"),
    "TCP checksum over IPv6": (v6(b"x", checksum=0x1234), "bad TCP checksum"),
    "from 0.0.0.0": (tcp_packet(src=bytes(4)), "silly address"),
    "from multicast": (tcp_packet(src=MULTICAST4), "silly address"),
    "from broadcast": (tcp_packet(src=BROADCAST), "silly address"),
    "to multicast": (tcp_packet(dst=MULTICAST4), "silly address"),
    "from ::": (v6(src=bytes(16)), "silly address"),
    "from IPv6 multicast": (v6(src=MULTICAST6), "silly address"),
    "to IPv6 multicast": (v6(dst=MULTICAST6), "silly address"),
    "LAND": (tcp_packet(dst=A4, dport=1234), "silly address"),
    "IPv6 LAND": (v6(dst=A6, dport=1234), "silly address"),
    "UDP GSO": (tcp_packet(device=virtio(1, 3, 1000)), "bad GSO type"),
    "IPv6 GSO on IPv4": (tcp_packet(device=virtio(1, 4, 1000)), "bad GSO type"),
    "GSO of size 0": (tcp_packet(device=virtio(1, 1, 0)), "bad GSO type"),
}


@pytest.mark.parametrize("case", DROPPED)
def test_packet_is_dropped(seg: ModuleType, case: str) -> None:
    packet, message = DROPPED[case]
    with pytest.raises(CodecError, match=f"^{message}$"):
        seg.parse(packet)


def test_same_address_with_other_port_is_no_land(seg: ModuleType) -> None:
    assert seg.parse(tcp_packet(dst=A4)).length == 0


def test_every_truncation_is_refused(seg: ModuleType) -> None:
    for packet in (tcp_packet(b"hello", TS), v6(b"hello", TS)):
        for size in range(len(packet)):
            with pytest.raises(CodecError):
                seg.parse(packet[:size])


def test_parse_takes_bytes_alone(seg: ModuleType) -> None:
    with pytest.raises(TypeError):
        seg.parse(None)


def test_dpkt_agrees(seg: ModuleType) -> None:
    packet = tcp_packet(b"hello", TS + DSS_KERNEL)
    ip = dpkt.ip.IP(packet[10:])
    parsed = seg.parse(packet)
    assert (ip.src, ip.dst) == (parsed.src, parsed.dst)
    assert (ip.data.seq, ip.data.ack, ip.data.flags) == (parsed.seq, parsed.ack, parsed.flags)
    assert ip.data.data == parsed.payload
