"""``[metrics]``: where Prometheus, and a browser, may ask."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from proxy.errors import ConfigError
from proxy.toml_table import Table

_WANTED = 'must be an IP address and a port, as "127.0.0.1:9180" or "[::1]:9180"'


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``listen``: IP address, as text, and port; None: nowhere."""

    listen: tuple[str, int] | None = None


def read_metrics(root: Table) -> MetricsConfig:
    """``[metrics]``, which may be absent."""
    if "metrics" not in root:
        return MetricsConfig()
    table = root.table("metrics", ("listen",))
    text = table.string("listen")
    try:
        return MetricsConfig(_parse(text))
    except ValueError:
        raise ConfigError(table.path_of("listen"), f'{_WANTED}, not "{text}"') from None


def _parse(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    address = ip_address(bare)
    wanted = f"[{bare}]" if address.version == 6 else bare
    if host != wanted or "%" in host or not (port.isascii() and port.isdigit()):
        raise ValueError
    if not 1 <= int(port) <= 65535:
        raise ValueError
    return str(address), int(port)
