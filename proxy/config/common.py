"""What both roles have: the TUN device, the control socket, the log; and what their keys share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any

from proxy.errors import ConfigError
from proxy.secret_file import read_secrets
from proxy.toml_table import Table

DEFAULT_PORT = 8803  # RFC 8803 §10.1 assigns none; ours is the number of the RFC
RUNTIME_DIRECTORY = "/run/mptcp-proxy"
MAX_WORKERS = 64
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
NAME_WANTED = "1 to 32 letters, digits, - or _"

_SERVICE = re.compile(r"[A-Za-z0-9_.:-]{0,64}")
_LEVELS = ("debug", "info", "warning", "error")
_TUN_DEFAULTS = {
    "proxy": ("mptcp-proxy", "198.18.92.0/24", "fd6d:7074:6370::/64"),
    "gateway": ("mptcp-gateway", "198.18.93.0/24", "fd6d:7074:6371::/64"),
}

Settings = Mapping[str, Any]
"""Keyword arguments for ``TcpConfig`` or ``MptcpConfig``: only what the file sets."""


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


def read_workers(root: Table) -> int:
    """``workers``: a number, or ``"auto"``, one for each processor that we may run on."""
    if root.get("workers") == "auto":
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    return root.integer("workers", 1, MAX_WORKERS, 1)


def read_tun(root: Table, role: str) -> TunConfig:
    """``[tun]``, whose defaults differ by role."""
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


def read_control(root: Table, role: str) -> ControlConfig:
    """``[control]``."""
    table = root.table("control", ("socket",), optional=True)
    text = table.string("socket", f"{RUNTIME_DIRECTORY}/{role}.sock")
    path = Path(text)
    if not path.is_absolute():
        raise ConfigError(table.path_of("socket"), f'"{text}" is not an absolute path')
    if len(os.fsencode(text)) > 107:  # sun_path, unix(7)
        raise ConfigError(table.path_of("socket"), "longer than 107 bytes")
    return ControlConfig(path)


def read_log(root: Table) -> LogConfig:
    """``[log]``."""
    table = root.table("log", ("level",), optional=True)
    return LogConfig(table.choice("level", _LEVELS, "info"))


def read_unicast(table: Table, key: str, family: int = 0) -> bytes:
    """The address of a host, packed; ``family`` 4 or 6 insists on that version."""
    packed = table.address(key, family)
    refuse_special(packed, table.path_of(key))
    return packed


def refuse_special(packed: bytes, path: str) -> None:
    """ConfigError for an address that no other host can have."""
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


def read_service(table: Table) -> str:
    """``service``; empty by default."""
    if "service" not in table:
        return ""
    return table.name("service", _SERVICE, "at most 64 letters, digits, or any of _ . : -")


def read_secret_file(table: Table, source: Path) -> tuple[bytes, ...]:
    """The secrets in the file that ``secret_file`` names; a relative name starts at ``source``."""
    text = table.string("secret_file")
    path = table.path_of("secret_file")
    if not text:
        raise ConfigError(path, "must name a file")
    return read_secrets(source.parent / text, path)
