"""The same sockets twice: the kernel's, and ours, for tests that are written once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from proxy.sockets import IPPROTO_MPTCP, Host, Socket
from tests.lab.namespaces import Namespace
from tests.lab.topology import Topology, next_hop, next_hop6

_LIBC = ctypes.CDLL(None, use_errno=True)
PATIENCE = 60.0  # seconds after which what has to come is missed


class Maker(Protocol):
    """Makes sockets in the proxy's namespace of a ``Topology``."""

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        proto: int = IPPROTO_MPTCP,
    ) -> Any: ...

    def option_into(self, sock: Any, level: int, option: int, buffer: bytearray) -> int: ...


class KernelMaker:
    """Those of the kernel."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        proto: int = IPPROTO_MPTCP,
    ) -> socket.socket:
        with self._namespace.entered():
            return socket.socket(family, kind, proto)

    def option_into(self, sock: socket.socket, level: int, option: int, buffer: bytearray) -> int:
        """getsockopt(2): Python's does not let the buffer be read."""
        memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        size = ctypes.c_uint(len(buffer))
        if _LIBC.getsockopt(sock.fileno(), level, option, memory, ctypes.byref(size)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return size.value


class EngineMaker:
    """Ours."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        proto: int = IPPROTO_MPTCP,
    ) -> Socket:
        return self.host.socket(family, kind, proto)

    def option_into(self, sock: Socket, level: int, option: int, buffer: bytearray) -> int:
        return sock.getsockopt_into(level, option, buffer)


def uplinks(lab: Topology) -> list[dict[str, object]]:
    """All uplinks of the lab, as ``Host.open`` wants them."""
    return [
        {"interface": f"u{index}", "next_hop": next_hop(index), "next_hop6": next_hop6(index)}
        for index in lab.indices
    ]


@contextmanager
def opened(lab: Topology, **settings: Any) -> Iterator[Host]:
    """A host in the proxy's namespace for the length of the block."""
    with lab.proxy.entered():
        host = Host.open(uplinks(lab), **settings)
    with host:
        yield host


class Peer:
    """A thread's work at the far end; ``result`` waits for it and raises what it raised."""

    def __init__(self, work: Any, *args: Any) -> None:
        self._done: list[Any] = []
        self._error: list[BaseException] = []

        def run() -> None:
            try:
                self._done.append(work(*args))
            except BaseException as error:
                self._error.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the peer is not done"
        if self._error:
            raise self._error[0]
        return self._done[0]


def read_all(sock: Any) -> bytes:
    """All that comes until the peer has finished."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def dropped(namespace: Namespace, port: int) -> Iterator[None]:
    """Packets to a port vanish for the length of the block."""
    rule = f"type filter hook prerouting priority -300; tcp dport {port} drop"
    namespace.run("nft", f"table inet lose {{ chain in {{ {rule}; }}; }}")
    try:
        yield
    finally:
        namespace.run("nft", "delete table inet lose")


def refused_with(function: Any, *args: Any) -> int:
    """The errno of the error that a call ends with; 0 for none."""
    with contextlib.suppress(BlockingIOError):
        try:
            function(*args)
        except OSError as error:
            return error.errno or 0
    return 0
