"""A listening socket of a program: the queue of connections that it has not accepted."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from proxy.mptcp.connection import MptcpConnection
from proxy.pm.base import factory as path_manager
from proxy.tcp.events import Event
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.engine.runtime_socket import KernelStream
    from proxy.engine.stack import Application
    from proxy.seg import Segment
    from proxy.sockets.engine import Engine
    from proxy.sockets.options import Options

MAX_BACKLOG = 4096  # net.core.somaxconn
# Handshakes of which something is kept, at least; beyond it SYNs are answered by cookies.
_MIN_OPENING = 16
# How long after the last cookie one may still come back.
_COOKIE_LIFETIME = 128.0


class Place(NamedTuple):
    """Where is listened: ``ip`` is an address of the engine, or empty for all of its ``family``
    (4 or 6)."""

    family: int
    ip: bytes
    port: int


class Listener:
    """Made and driven by the engine's thread. Its ``end`` of the program's pair is told a byte for
    each connection that waits, so that the program's descriptor is readable."""

    def __init__(
        self, engine: Engine, end: KernelStream, place: Place, mptcp: bool, options: Options
    ) -> None:
        self.place = place
        self.options = options
        self._backlog = 0
        self._engine = engine
        self._end = end
        self._mptcp = mptcp
        self._opening: set[Application] = set()
        self._ready: deque[Application] = deque()
        self._cookies_until = 0.0

    def set_backlog(self, backlog: int) -> None:
        """How many may wait; one more does, as in Linux."""
        self._backlog = min(max(backlog, 0), MAX_BACKLOG)

    def on_syn(self, syn: Segment, now: float) -> None:
        """Somebody connects."""
        if len(self._ready) > self._backlog:
            self._overflow()
        elif len(self._opening) > max(self._backlog, _MIN_OPENING):
            self._cookies_until = now + _COOKIE_LIFETIME
            self._engine.cookies.answer(syn, now)
        else:
            stack = self._engine.stack
            with self._engine.configured(self.options):
                stream = stack.open_passive(syn, now, mptcp=self._mptcp)
            if stream.state is not State.CLOSED:
                self._take(stream)
                stream.accept(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """Whether ``segment`` is the answer to a cookie."""
        if now >= self._cookies_until:
            return False
        with self._engine.configured(self.options):
            stream = self._engine.cookies.restore(segment, now, self._has_room)
        if stream is None:
            return False
        self._take(stream)
        return True

    def on_event(self, stream: object, kind: Event, now: float) -> None:
        """Something happened to a connection that nobody has accepted, or at our end."""
        if stream is self._end:
            if self._end.hung_up:
                self.close(now)
        elif kind is Event.ESTABLISHED:
            self._opening.discard(stream)
            self._ready.append(stream)  # type: ignore[arg-type]
            self._end.send(b"\1")
        elif kind in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE, Event.CLOSED):
            # As in Linux, one that waits in the queue is still accepted, and then found dead.
            self._opening.discard(stream)

    def take(self) -> Application | None:
        """The next connection in the queue."""
        return self._ready.popleft() if self._ready else None

    def close(self, now: float) -> None:
        """Listen no more; what nobody accepted is reset."""
        self._engine.forget_listener(self, self._end)
        for stream in (*self._opening, *self._ready):
            self._engine.disown(stream)
            stream.abort(now)
        self._opening.clear()
        self._ready.clear()
        self._end.abort(now)

    def _take(self, stream: Application) -> None:
        if self.place.ip and isinstance(stream, MptcpConnection):
            # Nobody would answer at what else there is to announce.
            stream.path_manager = path_manager("passive")()
        self._opening.add(stream)
        self._engine.own(stream, self)

    def _has_room(self, data: bytes) -> bool:
        if len(self._ready) > self._backlog:
            self._overflow()
            return False
        return True

    def _overflow(self) -> None:
        self._engine.stack.counters.add("ListenOverflows")
