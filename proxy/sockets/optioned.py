"""``setsockopt`` and ``getsockopt`` of a ``Socket``."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.info import MptcpInfo, SubflowAddrs, SubflowData, TcpInfo, tcp_info
from proxy.mptcp.sockopt import MPTCP_SUBFLOW_ADDRS, MPTCP_TCPINFO, ConnectionView, fill, view
from proxy.sockets.connection import Phase
from proxy.sockets.options import (
    CONGESTION,
    IPPROTO_MPTCP,
    LINGER,
    NATIVE,
    SOL_MPTCP,
    TCP_CA_NAME_MAX,
    TCP_IS_MPTCP,
    Key,
    Options,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.sockets.connection import Connection
    from proxy.sockets.host import Host
    from proxy.sockets.listener import Listener

_CLOSE, _LISTEN = 7, 10  # include/net/tcp_states.h
_DEFAULT_MSS = 536
_HEADER = ctypes.sizeof(SubflowData)
_ELEMENTS = {
    MPTCP_TCPINFO: ctypes.sizeof(TcpInfo),
    MPTCP_SUBFLOW_ADDRS: ctypes.sizeof(SubflowAddrs),
}


class OptionedSocket(socket.socket):
    """What ``Socket`` has of options. Refusals have the errno of Linux 6.18."""

    _host: Host
    _options: Options
    _connection: Connection | None
    _listener: Listener | None

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """Set an option of the connection: on all subflows, and on those to come.

        OSError: EINVAL, ENOENT (no such congestion control), EOPNOTSUPP and ENOPROTOOPT.
        """
        key = (level, optname)
        if key in NATIVE:
            super().setsockopt(level, optname, value)
            return
        if optlen is not None:
            value = bytes(optlen)
        if not self._options.knows(key):
            raise refuse(errno.EOPNOTSUPP if level == socket.SOL_SOCKET else errno.ENOPROTOOPT)
        self._options.set(key, value if isinstance(value, int) else bytes(value))
        connection = self._connection
        if connection is not None and connection.phase is not Phase.DONE and key != LINGER:
            self._host.call(connection.apply, time.monotonic())

    def setsockopt_on(self, uplink: str, level: int, optname: int, value: int | bytes) -> None:
        """As ``setsockopt``, for the subflows of one uplink alone, also those to come.

        A connection that was accepted has none: its subflows are the peer's. OSError: EINVAL for
        an uplink that the host has not.
        """
        if uplink not in (known.name for known in self._host.config.uplinks):
            raise OSError(errno.EINVAL, f'the host has no uplink "{uplink}"')
        if not self._options.knows((level, optname)) or level != socket.IPPROTO_TCP:
            raise refuse(errno.ENOPROTOOPT)
        self._options.on(uplink).set((level, optname), value)
        connection = self._connection
        if connection is not None and connection.phase is not Phase.DONE:
            self._host.call(connection.apply, time.monotonic())

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any:
        """As ``socket.socket``'s, without a limit of ``buflen``.

        Of ``MPTCP_TCPINFO`` and ``MPTCP_SUBFLOW_ADDRS`` as many elements of full size as fit.
        """
        buffer = bytearray(buflen or 4)
        element = _ELEMENTS.get(optname)
        if level == SOL_MPTCP and element is not None and len(buffer) >= _HEADER:
            header = SubflowData(size_subflow_data=_HEADER, size_user=element)
            buffer[:_HEADER] = bytes(header)
        size = self.getsockopt_into(level, optname, buffer)
        return bytes(buffer[:size]) if buflen else struct.unpack("i", buffer)[0]

    def getsockopt_into(self, level: int, optname: int, buffer: bytearray) -> int:
        """As getsockopt(2): ``buffer`` is ``optval``, also read where the kernel reads it; the
        result is the ``optlen`` that comes back. ``MPTCP_FULL_INFO`` writes to its pointers,
        which nothing checks."""
        key = (level, optname)
        if level == SOL_MPTCP:
            return self._mptcp_option(optname, buffer)
        if key in NATIVE:
            answer: bytes = super().getsockopt(level, optname, len(buffer))
        elif level == socket.SOL_SOCKET:
            answer = self._socket_option(key)
        else:
            answer = self._tcp_option(key)
        size = min(len(answer), len(buffer))
        buffer[:size] = answer[:size]
        return size

    def _socket_option(self, key: Key) -> bytes:
        connection = self._connection
        if key == LINGER:
            return struct.pack("ii", *self._options.linger)
        name = key[1]
        if name == socket.SO_ERROR:
            code = 0
            if connection is not None:
                code, connection.error = connection.error, 0
            return struct.pack("i", code)
        if name == socket.SO_DOMAIN:
            return struct.pack("i", self.family)
        if name == socket.SO_ACCEPTCONN:
            return struct.pack("i", self._listener is not None)
        if name == socket.SO_PROTOCOL:
            plain = connection is not None and not isinstance(connection.stream, MptcpConnection)
            return struct.pack("i", socket.IPPROTO_TCP if plain else self.proto)
        return self._integer_option(key)

    def _tcp_option(self, key: Key) -> bytes:
        if key == CONGESTION:
            return self._ask(_congestion, self._options.congestion).ljust(TCP_CA_NAME_MAX, b"\0")
        if key == (socket.IPPROTO_TCP, TCP_IS_MPTCP):
            connection = self._connection
            if connection is None:
                return struct.pack("i", self.proto == IPPROTO_MPTCP)
            return struct.pack("i", connection.is_mptcp)
        if key == (socket.IPPROTO_TCP, socket.TCP_INFO):
            return self._ask(_tcp_info, _LISTEN if self._listener is not None else _CLOSE)
        if key == (socket.IPPROTO_TCP, socket.TCP_MAXSEG):
            return self._ask(_mss, _DEFAULT_MSS)
        if key == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return struct.pack("i", 1)
        return self._integer_option(key)

    def _integer_option(self, key: Key) -> bytes:
        if not self._options.knows(key):
            raise refuse(errno.EOPNOTSUPP)
        return struct.pack("i", self._options.get(key))

    def _ask(self, function: Callable[[Host, Connection | None, Any], bytes], other: Any) -> bytes:
        return self._host.call(function, self._host, self._connection, other)

    def _mptcp_option(self, option: int, buffer: bytearray) -> int:
        return self._host.call(_mptcp_option, self._host, self._connection, option, buffer)


# What follows runs on the engine's thread.


def _congestion(host: Host, connection: Connection | None, chosen: str) -> bytes:
    for subflow in connection.subflows() if connection is not None else ():
        return subflow.congestion.name.encode()
    return (chosen or host.engine.stack.tcp_config.congestion_control).encode()


def _tcp_info(host: Host, connection: Connection | None, state: int) -> bytes:
    for subflow in connection.subflows() if connection is not None else ():
        return bytes(tcp_info(subflow, time.monotonic()))
    return bytes(TcpInfo(tcpi_state=state))


def _mss(host: Host, connection: Connection | None, default: int) -> bytes:
    for subflow in connection.subflows() if connection is not None else ():
        return struct.pack("i", subflow.mss)
    return struct.pack("i", default)


def _mptcp_option(host: Host, connection: Connection | None, option: int, buffer: bytearray) -> int:
    if connection is None:
        return fill(ConnectionView(MptcpInfo(), ()), option, memoryview(buffer), _write)
    stream = connection.stream
    if not isinstance(stream, MptcpConnection) or not connection.is_mptcp:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    seen = view(stream, time.monotonic(), host.engine.public)
    return fill(seen, option, memoryview(buffer), _write)


def _write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))
