"""Reads a configuration file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from proxy.config.gateway import GatewayConfig, read_gateway
from proxy.config.proxy import ProxyConfig, read_proxy
from proxy.errors import ConfigError
from proxy.toml_table import Table

_COMMON = ("role", "workers", "tun", "control", "tcp", "mptcp", "log", "metrics")
ROLE_KEYS = {
    "proxy": (*_COMMON, "lan", "uplink", "gateway", "rule"),
    "gateway": (*_COMMON, "listen", "client", "egress"),
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
    everything = {key for keys in ROLE_KEYS.values() for key in keys}
    role = Table(data, "", everything).choice("role", tuple(ROLE_KEYS))
    for key in data:
        if key not in ROLE_KEYS[role]:
            other = "gateway" if role == "proxy" else "proxy"
            raise ConfigError(key, f'unknown key: it belongs to role = "{other}"')
    root = Table(data, "", ROLE_KEYS[role])
    return read_proxy(root, source) if role == "proxy" else read_gateway(root, source)
