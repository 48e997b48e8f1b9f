"""The near box: ``role = "proxy"``."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from proxy.config.common import (
    DEFAULT_PORT,
    NAME,
    NAME_WANTED,
    ControlConfig,
    LogConfig,
    Settings,
    TunConfig,
    read_control,
    read_log,
    read_secret_file,
    read_service,
    read_tun,
    read_unicast,
    read_workers,
)
from proxy.config.engine import read_mptcp, read_tcp
from proxy.config.metrics import MetricsConfig, read_metrics
from proxy.config.rule import RuleConfig, read_rules
from proxy.errors import ConfigError
from proxy.toml_table import Table, is_interface

MAX_UPLINKS = 8  # as the kernel's limit of endpoints, MPTCP_PM_ADDR_MAX
MAX_WEIGHT = 31
MAX_LIMIT = 100_000.0  # Mbit/s
BYTES_PER_MBIT = 125_000.0


@dataclass(frozen=True, slots=True)
class LanConfig:
    """``interfaces``: TCP that enters here is intercepted."""

    interfaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """A WAN interface. ``next_hop`` and ``next_hop6`` are packed addresses; ``None`` means the
    interface's own default route. A ``backup`` uplink carries data only when no other can.
    ``weight``: its share under the scheduler ``weighted``. ``metered``: every byte costs.
    ``slot`` (0 to 7) is which of the engine's addresses it has: its position in the file that the
    daemon was started with. ``limit_up``: what all connections together may send by it, in Mbit/s
    of IP packets; 0: any."""

    name: str
    interface: str
    next_hop: bytes | None = None
    next_hop6: bytes | None = None
    backup: bool = False
    weight: int = 1
    limit_up: float = 0.0
    metered: bool = False
    slot: int = 0


@dataclass(frozen=True, slots=True)
class GatewayPeer:
    """The gateway as the proxy sees it: packed ``address``, who we are there (``client``) and the
    32-byte ``secret`` shared with it. ``service`` must equal the gateway's ``listen.service``.
    ``require_mptcp``: no connection that is, or becomes, plain TCP on the way to it.
    ``when_unreachable``: what becomes of new conversations while it does not answer, ``direct`` or
    ``refuse``."""

    address: bytes
    port: int
    client: str
    secret: bytes = field(repr=False)
    service: str = ""
    require_mptcp: bool = False
    when_unreachable: str = "direct"


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The near box. ``source`` is the file this was read from."""

    lan: LanConfig
    uplinks: tuple[UplinkConfig, ...]
    gateway: GatewayPeer
    tun: TunConfig
    control: ControlConfig
    tcp: Settings = field(default_factory=dict)
    mptcp: Settings = field(default_factory=dict)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    workers: int = 1
    rules: tuple[RuleConfig, ...] = ()
    source: Path | None = None
    role: Literal["proxy"] = "proxy"


def read_proxy(root: Table, source: Path) -> ProxyConfig:
    """The whole file; ``source`` anchors relative file names."""
    uplinks = read_uplinks(root)
    config = ProxyConfig(
        lan=_lan(root.table("lan", ("interfaces",))),
        uplinks=uplinks,
        gateway=_peer(
            root.table(
                "gateway",
                (
                    "address",
                    "port",
                    "client",
                    "secret_file",
                    "service",
                    "require_mptcp",
                    "when_unreachable",
                ),
            ),
            source,
        ),
        tun=read_tun(root, "proxy"),
        control=read_control(root, "proxy"),
        tcp=read_tcp(root),
        mptcp=read_mptcp(root),
        log=read_log(root),
        metrics=read_metrics(root),
        workers=read_workers(root),
        rules=read_rules(root, [uplink.name for uplink in uplinks]),
        source=source,
    )
    _check_interfaces(config)
    if config.gateway.require_mptcp and not config.mptcp.get("enabled", True):
        raise ConfigError("gateway.require_mptcp", "mptcp.enabled is false")
    return config


def _lan(table: Table) -> LanConfig:
    interfaces = table.strings("interfaces")
    for index, name in enumerate(interfaces):
        if not is_interface(name):
            path = f"{table.path_of('interfaces')}[{index}]"
            raise ConfigError(path, f'"{name}" is not the name of a network interface')
    return LanConfig(interfaces)


def read_uplinks(root: Table) -> tuple[UplinkConfig, ...]:
    """``[[uplink]]``, at least one."""
    uplinks: list[UplinkConfig] = []
    known = (
        "name",
        "interface",
        "next_hop",
        "next_hop6",
        "backup",
        "weight",
        "limit_up",
        "metered",
    )
    for table in root.tables("uplink", known, MAX_UPLINKS):
        uplink = UplinkConfig(
            name=table.name("name", NAME, NAME_WANTED),
            interface=table.interface("interface"),
            next_hop=read_unicast(table, "next_hop", 4) if "next_hop" in table else None,
            next_hop6=read_unicast(table, "next_hop6", 6) if "next_hop6" in table else None,
            backup=table.boolean("backup", False),
            weight=table.integer("weight", 1, MAX_WEIGHT, 1),
            limit_up=table.number("limit_up", 0, MAX_LIMIT, 0.0),
            metered=table.boolean("metered", False),
            slot=len(uplinks),
        )
        for index, other in enumerate(uplinks):
            if other.name == uplink.name:
                raise ConfigError(table.path_of("name"), f"uplink[{index}] has that name already")
            if other.interface == uplink.interface:
                message = f"uplink[{index}] uses that interface already"
                raise ConfigError(table.path_of("interface"), message)
        uplinks.append(uplink)
    return tuple(uplinks)


def _peer(table: Table, source: Path) -> GatewayPeer:
    address = read_unicast(table, "address")
    if ip_address(address).is_link_local:
        raise ConfigError(table.path_of("address"), "a link-local address reaches no gateway")
    return GatewayPeer(
        address=address,
        port=table.integer("port", 1, 65535, DEFAULT_PORT),
        client=table.name("client", NAME, NAME_WANTED),
        secret=read_secret_file(table, source)[0],
        service=read_service(table),
        require_mptcp=table.boolean("require_mptcp", False),
        when_unreachable=table.choice("when_unreachable", ("direct", "refuse"), "direct"),
    )


def _check_interfaces(config: ProxyConfig) -> None:
    for index, uplink in enumerate(config.uplinks):
        if uplink.interface in config.lan.interfaces:
            message = f'"{uplink.interface}" is in lan.interfaces too'
            raise ConfigError(f"uplink[{index}].interface", message)
    used = {*config.lan.interfaces, *(uplink.interface for uplink in config.uplinks)}
    if config.tun.name in used:
        raise ConfigError("tun.name", f'"{config.tun.name}" is a LAN or uplink interface')
