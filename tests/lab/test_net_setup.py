"""What the proxy's host set-up takes, sends and keeps shut, packet by packet."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.net import forwarding
from proxy.net.monitor import Monitor
from proxy.net.setup import HostSetup
from proxy.net.sysctl import read_sysctl
from proxy.seg import ACK, RST, SYN, Segment
from proxy.tun.device import TunDevice
from tests.lab.namespaces import Namespaces
from tests.lab.net_host import (
    CLIENT4,
    CLIENT6,
    FAR4,
    FAR6,
    LAN4,
    LAN6,
    PATIENCE,
    PORT,
    PROXY_TUN,
    SERVER4,
    SERVER6,
    Home,
    applied,
    arrived,
    await_packet,
    await_segment,
    has_port,
    header,
    is_not_tcp,
    packed,
    ping,
    proxy_config,
    start_connect,
    tun,
)
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.lab("nft", "conntrack")

ports = itertools.count(40000)  # never used twice: what is closed lingers in TIME_WAIT
BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with Namespaces() as namespaces:
        yield Home(namespaces)


@pytest.fixture
def ready(home: Home, tmp_path: Path) -> Iterator[tuple[HostSetup, TunDevice]]:
    with applied(home, tmp_path) as both:
        yield both


@pytest.fixture
def device(ready: tuple[HostSetup, TunDevice]) -> TunDevice:
    return ready[1]


def server(version: int) -> str:
    return SERVER4 if version == 4 else SERVER6


def far(version: int) -> str:
    return FAR4 if version == 4 else FAR6


def engine(version: int, position: int) -> bytes:
    prefix = PROXY_TUN.prefix4 if version == 4 else PROXY_TUN.prefix6
    return prefix[10 + position].packed


# --- what is taken ---------------------------------------------------------------------------


@BOTH
def test_a_syn_from_the_lan_arrives_at_the_tun(home: Home, device: TunDevice, version: int) -> None:
    port = next(ports)
    with start_connect(home.client, server(version), port):
        segment = await_segment(device, lambda s: s.dport == port)
    assert segment.flags & SYN
    assert segment.dst == packed(server(version))
    assert segment.src == packed(CLIENT4 if version == 4 else CLIENT6)


@BOTH
def test_the_answer_of_the_engine_reaches_the_client(
    home: Home, device: TunDevice, version: int
) -> None:
    port = next(ports)
    with start_connect(home.client, server(version), port) as sock:
        answer(device, port)
        assert sock.getpeername()[:2] == (server(version), port)


def answer(device: TunDevice, port: int) -> Segment:
    """Takes the connection to ``port``; returns the client's SYN when it has acknowledged."""
    syn = await_segment(device, lambda s: s.dport == port)
    ours = header(syn.dst, syn.src, port, syn.sport, ack=syn.seq + 1, flags=SYN | ACK)
    assert device.write(ours)
    await_segment(device, lambda s: s.dport == port and not s.flags & SYN, "the client's ACK")
    return syn


@BOTH
def test_udp_from_the_lan_goes_its_own_way(home: Home, device: TunDevice, version: int) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        home.routers[0].socket(family, socket.SOCK_DGRAM) as receiver,
        home.client.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((server(version), 5353))
        receiver.settimeout(PATIENCE)
        sender.settimeout(PATIENCE)
        sender.sendto(b"question", (server(version), 5353))
        data, peer = receiver.recvfrom(100)
        receiver.sendto(b"answer", peer)
        assert (data, sender.recv(100)) == (b"question", b"answer")
    assert not arrived(device, is_not_tcp)


@BOTH
def test_icmp_from_the_lan_goes_its_own_way(home: Home, device: TunDevice, version: int) -> None:
    ping(home.client, server(version))
    assert not arrived(device, is_not_tcp)


@pytest.mark.parametrize("address", [LAN4, LAN6, "10.1.0.1", "2001:db8:1::1"])
def test_tcp_to_the_host_and_its_networks_is_not_taken(
    home: Home, device: TunDevice, address: str
) -> None:
    owner = home.host if address in (LAN4, LAN6) else home.routers[0]
    with owner.listen(address) as listener:
        port = listener.getsockname()[1]
        with home.client.connect(address, port, timeout=PATIENCE):
            pass
    assert not arrived(device, has_port(port))


def test_nothing_of_the_kernels_own_is_sent_to_the_tun(home: Home, device: TunDevice) -> None:
    ping(home.client, LAN6)  # time for what interfaces send when they come up
    assert not arrived(device, is_not_tcp)


@contextmanager
def router_already(home: Home) -> Iterator[None]:
    """The operator has switched forwarding on."""
    keys = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    for key in keys:
        home.host.sysctl(key, 1)
    try:
        yield
    finally:
        for key in keys:
            home.host.sysctl(key, 0)


@contextmanager
def operator_nat(home: Home, chain: str, *rules: str) -> Iterator[None]:
    """A nat table of the operator's own."""
    lines = "\n".join(rules)
    script = f"table inet operator {{\nchain c {{\ntype nat hook {chain};\n{lines}\n}}\n}}\n"
    home.host.run("nft", "-f", "-", stdin=script)
    try:
        yield
    finally:
        home.host.run("nft", "delete table inet operator")


@BOTH
def test_answers_to_a_forwarded_port_are_not_taken(
    home: Home, tmp_path: Path, version: int
) -> None:
    outside, inside, rule = {
        4: ("10.1.0.2", CLIENT4, f"dnat ip to {CLIENT4}:80"),
        6: ("2001:db8:1::2", CLIENT6, f"dnat ip6 to [{CLIENT6}]:80"),
    }[version]
    with (
        router_already(home),
        operator_nat(home, "prerouting priority -100", f'iifname "u1" tcp dport 8080 {rule}'),
        applied(home, tmp_path) as (_, device),
        home.client.listen(inside, 80),
    ):
        # From beyond the default route: what is directly attached would not be taken anyhow.
        with home.routers[0].socket(socket.AF_INET if version == 4 else socket.AF_INET6) as sock:
            sock.settimeout(PATIENCE)
            sock.bind((server(version), 0))
            sock.connect((outside, 8080))
        assert not arrived(device, has_port(80))


@BOTH
def test_a_blanket_masquerade_does_not_hide_the_client(
    home: Home, tmp_path: Path, version: int
) -> None:
    port = next(ports)
    with (
        router_already(home),
        operator_nat(home, "postrouting priority 100", "masquerade"),
        applied(home, tmp_path) as (_, device),
        start_connect(home.client, server(version), port),
    ):
        assert answer(device, port).src == packed(CLIENT4 if version == 4 else CLIENT6)


def test_connections_masqueraded_before_the_start_go_on(home: Home, tmp_path: Path) -> None:
    with (
        router_already(home),
        operator_nat(home, "postrouting priority 100", "masquerade"),
        home.routers[0].listen(SERVER4) as listener,
        home.client.connect(SERVER4, listener.getsockname()[1], timeout=PATIENCE) as sock,
        listener.accept()[0] as accepted,
        applied(home, tmp_path) as (_, device),
    ):
        accepted.settimeout(PATIENCE)
        sock.sendall(b"still here")
        assert accepted.recv(100) == b"still here"
        assert not arrived(device, has_port(sock.getpeername()[1]))


# --- what the engine sends -------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("position", [0, 1])
def test_an_uplinks_address_leaves_by_that_uplink_and_the_answer_returns(
    home: Home, device: TunDevice, version: int, position: int
) -> None:
    address, port = engine(version, position), next(ports)
    with home.routers[position].listen(far(version), PORT) as listener:
        listener.settimeout(PATIENCE)
        device.write(header(address, packed(far(version)), port, PORT, seq=7000))
        reply = await_segment(device, lambda s: s.dport == port)
        assert (reply.dst, reply.dport) == (address, port)
        assert (reply.flags, reply.ack) == (SYN | ACK, 7001)
        device.write(header(address, reply.src, port, PORT, seq=7001, ack=reply.seq + 1, flags=ACK))
        accepted, peer = listener.accept()
        accepted.close()
        number = position + 1
        assert peer[0] == (f"10.{number}.0.2" if version == 4 else f"2001:db8:{number}::2")


@contextmanager
def reverse_path_filter(home: Home, strictness: int) -> Iterator[None]:
    """On all interfaces, and on those to come."""
    keys = [f"net.ipv4.conf.{name}.rp_filter" for name in ("all", "lan0", "u1", "u2", "default")]
    for key in keys:
        home.host.sysctl(key, strictness)
    try:
        yield
    finally:
        for key in keys:
            home.host.sysctl(key, 0)


@pytest.mark.parametrize("strictness", [1, 2])
def test_reverse_path_filters_let_everything_of_ours_pass(
    home: Home, tmp_path: Path, strictness: int
) -> None:
    with reverse_path_filter(home, strictness), applied(home, tmp_path) as (_, device):
        for position in (0, 1):
            test_an_uplinks_address_leaves_by_that_uplink_and_the_answer_returns(
                home, device, 4, position
            )
        test_the_answer_of_the_engine_reaches_the_client(home, device, 4)


@pytest.mark.parametrize("strictness", [0, 1, 2])
def test_no_default_route_in_the_main_table_is_needed(
    home: Home, tmp_path: Path, strictness: int
) -> None:
    with reverse_path_filter(home, strictness), applied(home, tmp_path) as (_, device):
        home.host.run("ip", "route", "del", "default")
        try:
            test_the_answer_of_the_engine_reaches_the_client(home, device, 4)
            test_an_uplinks_address_leaves_by_that_uplink_and_the_answer_returns(home, device, 4, 1)
        finally:
            home.host.run("ip", "route", "add", "default", "via", "10.1.0.1")


@BOTH
def test_an_icmp_error_from_an_uplink_arrives_translated(
    home: Home, device: TunDevice, version: int
) -> None:
    address, nowhere = (
        engine(version, 1),
        packed("192.0.2.9" if version == 4 else "2001:db8:bad::9"),
    )
    family = [] if version == 4 else ["-6"]
    target = socket.inet_ntop(socket.AF_INET if version == 4 else socket.AF_INET6, nowhere)
    home.routers[1].run("ip", *family, "route", "replace", "unreachable", target)
    device.write(header(address, nowhere, next(ports), 443))
    protocol, quoted_source = (1, 10 + 20 + 8 + 12) if version == 4 else (58, 10 + 40 + 8 + 8)
    offset = 19 if version == 4 else 16
    packet = await_packet(device, lambda p: p[offset] == protocol, "an ICMP error")
    assert packet[quoted_source : quoted_source + len(address)] == address
    destination = 10 + (16 if version == 4 else 24)
    assert packet[destination : destination + len(address)] == address


def test_an_icmp_error_from_the_lan_about_a_taken_connection_arrives(
    home: Home, device: TunDevice
) -> None:
    port = next(ports)
    with start_connect(home.client, SERVER4, port):
        syn = answer(device, port)
        quoted = bytes(header(syn.dst, syn.src, port, syn.sport, flags=ACK)[0])[10:38]
        body = struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + quoted
        total = sum(struct.unpack(f"!{len(body) // 2}H", body))
        folded = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        with home.client.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.sendto(body[:2] + folded.to_bytes(2, "big") + body[4:], (SERVER4, 0))
        packet = await_packet(device, lambda p: p[19] == 1, "an ICMP error")
        assert packet[30:32] == b"\x03\x04"


def test_a_flushed_conntrack_table_does_not_reset_a_subflow(home: Home, device: TunDevice) -> None:
    address, port = engine(4, 0), next(ports)
    with home.routers[0].listen(FAR4, PORT) as listener:
        listener.settimeout(PATIENCE)
        device.write(header(address, packed(FAR4), port, PORT, seq=1))
        reply = await_segment(device, lambda s: s.dport == port)
        ours = {"seq": 2, "ack": reply.seq + 1, "flags": ACK}
        device.write(header(address, reply.src, port, PORT, **ours))
        accepted, _ = listener.accept()
        with accepted:
            home.host.run("conntrack", "-F")
            accepted.sendall(b"too early")  # not translated: nobody at the host may answer it
            ping(home.routers[0], "10.1.0.2")
            device.write(header(address, reply.src, port, PORT, **ours))
            segment = await_segment(device, lambda s: s.dport == port and s.length > 0)
            assert bytes(segment.payload) == b"too early"
            assert segment.dst == address


def test_an_uplink_that_is_down_is_no_way_out_by_another(
    home: Home, ready: tuple[HostSetup, TunDevice]
) -> None:
    setup, device = ready
    home.host.run("ip", "link", "set", "u2", "down")
    try:
        device.write(header(engine(4, 1), packed(FAR4), next(ports), PORT))
        packet = await_packet(device, lambda p: p[19] == 1, "an ICMP error")
        assert packet[30] == 3  # destination unreachable
    finally:
        home.host.run("ip", "link", "set", "u2", "up")
        home.host.run("ip", "addr", "replace", "2001:db8:2::2/64", "dev", "u2", "nodad")
        wait_for(home.has_settled, "link-local addresses of the host")
    with home.host.entered():
        assert any("default via 10.2.0.1 dev u2" in change for change in setup.refresh())
        assert setup.refresh() == []
    test_an_uplinks_address_leaves_by_that_uplink_and_the_answer_returns(home, device, 4, 1)
    test_an_uplinks_address_leaves_by_that_uplink_and_the_answer_returns(home, device, 6, 1)


@BOTH
def test_an_uplink_without_a_family_is_no_way_out_in_it(
    home: Home, tmp_path: Path, version: int
) -> None:
    other = replace(proxy_config().uplinks[1], next_hop=None, next_hop6=None)
    config = replace(proxy_config(), uplinks=(proxy_config().uplinks[0], other))
    with tun(home.host, PROXY_TUN) as device, home.host.entered():
        setup = HostSetup(config, tmp_path)
        setup.apply()
        try:
            assert (setup.uplinks[1].addr4, setup.uplinks[1].addr6) == (None, None)
            device.write(header(engine(version, 1), packed(far(version)), next(ports), PORT))
            packet = await_packet(device, is_not_tcp, "an ICMP error")
            assert packet[30 if version == 4 else 50] == (3 if version == 4 else 1)
        finally:
            setup.undo()


def test_a_new_default_route_is_followed(home: Home, ready: tuple[HostSetup, TunDevice]) -> None:
    setup, _ = ready
    with home.host.entered():
        monitor = Monitor()
        try:
            assert not monitor.drain()
            home.host.run("ip", "route", "replace", "default", "via", "10.1.0.7")
            assert monitor.drain()
            setup.refresh()
            assert setup.uplinks[0].next_hop4 == packed("10.1.0.7")
            home.host.run("ip", "route", "replace", "default", "via", "10.1.0.1")
            assert "default via 10.1.0.1 dev u1" in "".join(setup.refresh())
        finally:
            monitor.close()


# --- what stays shut -------------------------------------------------------------------------


@BOTH
def test_forwarding_that_was_off_stays_off_for_strangers(
    home: Home, device: TunDevice, version: int
) -> None:
    inside = CLIENT4 if version == 4 else CLIENT6
    ping(home.routers[0], "10.1.0.2")
    with home.client.listen(inside, 80), pytest.raises(TimeoutError):
        home.routers[0].connect(inside, 80, timeout=0.3)
    assert not arrived(device, has_port(80))


def test_nobody_outside_reaches_the_engine(home: Home, device: TunDevice) -> None:
    home.routers[0].run("ip", "route", "replace", "198.18.92.0/24", "via", "10.1.0.2")
    port = next(ports)
    with start_connect(home.routers[0], "198.18.92.10", port):
        ping(home.routers[0], "10.1.0.2")
    assert not arrived(device, has_port(port))
    assert "packets 0" not in home.host.run("nft", "list counter inet mptcp_proxy unwanted").stdout


def test_a_reset_of_the_engine_reaches_the_client(home: Home, device: TunDevice) -> None:
    port = next(ports)
    with start_connect(home.client, SERVER4, port) as sock:
        syn = await_segment(device, lambda s: s.dport == port)
        device.write(header(syn.dst, syn.src, port, syn.sport, ack=syn.seq + 1, flags=RST | ACK))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(PATIENCE * 1000)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_an_older_kernel_forwards_ipv6_and_keeps_its_learnt_default_routes(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(name: str) -> str | None:
        return None if name.endswith("force_forwarding") else read_sysctl(name)

    monkeypatch.setattr(forwarding, "read_sysctl", read)
    home.host.sysctl("net.ipv6.conf.u2.forwarding", 1)
    home.host.run(
        *("ip", "-6", "route", "add", "default", "via", "fe80::77", "dev", "u1"),
        *("proto", "ra", "metric", "2000"),
    )
    try:
        with applied(home, tmp_path) as (_, device):
            with home.host.entered():
                assert read_sysctl("net/ipv6/conf/u1/accept_ra") == "2"
            assert "fe80::77" in home.host.run("ip", "-6", "route").stdout
            test_the_answer_of_the_engine_reaches_the_client(home, device, 6)
            test_forwarding_that_was_off_stays_off_for_strangers(home, device, 6)
    finally:
        home.host.run("ip", "-6", "route", "del", "default", "via", "fe80::77", "dev", "u1")
        home.host.sysctl("net.ipv6.conf.u2.forwarding", 0)
