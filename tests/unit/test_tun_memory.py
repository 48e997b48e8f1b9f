"""Devices in memory, faults and recordings: what stands in for a TUN device in tests."""

from __future__ import annotations

import io
import select

import dpkt
import pytest

from proxy.errors import CodecError
from proxy.seg import ACK, build_header, parse
from proxy.tun.fault import FaultDevice, Faults
from proxy.tun.memory import MemoryDevice, memory_pair
from proxy.tun.pcap import PcapDevice, PcapWriter

ONE, TWO = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
SEED = 20261123


def packet(seq: int = 1, size: int = 100) -> list[bytes | memoryview]:
    head = build_header(ONE, TWO, 1000, 2000, seq, 1, ACK, 64000, b"", size, 1000)
    return [head, memoryview(seq.to_bytes(4, "big") * (size // 4 + 1))[:size]]


def everything(device: MemoryDevice | FaultDevice | PcapDevice) -> list[bytes]:
    return list(iter(device.read, None))


def sequence(packets: list[bytes]) -> list[int]:
    return [parse(each).seq for each in packets]


def test_what_one_end_writes_the_other_reads_in_order() -> None:
    one, two = memory_pair()
    for seq in (1, 2, 3):
        assert one.write(packet(seq))
    assert len(two) == 3
    assert sequence(everything(two)) == [1, 2, 3]
    assert two.read() is None
    assert one.read() is None


def test_a_super_segment_stays_whole_with_offload() -> None:
    one, two = memory_pair()
    one.write(packet(size=5000))
    (read,) = everything(two)
    assert parse(read).length == 5000
    assert read == b"".join(packet(size=5000))


def test_without_offload_a_super_segment_is_split_and_complete() -> None:
    one, two = memory_pair(offload=False)
    one.write(packet(size=5000))
    segments = [parse(each) for each in everything(two)]  # parse() verifies the checksums
    assert [segment.length for segment in segments] == [1000] * 5
    assert b"".join(segment.payload for segment in segments) == bytes(packet(size=5000)[1])


def test_a_full_device_drops_and_counts() -> None:
    one, two = memory_pair(capacity=2)
    assert [one.write(packet(seq)) for seq in (1, 2, 3)] == [True, True, False]
    assert one.counters.dropped == 1
    assert sequence(everything(two)) == [1, 2]


def test_a_closed_end_takes_nothing() -> None:
    one, two = memory_pair()
    two.close()
    assert not one.write(packet())
    assert one.counters.down == 1


def test_the_descriptor_is_readable_while_packets_wait() -> None:
    one, two = memory_pair()
    one.write(packet())

    def readable() -> bool:
        return bool(select.select([two.fileno()], [], [], 0)[0])

    assert readable()
    everything(two)
    assert not readable()
    one.write(packet())
    assert readable()
    two.close()


def faulty(**options: object) -> tuple[MemoryDevice, FaultDevice]:
    one, two = memory_pair(capacity=100_000)
    return one, FaultDevice(two, SEED, **options)  # type: ignore[arg-type]


def test_without_faults_nothing_changes() -> None:
    one, two = faulty()
    one.write(packet())
    two.write(packet(7))
    assert everything(two) == [b"".join(packet())]
    assert everything(one) == [b"".join(packet(7))]


@pytest.mark.parametrize(("loss", "low", "high"), [(0.1, 60, 140), (1.0, 1000, 1000)])
def test_packets_are_lost_as_often_as_asked(loss: float, low: int, high: int) -> None:
    one, two = faulty(inbound=Faults(loss=loss))
    for seq in range(1000):
        one.write(packet(seq))
    assert low <= 1000 - len(everything(two)) <= high
    assert low <= two.inbound.lost <= high


def test_the_same_seed_gives_the_same_faults() -> None:
    runs = []
    for _ in range(2):
        one, two = faulty(inbound=Faults(loss=0.2, corrupt=0.2, duplicate=0.2, reorder=0.2))
        for seq in range(200):
            one.write(packet(seq))
        runs.append(everything(two))
    assert runs[0] == runs[1]


def test_reordered_packets_come_later_and_none_is_missing() -> None:
    one, two = faulty(inbound=Faults(reorder=0.3, depth=2))
    for seq in range(100):
        one.write(packet(seq))
    seen = sequence(everything(two))
    assert seen != sorted(seen)
    assert sorted(seen) == list(range(100))


def test_packets_held_back_on_the_way_out_come_when_nothing_follows() -> None:
    one, two = faulty(outbound=Faults(reorder=1.0))
    two.write(packet(5))
    assert one.read() is None
    assert two.read() is None
    assert sequence(everything(one)) == [5]


def test_a_duplicate_is_the_same_packet() -> None:
    one, two = faulty(inbound=Faults(duplicate=1.0))
    one.write(packet())
    assert everything(two) == [b"".join(packet())] * 2


def test_damage_is_noticed_by_a_checksum() -> None:
    one, two = faulty(inbound=Faults(corrupt=1.0))
    for seq in range(50):
        one.write(packet(seq))
    for each in everything(two):
        with pytest.raises(CodecError):
            parse(each)
    assert two.inbound.corrupted == 50


def test_split_super_segments_suffer_one_by_one() -> None:
    one, two = faulty(inbound=Faults(loss=0.5), split=True)
    one.write(packet(size=50_000))
    assert 0 < len(everything(two)) < 50


def test_the_recording_is_what_passed_with_the_interface_name() -> None:
    one, two = memory_pair("tun7", "tun8")
    file = io.BytesIO()
    times = iter(range(1_700_000_000_000_000_000, 1_700_000_000_000_000_100, 7))
    device = PcapDevice(one, PcapWriter(file), clock=lambda: next(times))
    device.write(packet(1, size=2500))
    two.write(packet(9))
    assert len(everything(device)) == 1
    file.seek(0)
    reader = dpkt.pcapng.Reader(file)
    assert reader.datalink() == 101
    assert b"tun7" in file.getvalue()
    recorded = [(stamp, dpkt.ip.IP(data)) for stamp, data in reader]
    assert [ip.tcp.seq for _, ip in recorded] == [1, 1001, 2001, 9]
    assert [len(ip.tcp.data) for _, ip in recorded] == [1000, 1000, 500, 100]
    assert all(1_700_000_000 <= stamp < 1_700_000_001 for stamp, _ in recorded)


def test_the_recording_may_keep_super_segments() -> None:
    one, _ = memory_pair()
    file = io.BytesIO()
    PcapDevice(one, PcapWriter(file), split=False).write(packet(size=2500))
    file.seek(0)
    assert [len(data) for _, data in dpkt.pcapng.Reader(file)] == [2540]


def test_a_dropped_packet_is_not_recorded() -> None:
    one, _ = memory_pair(capacity=0)
    file = io.BytesIO()
    assert not PcapDevice(one, PcapWriter(file)).write(packet())
    file.seek(0)
    assert not list(dpkt.pcapng.Reader(file))
