"""Which destinations a client may reach through the gateway.

Everything special-purpose (RFC 6890 and its registries) is refused unless the operator lists it;
so is what leads to such an address in disguise (IPv4 inside IPv6). ``ipaddress.is_global`` will not
do: Python 3.11 calls 2002:7f00:1::, 64:ff9b::a9fe:a9fe, 224.0.0.1 and 168.63.129.16 global.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.convert.networks import Networks
from proxy.convert.tlv import Error, ErrorCode

if TYPE_CHECKING:
    from proxy.config import EgressConfig
    from proxy.wire.address import Address

# Not even a listing opens these: no connection to them means what it says.
_NEVER = (
    "0.0.0.0/8",  # "this host": Linux connects to itself
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "ff00::/8",
)

_SPECIAL = (
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared by carriers; 100.100.100.200 is Alibaba's metadata service
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata service
    "172.16.0.0/12",
    "192.0.0.0/24",  # IETF assignments; 192.0.0.192 is Oracle's metadata service
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "168.63.129.16/32",  # public by number, but Azure's wire server
    "::/96",  # ::1 and the IPv4-compatible addresses
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",  # Teredo, ORCHID, benchmarking
    "2001:db8::/32",
    "2002::/16",  # 6to4: an IPv4 address in disguise
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
)

_MAPPED = bytes(10) + b"\xff\xff"
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)
_LOOPBACK = ("127.0.0.0/8", "::1/128")


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a destination is refused, for the log, and the error to answer with."""

    reason: str
    error: Error


class DestinationPolicy:
    """Judges destinations; ``own_addresses`` is set from outside whenever the gateway's change.

    ``convert_port`` is the gateway's own service (a client that reached it could go in circles).
    """

    def __init__(
        self, egress: EgressConfig, convert_port: int, own_addresses: Iterable[bytes] = ()
    ) -> None:
        self._never = Networks(_NEVER)
        self._special = Networks(_SPECIAL)
        self._loopback = Networks(_LOOPBACK)
        self._allow = Networks(egress.allow)
        self._allow_single = {
            network.network_address.packed for network in egress.allow if network.num_addresses == 1
        }
        self._deny = Networks(egress.deny)
        self._deny_ports = frozenset(egress.deny_ports)
        self._convert_port = convert_port
        self.own_addresses: frozenset[bytes] = frozenset(own_addresses)

    def check(self, destination: Address) -> Denial | None:
        """``None`` if a client may go there.

        To be asked before the connection is made and, with the address that the socket then has
        for a peer, once more.
        """
        ip, port = destination
        if port == 0:
            return _deny("port 0", ErrorCode.MALFORMED_MESSAGE)
        if port in self._deny_ports:
            return _deny(f"port {port}")
        views = unwrap(ip)
        for view in views:
            denial = self._check_address(view, port, any(v in self._allow for v in views))
            if denial is not None:
                return denial
        return None

    def _check_address(self, ip: bytes, port: int, allowed: bool) -> Denial | None:
        if ip in self._never:
            return _deny("not a unicast destination", ErrorCode.MALFORMED_MESSAGE)
        if ip in self._deny:
            return _deny("denied by egress.deny")
        loopback = ip in self._loopback
        if ip in self.own_addresses and not loopback:
            # A network that is allowed for what else is in it does not open the gateway itself.
            if ip not in self._allow_single:
                return _deny("an address of the gateway")
            if port == self._convert_port:
                return _deny("the gateway's own service")
        if loopback:
            if port == self._convert_port:
                return _deny("the gateway's own service")
            # RFC 8803 §6.2.5 has loopback refused as malformed.
            # DEVIATION: not if the operator lists it.
            return None if allowed else _deny("loopback", ErrorCode.MALFORMED_MESSAGE)
        if not allowed and (ip in self._special or not _is_assigned(ip)):
            return _deny("a special-purpose address")
        return None


def _is_assigned(ip: bytes) -> bool:
    """Of IPv6, only 2000::/3 is given out as global unicast; NAT64 is judged by what is in it."""
    return len(ip) == 4 or ip[0] >> 5 == 1 or ip.startswith(_NAT64)


def unwrap(ip: bytes) -> tuple[bytes, ...]:
    """``ip`` as everything that it stands for: itself and the IPv4 address translated into it.

    IPv4-mapped addresses become the IPv4 address alone, which is what the kernel would use.
    """
    if len(ip) == 16:
        if ip.startswith(_MAPPED):
            return (ip[12:],)
        if ip.startswith(_NAT64):  # RFC 6052: a translator on the way makes IPv4 of it
            return (ip, ip[12:])
    return (ip,)


def _deny(reason: str, code: ErrorCode = ErrorCode.NOT_AUTHORIZED) -> Denial:
    return Denial(reason, Error(code, b"\0"))
