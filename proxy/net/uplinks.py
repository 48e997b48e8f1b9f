"""Uplinks: which interface, which next hop, which address the engine uses to go out there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxy.net.links import Host, Link
    from proxy.toml_table import IpNetwork

__all__ = ["FIRST_TABLE", "Uplink", "engine_address", "resolve", "uplink_address"]

FIRST_TABLE = 8810
"""The routing table of the first uplink; the others follow."""

_FIRST_HOST = 10


class UplinkSettings(Protocol):
    """What the configuration says of an uplink (``proxy.config.UplinkConfig``)."""

    @property
    def name(self) -> str: ...
    @property
    def interface(self) -> str: ...
    @property
    def next_hop(self) -> bytes | None: ...
    @property
    def next_hop6(self) -> bytes | None: ...
    @property
    def backup(self) -> bool: ...
    @property
    def slot(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Uplink:
    """A WAN interface as the kernel has it now.

    ``addr4`` and ``addr6`` are the engine's addresses whose packets leave by it (packed; None
    where it has no way out in that family). ``next_hop4`` and ``next_hop6`` are None on a
    point-to-point interface. ``up`` is False without carrier; ``mtu`` counts octets of IP.
    ``sources`` are the interface's own addresses, which packets leave with; ``waits_for`` says, in
    words, why it cannot be used now (empty: it can).
    """

    name: str
    dev: str
    index: int
    table: int
    addr4: bytes | None
    addr6: bytes | None
    next_hop4: bytes | None
    next_hop6: bytes | None
    mtu: int
    up: bool
    backup: bool
    slot: int = 0
    sources: tuple[bytes, ...] = ()
    waits_for: str = ""

    def addr(self, family: int) -> bytes | None:
        """The engine's address in a family (``AF_INET`` or ``AF_INET6``)."""
        return self.addr4 if family == socket.AF_INET else self.addr6

    def next_hop(self, family: int) -> bytes | None:
        """The router in a family, None when there is none to name."""
        return self.next_hop4 if family == socket.AF_INET else self.next_hop6


def engine_address(prefix: IpNetwork, host: int) -> bytes:
    """Address number ``host`` of a prefix behind the TUN, packed."""
    return prefix[host].packed


def uplink_address(prefix: IpNetwork, slot: int) -> bytes:
    """The engine's address for the uplink in ``slot`` (from 0), packed."""
    return engine_address(prefix, _FIRST_HOST + slot)


def resolve(
    host: Host,
    uplinks: Sequence[UplinkSettings],
    prefix4: IpNetwork,
    prefix6: IpNetwork,
    first_table: int = FIRST_TABLE,
) -> tuple[Uplink, ...]:
    """The configured uplinks with what the kernel knows of their interfaces, if anything."""
    prefixes = prefix4, prefix6
    return tuple(_resolve_one(host, settings, prefixes, first_table) for settings in uplinks)


def _resolve_one(
    host: Host,
    settings: UplinkSettings,
    prefixes: tuple[IpNetwork, IpNetwork],
    first_table: int,
) -> Uplink:
    link = host.links.get(settings.interface)
    addresses: list[bytes | None] = []
    hops: list[bytes | None] = []
    for family, hop, prefix in zip(
        (socket.AF_INET, socket.AF_INET6),
        (settings.next_hop, settings.next_hop6),
        prefixes,
        strict=True,
    ):
        found = _way_out(host, family, link, hop)
        addresses.append(uplink_address(prefix, settings.slot) if found is not None else None)
        hops.append(found.next_hop if found is not None else None)
    return Uplink(
        name=settings.name,
        dev=settings.interface,
        index=link.index if link else 0,
        table=first_table + settings.slot,
        addr4=addresses[0],
        addr6=addresses[1],
        next_hop4=hops[0],
        next_hop6=hops[1],
        mtu=link.mtu if link else 0,
        up=link is not None and link.up and link.carrier,
        backup=settings.backup,
        slot=settings.slot,
        sources=tuple(ip for owner, ip in host.addresses if link and owner == link.index),
        waits_for=_waits_for(host, settings, link, any(addresses)),
    )


@dataclass(frozen=True, slots=True)
class _WayOut:
    next_hop: bytes | None


def _way_out(host: Host, family: int, link: Link | None, hop: bytes | None) -> _WayOut | None:
    if link is None or not link.up:
        return None
    if hop is not None:
        # Without an address of its own nothing could leave: its DHCP server has not answered yet.
        return _WayOut(hop) if host.own_addresses(family, link.index) else None
    route = host.default_route(family, link.index)
    return _WayOut(route.gateway) if route is not None else None


def _waits_for(host: Host, settings: UplinkSettings, link: Link | None, way_out: bool) -> str:
    name = settings.interface
    if link is None:
        return f'there is no interface "{name}"'
    if not link.up:
        return f"{name} is down"
    if not link.carrier:
        return f"{name} has no carrier"
    if way_out:
        return ""
    if settings.next_hop is not None or settings.next_hop6 is not None:
        return f"{name} has no address"
    return f"{name} has no default route, and no next_hop is configured"
