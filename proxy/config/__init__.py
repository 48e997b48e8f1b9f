"""The configuration: frozen dataclasses, and ``load``, which reads them from a TOML file.

Every key is described in ``docs/configuration.md``; a test compares the two.
"""

from proxy.config.changes import Changes, Config, compare
from proxy.config.common import RUNTIME_DIRECTORY, ControlConfig, LogConfig, Settings, TunConfig
from proxy.config.engine import MPTCP_KEYS, TCP_KEYS
from proxy.config.gateway import ClientConfig, EgressConfig, GatewayConfig, ListenConfig
from proxy.config.load import load, parse
from proxy.config.metrics import MetricsConfig
from proxy.config.proxy import (
    MAX_UPLINKS,
    GatewayPeer,
    LanConfig,
    ProxyConfig,
    UplinkConfig,
)
from proxy.config.rule import RuleConfig, Via
from proxy.toml_table import IpNetwork

__all__ = [
    "MAX_UPLINKS",
    "MPTCP_KEYS",
    "RUNTIME_DIRECTORY",
    "TCP_KEYS",
    "Changes",
    "ClientConfig",
    "Config",
    "ControlConfig",
    "EgressConfig",
    "GatewayConfig",
    "GatewayPeer",
    "IpNetwork",
    "LanConfig",
    "ListenConfig",
    "LogConfig",
    "MetricsConfig",
    "ProxyConfig",
    "RuleConfig",
    "Settings",
    "TunConfig",
    "UplinkConfig",
    "Via",
    "compare",
    "load",
    "parse",
]
