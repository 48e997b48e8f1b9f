"""A connection between a program's descriptor and the engine.

The program's descriptor is one end of a pair of UNIX sockets; the engine moves bytes between the
other end and the MPTCP or TCP connection. So the kernel wakes and blocks the program, in ``select``
as in ``recv``, and a program that does not read closes the window of its peer.
"""

from __future__ import annotations

import enum
import errno
import math
from typing import TYPE_CHECKING

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.connection_core import subflow_config
from proxy.mptcp.notes import Fallback
from proxy.relay.flow import Flow
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.engine.runtime_socket import KernelStream
    from proxy.engine.stack import Application
    from proxy.sockets.engine import Engine
    from proxy.sockets.options import Options
    from proxy.tcp.config import TcpConfig
    from proxy.wire.address import Address

# What nobody holds any more and gets no further is reset after so long (tcp_fin_timeout).
_ORPHAN = 60.0
_FAILURES = (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE)


class Phase(enum.Enum):
    """Where a connection is."""

    OPENING = "opening"
    OPEN = "open"
    DONE = "done"


class Connection:
    """Made and driven by the engine's thread; the program's threads read what is public.

    ``error``: an errno that the program has not been told of. ``local`` and ``remote`` are what
    the peer sees. ``plug``: bytes in the pair that keep a connecting descriptor from being
    writable; they are dropped.
    """

    def __init__(
        self, engine: Engine, stream: Application, end: KernelStream, options: Options, plug: int
    ) -> None:
        self.phase = Phase.OPENING
        self.error = 0
        self.options = options
        self.stream = stream
        self.local = engine.public(stream.local)
        self.remote: Address = stream.remote
        self._engine = engine
        self._end = end
        self._plug = plug
        self._flow: Flow | None = None
        self._check_at = math.inf
        self._progress = -1
        self._closed = False

    # -- events -----------------------------------------------------------------------------------

    def on_event(self, stream: object, kind: Event, now: float) -> None:
        """Something happened at either side."""
        if kind is Event.SUBFLOW_ESTABLISHED:
            self._override(now)
        if self._flow is None:
            self._while_opening(kind, now)
            return
        if stream is self.stream and kind in _FAILURES:
            self._note_failure()
        self._flow.on_event(stream, kind, now)  # type: ignore[arg-type]
        if self._end.hung_up:
            if stream is self.stream and kind is Event.CLOSED:
                self._end.abort(now)
                self._finish()
            self._orphan(now)

    # What wakes the program comes last: it looks at the rest then.

    def open(self, now: float) -> None:
        """The connection is established: let bytes flow."""
        if self.stream.state is State.CLOSED:
            self.fail(now)
            return
        self.phase = Phase.OPEN
        self._flow = Flow(0, self.stream, self._end, self._ended, now)
        self._end.skip(self._plug)
        self._flow.start()
        if self._end.hung_up:
            self._orphan(now)

    def fail(self, now: float) -> None:
        """It never came about, or it is dead."""
        self._note_failure()
        self._finish()
        self._end.abort(now)

    def abort(self, now: float) -> None:
        """Reset it."""
        self.stream.abort(now)
        self._finish()
        self._end.abort(now)

    def hang_up(self) -> None:
        """Go on as if the program had closed; what it still tries ends by ECONNABORTED."""
        if not self._end.hung_up:
            self.error = errno.ECONNABORTED
            self._end.hang_up()

    @property
    def delivered(self) -> bool:
        """The peer has acknowledged all that was sent, and our FIN."""
        return self.stream.state in (State.FIN_WAIT_2, State.TIME_WAIT, State.CLOSED)

    def _while_opening(self, kind: Event, now: float) -> None:
        if kind is Event.ESTABLISHED:
            self._engine.answered(self.stream, now)
            self._override(now)
            self.open(now)
        elif kind in _FAILURES or kind is Event.CLOSED:
            self._engine.unanswered(self.stream, kind, now)
            self.fail(now)
        elif self._end.hung_up:
            self.abort(now)

    def _note_failure(self) -> None:
        failure = self.stream.error
        self.error = failure.errno if failure is not None else errno.ECONNRESET

    def _ended(self, flow: Flow) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.phase is not Phase.DONE:
            self.phase = Phase.DONE
            self._engine.leave(self, self.stream, self._end)

    # -- after the program's close ----------------------------------------------------------------

    def _orphan(self, now: float) -> None:
        """The program has closed; what it wrote still goes out."""
        if self.phase is Phase.DONE:
            return
        if self.options.resets_on_close or self.stream.receivable:
            self.abort(now)  # RFC 2525 §2.17: unread data says that some of it is lost
            return
        if self._check_at == math.inf:
            self._check_at = now + _ORPHAN
            self._engine.stack.arm(self)
        if self._end.eof and not self._closed:
            self._closed = True
            self.stream.close(now)

    def poll(self, now: float) -> None:
        """Nothing to send: the stream does."""

    def next_timeout(self) -> float | None:
        """When ``on_timeout`` must be called; None: never."""
        return None if self._check_at == math.inf else self._check_at

    def on_timeout(self, now: float) -> None:
        """Reset an orphan whose peer takes nothing."""
        if now < self._check_at or self.phase is Phase.DONE:
            return
        progress = self.acked()
        if progress == self._progress:
            self.error = errno.ETIMEDOUT
            self.abort(now)
            return
        self._progress = progress
        self._check_at = now + _ORPHAN
        self._engine.stack.arm(self)

    def acked(self) -> int:
        """Bytes that the peer acknowledged."""
        stream = self.stream
        return stream.tx.una if isinstance(stream, MptcpConnection) else stream.bytes_acked

    # -- options ----------------------------------------------------------------------------------

    @property
    def is_mptcp(self) -> bool:
        """Whether MPTCP is in use: not plain TCP from the start or after a fall-back."""
        stream = self.stream
        return isinstance(stream, MptcpConnection) and stream.fallback is Fallback.NONE

    def subflows(self) -> list[TcpConnection]:
        """The subflows; of plain TCP, itself."""
        stream = self.stream
        return list(stream.subflows) if isinstance(stream, MptcpConnection) else [stream]

    def apply(self, now: float) -> None:
        """Take ``options`` over, for all subflows and those to come."""
        stream, options = self.stream, self.options
        config = self._config(options)
        if isinstance(stream, MptcpConnection):
            stream.tcp_config = config
        for subflow in self.subflows():
            subflow.configure(config, now)
        if options.congestion and isinstance(stream, MptcpConnection):
            stream.set_congestion_control(options.congestion)
        elif options.congestion and isinstance(stream, TcpConnection):
            stream.set_congestion_control(options.congestion, now)
        self._override(now)

    def _override(self, now: float) -> None:
        uplinks = self.options.uplinks
        if not uplinks or not isinstance(self.stream, MptcpConnection):
            return
        for subflow in self.stream.subflows:
            options = uplinks.get(subflow.uplink or "")
            if options is not None:
                subflow.configure(self._config(options), now)
                self.stream.set_subflow_congestion(subflow, options.congestion or None)

    def _config(self, options: Options) -> TcpConfig:
        stream = self.stream
        config = options.apply(self._engine.stack.tcp_config)
        if not isinstance(stream, MptcpConnection):
            return config
        return subflow_config(config, stream.config.time_wait, stream.config.subflow_keepalive)
