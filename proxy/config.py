"""The configuration: frozen dataclasses, and ``load``, which reads them from a TOML file.

Every key is described in ``docs/configuration.md``; a test compares the two.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from proxy.errors import ConfigError
from proxy.secret_file import read_secrets
from proxy.toml_table import IpNetwork, Table, is_interface, parse_address

__all__ = [
    "ClientConfig",
    "ControlConfig",
    "EgressConfig",
    "GatewayConfig",
    "GatewayPeer",
    "IpNetwork",
    "LanConfig",
    "ListenConfig",
    "LogConfig",
    "ProxyConfig",
    "TunConfig",
    "UplinkConfig",
    "load",
    "parse",
]

DEFAULT_PORT = 8803  # RFC 8803 §10.1 assigns none; ours is the number of the RFC
MAX_UPLINKS = 8  # as the kernel's limit of endpoints, MPTCP_PM_ADDR_MAX
MAX_WEIGHT = 31
MAX_CLIENTS = 4096
RUNTIME_DIRECTORY = "/run/mptcp-proxy"

Settings = Mapping[str, Any]
"""Keyword arguments for ``TcpConfig`` or ``MptcpConfig``: only what the file sets."""


@dataclass(frozen=True, slots=True)
class LanConfig:
    """``interfaces``: TCP that enters here is intercepted."""

    interfaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """A WAN interface. ``next_hop`` and ``next_hop6`` are packed addresses; ``None`` means the
    interface's own default route. A ``backup`` uplink carries data only when no other can.
    ``weight``: its share under the scheduler ``weighted``."""

    name: str
    interface: str
    next_hop: bytes | None = None
    next_hop6: bytes | None = None
    backup: bool = False
    weight: int = 1


@dataclass(frozen=True, slots=True)
class GatewayPeer:
    """The gateway as the proxy sees it: packed ``address``, who we are there (``client``) and the
    32-byte ``secret`` shared with it. ``service`` must equal the gateway's ``listen.service``."""

    address: bytes
    port: int
    client: str
    secret: bytes = field(repr=False)
    service: str = ""


@dataclass(frozen=True, slots=True)
class TunConfig:
    """The TUN device and the prefixes behind it out of which the engine takes its addresses."""

    name: str
    mtu: int
    prefix4: IPv4Network
    prefix6: IPv6Network
    offload: bool = True


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """``socket``: the path of the UNIX socket that ``mptcp-proxy status`` asks."""

    socket: Path


@dataclass(frozen=True, slots=True)
class LogConfig:
    """``level``: debug, info, warning or error."""

    level: str = "info"


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Where the gateway takes connections: packed addresses that it has, and one port.

    ``late_convert``: also take the Convert message as the first bytes after the handshake.
    """

    addresses: tuple[bytes, ...]
    port: int
    late_convert: bool = True
    service: str = ""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A proxy that may connect. ``previous_secrets`` are still accepted, so that a secret can be
    changed without a gap."""

    name: str
    secret: bytes = field(repr=False)
    previous_secrets: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """Which destinations clients may reach: ``allow`` opens parts of what is refused by default
    (special-purpose addresses), ``deny`` closes parts of the rest and wins over ``allow``."""

    allow: tuple[IpNetwork, ...] = ()
    deny: tuple[IpNetwork, ...] = ()
    deny_ports: tuple[int, ...] = (25,)


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
    log: LogConfig = LogConfig()
    source: Path | None = None
    role: Literal["proxy"] = "proxy"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The far box. ``source`` is the file this was read from."""

    listen: ListenConfig
    clients: tuple[ClientConfig, ...]
    egress: EgressConfig
    tun: TunConfig
    control: ControlConfig
    tcp: Settings = field(default_factory=dict)
    mptcp: Settings = field(default_factory=dict)
    log: LogConfig = LogConfig()
    source: Path | None = None
    role: Literal["gateway"] = "gateway"


_COMMON = ("role", "tun", "control", "tcp", "mptcp", "log")
_ROLE_KEYS = {
    "proxy": (*_COMMON, "lan", "uplink", "gateway"),
    "gateway": (*_COMMON, "listen", "client", "egress"),
}
_TUN_DEFAULTS = {
    "proxy": ("mptcp-proxy", "198.18.92.0/24", "fd6d:7074:6370::/64"),
    "gateway": ("mptcp-gateway", "198.18.93.0/24", "fd6d:7074:6371::/64"),
}
_LEVELS = ("debug", "info", "warning", "error")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_POLICY = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_NAME_WANTED = "1 to 32 letters, digits, - or _"
_SERVICE = re.compile(r"[A-Za-z0-9_.:-]{0,64}")
_YEAR = 31536000.0

_Reader = Callable[[Table, str], object]


def _int(low: int, high: int) -> _Reader:
    return lambda table, key: table.integer(key, low, high)


def _num(low: float, high: float) -> _Reader:
    return lambda table, key: table.number(key, low, high)


def _bool(table: Table, key: str) -> object:
    return table.boolean(key)


def _policy(table: Table, key: str) -> object:
    return table.name(key, _POLICY, "the name of a policy")


def _one_of(*names: str) -> _Reader:
    return lambda table, key: table.choice(key, names)


_BUFFER = _int(4096, 1 << 30)

# The names are those of TcpConfig's fields; seconds and bytes.
TCP_KEYS: dict[str, _Reader] = {
    "congestion_control": _policy,
    "initial_window": _int(1, 1000),
    "receive_buffer": _BUFFER,
    "receive_buffer_max": _BUFFER,
    "memory": _int(0, 1 << 50),
    "send_buffer_max": _BUFFER,
    "min_rto": _num(0.01, 10),
    "max_rto": _num(1, 600),
    "initial_rto": _num(0.1, 60),
    "syn_retries": _int(0, 127),
    "retries": _int(1, 255),
    "delayed_ack": _num(0, 0.5),
    "keepalive_idle": _num(1, _YEAR),
    "keepalive_interval": _num(1, 86400),
    "keepalive_count": _int(1, 127),
    "pacing": _bool,
    "timestamps": _bool,
    "sack": _bool,
    "window_scale": _bool,
    "ecn": _one_of("off", "passive", "on"),
    "mtu4": _int(576, 65535),
    "mtu6": _int(1280, 65535),
    "mtu_probing": _bool,
    "time_wait": _num(0, 600),
    "fin_timeout": _num(1, 3600),
    "user_timeout": _num(1, _YEAR),
}

# The names are those of MptcpConfig's fields and of the kernel's net.mptcp sysctls.
MPTCP_KEYS: dict[str, _Reader] = {
    "enabled": _bool,
    "scheduler": _policy,
    "path_manager": _policy,
    "checksum_enabled": _bool,
    "allow_join_initial_addr_port": _bool,
    "add_addr_timeout": _num(0, 86400),
    "blackhole_timeout": _num(0, 86400 * 365),
    "close_timeout": _num(0, 86400),
    "stale_loss_cnt": _int(0, 127),
    "syn_retrans_before_tcp_fallback": _int(0, 255),
}


def load(path: str | os.PathLike[str]) -> ProxyConfig | GatewayConfig:
    """Read and check the configuration file ``path`` and the secrets that it names.

    Raises ``ConfigError``, with the key's path when it is a key that is wrong.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode()
        data = tomllib.loads(text)
    except OSError as error:
        raise ConfigError("", f"cannot read it: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("", "not valid TOML: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a limit of Python's
        raise ConfigError("", f"not valid TOML: {error}") from None
    return parse(data, file)


def parse(data: Mapping[str, object], source: Path) -> ProxyConfig | GatewayConfig:
    """As ``load``, from TOML that was read already; ``source`` anchors relative file names."""
    everything = {key for keys in _ROLE_KEYS.values() for key in keys}
    role = Table(data, "", everything).choice("role", tuple(_ROLE_KEYS))
    for key in data:
        if key not in _ROLE_KEYS[role]:
            other = "gateway" if role == "proxy" else "proxy"
            raise ConfigError(key, f'unknown key: it belongs to role = "{other}"')
    root = Table(data, "", _ROLE_KEYS[role])
    return _proxy(root, source) if role == "proxy" else _gateway(root, source)


def _proxy(root: Table, source: Path) -> ProxyConfig:
    config = ProxyConfig(
        lan=_lan(root.table("lan", ("interfaces",))),
        uplinks=_uplinks(root),
        gateway=_peer(
            root.table("gateway", ("address", "port", "client", "secret_file", "service")), source
        ),
        tun=_tun(root, "proxy"),
        control=_control(root, "proxy"),
        tcp=_tcp(root),
        mptcp=_settings(root, "mptcp", MPTCP_KEYS),
        log=_log(root),
        source=source,
    )
    _check_interfaces(config)
    return config


def _gateway(root: Table, source: Path) -> GatewayConfig:
    return GatewayConfig(
        listen=_listen(root.table("listen", ("addresses", "port", "late_convert", "service"))),
        clients=_clients(root, source),
        egress=_egress(root.table("egress", ("allow", "deny", "deny_ports"), optional=True)),
        tun=_tun(root, "gateway"),
        control=_control(root, "gateway"),
        tcp=_tcp(root),
        mptcp=_settings(root, "mptcp", MPTCP_KEYS),
        log=_log(root),
        source=source,
    )


def _lan(table: Table) -> LanConfig:
    interfaces = table.strings("interfaces")
    for index, name in enumerate(interfaces):
        if not is_interface(name):
            path = f"{table.path_of('interfaces')}[{index}]"
            raise ConfigError(path, f'"{name}" is not the name of a network interface')
    return LanConfig(interfaces)


def _uplinks(root: Table) -> tuple[UplinkConfig, ...]:
    uplinks: list[UplinkConfig] = []
    known = ("name", "interface", "next_hop", "next_hop6", "backup", "weight")
    for table in root.tables("uplink", known, MAX_UPLINKS):
        uplink = UplinkConfig(
            name=table.name("name", _NAME, _NAME_WANTED),
            interface=table.interface("interface"),
            next_hop=_unicast(table, "next_hop", 4) if "next_hop" in table else None,
            next_hop6=_unicast(table, "next_hop6", 6) if "next_hop6" in table else None,
            backup=table.boolean("backup", False),
            weight=table.integer("weight", 1, MAX_WEIGHT, 1),
        )
        for index, other in enumerate(uplinks):
            if other.name == uplink.name:
                raise ConfigError(table.path_of("name"), f"uplink[{index}] has that name already")
            if other.interface == uplink.interface:
                message = f"uplink[{index}] uses that interface already"
                raise ConfigError(table.path_of("interface"), message)
        uplinks.append(uplink)
    return tuple(uplinks)


def _check_interfaces(config: ProxyConfig) -> None:
    for index, uplink in enumerate(config.uplinks):
        if uplink.interface in config.lan.interfaces:
            message = f'"{uplink.interface}" is in lan.interfaces too'
            raise ConfigError(f"uplink[{index}].interface", message)
    used = {*config.lan.interfaces, *(uplink.interface for uplink in config.uplinks)}
    if config.tun.name in used:
        raise ConfigError("tun.name", f'"{config.tun.name}" is a LAN or uplink interface')


def _unicast(table: Table, key: str, family: int = 0) -> bytes:
    packed = table.address(key, family)
    _refuse_special(packed, table.path_of(key))
    return packed


def _refuse_special(packed: bytes, path: str) -> None:
    address = ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        raise ConfigError(path, f'"{address}" must be written as an IPv4 address: "{mapped}"')
    for attribute in ("unspecified", "multicast", "loopback"):
        if getattr(address, f"is_{attribute}"):
            article = "an" if attribute == "unspecified" else "a"
            raise ConfigError(path, f'"{address}" is {article} {attribute} address')
    if packed == b"\xff\xff\xff\xff":
        raise ConfigError(path, f'"{address}" is the broadcast address')


def _peer(table: Table, source: Path) -> GatewayPeer:
    address = _unicast(table, "address")
    if ip_address(address).is_link_local:
        raise ConfigError(table.path_of("address"), "a link-local address reaches no gateway")
    return GatewayPeer(
        address=address,
        port=table.integer("port", 1, 65535, DEFAULT_PORT),
        client=table.name("client", _NAME, _NAME_WANTED),
        secret=_secrets(table, source)[0],
        service=_service(table),
    )


def _service(table: Table) -> str:
    if "service" not in table:
        return ""
    return table.name("service", _SERVICE, "at most 64 letters, digits, or any of _ . : -")


def _listen(table: Table) -> ListenConfig:
    addresses: list[bytes] = []
    for index, text in enumerate(table.strings("addresses")):
        path = f"{table.path_of('addresses')}[{index}]"
        packed = parse_address(text, path)
        _refuse_special(packed, path)
        if packed in addresses:
            raise ConfigError(path, f'"{text}" is listed twice')
        addresses.append(packed)
    return ListenConfig(
        addresses=tuple(addresses),
        port=table.integer("port", 1, 65535, DEFAULT_PORT),
        late_convert=table.boolean("late_convert", True),
        service=_service(table),
    )


def _clients(root: Table, source: Path) -> tuple[ClientConfig, ...]:
    clients: list[ClientConfig] = []
    owners: dict[bytes, int] = {}
    for position, table in enumerate(root.tables("client", ("name", "secret_file"), MAX_CLIENTS)):
        name = table.name("name", _NAME, _NAME_WANTED)
        for index, other in enumerate(clients):
            if other.name == name:
                raise ConfigError(table.path_of("name"), f"client[{index}] has that name already")
        secrets = _secrets(table, source)
        for secret in secrets:
            # One secret for one pair of nodes (RFC 9257 §6): shared, it would let clients pass
            # for one another.
            if owners.setdefault(secret, position) != position:
                message = f"client[{owners[secret]}] has the same secret"
                raise ConfigError(table.path_of("secret_file"), message)
        clients.append(ClientConfig(name, secrets[0], secrets[1:]))
    return tuple(clients)


def _egress(table: Table) -> EgressConfig:
    return EgressConfig(
        allow=table.networks("allow"),
        deny=table.networks("deny"),
        deny_ports=table.integers("deny_ports", 1, 65535, (25,)),
    )


def _tun(root: Table, role: str) -> TunConfig:
    table = root.table("tun", ("name", "mtu", "prefix4", "prefix6", "offload"), optional=True)
    name, prefix4, prefix6 = _TUN_DEFAULTS[role]
    return TunConfig(
        name=table.interface("name", name),
        mtu=table.integer("mtu", 1280, 65535, 1500),
        prefix4=IPv4Network(_prefix(table, "prefix4", prefix4, 4, 26)),
        prefix6=IPv6Network(_prefix(table, "prefix6", prefix6, 6, 120)),
        offload=table.boolean("offload", True),
    )


def _prefix(table: Table, key: str, default: str, family: int, longest: int) -> str:
    text = table.string(key, default)
    path = table.path_of(key)
    try:
        network = IPv4Network(text) if family == 4 else IPv6Network(text)
    except ValueError:
        raise ConfigError(path, f'"{text}" is not an IPv{family} network') from None
    if network.prefixlen > longest:
        raise ConfigError(path, f'"{text}" is too small: at most /{longest}')
    return text


def _control(root: Table, role: str) -> ControlConfig:
    table = root.table("control", ("socket",), optional=True)
    text = table.string("socket", f"{RUNTIME_DIRECTORY}/{role}.sock")
    path = Path(text)
    if not path.is_absolute():
        raise ConfigError(table.path_of("socket"), f'"{text}" is not an absolute path')
    if len(os.fsencode(text)) > 107:  # sun_path, unix(7)
        raise ConfigError(table.path_of("socket"), "longer than 107 bytes")
    return ControlConfig(path)


def _log(root: Table) -> LogConfig:
    table = root.table("log", ("level",), optional=True)
    return LogConfig(table.choice("level", _LEVELS, "info"))


def _settings(root: Table, key: str, readers: dict[str, _Reader]) -> Settings:
    table = root.table(key, tuple(readers), optional=True)
    return MappingProxyType(
        {name: reader(table, name) for name, reader in readers.items() if name in table}
    )


def _tcp(root: Table) -> Settings:
    settings = _settings(root, "tcp", TCP_KEYS)
    for low, high in (("min_rto", "max_rto"), ("receive_buffer", "receive_buffer_max")):
        if low in settings and high in settings and settings[low] > settings[high]:
            raise ConfigError(f"tcp.{low}", f"must not be above tcp.{high}")
    return settings


def _secrets(table: Table, source: Path) -> tuple[bytes, ...]:
    text = table.string("secret_file")
    path = table.path_of("secret_file")
    if not text:
        raise ConfigError(path, "must name a file")
    return read_secrets(source.parent / text, path)
