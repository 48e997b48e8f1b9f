"""The TUN device against the kernel's driver."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from proxy.errors import DeviceError
from proxy.seg import ACK, build_header, parse
from proxy.tun.device import QUEUE_LENGTH, TunDevice
from tests.lab.namespaces import Namespace, Namespaces
from tests.lab.net_host import arrived, await_packet, await_segment, header, packed

FROM, TO = packed("10.1.0.2"), packed("10.2.0.2")


@pytest.fixture(scope="module")
def bare() -> Iterator[Namespace]:
    """A namespace that forwards from 10.1.0.0/24 (tun1) to 10.2.0.0/24 (tun2)."""
    with Namespaces() as namespaces:
        namespace = namespaces.create("bare")
        namespace.sysctl("net.ipv4.ip_forward", 1)
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        yield namespace


def opened(namespace: Namespace, name: str, net: str, **options: int) -> TunDevice:
    """A device that is up and has a route."""
    with namespace.entered():
        device = TunDevice.open(name, **options)  # type: ignore[arg-type]
    namespace.run("ip", "link", "set", name, "up")
    namespace.run("ip", "route", "add", net, "dev", name)
    return device


@pytest.fixture
def pair(bare: Namespace) -> Iterator[tuple[TunDevice, TunDevice]]:
    first = opened(bare, "tun1", "10.1.0.0/24")
    second = opened(bare, "tun2", "10.2.0.0/24")
    yield first, second
    first.close()
    second.close()


def data(size: int, chunks: int = 1) -> list[bytes | memoryview]:
    """A super-segment of ``size`` octets in ``chunks`` buffers."""
    head = build_header(FROM, TO, 1000, 2000, 1, 1, ACK, 64000, b"", size, 1400)
    payload = memoryview(os.urandom(size))
    step = -(-size // chunks)
    return [head, *(payload[at : at + step] for at in range(0, size, step))]


def test_the_device_is_what_was_asked_for(bare: Namespace) -> None:
    with bare.entered():
        device = TunDevice.open("tun1", mtu=1400)
    try:
        shown = bare.run("ip", "-d", "link", "show", "tun1").stdout
        assert "mtu 1400" in shown
        assert "vnet_hdr on multi_queue" in shown
        assert f"qlen {QUEUE_LENGTH}" in shown
        assert device.name == "tun1"
        assert device.offload
        assert not os.get_blocking(device.fileno())
    finally:
        device.close()
    assert "tun1" not in bare.run("ip", "link").stdout


def test_a_super_segment_passes_whole(pair: tuple[TunDevice, TunDevice]) -> None:
    first, second = pair
    packet = data(60000)
    assert first.write(packet)
    segment = await_segment(second, lambda s: s.length > 0)
    assert bytes(segment.payload) == bytes(packet[1])
    assert segment.gso_size == 1400
    assert (first.counters.written_packets, second.counters.read_packets) == (1, 1)
    assert first.counters.written_bytes == second.counters.read_bytes == 60000 + 50


def test_the_largest_packet_that_ip_allows_passes(pair: tuple[TunDevice, TunDevice]) -> None:
    first, second = pair
    assert first.write(data(65535 - 40))
    assert await_segment(second, lambda s: s.length > 0).length == 65535 - 40


def test_more_buffers_than_one_system_call_takes_are_joined(
    pair: tuple[TunDevice, TunDevice],
) -> None:
    first, second = pair
    packet = data(12000, chunks=3000)
    assert len(packet) > 1024
    assert first.write(packet)
    segment = await_segment(second, lambda s: s.length > 0)
    assert bytes(segment.payload) == b"".join(packet[1:])


def test_reading_an_empty_device_gives_nothing(pair: tuple[TunDevice, TunDevice]) -> None:
    assert pair[0].read() is None


def test_without_offload_super_segments_are_split_and_complete(bare: Namespace) -> None:
    first = opened(bare, "tun1", "10.1.0.0/24", offload=False)
    second = opened(bare, "tun2", "10.2.0.0/24", offload=False)
    try:
        packet = data(14000)
        assert first.write(packet)
        segments = [await_segment(second, lambda s: s.length > 0) for _ in range(10)]
        assert [segment.length for segment in segments] == [1400] * 10
        assert b"".join(segment.payload for segment in segments) == bytes(packet[1])
        assert first.counters.written_packets == 1
    finally:
        first.close()
        second.close()


def test_without_offload_what_is_not_tcp_passes(bare: Namespace) -> None:
    first = opened(bare, "tun1", "10.1.0.0/24", offload=False)
    second = opened(bare, "tun2", "10.2.0.0/24")
    try:
        head = bytearray(build_header(FROM, TO, 7, 7, 0, 0, 0, 0, b"", 0, 0)[:30])
        head[:10] = bytes(10)
        head[19] = 17  # UDP; its ports and length are what follows
        udp = bytes((0, 53, 0, 53, 0, 20, 0, 0)) + bytes(12)
        head[20:22] = bytes(2)
        total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(10, 30, 2))
        head[20:22] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
        assert first.write([bytes(head), udp])
        assert await_packet(second, lambda p: p[19] == 17, "UDP")[30:] == udp
    finally:
        first.close()
        second.close()


def test_a_malformed_packet_is_counted(pair: tuple[TunDevice, TunDevice]) -> None:
    first, _ = pair
    assert not first.write([b"\x01\x01\x00"])
    assert not first.write([bytes(10) + b"\x00" * 40])
    assert first.counters.rejected == 2


def test_an_interface_that_is_down_is_counted(
    bare: Namespace, pair: tuple[TunDevice, TunDevice]
) -> None:
    first, _ = pair
    bare.run("ip", "link", "set", "tun1", "down")
    assert not first.write(data(100))
    assert first.counters.down == 1
    assert first.read() is None


def test_an_interface_that_vanished_is_an_error(
    bare: Namespace, pair: tuple[TunDevice, TunDevice]
) -> None:
    first, _ = pair
    bare.run("ip", "link", "del", "tun1")
    with bare.entered():
        with pytest.raises(DeviceError, match="tun1: the interface is gone"):
            first.read()
        with pytest.raises(DeviceError, match="tun1: the interface is gone"):
            first.write(data(100))


def test_a_closed_device_is_an_error(pair: tuple[TunDevice, TunDevice]) -> None:
    first, _ = pair
    first.close()
    first.close()
    with pytest.raises(DeviceError, match="closed"):
        first.read()


def test_each_queue_is_a_device(bare: Namespace) -> None:
    first = opened(bare, "tun1", "10.1.0.0/24")
    second = opened(bare, "tun2", "10.2.0.0/24", queues=2)
    try:
        (sibling,) = second.siblings
        for port in range(64):
            assert first.write(header(FROM, TO, 1000 + port, 80))
        ports = [
            {parse(packet).sport for packet in arrived(queue, lambda _: True)}
            for queue in (second, sibling)
        ]
        assert sorted(ports[0] | ports[1]) == list(range(1000, 1064))
        assert all(ports)
    finally:
        first.close()
        second.close()
    assert "tun2" not in bare.run("ip", "link").stdout


def test_a_device_in_use_is_refused(bare: Namespace, pair: tuple[TunDevice, TunDevice]) -> None:
    with bare.entered(), pytest.raises(DeviceError, match="another process uses"):
        TunDevice.open("tun1")
    with bare.entered(), pytest.raises(DeviceError, match="no TUN device"):
        TunDevice.open("lo")


def test_a_persistent_device_made_beforehand_is_taken(bare: Namespace) -> None:
    bare.run(*["ip", "tuntap", "add", "tun3", "mode", "tun", "multi_queue", "vnet_hdr"])

    async def inside_a_loop() -> TunDevice:
        return TunDevice.open("tun3")

    try:
        with bare.entered():
            asyncio.run(inside_a_loop()).close()
        assert "tun3" in bare.run("ip", "link").stdout
    finally:
        bare.run("ip", "link", "del", "tun3")


def test_a_persistent_device_of_another_kind_is_refused(bare: Namespace) -> None:
    bare.run(*["ip", "tuntap", "add", "tun3", "mode", "tun"])
    try:
        with bare.entered(), pytest.raises(DeviceError, match="without multi_queue"):
            TunDevice.open("tun3")
    finally:
        bare.run("ip", "link", "del", "tun3")


def test_a_bad_mtu_leaves_no_device(bare: Namespace) -> None:
    with bare.entered(), pytest.raises(DeviceError, match="cannot set it up"):
        TunDevice.open("tun1", mtu=70000)
    assert "tun1" not in bare.run("ip", "link").stdout
