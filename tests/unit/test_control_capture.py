"""The capture command: what is told of packets, to whom, and what is lost."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.control.aio import AsyncControlClient
from proxy.control.capture import StackCapture, peer_commands
from proxy.control.client import ControlError
from proxy.control.fields import CommandError
from proxy.control.packet_filter import PacketFilter
from proxy.control.server import ControlServer, Feed
from proxy.engine.demux import Demux
from proxy.seg import ACK, SYN, build_header
from proxy.tun.pcap import INBOUND, OUTBOUND
from proxy.tun.tap import Show, TapDevice
from proxy.wire.head import Head, parse_head
from proxy.wire.mptcp_options import MpJoinSyn

HOME, LAN, GATEWAY = b"\xc6\x12\x5c\x0a", b"\xc0\xa8\x4d\x02", b"\xcb\x00\x71\x0a"
JOIN = MpJoinSyn(False, 2, 0x01020304, b"abcd").build()


def packet(src: bytes, dst: bytes, flags: int = ACK, options: bytes = b"", size: int = 0) -> bytes:
    header = build_header(src, dst, 40001, 8803, 7, 9, flags, 500, options, size, 0)
    return header + bytes(size)


def head(flags: int = ACK, options: bytes = b"") -> Head:
    found = parse_head(packet(HOME, GATEWAY, flags, options)[10:])
    assert found is not None
    return found


class Tap:
    """Stands for the runtime, and for the stack's one attribute that is asked."""

    def __init__(self) -> None:
        self.show: Show | None = None
        self.demux = Demux()

    def tap(self, show: Show | None) -> None:
        self.show = show

    def pass_(self, data: bytes, direction: int) -> None:
        if self.show is not None:
            self.show([data], direction)


@pytest.fixture
def tap() -> Tap:
    return Tap()


@pytest_asyncio.fixture
async def path(tap: Tap, tmp_path: Path) -> AsyncIterator[Path]:
    stack: Any = tap
    capture = StackCapture(stack, tap.tap, lambda: {HOME: "fibre"}, "lan", lambda: 5)
    server = ControlServer(tmp_path / "sock", dict, of_peer=peer_commands(capture))
    await server.start()
    yield tmp_path / "sock"
    await server.stop()


async def test_each_packet_is_told_with_its_interface_cut_to_the_snap_length(
    tap: Tap, path: Path
) -> None:
    async with AsyncControlClient(path) as client:
        reply = await client.request("capture", snap_length=120)
        assert reply == {"interfaces": ["lan", "fibre"], "snap-length": 120}
        data = packet(HOME, GATEWAY, size=5000)
        tap.pass_(data, OUTBOUND)
        tap.pass_(packet(LAN, GATEWAY), INBOUND)
        first, second = await anext(client.events()), await anext(client.events())
        assert first == {
            "version": 1, "event": "packet", "time": 5, "interface": "fibre", "direction": "out",
            "length": 5040, "data": base64.b64encode(data[10:130]).decode(),
        }  # fmt: skip
        assert (second["interface"], second["direction"]) == ("lan", "in")


async def test_nothing_is_tapped_but_while_somebody_captures(tap: Tap, path: Path) -> None:
    async with AsyncControlClient(path) as client:
        assert tap.show is None
        await client.request("capture")
        assert tap.show is not None
        with pytest.raises(ControlError, match="one can at a time"):
            await client.request("capture")
        assert await client.request("capture-stop") == {"lost": 0}
        assert tap.show is None
        with pytest.raises(ControlError, match="no capture"):
            await client.request("capture-stop")
        await client.request("capture")
    async with AsyncControlClient(path) as other:
        for _ in range(100):
            if tap.show is None:
                break
            await other.status()
    assert tap.show is None, "whoever hangs up captures no more"


async def test_a_wrong_request_leaves_nothing_tapped(tap: Tap, path: Path) -> None:
    async with AsyncControlClient(path) as client:
        for wrong in ({"interfaces": ["dsl"]}, {"filter": ["port"]}, {"snap_length": 10}):
            with pytest.raises(ControlError):
                await client.request("capture", **wrong)
        assert tap.show is None
        await client.request("capture")


async def test_only_interfaces_and_packets_that_were_asked_for_are_told(
    tap: Tap, path: Path
) -> None:
    async with AsyncControlClient(path) as client:
        await client.request("capture", interfaces=["fibre"], filter=["mp_join"])
        tap.pass_(packet(LAN, GATEWAY, SYN, JOIN), INBOUND)
        tap.pass_(packet(HOME, GATEWAY), OUTBOUND)
        tap.pass_(packet(HOME, GATEWAY, SYN, JOIN), OUTBOUND)
        event = await anext(client.events())
        assert base64.b64decode(event["data"])[33] == SYN


async def test_a_peer_that_does_not_read_loses_packets_and_is_told(tap: Tap) -> None:
    lines: list[bytes] = []

    class Full(Feed):
        def __init__(self) -> None:
            self.full = False

        def write(self, line: bytes) -> bool:
            if not self.full:
                lines.append(line)
            return not self.full

    stack: Any = tap
    feed = Full()
    peer = peer_commands(StackCapture(stack, tap.tap, dict, "lan"))(feed)
    commands: Any = peer.commands()
    await commands["capture"]({})
    feed.full = True
    for _ in range(3):
        tap.pass_(packet(LAN, GATEWAY), INBOUND)
    assert lines == []
    feed.full = False
    tap.pass_(packet(LAN, GATEWAY), INBOUND)
    assert b'"packets-lost","lost":3' in lines[0]
    assert b'"event":"packet"' in lines[1]
    feed.full = True
    tap.pass_(packet(LAN, GATEWAY), INBOUND)
    assert commands["capture-stop"]({}) == {"lost": 1}
    await asyncio.sleep(0)


def test_a_tapped_device_passes_everything_on_as_it_is() -> None:
    class Device:
        written: list[list[bytes | memoryview]] = []  # noqa: RUF012

        def read_batch(self, limit: int) -> list[bytes]:
            return [b"a" * 30, b"b" * 30][:limit]

        def write_batch(self, packets: list[list[bytes | memoryview]]) -> None:
            self.written += packets

        def fileno(self) -> int:
            return 3

        def close(self) -> None: ...

    seen: list[tuple[bytes, int]] = []
    below = Device()
    device = TapDevice(below, lambda packet, way: seen.append((b"".join(packet), way)))
    assert device.read_batch(1) == [b"a" * 30]
    device.write_batch([[b"head", memoryview(b"body")]])
    assert below.written == [[b"head", b"body"]]
    assert seen == [(b"a" * 30, INBOUND), (b"headbody", OUTBOUND)]


@pytest.mark.parametrize(
    ("words", "takes"),
    [
        ("", True),
        ("host 203.0.113.10", True),
        ("dst host 203.0.113.10 and src port 40001", True),
        ("src host 203.0.113.10", False),
        ("net 203.0.113.0/24", True),
        ("net 2001:db8::/32", False),
        ("not net 203.0.113.0/24", False),
        ("port 8803", True),
        ("port 8804", False),
        ("syn", True),
        ("not syn", False),
        ("mp_join", True),
        ("dss", False),
        ("mp_join port 8804", False),
    ],
)
def test_a_filter_takes_what_all_of_its_words_fit(words: str, takes: bool) -> None:
    assert PacketFilter(words.split()).takes(head(SYN, JOIN)) is takes


@pytest.mark.parametrize(
    "words", ["host", "host 10.0.0.0/8", "net x", "port 70000", "not", "or", "src", "src syn"]
)
def test_a_filter_that_makes_no_sense_is_refused(words: str) -> None:
    with pytest.raises(CommandError, match="filter"):
        PacketFilter(words.split())


def test_what_is_no_tcp_is_taken_without_a_filter_alone() -> None:
    assert PacketFilter([]).takes(None)
    assert not PacketFilter(["not", "syn"]).takes(None)


@pytest.mark.parametrize("data", [b"", b"\x45" * 19, b"\x60" * 39, b"\x45" + bytes(19)])
def test_stumps_have_no_head(data: bytes) -> None:
    assert parse_head(data) is None
