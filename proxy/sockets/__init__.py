"""Sockets for Python programs on the project's own MPTCP engine; see docs/sockets.md.

A ``Host`` has the engine. A program that needs one only calls ``start`` and then the functions
here; ``Socket`` is used like ``socket.socket``, and its descriptor is a real one.
"""

from __future__ import annotations

import asyncio
import errno
import socket as _socket
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.errors import ConfigError, DeviceError
from proxy.mptcp.sockopt import MPTCP_FULL_INFO, MPTCP_INFO, MPTCP_SUBFLOW_ADDRS, MPTCP_TCPINFO
from proxy.sockets import streams as _streams
from proxy.sockets.host import Host
from proxy.sockets.options import IPPROTO_MPTCP, SOL_MPTCP, TCP_IS_MPTCP
from proxy.sockets.socket import Socket
from proxy.sockets.streams import Served, Server

__all__ = [
    "IPPROTO_MPTCP",
    "MPTCP_FULL_INFO",
    "MPTCP_INFO",
    "MPTCP_SUBFLOW_ADDRS",
    "MPTCP_TCPINFO",
    "SOL_MPTCP",
    "TCP_IS_MPTCP",
    "ConfigError",
    "DeviceError",
    "Host",
    "Server",
    "Socket",
    "create_connection",
    "create_server",
    "open_connection",
    "socket",
    "start",
    "start_server",
    "stop",
]

_host: Host | None = None


def start(
    uplinks: Sequence[str | Mapping[str, object]],
    *,
    tcp: Mapping[str, object] | None = None,
    mptcp: Mapping[str, object] | None = None,
) -> None:
    """``Host.open`` for all that follows; until ``stop`` or the end of the program."""
    global _host
    if _host is not None:
        raise OSError(errno.EALREADY, "proxy.sockets was started already")
    _host = Host.open(uplinks, tcp=tcp, mptcp=mptcp)


def stop() -> None:
    """Close the host; see ``Host.close``. Idempotent."""
    global _host
    host, _host = _host, None
    if host is not None:
        host.close()


def socket(
    family: int = _socket.AF_INET, kind: int = _socket.SOCK_STREAM, proto: int = IPPROTO_MPTCP
) -> Socket:
    """See ``Host.socket``."""
    return _started().socket(family, kind, proto)


def create_connection(
    address: tuple[str, int],
    timeout: float | None = None,
    source_address: tuple[str, int] | None = None,
) -> Socket:
    """As ``socket.create_connection``."""
    return _started().create_connection(address, timeout, source_address)


def create_server(
    address: tuple[str, int], *, family: int = _socket.AF_INET, backlog: int = 128
) -> Socket:
    """As ``socket.create_server``."""
    return _started().create_server(address, family=family, backlog=backlog)


async def open_connection(
    address: str, port: int, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """See ``streams.open_connection``."""
    return await _streams.open_connection(_started(), address, port, **options)


async def start_server(served: Served, address: str, port: int, **options: Any) -> Server:
    """See ``streams.start_server``."""
    return await _streams.start_server(_started(), served, address, port, **options)


def _started() -> Host:
    if _host is None:
        raise OSError(errno.ENETDOWN, "call proxy.sockets.start(uplinks) first")
    return _host
