"""Uplinks: which interface, which next hop, which address the engine uses to go out there."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proxy.errors import ConfigError

if TYPE_CHECKING:
    from proxy.net.links import Host
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


@dataclass(frozen=True, slots=True)
class Uplink:
    """A WAN interface as the kernel has it now.

    ``addr4`` and ``addr6`` are the engine's addresses whose packets leave by it (packed; None
    where it has no way out in that family). ``next_hop4`` and ``next_hop6`` are None on a
    point-to-point interface. ``up`` is False without carrier; ``mtu`` counts octets of IP.
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

    def addr(self, family: int) -> bytes | None:
        """The engine's address in a family (``AF_INET`` or ``AF_INET6``)."""
        return self.addr4 if family == socket.AF_INET else self.addr6

    def next_hop(self, family: int) -> bytes | None:
        """The router in a family, None when there is none to name."""
        return self.next_hop4 if family == socket.AF_INET else self.next_hop6


def engine_address(prefix: IpNetwork, host: int) -> bytes:
    """Address number ``host`` of a prefix behind the TUN, packed."""
    return prefix[host].packed


def uplink_address(prefix: IpNetwork, position: int) -> bytes:
    """The engine's address for the uplink at ``position`` (from 0), packed."""
    return engine_address(prefix, _FIRST_HOST + position)


def resolve(
    host: Host, uplinks: tuple[UplinkSettings, ...], prefix4: IpNetwork, prefix6: IpNetwork
) -> tuple[Uplink, ...]:
    """The configured uplinks with what the kernel knows of their interfaces.

    Raises ConfigError, naming the key, for an interface that does not exist and when no uplink
    has a next hop; one alone may lack it (it may still wait for its DHCP server).
    """
    found = tuple(
        _resolve_one(host, settings, position, (prefix4, prefix6))
        for position, settings in enumerate(uplinks)
    )
    if not any(uplink.addr4 or uplink.addr6 for uplink in found):
        message = f"{found[0].dev} has no default route: name the router here"
        raise ConfigError("uplink[0].next_hop", message)
    return found


def _resolve_one(
    host: Host, settings: UplinkSettings, position: int, prefixes: tuple[IpNetwork, IpNetwork]
) -> Uplink:
    link = host.links.get(settings.interface)
    if link is None:
        message = f'there is no interface "{settings.interface}"'
        raise ConfigError(f"uplink[{position}].interface", message)
    addresses: list[bytes | None] = []
    hops: list[bytes | None] = []
    for family, hop, prefix in zip(
        (socket.AF_INET, socket.AF_INET6),
        (settings.next_hop, settings.next_hop6),
        prefixes,
        strict=True,
    ):
        route = host.default_route(family, link.index)
        usable = hop is not None or route is not None
        addresses.append(uplink_address(prefix, position) if usable else None)
        hops.append(hop or (route.gateway if route else None))
    return Uplink(
        name=settings.name,
        dev=link.name,
        index=link.index,
        table=FIRST_TABLE + position,
        addr4=addresses[0],
        addr6=addresses[1],
        next_hop4=hops[0],
        next_hop6=hops[1],
        mtu=link.mtu,
        up=link.up and link.carrier,
        backup=settings.backup,
    )
