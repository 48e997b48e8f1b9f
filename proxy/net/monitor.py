"""Tells that links, addresses or routes of the host changed, so that the set-up can follow."""

from __future__ import annotations

import errno
import socket

from proxy.errors import DeviceError

__all__ = ["Monitor"]

# linux/rtnetlink.h, the legacy multicast groups.
_LINK, _ADDRESS4, _ROUTE4, _ADDRESS6, _ROUTE6 = 0x1, 0x10, 0x40, 0x100, 0x400


class Monitor:
    """An rtnetlink subscription: when ``fileno`` is readable, ``drain`` and then refresh.

    Our own changes are announced too: after a refresh that did something, one more comes. An
    event is a hint without content, so a lost one (a full socket buffer) loses nothing.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _LINK | _ADDRESS4 | _ROUTE4 | _ADDRESS6 | _ROUTE6))
        except OSError as error:
            raise DeviceError(f"rtnetlink: {error.strerror}") from None

    def fileno(self) -> int:
        """The descriptor, for the event loop."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take what has come; whether there was anything."""
        seen = False
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return seen
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost: as good as one
                    raise DeviceError(f"rtnetlink: {error.strerror}") from error
            seen = True

    def close(self) -> None:
        """End the subscription. Idempotent."""
        self._socket.close()
