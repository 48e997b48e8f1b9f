"""Sets of IP networks."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.config import IpNetwork


class Networks:
    """A set of networks of both families, asked by packed address."""

    __slots__ = ("_rows",)

    def __init__(self, networks: Iterable[IpNetwork | str]) -> None:
        self._rows: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for network in map(ip_network, networks):
            mask = int(network.netmask)
            length = network.max_prefixlen // 8
            self._rows[length].append((mask, int(network.network_address)))

    def __contains__(self, ip: bytes) -> bool:
        value = int.from_bytes(ip, "big")
        return any(value & mask == base for mask, base in self._rows[len(ip)])
