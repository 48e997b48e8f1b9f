"""Watches kernel sockets: one edge-triggered epoll instance, of which the loop sees one descriptor.

A socket is entered once for all of its life, with one system call, and what happens on many of them
at once is one turn of the runtime. The loop's own watchers cost several calls and objects a
connection, and a turn for each event.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    Handler = Callable[[int], None]

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HUNG_UP = select.EPOLLHUP
"""Both directions are shut."""
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The peer has finished, or the connection is dead: a read says which."""

_ALL = IN | OUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 256


class SocketPoll:
    """Calls a handler with the events of its socket, once each time that something changes.

    So a handler must remember that it did not read or write all that it could.
    """

    __slots__ = ("_closing", "_dispatching", "_epoll", "_handlers")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._dispatching = False
        self._closing: list[socket.socket] = []

    def fileno(self) -> int:
        """Readable while ``dispatch`` has work."""
        return self._epoll.fileno()

    def watch(self, sock: socket.socket, handler: Handler) -> None:
        """Begin to watch ``sock``."""
        number = sock.fileno()
        self._epoll.register(number, _ALL)
        self._handlers[number] = handler

    def hand_over(self, sock: socket.socket, handler: Handler) -> None:
        """From now on ``handler`` is told of a socket that is watched already."""
        self._handlers[sock.fileno()] = handler

    def close(self, sock: socket.socket) -> None:
        """Close ``sock``, watched or not; its handler is not called any more."""
        self._handlers.pop(sock.fileno(), None)
        if self._dispatching:
            # Its number must not come back, or what is still to be told of it would reach another.
            self._closing.append(sock)
        else:
            sock.close()

    def dispatch(self, failed: Callable[[], None]) -> None:
        """Tell of what has happened; ``failed`` is called in the ``except`` of a handler."""
        self._dispatching = True
        try:
            for number, events in self._epoll.poll(0, _BATCH):
                handler = self._handlers.get(number)
                if handler is None:
                    continue
                try:
                    handler(events)
                except Exception:
                    failed()
        finally:
            self._dispatching = False
            for sock in self._closing:
                sock.close()
            self._closing.clear()

    def stop(self) -> None:
        """Watch nothing any more."""
        self._handlers.clear()
        self._epoll.close()
