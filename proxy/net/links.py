"""The interfaces, default routes and rules that the host has already, as read from the kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from proxy.net.netlink import outside_loop, session

if TYPE_CHECKING:
    from proxy.toml_table import IpNetwork

__all__ = ["DefaultRoute", "Host", "Link", "SourceRule", "look"]

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MAIN = 254
_UNICAST = 1
_TO_TABLE = 1
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_LOWER_UP = 0x10000


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. ``up``: administratively up; ``carrier``: and with a signal."""

    name: str
    index: int
    mtu: int
    up: bool
    carrier: bool
    loopback: bool


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of one interface; ``gateway`` is None on a point-to-point interface."""

    family: int
    index: int
    gateway: bytes | None
    metric: int
    table: int


@dataclass(frozen=True, slots=True)
class SourceRule:
    """An operator's `ip rule from SOURCE lookup TABLE`."""

    family: int
    source: IpNetwork
    table: int


@dataclass(frozen=True, slots=True)
class Host:
    """A snapshot. ``routed`` are the destinations of the main table that are no default route,
    ``addresses`` those of the interfaces (by index, packed; no link-local ones)."""

    links: dict[str, Link]
    defaults: tuple[DefaultRoute, ...]
    routed: tuple[IpNetwork, ...]
    connected: tuple[tuple[int, IpNetwork], ...]
    source_rules: tuple[SourceRule, ...]
    addresses: tuple[tuple[int, bytes], ...] = ()

    def default_route(self, family: int, index: int) -> DefaultRoute | None:
        """The interface's own default route: main table first, then the lowest metric."""
        mine = [route for route in self.defaults if (route.family, route.index) == (family, index)]
        return min(mine, key=lambda route: (route.table != MAIN, route.metric), default=None)

    def connected_networks(self, family: int, index: int) -> list[IpNetwork]:
        """The networks that are directly attached to the interface (without link-local ones)."""
        version = 4 if family == socket.AF_INET else 6
        return [net for owner, net in self.connected if owner == index and net.version == version]

    def own_addresses(self, family: int, index: int) -> list[bytes]:
        """The interface's addresses in a family, in the kernel's order."""
        length = 4 if family == socket.AF_INET else 16
        return [ip for owner, ip in self.addresses if owner == index and len(ip) == length]


def look(ipr: Any, protocol: int) -> Host:
    """Read the host's state; routes and rules of ``protocol`` are ours and left out."""
    links = {link.name: link for link in map(_link, ipr.get_links())}
    defaults: list[DefaultRoute] = []
    routed: list[IpNetwork] = []
    connected: list[tuple[int, IpNetwork]] = []
    rules: list[SourceRule] = []
    for family in FAMILIES:
        for route in ipr.get_routes(family=family):
            if route["type"] != _UNICAST or route["proto"] == protocol or _cached(route):
                continue
            table = route.get_attr("RTA_TABLE") or route["table"]
            if route["dst_len"] == 0:
                defaults.extend(_defaults(route, family, table))
            elif table == MAIN:
                network = ip_network((route.get_attr("RTA_DST"), route["dst_len"]))
                routed.append(network)
                index = route.get_attr("RTA_OIF")
                if index and not route.get_attr("RTA_GATEWAY") and not network.is_link_local:
                    connected.append((index, network))
        rules.extend(_source_rules(ipr, family, protocol))
    return Host(
        links,
        tuple(defaults),
        tuple(routed),
        tuple(connected),
        tuple(rules),
        tuple(_addresses(ipr)),
    )


def _addresses(ipr: Any) -> Iterator[tuple[int, bytes]]:
    for message in ipr.get_addr():
        # On a point-to-point link "address" is the far end.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if text and not ip_address(text).is_link_local:
            yield message["index"], ip_address(text).packed


def _link(message: Any) -> Link:
    flags = message["flags"]
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        mtu=message.get_attr("IFLA_MTU") or 1500,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
    )


def _cached(route: Any) -> bool:
    return bool(route["flags"] & 0x200)  # RTM_F_CLONED


def _defaults(route: Any, family: int, table: int) -> list[DefaultRoute]:
    metric = route.get_attr("RTA_PRIORITY") or 0
    hops = route.get_attr("RTA_MULTIPATH")
    if not hops:
        index = route.get_attr("RTA_OIF")
        pairs = [(index, route.get_attr("RTA_GATEWAY"))] if index else []
        if route.get_attr("RTA_VIA"):
            return []  # IPv4 by an IPv6 next hop: the operator has to name one
    else:
        pairs = [(hop["oif"], hop.get_attr("RTA_GATEWAY")) for hop in hops]
    return [
        DefaultRoute(family, index, ip_address(hop).packed if hop else None, metric, table)
        for index, hop in pairs
    ]


def _source_rules(ipr: Any, family: int, protocol: int) -> list[SourceRule]:
    """The rules that say no more than `from SOURCE lookup TABLE`."""
    found = []
    selectors = ("FRA_DST", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_FWMARK", "FRA_IP_PROTO")
    for rule in ipr.get_rules(family=family):
        source = rule.get_attr("FRA_SRC")
        if not source or rule["action"] != _TO_TABLE or rule.get_attr("FRA_PROTOCOL") == protocol:
            continue
        if any(rule.get_attr(name) for name in selectors):
            continue
        table = rule.get_attr("FRA_TABLE") or rule["table"]
        found.append(SourceRule(family, ip_network((source, rule["src_len"]), False), table))
    return found


def own_addresses() -> frozenset[bytes]:
    """All addresses of this host, packed: what nobody may reach through the gateway."""
    return outside_loop(_own_addresses)


def _own_addresses() -> frozenset[bytes]:
    with session() as ipr:
        texts = [message.get("address") for message in ipr.get_addr()]
    return frozenset(ip_address(text).packed for text in texts if text)
