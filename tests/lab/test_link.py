"""The link emulator keeps its promises: what it delays, drops and limits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.link import Link, LinkSpec, Shape
from tests.lab.namespaces import Namespace, Namespaces
from tests.lab.probe import round_trips
from tests.lab.topology import Configurator
from tests.lab.waiting import wait_for

A4, A6, B4, B6 = "10.9.0.1", "2001:db8:9::1", "10.9.0.2", "2001:db8:9::2"
HEADERS = 28  # IPv4 and UDP
SO_RCVBUFFORCE = 33  # not in the socket module


class Ends:
    """Two namespaces with one link; ``send`` makes UDP datagrams from a to b."""

    def __init__(self, namespaces: Namespaces) -> None:
        self.namespaces = namespaces
        self.a = namespaces.create("a")
        self.b = namespaces.create("b")
        self.receiver = self.b.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender = self.a.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def join(self, spec: LinkSpec) -> Link:
        link = Link(self.a, "l0", self.b, "l0", spec)
        for namespace, four, six in ((self.a, A4, A6), (self.b, B4, B6)):
            with Configurator(namespace) as configurator:
                configurator.up("l0", f"{four}/24", f"{six}/64")
        self.receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.receiver.bind((B4, 9999))
        self.sender.connect((B4, 9999))
        link.statistics(reset=True)
        return link

    def send(self, count: int, size: int = 1472) -> None:
        for number in range(count):
            self.sender.send(number.to_bytes(4, "big").ljust(size, b"\0"))

    def received(self) -> list[int]:
        numbers = []
        self.receiver.setblocking(False)
        while True:
            try:
                numbers.append(int.from_bytes(self.receiver.recv(65536)[:4], "big"))
            except BlockingIOError:
                return numbers


@pytest.fixture
def ends() -> Iterator[Ends]:
    with Namespaces() as namespaces:
        both = Ends(namespaces)
        yield both
        both.receiver.close()
        both.sender.close()


def settle(link: Link, count: int, *, within: float = 20.0) -> dict[str, int]:
    """Waits until each of ``count`` packets has come out of ``up`` or was dropped."""

    def done() -> dict[str, int] | None:
        up = link.statistics()["up"]
        gone = sum(value for key, value in up.items() if key.startswith("lost_"))
        return up if up["packets_out"] + gone >= count else None

    return wait_for(done, f"{count} packets through the link", within=within)


@pytest.mark.parametrize(("mbit", "rtt_ms"), [(50, 20), (20, 60), (300, 10), (10, 200)])
@pytest.mark.parametrize("target", [B4, B6])
def test_delay_is_accurate_to_a_millisecond(
    ends: Ends, mbit: float, rtt_ms: float, target: str
) -> None:
    ends.join(LinkSpec.symmetric(mbit, rtt_ms))
    best = min(round_trips(ends.a, target, count=15, interval=0.005))
    assert rtt_ms / 1e3 <= best + 0.0003
    assert best <= rtt_ms / 1e3 + 0.001


@pytest.mark.parametrize("mbit", [5, 50, 300])
def test_rate_is_accurate_to_five_percent(ends: Ends, mbit: float) -> None:
    """A burst leaves as fast as the rate says, by the emulator's own time stamps."""
    link = ends.join(LinkSpec(down=Shape(), up=Shape(rate=mbit * 1e6)))
    count = int(mbit * 1e6 / 8 / 1500)  # a second's worth
    ends.send(count)
    up = settle(link, count)
    assert up["packets_out"] == count
    measured = up["bytes_out"] * 8e9 / (up["last_out"] - up["first_in"])
    assert measured == pytest.approx(mbit * 1e6, rel=0.05)


def test_rate_changes_while_packets_wait(ends: Ends) -> None:
    link = ends.join(LinkSpec(down=Shape(), up=Shape(rate=1e6)))
    ends.send(500)  # six seconds at the first rate
    link.shape(up=Shape(rate=100e6))
    up = settle(link, 500, within=4)
    assert (up["last_out"] - up["first_in"]) < 3e9


def test_loss_is_the_same_for_the_same_seed(ends: Ends) -> None:
    link = ends.join(LinkSpec(down=Shape(), up=Shape(loss=0.1, seed=7)))
    arrived = []
    for _ in range(2):
        link.shape(up=Shape(loss=0.1, seed=7))
        link.statistics(reset=True)
        ends.send(1000, size=100)
        up = settle(link, 1000)
        arrived.append(ends.received())
        assert len(arrived[-1]) == 1000 - up["lost_random"]
    assert arrived[0] == arrived[1]
    assert 50 < 1000 - len(arrived[0]) < 160


def test_queue_drops_its_tail_when_full(ends: Ends) -> None:
    link = ends.join(LinkSpec(down=Shape(), up=Shape(rate=10e6, queue=15000)))
    ends.send(60)
    up = settle(link, 60)
    assert up["queue_bytes_peak"] <= 15000
    assert up["lost_queue"] > 0
    numbers = ends.received()
    assert numbers[:10] == list(range(10))
    assert numbers == sorted(numbers)


def test_cut_swallows_what_is_under_way_and_restore_ends_it(ends: Ends) -> None:
    link = ends.join(LinkSpec(down=Shape(), up=Shape(delay=0.2)))
    ends.send(5)
    wait_for(lambda: link.statistics()["up"]["packets_in"] == 5, "five packets under way")
    link.cut("up")
    ends.send(5)
    assert settle(link, 10)["lost_cut"] == 10
    link.restore("up")
    link.statistics(reset=True)
    ends.send(5)
    settle(link, 5)
    assert ends.received() == [0, 1, 2, 3, 4]


def test_cut_in_one_direction_leaves_the_other_open(ends: Ends) -> None:
    link = ends.join(LinkSpec(down=Shape(), up=Shape()))
    link.cut("down")
    ends.send(3)
    assert settle(link, 3)["packets_out"] == 3


def test_jitter_keeps_the_order_unless_told_otherwise(ends: Ends) -> None:
    shape = Shape(delay=0.03, jitter=0.02)
    link = ends.join(LinkSpec(down=Shape(), up=shape))
    ends.send(200, size=100)
    settle(link, 200)
    assert ends.received() == list(range(200))
    link.shape(up=replace(shape, reorder=True))
    link.statistics(reset=True)
    ends.send(200, size=100)
    settle(link, 200)
    numbers = ends.received()
    assert numbers != list(range(200))
    assert sorted(numbers) == list(range(200))


def test_packets_above_the_silent_limit_vanish(ends: Ends) -> None:
    link = ends.join(LinkSpec(down=Shape(), up=Shape(max_packet=1400)))
    ends.send(4, size=1400 - HEADERS)
    ends.send(4, size=1401 - HEADERS)
    up = settle(link, 8)
    assert (up["packets_out"], up["lost_mtu"]) == (4, 4)


def send_stream(sender: Namespace, listener: socket.socket, address: str, total: int) -> int:
    """A TCP stream through the kernels; returns how many bytes arrived."""
    with sender.connect(address, listener.getsockname()[1]) as outgoing:
        incoming, _ = listener.accept()
        with incoming:
            incoming.settimeout(20)
            outgoing.setblocking(False)
            sent = got = 0
            chunk = bytes(1 << 16)
            while got < total:
                if sent < total:
                    try:
                        sent += outgoing.send(chunk[: total - sent])
                    except BlockingIOError:
                        pass
                    else:
                        continue
                got += len(incoming.recv(1 << 20))
            return got


@pytest.mark.parametrize("gro", [False, True])
def test_receiver_merges_only_with_gro(ends: Ends, gro: bool) -> None:
    spec = LinkSpec.symmetric(100, 10, gro=gro)
    ends.join(spec)
    before = ends.b.nstat()
    with ends.b.listen(B4) as listener:
        assert send_stream(ends.a, listener, B4, 4 << 20) == 4 << 20
    after = ends.b.nstat()
    packets = after["IpInReceives"] - before["IpInReceives"]
    bytes_each = (4 << 20) / packets
    print(f"gro {gro}: {bytes_each:.0f} bytes a packet")
    assert bytes_each > 1800 if gro else bytes_each < 1460
