"""Paths that swallow SYNs with MP_CAPABLE: no MPTCP there for a while (``blackhole_timeout``).

The kernel keeps one such period for the whole host (``net/mptcp/ctrl.c``); here there is one per
path, since a bad uplink says nothing about the others (RFC 8684 §3.9, RFC 8041 §3.10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.tcp.host import Counters

MAX_PATHS = 256
_MAX_DOUBLINGS = 6  # as in the kernel: at most 64 times the first period


class _Record:
    """``falls``: black holes in a row; ``until``: when MPTCP is tried again; ``noted``: when a
    connection fell in last."""

    __slots__ = ("falls", "noted", "until")

    def __init__(self) -> None:
        self.falls = -1  # the first time proves nothing
        self.noted = -math.inf
        self.until = 0.0


class Blackhole:
    """Remembers by (local address, remote address); ``timeout`` in seconds, 0 is off.

    An outage that ends just when the SYN without the option goes out looks the same, for all
    connections that are being opened. So a path is avoided only if a connection fell in that was
    begun after another one had, with none in between that worked; the kernel is content with one.

    ``tell`` hears what other processes should ``hear``: the name of a method, and its arguments.
    """

    __slots__ = ("_counters", "_records", "tell", "timeout")

    def __init__(self, timeout: float, counters: Counters) -> None:
        self.tell: Callable[..., None] | None = None
        self.timeout = timeout
        self._counters = counters
        self._records: dict[tuple[bytes, bytes], _Record] = {}

    def reset(self, timeout: float) -> None:
        """Start anew with another first period, as writing the sysctl does in the kernel."""
        self.timeout = timeout
        self._records.clear()

    def active(self, local_ip: bytes, remote_ip: bytes, now: float) -> bool:
        """Whether a new connection should do without MPTCP."""
        record = self._records.get((local_ip, remote_ip))
        return self.timeout > 0 and record is not None and now < record.until

    def fell_in(self, local_ip: bytes, remote_ip: bytes, began: float, now: float) -> None:
        """SYNs with MP_CAPABLE, from ``began`` on, got no answer, and one without it did."""
        if self._fall(local_ip, remote_ip, began, now):
            self._counters.add("MPTcpExtBlackhole")
        if self.tell is not None:
            self.tell("fell_in", local_ip, remote_ip, began, now)

    def works(self, local_ip: bytes, remote_ip: bytes) -> None:
        """MP_CAPABLE or MP_JOIN was answered on the path."""
        if self._records.pop((local_ip, remote_ip), None) is not None and self.tell is not None:
            self.tell("works", local_ip, remote_ip)

    def hear(self, what: str, local_ip: bytes, remote_ip: bytes, *times: float) -> None:
        """The same happened in another process, on the same clock; it is counted there."""
        if what == "works":
            self._records.pop((local_ip, remote_ip), None)
        elif what == "fell_in" and len(times) == 2:
            self._fall(local_ip, remote_ip, *times)

    def _fall(self, local_ip: bytes, remote_ip: bytes, began: float, now: float) -> bool:
        """Whether the path is avoided from now on."""
        path = (local_ip, remote_ip)
        record = self._records.pop(path, None) or _Record()
        self._records[path] = record
        if len(self._records) > MAX_PATHS:
            del self._records[next(iter(self._records))]
        if self.timeout <= 0 or began < record.noted:
            return False
        record.noted = now
        record.falls += 1
        if record.falls:
            doublings = min(record.falls - 1, _MAX_DOUBLINGS)
            record.until = now + self.timeout * (1 << doublings)
        return bool(record.falls)
