"""What clients do in tests, in plain words."""

from __future__ import annotations

import socket
import struct

from tests.lab.namespaces import LabError, Namespace
from tests.lab.servers import read_all


def reset(sock: socket.socket) -> None:
    """Closes with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def exchange(namespace: Namespace, address: str, port: int, request: bytes) -> bytes:
    """Sends a request, half-closes, and returns all that comes back."""
    with namespace.connect(address, port) as sock:
        sock.settimeout(60)
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def echo_through(sock: socket.socket, size: int, seed: int = 1) -> bool:
    """Sends ``size`` bytes to an echo server, reads them back while sending; are they equal?"""
    data = bytes((seed + n * 7 + (n >> 8)) & 0xFF for n in range(min(size, 65536)))
    data = (data * (size // len(data) + 1))[:size]
    sent, back = 0, bytearray()
    sock.settimeout(30)
    while len(back) < size:
        if sent < size and sent - len(back) < 1 << 17:
            sent += sock.send(data[sent : sent + 65536])
            continue
        part = sock.recv(1 << 17)
        if not part:
            raise LabError(f"the stream ended after {len(back)} of {size} bytes")
        back += part
    return bytes(back) == data


def until_blocked(sock: socket.socket, patience: float, limit: int) -> int:
    """Sends until nothing has been taken for ``patience`` seconds; returns how much was."""
    sock.settimeout(patience)
    sent, chunk = 0, bytes(1 << 16)
    while sent < limit:
        try:
            sent += sock.send(chunk)
        except TimeoutError:
            return sent
    return sent


def is_reset(sock: socket.socket, within: float = 30.0) -> bool:
    """Writes, then reads: does the connection end by an error (not by a FIN, not by silence)?"""
    sock.settimeout(within)
    try:
        sock.sendall(b"still there?")
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return False
