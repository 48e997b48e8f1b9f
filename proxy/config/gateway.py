"""The far box: ``role = "gateway"``."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    read_workers,
    refuse_special,
)
from proxy.config.engine import read_mptcp, read_tcp
from proxy.config.metrics import MetricsConfig, read_metrics
from proxy.errors import ConfigError
from proxy.toml_table import IpNetwork, Table, parse_address

MAX_CLIENTS = 4096
MAX_ANNOUNCED = 8
MAX_TRIALS = 1024
_FIRST_HOST = 2  # of the prefix behind the TUN; 1 is the kernel's own


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Where the gateway takes connections: packed addresses that it has, and one port.

    ``late_convert``: also take the Convert message as the first bytes after the handshake.
    ``announce``: those of the addresses that proxies are told of (ADD_ADDR).
    ``trials``: streams for ``doctor`` and ``bench`` that a client may have open; 0: none.
    """

    addresses: tuple[bytes, ...]
    port: int
    late_convert: bool = True
    service: str = ""
    announce: tuple[bytes, ...] = ()
    trials: int = 32


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Who may connect: a proxy with its ``secret``, or any RFC 8803 client from ``networks``.

    ``previous_secrets`` are still accepted, so that a secret can be changed without a gap.
    ``cookie``: whether a client known by its network must show that its address is its own.
    """

    name: str
    secret: bytes = field(default=b"", repr=False)
    previous_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    networks: tuple[IpNetwork, ...] = ()
    cookie: bool = True


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """Which destinations clients may reach: ``allow`` opens parts of what is refused by default
    (special-purpose addresses), ``deny`` closes parts of the rest and wins over ``allow``."""

    allow: tuple[IpNetwork, ...] = ()
    deny: tuple[IpNetwork, ...] = ()
    deny_ports: tuple[int, ...] = (25,)


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
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    workers: int = 1
    source: Path | None = None
    role: Literal["gateway"] = "gateway"

    @property
    def engine_addresses(self) -> dict[bytes, bytes]:
        """The address of the engine behind the TUN for each listening address: it has to tell them
        apart."""
        counts = {4: 0, 16: 0}
        found: dict[bytes, bytes] = {}
        for address in self.listen.addresses:
            prefix = self.tun.prefix4 if len(address) == 4 else self.tun.prefix6
            found[address] = prefix[_FIRST_HOST + counts[len(address)]].packed
            counts[len(address)] += 1
        return found


def read_gateway(root: Table, source: Path) -> GatewayConfig:
    """The whole file; ``source`` anchors relative file names."""
    return GatewayConfig(
        listen=_listen(
            root.table(
                "listen",
                ("addresses", "port", "late_convert", "service", "announce", "trials"),
            )
        ),
        clients=_clients(root, source),
        egress=_egress(root.table("egress", ("allow", "deny", "deny_ports"), optional=True)),
        tun=read_tun(root, "gateway"),
        control=read_control(root, "gateway"),
        tcp=read_tcp(root),
        mptcp=read_mptcp(root),
        log=read_log(root),
        metrics=read_metrics(root),
        workers=read_workers(root),
        source=source,
    )


def _listen(table: Table) -> ListenConfig:
    addresses: list[bytes] = []
    for index, text in enumerate(table.strings("addresses")):
        path = f"{table.path_of('addresses')}[{index}]"
        packed = parse_address(text, path)
        refuse_special(packed, path)
        if packed in addresses:
            raise ConfigError(path, f'"{text}" is listed twice')
        addresses.append(packed)
    return ListenConfig(
        addresses=tuple(addresses),
        port=table.integer("port", 1, 65535, DEFAULT_PORT),
        late_convert=table.boolean("late_convert", True),
        service=read_service(table),
        announce=_announce(table, addresses),
        trials=table.integer("trials", 0, MAX_TRIALS, 32),
    )


def _announce(table: Table, addresses: list[bytes]) -> tuple[bytes, ...]:
    found = []
    for index, text in enumerate(table.strings("announce", ())):
        path = f"{table.path_of('announce')}[{index}]"
        packed = parse_address(text, path)
        if packed not in addresses:
            raise ConfigError(path, f'"{text}" is not one of {table.path_of("addresses")}')
        found.append(packed)
    if len(found) > MAX_ANNOUNCED:
        raise ConfigError(table.path_of("announce"), f"at most {MAX_ANNOUNCED} addresses")
    return tuple(found)


def _clients(root: Table, source: Path) -> tuple[ClientConfig, ...]:
    clients: list[ClientConfig] = []
    owners: dict[bytes, int] = {}
    tables = root.tables("client", ("name", "secret_file", "networks", "cookie"), MAX_CLIENTS)
    for position, table in enumerate(tables):
        name = table.name("name", NAME, NAME_WANTED)
        for index, other in enumerate(clients):
            if other.name == name:
                raise ConfigError(table.path_of("name"), f"client[{index}] has that name already")
        if "networks" in table:
            clients.append(_guest(table, name))
            continue
        if "cookie" in table:
            raise ConfigError(table.path_of("cookie"), "is for clients with networks")
        secrets = read_secret_file(table, source)
        for secret in secrets:
            # One secret for one pair of nodes (RFC 9257 §6): shared, it would let clients pass
            # for one another.
            if owners.setdefault(secret, position) != position:
                message = f"client[{owners[secret]}] has the same secret"
                raise ConfigError(table.path_of("secret_file"), message)
        clients.append(ClientConfig(name, secrets[0], secrets[1:]))
    return tuple(clients)


def _guest(table: Table, name: str) -> ClientConfig:
    if "secret_file" in table:
        path = table.path_of("networks")
        raise ConfigError(path, "a client has either a secret_file or networks")
    networks = table.networks("networks")
    if not networks:
        raise ConfigError(table.path_of("networks"), "must have at least one network")
    for index, network in enumerate(networks):
        if network.prefixlen == 0:
            path = f"{table.path_of('networks')}[{index}]"
            raise ConfigError(path, "would make an open relay of the gateway: name the networks")
    return ClientConfig(name, networks=networks, cookie=table.boolean("cookie", True))


def _egress(table: Table) -> EgressConfig:
    return EgressConfig(
        allow=table.networks("allow"),
        deny=table.networks("deny"),
        deny_ports=table.integers("deny_ports", 1, 65535, (25,)),
    )
