"""What an offloading device does: checksums completed, GSO split, GRO merge."""

from __future__ import annotations

import random
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
    NO_VIRTIO,
    tcp_packet,
    virtio,
)

FAMILIES = pytest.mark.parametrize(("src", "dst"), [(A4, B4), (A6, B6)], ids=["v4", "v6"])
TS = bytes.fromhex("0101080a0000000700000009")
DSS = bytes.fromhex("1e16200d77cd2e794291fc58c280c909000000010fa00101")
DATA = bytes(range(256)) * 550


def super_segment(
    seg: ModuleType, src: bytes, dst: bytes, size: int = 4000, mss: int = 1400, **fields: Any
) -> bytes:
    values = {"seq": 2**32 - 2000, "ack": 9, "flags": 16, "tos": 0, "ident": 65535} | fields
    header: bytes = seg.build_header(
        src,
        dst,
        1234,
        80,
        values["seq"],
        values["ack"],
        values["flags"],
        512,
        TS + DSS,
        size,
        mss,
        values["tos"],
        64,
        values["ident"],
    )
    return header + DATA[:size]


@FAMILIES
def test_finished_checksum_is_right(seg: ModuleType, src: bytes, dst: bytes) -> None:
    packet = super_segment(seg, src, dst, 1399)
    finished = seg.finish_checksum(packet)
    assert finished[:10] == NO_VIRTIO
    expected = tcp_packet(
        DATA[:1399],
        TS + DSS,
        src=src,
        dst=dst,
        seq=2**32 - 2000,
        ack=9,
        ident=65535,
    )
    assert finished == expected


def test_finished_checksum_of_a_gso_packet_keeps_it_gso(seg: ModuleType) -> None:
    packet = super_segment(seg, A4, B4)
    finished = seg.finish_checksum(packet)
    assert finished[:10] == bytes((0, 1)) + packet[2:6] + bytes(4)
    assert seg.parse(finished).length == 4000


def test_packet_that_needs_no_checksum_stays_as_it_is(seg: ModuleType) -> None:
    for packet in (b"", NO_VIRTIO, tcp_packet(b"x", device=virtio(DATA_VALID)), b"\0\0"):
        assert seg.finish_checksum(packet) is packet


def test_checksum_beyond_the_packet_is_refused(seg: ModuleType) -> None:
    packet = tcp_packet(b"")
    for start in (25, 40, 41, 65535):
        with pytest.raises(CodecError):
            seg.finish_checksum(virtio(NEEDS_CSUM, start=start) + packet[10:])
    with pytest.raises(CodecError):
        seg.finish_checksum(bytes((NEEDS_CSUM, 0)))


@FAMILIES
def test_split_packets_are_right(seg: ModuleType, src: bytes, dst: bytes) -> None:
    packets = seg.gso_split(super_segment(seg, src, dst, flags=0x99, tos=2))  # CWR PSH FIN ACK
    flags = (0x90, 0x10, 0x19)
    assert packets == [
        tcp_packet(
            DATA[at : min(at + 1400, 4000)],
            TS + DSS,
            src=src,
            dst=dst,
            seq=(2**32 - 2000 + at) % 2**32,
            ack=9,
            flags=flags[count],
            tos=2,
            ident=(65535 + count) % 65536,
        )
        for count, at in enumerate(range(0, 4000, 1400))
    ]


@FAMILIES
def test_dpkt_finds_the_split_checksums_right(seg: ModuleType, src: bytes, dst: bytes) -> None:
    for packet in seg.gso_split(super_segment(seg, src, dst)):
        ip = dpkt.ip.IP(packet[10:]) if len(src) == 4 else dpkt.ip6.IP6(packet[10:])
        before = ip.data.sum
        ip.data.sum = 0
        if len(src) == 4:
            ip.sum = 0
        assert bytes(ip) == packet[10:]  # dpkt fills in sums of 0
        assert ip.data.sum in (0, before)


def test_packet_that_is_not_gso_comes_back_alone(seg: ModuleType) -> None:
    (packet,) = seg.gso_split(super_segment(seg, A4, B4, 1400))
    assert packet == seg.finish_checksum(super_segment(seg, A4, B4, 1400))
    icmp = bytes((DATA_VALID,)) + bytes(9) + b"\x45no TCP at all"
    assert seg.gso_split(icmp) == [NO_VIRTIO + icmp[10:]]
    assert icmp[0] == DATA_VALID


def test_gso_packet_of_exact_multiple_has_no_empty_tail(seg: ModuleType) -> None:
    packets = seg.gso_split(super_segment(seg, A4, B4, 2800))
    assert [seg.parse(packet).length for packet in packets] == [1400, 1400]


@pytest.mark.parametrize("packet", [b"", bytes(9), virtio(1, 1, 1400), virtio(1, 3, 14) + DATA])
def test_gso_packet_that_does_not_parse_is_refused(seg: ModuleType, packet: bytes) -> None:
    with pytest.raises(CodecError):
        seg.gso_split(packet)


@FAMILIES
@pytest.mark.parametrize("size", [1401, 4000, 14000, 62000])
def test_merge_is_the_inverse_of_split(seg: ModuleType, src: bytes, dst: bytes, size: int) -> None:
    packet = super_segment(seg, src, dst, size, flags=0x98)
    assert seg.gro_merge(seg.gso_split(packet)) == [packet]


def run_of(count: int, size: int = 100, **fields: Any) -> list[bytes]:
    """Packets of one flow that follow each other."""
    return [
        tcp_packet(DATA[at : at + size], TS, **({"seq": 1000 + at} | fields))
        for at in range(0, count * size, size)
    ]


def lengths(seg: ModuleType, packets: list[bytes]) -> list[tuple[int, int]]:
    parsed = [seg.parse(packet) for packet in packets]
    return [(p.length, p.gso_size) for p in parsed]


def test_merge_of_nothing(seg: ModuleType) -> None:
    assert seg.gro_merge([]) == []


def test_merged_packet_asks_for_a_checksum(seg: ModuleType) -> None:
    (merged,) = seg.gro_merge(run_of(3))
    assert merged[0] == NEEDS_CSUM
    assert seg.finish_checksum(merged)[10:] == tcp_packet(DATA[:300], TS)[10:]


def test_single_packet_comes_back_as_the_same_object(seg: ModuleType) -> None:
    packets = [tcp_packet(b"x"), tcp_packet(b"y", sport=9), b"no packet", tcp_packet()]
    merged = seg.gro_merge(packets)
    assert all(a is b for a, b in zip(merged, packets, strict=True))


def test_flows_that_alternate_are_both_merged(seg: ModuleType) -> None:
    one, two, three = run_of(3), run_of(3, sport=9), run_of(3, src=A6, dst=B6)
    mixed = [packet for trio in zip(one, two, three, strict=True) for packet in trio]
    merged = seg.gro_merge(mixed)
    assert lengths(seg, merged) == [(300, 100)] * 3
    assert [seg.parse(packet).sport for packet in merged] == [1234, 9, 1234]


def test_shorter_segment_is_joined_and_ends_the_run(seg: ModuleType) -> None:
    packets = [
        tcp_packet(DATA[:100], seq=1000),
        tcp_packet(DATA[100:150], seq=1100),
        tcp_packet(DATA[150:200], seq=1150),
    ]
    assert lengths(seg, seg.gro_merge(packets)) == [(150, 100), (50, 0)]


def test_longer_segment_begins_anew(seg: ModuleType) -> None:
    packets = [tcp_packet(DATA[:50], seq=1000), tcp_packet(DATA[:60], seq=1050)]
    assert seg.gro_merge(packets) == packets


@pytest.mark.parametrize("flag", [1, 8])
def test_push_and_fin_are_joined_and_end_the_run(seg: ModuleType, flag: int) -> None:
    packets = run_of(4)
    packets[1] = tcp_packet(DATA[100:200], TS, seq=1100, flags=16 | flag)
    merged = seg.gro_merge(packets)
    assert lengths(seg, merged) == [(200, 100), (200, 100)]
    assert [seg.parse(packet).flags for packet in merged] == [16 | flag, 16]


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": 1101},
        {"seq": 1099},
        {"ack": 2001},
        {"window": 513},
        {"tos": 3},
        {"ttl": 63},
        {"fragment": 0},
        {"flags": 16 | 64},
        {"flags": 16 | 128},
        {"flags": 16 | 32},
        {"flags": 16 | 4},
        {"flags": 16 | 2},
        {"flags": 0},
        {"urgent": 1},
        {"options": TS[:-1] + b"\x0a"},
        {"options": TS + b"\x01" * 4},
        {"ip_options": b"\x01" * 4},
        {"dport": 81},
        {"checksum": 0x1234},
    ],
    ids=str,
)
def test_segment_that_differs_is_not_joined(seg: ModuleType, changed: dict[str, Any]) -> None:
    first = tcp_packet(DATA[:100], TS, seq=1000)
    fields = {"options": TS, "seq": 1100} | changed
    second = tcp_packet(DATA[100:200], fields.pop("options"), **fields)
    assert seg.gro_merge([first, second]) == [first, second]


@pytest.mark.parametrize(
    "changed",
    [{"tos": 3}, {"ttl": 63}, {"first_extension": 60, "extensions": bytes((6,)) + bytes(7)}],
)
def test_ipv6_segment_that_differs_is_not_joined(seg: ModuleType, changed: dict[str, Any]) -> None:
    first = tcp_packet(DATA[:100], src=A6, dst=B6, seq=1000)
    second = tcp_packet(DATA[:100], src=A6, dst=B6, seq=1100, **changed)
    assert seg.gro_merge([first, second]) == [first, second]


def test_nothing_of_a_flow_overtakes(seg: ModuleType) -> None:
    one, two, three = run_of(3)
    pure_ack = tcp_packet(b"", TS, seq=1200)
    assert seg.gro_merge([one, two, pure_ack, three])[1:] == [pure_ack, three]


def test_super_segments_are_joined_too(seg: ModuleType) -> None:
    device = virtio(NEEDS_CSUM, 1, 100, 20)
    packets = [
        tcp_packet(DATA[:300], seq=1000, device=device),
        tcp_packet(DATA[300:400], seq=1300),
        tcp_packet(DATA[400:750], seq=1400, device=device),
        tcp_packet(DATA[750:800], seq=1750),
    ]
    assert lengths(seg, seg.gro_merge(packets)) == [(750, 100), (50, 0)]


def test_super_segment_of_another_size_is_not_joined(seg: ModuleType) -> None:
    packets = [
        tcp_packet(DATA[:300], seq=1000, device=virtio(NEEDS_CSUM, 1, 100, 20)),
        tcp_packet(DATA[300:500], seq=1300, device=virtio(NEEDS_CSUM, 1, 50, 20)),
    ]
    assert seg.gro_merge(packets) == packets


@FAMILIES
def test_merged_packet_is_at_most_65535_bytes(seg: ModuleType, src: bytes, dst: bytes) -> None:
    merged = seg.gro_merge(run_of(100, 1400, src=src, dst=dst))
    assert max(len(packet) - 10 for packet in merged) <= 65535
    assert lengths(seg, merged)[0][0] == (65535 - (52 if len(src) == 4 else 72)) // 1400 * 1400
    assert sum(length for length, _ in lengths(seg, merged)) == 140000


def test_any_traffic_keeps_its_bytes_and_its_order(seg: ModuleType) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    packets = []
    expected: dict[int, list[bytes]] = {1: [], 2: [], 3: []}
    seqs = dict.fromkeys(expected, 1000)
    for _ in range(400):
        port = rng.choice(list(expected))
        data = DATA[: rng.choice((0, 10, 10, 10, 10, 7, 11))]
        flags = rng.choice((16, 16, 16, 16, 24, 144))
        packets.append(tcp_packet(data, sport=port, seq=seqs[port], flags=flags))
        expected[port].append(data)
        seqs[port] += len(data) + rng.choice((0, 0, 0, 1))
    merged = seg.gro_merge(packets)
    assert len(merged) < len(packets)
    back = [seg.parse(split) for packet in merged for split in seg.gso_split(packet)]
    for port, chunks in expected.items():
        assert b"".join(bytes(p.payload) for p in back if p.sport == port) == b"".join(chunks)
