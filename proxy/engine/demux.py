"""Finds the connection that a packet belongs to: O(1), keyed by the bytes on the wire."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.tcp.connection import TcpConnection
from proxy.wire.address import Address


def flow_key(local: Address, remote: Address) -> bytes:
    """The key under which segments from ``remote`` to ``local`` arrive (12 or 36 bytes).

    The same bytes as ``Segment.key``: source, destination, source port, destination port.
    """
    return b"".join(
        (remote.ip, local.ip, remote.port.to_bytes(2, "big"), local.port.to_bytes(2, "big"))
    )


class Demux:
    """All single-path connections and subflows of a stack, by flow key."""

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: dict[bytes, TcpConnection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[TcpConnection]:
        return iter(self._connections.values())

    def taken(self, local: Address, remote: Address) -> bool:
        """Whether a connection between these two exists."""
        return flow_key(local, remote) in self._connections

    def find(self, key: bytes) -> TcpConnection | None:
        """The connection whose segments carry ``key``."""
        return self._connections.get(key)

    def add(self, connection: TcpConnection) -> None:
        """Enter a connection; a dead one in TIME-WAIT gives way (RFC 6191)."""
        self._connections[flow_key(connection.local, connection.remote)] = connection

    def remove(self, connection: TcpConnection) -> None:
        """Drop a connection, unless another one has taken its place."""
        key = flow_key(connection.local, connection.remote)
        if self._connections.get(key) is connection:
            del self._connections[key]
