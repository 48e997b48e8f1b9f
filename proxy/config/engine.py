"""The keys of ``[tcp]`` and ``[mptcp]``: settings of the engine, for both roles."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType

from proxy.config.common import Settings
from proxy.errors import ConfigError
from proxy.toml_table import Table

_POLICY = re.compile(r"[a-z][a-z0-9_-]{0,31}")
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
    "subflow_keepalive": _num(0, 86400),
    "join_delay": _num(0, 60),
    "syn_retrans_before_tcp_fallback": _int(0, 255),
}


def read_tcp(root: Table) -> Settings:
    """``[tcp]``: what is set."""
    settings = _settings(root, "tcp", TCP_KEYS)
    for low, high in (("min_rto", "max_rto"), ("receive_buffer", "receive_buffer_max")):
        if low in settings and high in settings and settings[low] > settings[high]:
            raise ConfigError(f"tcp.{low}", f"must not be above tcp.{high}")
    return settings


def read_mptcp(root: Table) -> Settings:
    """``[mptcp]``: what is set."""
    return _settings(root, "mptcp", MPTCP_KEYS)


def _settings(root: Table, key: str, readers: dict[str, _Reader]) -> Settings:
    table = root.table(key, tuple(readers), optional=True)
    return MappingProxyType(
        {name: reader(table, name) for name, reader in readers.items() if name in table}
    )
