"""The home, its two uplinks, the gateway and the server, in namespaces.

    client ── lan0 proxy u1 ── router1 ══emulated══ w1 gateway srv0 ── server
                         u2 ── router2 ══emulated══ w2

IPv4 and IPv6 everywhere. Without a daemon the client reaches the server by plain forwarding over
the first uplink (the baseline), or another one after ``direct_via``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyroute2 import NetNS

from tests.lab.link import Link, LinkSpec
from tests.lab.namespaces import Namespace, Namespaces

warnings.filterwarnings("ignore", category=DeprecationWarning, module="pyroute2")

CLIENT4, CLIENT6 = "192.168.77.2", "2001:db8:77::2"
LAN4, LAN6 = "192.168.77.1", "2001:db8:77::1"
GATEWAY4, GATEWAY6 = "203.0.113.10", "2001:db8:113::10"
SERVER4, SERVER6 = "198.51.100.2", "2001:db8:51::2"
# What the gateway may reach, as [egress] allow wants it.
EGRESS = ("198.51.100.0/24", "2001:db8:51::/64")
UNREACHABLE4 = "198.51.100.77"  # on the server's link, but nobody there

_NODAD = 0x02
_UP = "up"


def uplink_address(index: int) -> str:
    """The proxy's IPv4 address on uplink 1, 2, ..."""
    return f"10.{index}.0.2"


def next_hop(index: int) -> str:
    """The router's IPv4 address on uplink 1, 2, ..."""
    return f"10.{index}.0.1"


def uplink_address6(index: int) -> str:
    """The proxy's IPv6 address on uplink 1, 2, ..."""
    return f"2001:db8:{index}::2"


def next_hop6(index: int) -> str:
    """The router's IPv6 address on uplink 1, 2, ..."""
    return f"2001:db8:{index}::1"


class Configurator:
    """Addresses, links and routes of one namespace through pyroute2."""

    def __init__(self, namespace: Namespace) -> None:
        self._route = NetNS(namespace.name)

    def __enter__(self) -> Configurator:
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()

    def index(self, name: str) -> int:
        """Index of an interface."""
        found = self._route.link_lookup(ifname=name)
        if not found:
            raise LookupError(f"no interface {name}")
        return int(found[0])

    def veth(self, name: str, peer: Namespace, peer_name: str) -> None:
        """A pair of Ethernet interfaces, one end here and one in ``peer``."""
        self._route.link(
            "add", ifname=name, kind="veth", peer={"ifname": peer_name, "net_ns_fd": peer.name}
        )

    def up(self, name: str, *addresses: str) -> None:
        """Adds addresses (``a/len``) and sets the interface up."""
        index = self.index(name)
        for address in addresses:
            self.address("add", name, address)
        self._route.link("set", index=index, state=_UP)

    def down(self, name: str) -> None:
        """Sets the interface down, as an operator would."""
        self._route.link("set", index=self.index(name), state="down")

    def address(self, verb: str, name: str, address: str) -> None:
        """``add`` or ``del`` an address; IPv6 ones are usable at once (no DAD)."""
        host, _, length = address.partition("/")
        extra = {"flags": _NODAD} if ":" in host and verb == "add" else {}
        self._route.addr(verb, index=self.index(name), address=host, prefixlen=int(length), **extra)

    def route(self, target: str, via: str, name: str, metric: int = 100) -> None:
        """Adds or replaces a route."""
        self._route.route(
            "replace",
            dst=target,
            gateway=via,
            oif=self.index(name),
            priority=metric,
            **({"family": 10} if ":" in via else {}),
        )

    def default(self, via: str, name: str, metric: int = 100) -> None:
        """The default route of ``via``'s family."""
        self.route("::/0" if ":" in via else "0.0.0.0/0", via, name, metric)


class Topology:
    """The whole lab network. ``links`` has one spec an uplink; None is an unshaped veth pair."""

    def __init__(self, namespaces: Namespaces, links: Sequence[LinkSpec | None]) -> None:
        self.namespaces = namespaces
        self.specs = list(links)
        self.links: list[Link | None] = []
        self.client = namespaces.create("client")
        self.proxy = namespaces.create("proxy")
        self.routers = [namespaces.create(f"router{i}") for i in self.indices]
        self.gateway = namespaces.create("gateway")
        self.server = namespaces.create("server")
        for forwarder in (self.proxy, *self.routers, self.gateway):
            forwarder.sysctl("net.ipv4.ip_forward", 1)
            forwarder.sysctl("net.ipv6.conf.all.forwarding", 1)
        self._build_ends()
        for index in self.indices:
            self._build_uplink(index)
        self.direct_via(1)

    @property
    def indices(self) -> range:
        """Uplinks are counted from 1."""
        return range(1, len(self.specs) + 1)

    def link(self, index: int) -> Link:
        """The emulated link of uplink 1, 2, ..."""
        link = self.links[index - 1]
        assert link is not None, "this uplink is not emulated"
        return link

    def _build_ends(self) -> None:
        with Configurator(self.client) as here, Configurator(self.proxy) as there:
            here.veth("eth0", self.proxy, "lan0")
            here.up("eth0", f"{CLIENT4}/24", f"{CLIENT6}/64")
            there.up("lan0", f"{LAN4}/24", f"{LAN6}/64")
            here.default(LAN4, "eth0")
            here.default(LAN6, "eth0")
        with Configurator(self.server) as here, Configurator(self.gateway) as there:
            here.veth("eth0", self.gateway, "srv0")
            here.up("eth0", f"{SERVER4}/24", f"{SERVER6}/64")
            there.up("srv0", "198.51.100.1/24", "2001:db8:51::1/64")
            here.default("198.51.100.1", "eth0")
            here.default("2001:db8:51::1", "eth0")
            # The public addresses are on loopback: both uplinks lead to them alike.
            there.up("lo", f"{GATEWAY4}/32", f"{GATEWAY6}/128")

    def _build_uplink(self, index: int) -> None:
        router, spec = self.routers[index - 1], self.specs[index - 1]
        wide4, wide6 = f"172.31.{index}", f"2001:db8:f{index}:"
        if spec is not None:
            self.links.append(Link(router, "wan0", self.gateway, f"w{index}", spec))
        else:
            self.links.append(None)
            with Configurator(router) as here:
                here.veth("wan0", self.gateway, f"w{index}")
        with (
            Configurator(self.proxy) as proxy,
            Configurator(router) as middle,
            Configurator(self.gateway) as far,
        ):
            proxy.veth(f"u{index}", router, "lan0")
            proxy.up(f"u{index}", f"{uplink_address(index)}/24", f"{uplink_address6(index)}/64")
            middle.up("lan0", f"{next_hop(index)}/24", f"{next_hop6(index)}/64")
            middle.up("wan0", f"{wide4}.1/24", f"{wide6}:1/64")
            far.up(f"w{index}", f"{wide4}.2/24", f"{wide6}:2/64")
            middle.default(f"{wide4}.2", "wan0")
            middle.default(f"{wide6}:2", "wan0")
            # Towards the LAN, for the direct path only: a home would masquerade.
            middle.route("192.168.77.0/24", uplink_address(index), "lan0")
            middle.route("2001:db8:77::/64", uplink_address6(index), "lan0")
            far.route(f"10.{index}.0.0/24", f"{wide4}.1", f"w{index}")
            far.route(f"2001:db8:{index}::/64", f"{wide6}:1", f"w{index}")

    def direct_via(self, index: int) -> None:
        """Plain forwarding, of what no daemon takes, goes over this uplink from now on."""
        with Configurator(self.proxy) as proxy, Configurator(self.gateway) as gateway:
            proxy.default(next_hop(index), f"u{index}")
            proxy.default(next_hop6(index), f"u{index}")
            gateway.route("192.168.77.0/24", f"172.31.{index}.1", f"w{index}")
            gateway.route("2001:db8:77::/64", f"2001:db8:f{index}::1", f"w{index}")

    def carrier(self, index: int, on: bool) -> None:
        """Pulls (or plugs in) the cable of the proxy's uplink: its carrier goes."""
        with Configurator(self.routers[index - 1]) as router:
            if on:
                router.up("lan0")
                # The far end's routes and IPv6 addresses went with its link.
                router.address("replace", "lan0", f"{next_hop6(index)}/64")
                router.route("192.168.77.0/24", uplink_address(index), "lan0")
                router.route("2001:db8:77::/64", uplink_address6(index), "lan0")
            else:
                router.down("lan0")


@contextmanager
def topology(*links: LinkSpec | None) -> Iterator[Topology]:
    """A lab for the length of the block, taken down whatever happens."""
    with Namespaces() as namespaces:
        yield Topology(namespaces, links)
