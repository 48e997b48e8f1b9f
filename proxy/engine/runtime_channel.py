"""Messages between workers: a socket pair for each of them, whose other end all the others have.

The process that starts the workers keeps both ends, so that a worker that is started again finds
its predecessor's messages, and nobody else need know.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from proxy.engine.handover import MAX_MESSAGE

# Octets that wait for one worker at most: what does not fit is lost, as in a full network queue.
_ROOM = 4 * 1024 * 1024
_BATCH = 256
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python has no name for it


def make_pair() -> tuple[socket.socket, socket.socket]:
    """The end that a worker reads, and the one that the others write."""
    inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (inlet, outlet):
        end.setblocking(False)
    outlet.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
    with contextlib.suppress(OSError):  # no CAP_NET_ADMIN in the first namespace: as far as allowed
        outlet.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
    return inlet, outlet


class SocketChannel:
    """The ``Channel`` of one worker: ``inlet`` is its own, ``outlets`` those of the others."""

    def __init__(self, inlet: socket.socket, outlets: Mapping[int, socket.socket]) -> None:
        self._inlet = inlet
        self._outlets = outlets

    def send(self, worker: int, *parts: bytes) -> bool:
        """Send one message; False when there is no room."""
        try:
            self._outlets[worker].sendmsg(parts)
        except OSError:  # EAGAIN, ENOBUFS, or EMSGSIZE where the buffer is the default one
            return False
        return True

    def receive(self) -> list[bytes]:
        """The messages that are there; if there are many, some of them."""
        messages: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BATCH):
                messages.append(self._inlet.recv(MAX_MESSAGE))
        return messages

    def fileno(self) -> int:
        """A descriptor that is readable when there are messages."""
        return self._inlet.fileno()
