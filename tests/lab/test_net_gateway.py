"""The gateway's host set-up, and the whole chain from one TUN to the other."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.errors import DeviceError
from proxy.net.nft import Listener
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.seg import ACK, SYN, build_header
from tests.lab.namespaces import Namespace, Namespaces
from tests.lab.net_host import (
    FAR4,
    FAR6,
    GATEWAY_TUN,
    PATIENCE,
    PORT,
    PROXY_TUN,
    SERVER4,
    arrived,
    assert_unchanged,
    await_segment,
    connect_veth,
    gateway_config,
    has_port,
    header,
    packed,
    ping,
    proxy_config,
    snapshot,
    start_connect,
    tun,
)
from tests.lab.waiting import wait_for

if TYPE_CHECKING:
    from proxy.tun.device import TunDevice

pytestmark = pytest.mark.lab("nft", "conntrack")

SECOND4 = "203.0.113.11"
ADDRESSES = (FAR4, FAR6, SECOND4)
ENGINES = ("198.18.93.2", "fd6d:7074:6371::2", "198.18.93.3")


class Span:
    """``near`` has two uplinks that lead to ``far``, which has its addresses on loopback."""

    def __init__(self, namespaces: Namespaces) -> None:
        self.near = namespaces.create("near")
        self.far = namespaces.create("far")
        for namespace in (self.near, self.far):
            namespace.sysctl("net.ipv6.conf.default.dad_transmits", 0)
            namespace.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.near.run(*["ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1"])
        self.near.run(*["ip", "link", "set", "lan0", "up"])
        self.near.run(*["ip", "link", "set", "lan1", "up"])
        for number in (1, 2):
            connect_veth(
                self.near,
                f"u{number}",
                self.far,
                f"w{number}",
                (f"10.{number}.0.2/24", f"10.{number}.0.1/24"),
                (f"2001:db8:{number}::2/64", f"2001:db8:{number}::1/64"),
            )
        for address in ADDRESSES:
            self.far.run("ip", "addr", "add", address, "dev", "lo")
        for via in ("10.1.0.1", "2001:db8:1::1"):
            self.near.run("ip", "route", "add", "default", "via", via)
        wait_for(lambda: _settled(self.near, 4) and _settled(self.far, 2), "link-local addresses")


def _settled(namespace: Namespace, count: int) -> bool:
    lines = namespace.run("ip", "-6", "-o", "addr", "show", "scope", "link").stdout
    return len(lines.splitlines()) == count


@pytest.fixture(scope="module")
def span() -> Iterator[Span]:
    with Namespaces() as namespaces:
        yield Span(namespaces)


@contextmanager
def listening(
    span: Span, state: Path, *, offload: bool = True
) -> Iterator[tuple[GatewaySetup, TunDevice]]:
    """The gateway's set-up with its device; afterwards the host must be as it was."""
    before = snapshot(span.far)
    with tun(span.far, GATEWAY_TUN, offload=offload) as device:
        with span.far.entered():
            setup = GatewaySetup(gateway_config(*ADDRESSES), state)
            setup.clean_stale()
            setup.apply()
        try:
            yield setup, device
        finally:
            with span.far.entered():
                setup.undo()
    assert_unchanged(span.far, before)
    assert not list(state.glob("gateway*"))


@contextmanager
def proxying(span: Span, state: Path, *, offload: bool = True) -> Iterator[TunDevice]:
    """The proxy's set-up and device on the near host."""
    with tun(span.near, PROXY_TUN, offload=offload) as device:
        with span.near.entered():
            setup = HostSetup(proxy_config(), state)
            setup.apply()
        try:
            yield device
        finally:
            with span.near.entered():
                setup.undo()


@pytest.fixture
def gateway(span: Span, tmp_path: Path) -> Iterator[TunDevice]:
    with listening(span, tmp_path) as (_, device):
        yield device


@pytest.mark.parametrize(("address", "engine"), list(zip(ADDRESSES, ENGINES, strict=True)))
def test_a_connection_to_a_listening_address_reaches_its_engine_address(
    span: Span, gateway: TunDevice, address: str, engine: str
) -> None:
    with start_connect(span.near, address, PORT) as sock:
        sport = sock.getsockname()[1]
        syn = await_segment(gateway, lambda s: s.sport == sport)
        assert (syn.dst, syn.dport) == (packed(engine), PORT)
        gateway.write(header(syn.dst, syn.src, PORT, sport, ack=syn.seq + 1, flags=SYN | ACK))
        await_segment(gateway, lambda s: s.sport == sport and not s.flags & SYN)
        assert sock.getpeername()[:2] == (address, PORT)


def test_listeners_say_which_engine_address_stands_for_which_address(tmp_path: Path) -> None:
    listeners = GatewaySetup(gateway_config(*ADDRESSES), tmp_path).listeners
    assert listeners == tuple(
        Listener(packed(address), packed(engine), PORT)
        for address, engine in zip(ADDRESSES, ENGINES, strict=True)
    )


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_other_ports_stay_with_the_host(span: Span, gateway: TunDevice, address: str) -> None:
    with span.far.listen(address) as listener:
        port = listener.getsockname()[1]
        span.near.connect(address, port, timeout=PATIENCE).close()
    assert not arrived(gateway, has_port(port))


def test_what_is_not_translated_gets_no_answer_from_the_host(
    span: Span, gateway: TunDevice
) -> None:
    with start_connect(span.near, FAR4, PORT) as sock:
        sport = sock.getsockname()[1]
        syn = await_segment(gateway, lambda s: s.sport == sport)
        gateway.write(header(syn.dst, syn.src, PORT, sport, ack=syn.seq + 1, flags=SYN | ACK))
        await_segment(gateway, lambda s: s.sport == sport and not s.flags & SYN)
        span.far.run("conntrack", "-F")
        # The engine speaks first: not translated, it must neither leave nor be remembered.
        gateway.write(header(syn.dst, syn.src, PORT, sport, seq=2, ack=syn.seq + 1, flags=ACK))
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"go on")
        segment = await_segment(gateway, lambda s: s.sport == sport and s.length > 0)
        assert (segment.dst, bytes(segment.payload)) == (packed(ENGINES[0]), b"go on")
        span.far.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
        try:
            span.far.run("conntrack", "-F")
            sock.sendall(b"not tracked")
            ping(span.near, FAR4)
            sock.sendall(b"still no RST")  # ECONNRESET here, had the host answered
        finally:
            span.far.sysctl("net.netfilter.nf_conntrack_tcp_loose", 1)


def test_nobody_reaches_the_engine_by_its_own_address(span: Span, gateway: TunDevice) -> None:
    span.near.run("ip", "route", "add", "198.18.93.0/24", "via", "10.1.0.1")
    try:
        with start_connect(span.near, ENGINES[0], PORT) as sock:
            sport = sock.getsockname()[1]
            ping(span.near, FAR4)
    finally:
        span.near.run("ip", "route", "del", "198.18.93.0/24")
    assert not arrived(gateway, has_port(sport))


def test_forwarding_that_was_off_stays_off_for_others(span: Span, gateway: TunDevice) -> None:
    span.near.run("ip", "route", "replace", "10.2.0.9", "via", "10.1.0.1")
    with start_connect(span.near, "10.2.0.9", 80):
        ping(span.near, FAR4)
    counter = span.far.run("nft", "list counter inet mptcp_gateway unwanted").stdout
    assert "packets 0" not in counter


def test_policy_routing_of_a_listening_address_holds_for_the_engine(
    span: Span, tmp_path: Path
) -> None:
    # The main table has no route to this client: answers can only go by table 77.
    span.near.run("ip", "addr", "add", "10.7.7.7/32", "dev", "lo")
    span.far.run("ip", "route", "add", "default", "via", "10.2.0.2", "table", "77")
    span.far.run("ip", "rule", "add", "from", SECOND4, "lookup", "77")
    try:
        with listening(span, tmp_path) as (_, device), span.near.socket() as sock:
            sock.bind(("10.7.7.7", 0))
            sport = sock.getsockname()[1]
            sock.setblocking(False)
            assert sock.connect_ex((SECOND4, PORT)) == errno.EINPROGRESS
            syn = await_segment(device, lambda s: s.sport == sport)
            device.write(header(syn.dst, syn.src, PORT, sport, ack=syn.seq + 1, flags=SYN | ACK))
            await_segment(device, lambda s: s.sport == sport and not s.flags & SYN)
            assert f"from {ENGINES[0]} lookup" not in span.far.run("ip", "rule").stdout
    finally:
        span.far.run("ip", "rule", "del", "from", SECOND4, "lookup", "77")
        span.far.run("ip", "route", "flush", "table", "77")
        span.near.run("ip", "addr", "del", "10.7.7.7/32", "dev", "lo")


def test_both_roles_run_on_one_host(span: Span, tmp_path: Path) -> None:
    before = snapshot(span.near)
    with tun(span.near, GATEWAY_TUN), proxying(span, tmp_path), span.near.entered():
        setup = GatewaySetup(gateway_config("10.1.0.2"), tmp_path)
        setup.clean_stale()
        assert "lookup 8811" in span.near.run("ip", "rule").stdout
        setup.apply()
        setup.undo()
        assert "lookup 8811" in span.near.run("ip", "rule").stdout
    assert_unchanged(span.near, before)


def test_a_second_gateway_is_refused(span: Span, gateway: TunDevice, tmp_path: Path) -> None:
    with span.far.entered(), pytest.raises(DeviceError, match="another mptcp-proxy runs"):
        GatewaySetup(gateway_config(FAR4), tmp_path).apply()


def super_segment(source: str, target: str, sport: int, size: int) -> list[bytes | memoryview]:
    """``size`` octets of payload in one piece, as the engine would send them."""
    payload = bytes(range(256)) * (size // 256 + 1)
    src, dst = packed(source), packed(target)
    head = build_header(src, dst, sport, PORT, 2, 1, ACK, 64000, b"", size, 1400)
    return [head, memoryview(payload)[:size]]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("offload", [True, False])
def test_super_segments_stay_whole_from_tun_to_tun(
    span: Span, gateway: TunDevice, tmp_path: Path, version: int, offload: bool
) -> None:
    address = FAR4 if version == 4 else FAR6
    engine = f"{PROXY_TUN.prefix4[10]}" if version == 4 else f"{PROXY_TUN.prefix6[10]}"
    sport, size = 41000 + version * 10 + offload, 46000
    with proxying(span, tmp_path, offload=offload) as device:
        device.write(header(packed(engine), packed(address), sport, PORT))
        syn = await_segment(gateway, lambda s: s.sport == sport)
        reply = header(syn.dst, syn.src, PORT, sport, seq=0, ack=2, flags=SYN | ACK)
        gateway.write(reply)
        await_segment(device, lambda s: s.dport == sport)
        assert device.write(super_segment(engine, address, sport, size))
        received = b""
        lengths = []
        while len(received) < size:
            segment = await_segment(gateway, lambda s: s.sport == sport and s.length > 0)
            received += bytes(segment.payload)
            lengths.append(segment.length)
        assert received == bytes(super_segment(engine, address, sport, size)[1])
        assert lengths == [size] if offload else max(lengths) == 1400


def test_without_offload_at_the_reader_segments_arrive_complete(span: Span, tmp_path: Path) -> None:
    with (
        listening(span, tmp_path, offload=False) as (_, far),
        proxying(span, tmp_path) as near,
    ):
        source = str(PROXY_TUN.prefix4[10])
        near.write(header(packed(source), packed(FAR4), 41100, PORT))
        syn = await_segment(far, lambda s: s.sport == 41100)
        far.write(header(syn.dst, syn.src, PORT, 41100, seq=0, ack=2, flags=SYN | ACK))
        await_segment(near, lambda s: s.dport == 41100)
        near.write(super_segment(source, FAR4, 41100, 14000))
        for _ in range(10):
            # parse() verifies the checksum of what does not say NEEDS_CSUM.
            segment = await_segment(far, lambda s: s.sport == 41100 and s.length > 0)
            assert segment.length == 1400


def test_an_uplinks_address_of_one_host_is_not_the_server(span: Span, gateway: TunDevice) -> None:
    with start_connect(span.near, SERVER4, PORT) as sock:
        sport = sock.getsockname()[1]
        ping(span.near, FAR4)
    assert not arrived(gateway, has_port(sport))
