"""``trace``: what the engine decides and why, kept in a ring and read in pages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from proxy.control.fields import CommandError, Request, number, token
from proxy.control.why import token_of
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.subflow import Subflow
from proxy.mptcp.trace import Trace, unwrapped

if TYPE_CHECKING:
    from proxy.engine.stack import Stack
    from proxy.relay.flow import Flow

SIZE, MAX_SIZE = 4, 64
"""Megabytes of a ring: unless asked otherwise, and at most."""
_MEGABYTE = 1 << 20
_PAGE = 256 * 1024  # bytes of lines in one answer
_MAX_ID = (1 << 63) - 1
_MAX_CURSOR = (1 << 53) - 1


class TraceCommands:
    """One trace of a stack at a time; what it has written can be read until the next one."""

    def __init__(
        self,
        stack: Stack,
        flows: Callable[[], Iterable[Flow]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._stack = stack
        self._flows = flows
        self._clock = clock
        self._wall_clock = wall_clock
        self._trace: Trace | None = None

    def start(self, request: Request) -> object:
        """``trace-start``: ``conn`` (its id) or ``token``, else all; ``size`` in megabytes."""
        if self._stack.trace is not None:
            raise CommandError("EBUSY", "a trace is running already: trace stop ends it")
        size = number(request, "size", 1, MAX_SIZE, SIZE)
        only = self._wanted(request)
        trace = Trace(size * _MEGABYTE, self._wall_clock() - self._clock(), only)
        self._trace = self._stack.trace = trace
        for conn in self._connections():
            conn.scheduler = trace.wrap(conn, conn.scheduler)
        return {"size": size, "token": None if only is None else f"{only:08x}"}

    def stop(self, request: Request) -> object:
        """``trace-stop``: nothing is written any more."""
        trace = self._stack.trace
        if trace is None:
            raise CommandError("EINVAL", "no trace is running: trace start begins one")
        self._stack.trace = None
        for conn in self._connections():
            conn.scheduler = unwrapped(conn.scheduler)
        return {"events": trace.count}

    def dump(self, request: Request) -> object:
        """``trace-dump``: a page of events from ``cursor`` on."""
        (cursor,) = cursors(request, 1)
        tracing = self._stack.trace is not None
        if self._trace is None:
            return {"events": [], "cursor": [0], "lost": 0, "more": False, "tracing": tracing}
        page = self._trace.read(cursor, _PAGE)
        return {
            "events": [json.loads(line) for line in page.lines],
            "cursor": [page.cursor],
            "lost": page.lost,
            "more": page.cursor < self._trace.count,
            "tracing": tracing,
        }

    def _wanted(self, request: Request) -> int | None:
        if "token" in request:
            wanted = token(request)
            if wanted not in self._stack.tokens:
                raise CommandError("ENOENT", f"no connection has token {wanted:08x}")
            return wanted
        if "conn" not in request:
            return None
        wanted = number(request, "conn", 0, _MAX_ID)
        for flow in self._flows():
            if flow.id == wanted:
                found = token_of(flow)
                if found is None:
                    raise CommandError("EOPNOTSUPP", f"connection {wanted} is plain TCP")
                return found
        raise CommandError("ENOENT", f"no connection has id {wanted} (status shows those open)")

    def _connections(self) -> Iterator[MptcpConnection]:
        # Those that fell back have no token any more, those that wait for a path no subflow.
        known = dict.fromkeys(self._stack.tokens.values())
        known |= dict.fromkeys(s.conn for s in self._stack.demux if isinstance(s, Subflow))
        return iter(known)


def cursors(request: Request, count: int) -> list[int]:
    """Where the last page ended: a number a worker; zeros to begin. CommandError EINVAL."""
    value = request.get("cursor", [0] * count)
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(part) is int and 0 <= part <= _MAX_CURSOR for part in value)
    ):
        raise CommandError("EINVAL", "cursor must be what the last trace-dump answered")
    return value
