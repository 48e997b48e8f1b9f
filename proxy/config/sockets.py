"""What a program that uses ``proxy.sockets`` says of its host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from proxy.config.common import Settings, TunConfig
from proxy.config.engine import read_mptcp, read_tcp
from proxy.config.proxy import LanConfig, UplinkConfig, read_uplinks
from proxy.toml_table import Table

MAX_HOSTS = 8
"""Programs that may have an engine at the same time in one network namespace."""

_PREFIXES4 = IPv4Network("198.18.96.0/21")  # of the network for measurements (RFC 2544)
_PREFIXES6 = IPv6Network("fd6d:7074:6378::/45")
_MTU = 1500


@dataclass(frozen=True, slots=True)
class SocketsConfig:
    """``slot`` (0 to ``MAX_HOSTS`` - 1) tells the engines of one network namespace apart."""

    uplinks: tuple[UplinkConfig, ...]
    tun: TunConfig
    slot: int
    tcp: Settings = field(default_factory=dict)
    mptcp: Settings = field(default_factory=dict)
    lan: LanConfig = field(default=LanConfig(()))


def read_sockets(
    uplinks: Sequence[str | Mapping[str, object]],
    tcp: Mapping[str, object],
    mptcp: Mapping[str, object],
    slot: int,
) -> SocketsConfig:
    """``uplinks``: names of interfaces, or tables with the keys of ``[[uplink]]``.

    ``tcp`` and ``mptcp`` have the keys of those sections. Raises ConfigError.
    """
    tables = [_uplink(uplink) for uplink in uplinks]
    data = {"uplink": tables, "tcp": dict(tcp), "mptcp": dict(mptcp)}
    root = Table(data, "", tuple(data))
    return SocketsConfig(
        uplinks=read_uplinks(root),
        tun=TunConfig(
            name=f"mptcp-sock{slot}",
            mtu=_MTU,
            prefix4=list(_PREFIXES4.subnets(new_prefix=24))[slot],
            prefix6=IPv6Network((int(_PREFIXES6.network_address) + (slot << 80), 64)),
        ),
        slot=slot,
        tcp=read_tcp(root),
        mptcp=read_mptcp(root),
    )


def _uplink(given: str | Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(given, str):
        return {"name": given, "interface": given}
    return {"name": given["interface"], **given} if "interface" in given else given
