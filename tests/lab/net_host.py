"""A host with a LAN and two uplinks, seen from its TUN: for the tests of ``proxy.net``.

    client eth0 ── lan0 host u1 ── wan0 router1
                             u2 ── wan0 router2

Each router has the far addresses on its loopback, so whoever is reached there came by that uplink.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import unified_diff
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.config import (
    ControlConfig,
    EgressConfig,
    GatewayConfig,
    GatewayPeer,
    LanConfig,
    ListenConfig,
    ProxyConfig,
    TunConfig,
    UplinkConfig,
)
from proxy.errors import CodecError
from proxy.net.setup import HostSetup
from proxy.seg import SYN, Segment, build_header, parse
from proxy.tun.device import TunDevice

if TYPE_CHECKING:
    from tests.lab.namespaces import Namespace, Namespaces
from tests.lab.waiting import wait_for

CLIENT4, CLIENT6 = "192.168.77.2", "2001:db8:77::2"
LAN4, LAN6 = "192.168.77.1", "2001:db8:77::1"
FAR4, FAR6 = "203.0.113.10", "2001:db8:113::10"
SERVER4, SERVER6 = "198.51.100.2", "2001:db8:51::2"
PORT = 8803
PATIENCE = 5.0  # seconds after which something that has to come is missed

PROXY_TUN = TunConfig(
    "mptcp-proxy", 1500, IPv4Network("198.18.92.0/24"), IPv6Network("fd6d:7074:6370::/64")
)
GATEWAY_TUN = TunConfig(
    "mptcp-gateway", 1500, IPv4Network("198.18.93.0/24"), IPv6Network("fd6d:7074:6371::/64")
)

_SNAPSHOT = """
ip rule; ip -6 rule
(ip -d route show table all; ip -d -6 route show table all) | sort
nft list ruleset
cd /proc/sys/net
grep -s . ipv4/ip_forward ipv4/conf/*/* ipv6/conf/*/* netfilter/nf_conntrack_tcp_*
true
"""


def packed(text: str) -> bytes:
    """A written address as octets."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def proxy_config(uplink6: bool = True) -> ProxyConfig:
    """LAN on lan0, uplinks on u1 (by its default route) and u2 (by its named routers)."""
    hop6 = packed("2001:db8:2::1") if uplink6 else None
    return ProxyConfig(
        lan=LanConfig(("lan0",)),
        uplinks=(
            UplinkConfig("fibre", "u1"),
            UplinkConfig("lte", "u2", packed("10.2.0.1"), hop6, slot=1),
        ),
        gateway=GatewayPeer(packed(FAR4), PORT, "home-1", bytes(32)),
        tun=PROXY_TUN,
        control=ControlConfig(Path("/nowhere")),
    )


def gateway_config(*addresses: str) -> GatewayConfig:
    """Listens on ``addresses``."""
    return GatewayConfig(
        listen=ListenConfig(tuple(packed(address) for address in addresses), PORT),
        clients=(),
        egress=EgressConfig(),
        tun=GATEWAY_TUN,
        control=ControlConfig(Path("/nowhere")),
    )


def connect_veth(
    one: Namespace, name: str, other: Namespace, peer: str, *addresses: tuple[str, str]
) -> None:
    """A veth pair with ``(here, there)`` addresses."""
    one.run("ip", "link", "add", name, "type", "veth", "peer", "name", peer, "netns", other.name)
    for here, there in addresses:
        dad = ["nodad"] if ":" in here else []
        one.run("ip", "addr", "add", here, "dev", name, *dad)
        other.run("ip", "addr", "add", there, "dev", peer, *dad)
    one.run("ip", "link", "set", name, "up")
    other.run("ip", "link", "set", peer, "up")


class Home:
    """The picture above."""

    def __init__(self, namespaces: Namespaces) -> None:
        self.client = namespaces.create("client")
        self.host = namespaces.create("host")
        self.routers = [namespaces.create("router1"), namespaces.create("router2")]
        for namespace in namespaces:
            namespace.sysctl("net.ipv6.conf.default.dad_transmits", 0)
            namespace.sysctl("net.ipv6.conf.default.accept_dad", 0)
        connect_veth(
            self.client,
            "eth0",
            self.host,
            "lan0",
            (f"{CLIENT4}/24", f"{LAN4}/24"),
            (f"{CLIENT6}/64", f"{LAN6}/64"),
        )
        for number, router in enumerate(self.routers, 1):
            router.sysctl("net.ipv4.ip_forward", 1)
            router.sysctl("net.ipv6.conf.all.forwarding", 1)
            connect_veth(
                self.host,
                f"u{number}",
                router,
                "wan0",
                (f"10.{number}.0.2/24", f"10.{number}.0.1/24"),
                (f"2001:db8:{number}::2/64", f"2001:db8:{number}::1/64"),
            )
            for address in (FAR4, FAR6, SERVER4, SERVER6):
                length = 128 if ":" in address else 32
                router.run("ip", "addr", "add", f"{address}/{length}", "dev", "lo")
            for net, via in (
                ("192.168.77.0/24", f"10.{number}.0.2"),
                ("2001:db8:77::/64", f"2001:db8:{number}::2"),
            ):
                router.run("ip", "route", "add", net, "via", via)
        wait_for(self.has_settled, "link-local addresses of the host")
        for via in (LAN4, LAN6):
            self.client.run("ip", "route", "add", "default", "via", via)
        for via in ("10.1.0.1", "2001:db8:1::1"):
            self.host.run("ip", "route", "add", "default", "via", via)

    def has_settled(self) -> bool:
        """Whether the kernel has added all that it adds by itself once a link has carrier."""
        lines = self.host.run("ip", "-6", "-o", "addr", "show", "scope", "link").stdout
        return len(lines.splitlines()) == 3


def snapshot(namespace: Namespace) -> str:
    """Rules, routes, nft and sysctls, as text that is equal while nothing has changed."""
    return namespace.run("sh", "-c", _SNAPSHOT).stdout


def assert_unchanged(namespace: Namespace, before: str) -> None:
    """Fails with the lines that differ from an earlier snapshot."""
    after = snapshot(namespace)
    if after != before:
        changes = unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        pytest.fail("\n".join(changes))


@contextmanager
def tun(namespace: Namespace, config: TunConfig, *, offload: bool = True) -> Iterator[TunDevice]:
    """The role's device, opened in ``namespace``."""
    with namespace.entered():
        device = TunDevice.open(config.name, mtu=config.mtu, offload=offload)
    try:
        yield device
    finally:
        device.close()


@contextmanager
def applied(home: Home, state: Path) -> Iterator[tuple[HostSetup, TunDevice]]:
    """The proxy's set-up with its device; afterwards the host must be as it was."""
    before = snapshot(home.host)
    with tun(home.host, PROXY_TUN) as device:
        with home.host.entered():
            setup = HostSetup(proxy_config(), state)
            setup.clean_stale()
            setup.apply()
        try:
            yield setup, device
        finally:
            with home.host.entered():
                setup.undo()
    assert_unchanged(home.host, before)
    assert not list(state.iterdir())


def await_packet(device: TunDevice, wanted: Callable[[bytes], bool], what: str) -> bytes:
    """The next packet that is ``wanted``; others are passed over."""
    poll = select.poll()
    poll.register(device.fileno(), select.POLLIN)
    while True:
        packet = device.read()
        if packet is None:
            assert poll.poll(PATIENCE * 1000), f"no packet came: {what}"
        elif wanted(packet):
            return packet


def await_segment(
    device: TunDevice, wanted: Callable[[Segment], bool], what: str = "a TCP segment"
) -> Segment:
    """The next TCP segment that is ``wanted``."""
    found: list[Segment] = []

    def check(packet: bytes) -> bool:
        try:
            segment = parse(packet)
        except CodecError:
            return False
        if wanted(segment):
            found.append(segment)
        return bool(found)

    await_packet(device, check, what)
    return found[0]


def arrived(device: TunDevice, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Those of the packets that have arrived by now which are ``wanted``."""
    return [packet for packet in iter(device.read, None) if wanted(packet)]


def has_port(port: int) -> Callable[[bytes], bool]:
    """Whether a packet is TCP or UDP from or to a port."""
    octets = port.to_bytes(2, "big")

    def check(packet: bytes) -> bool:
        start = 50 if packet[10] >> 4 == 6 else 30
        return octets in (packet[start : start + 2], packet[start + 2 : start + 4])

    return check


def is_not_tcp(packet: bytes) -> bool:
    """Whether a packet is anything but TCP."""
    return packet[16 if packet[10] >> 4 == 6 else 19] != socket.IPPROTO_TCP


def header(
    src: bytes, dst: bytes, sport: int, dport: int, *, seq: int = 1, ack: int = 0, flags: int = SYN
) -> list[bytes | memoryview]:
    """A segment without payload, as the engine would send it."""
    return [build_header(src, dst, sport, dport, seq, ack, flags, 64000, b"", 0, 0)]


def start_connect(namespace: Namespace, address: str, port: int) -> socket.socket:
    """A socket whose SYN is on its way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = namespace.socket(family)
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.connect((address, port))
    return sock


def ping(namespace: Namespace, address: str) -> None:
    """One echo there and back; whatever was sent before it on that way has arrived then."""
    version6 = ":" in address
    family = socket.AF_INET6 if version6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if version6 else socket.IPPROTO_ICMP
    with namespace.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(bytes((128 if version6 else 8, 0, 0, 0, 0, 0, 0, 1)) + b"echo", (address, 0))
        sock.recv(100)
